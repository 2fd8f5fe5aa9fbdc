"""Model cards: the README.md beside a model's weights, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


def make_card(title: str, body: str, base_model: str, library: str) -> ModelCard:
    """Return a card of a causal language model.

    Args:
        title: the heading.
        body: Markdown below the heading.
        base_model: path or hub id of the model that was trained or merged; quoted as YAML needs it.
        library: what loads the folder, `transformers` or `peft`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(base_model=base_model, pipeline_tag="text-generation", library_name=library)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{body}")

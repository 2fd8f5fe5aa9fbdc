"""`RewardModel`: a sequence classifier with one output, from a folder, that scores an answer to a prompt."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

import torch

from dpo_lightning.data.encoding.template_limits import render_template, renders_chat
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.progress import track
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.finite_weights import check_finite
from dpo_lightning.models.folder_checks import call_loader, check_folder, check_loaded
from dpo_lightning.models.folder_files import is_adapter_folder
from dpo_lightning.models.patterns import check_tokenizer_file

KEY = "--judge_model"
ONE_OUTPUT = "give a reward model: a folder of AutoModelForSequenceClassification with num_labels 1"
SEGMENTS = "token_type_ids"

Ids: TypeAlias = Mapping[str, Sequence[int]]
"""A row as ids: `input_ids`, and `token_type_ids` where the tokenizer returns them."""


class RewardModel:
    """A classifier with its tokenizer, in eval mode and float32.

    Attributes:
        path: its folder.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        """Load the model from safetensors; code of the folder is never run.

        Raises:
            UserError: the folder is missing, is no classifier with one output, lacks weights, or has pickled ones.
        """
        from transformers import AutoTokenizer

        folder = check_folder(path)
        if folder is None or is_adapter_folder(folder):
            what = "a hub id" if folder is None else "an adapter"
            raise UserError(ExitCode.MODEL, Problem(f"expected a model folder, found {what}", KEY, path), ONE_OUTPUT)
        self.path = path
        check_tokenizer_file(folder / "tokenizer.json")
        self._tokenizer = call_loader(AutoTokenizer.from_pretrained, path, trust_remote_code=False)
        self._model = load_classifier(path).to(device).eval()
        self._device = device
        self._config = self._model.config.get_text_config()
        self._padding: int | None = self._config.pad_token_id
        # A tokenizer may return segment ids of which the model has no embeddings.
        segments = getattr(self._config, "type_vocab_size", None) != 1
        self._segmented = segments and SEGMENTS in inspect.signature(self._model.forward).parameters

    def encode(self, messages: Sequence[Mapping[str, Any]], prompt: str, answer: str, origin: Origin) -> Ids:
        """Encode an answer: with the chat template, or without one as a pair of texts as encoders are trained.

        Args:
            messages: the prompt as chat messages.
            prompt: the prompt as text.
            answer: the answer.
            origin: where the prompt is from, for errors.

        Raises:
            UserError: 65, the template rejects the messages; 67, it renders no messages at all.
        """
        if not self._tokenizer.chat_template:
            return dict(self._tokenizer(prompt, answer))
        chat = [*map(dict, messages), {"role": "assistant", "content": answer}]
        return dict(self._tokenizer(self._render(chat, prompt, origin), add_special_tokens=False))

    def _render(self, chat: Sequence[Mapping[str, Any]], prompt: str, origin: Origin) -> str:
        from jinja2 import TemplateError

        try:
            return render_template(self._tokenizer, chat, tokenize=False)
        except (TemplateError, TypeError, ValueError) as error:
            if not renders_chat(self._tokenizer):
                what = Problem(f"the chat template fails for any chat: {error}", KEY, self.path)
                raise UserError(ExitCode.MODEL, what, fix="correct the template of this folder") from None
            raise UserError(
                ExitCode.DATA,
                Problem(f"the chat template of the reward model rejects the prompt: {error}", str(origin), prompt),
                fix="remove the prompt from the files, or use a reward model whose template takes it",
            ) from None

    @torch.inference_mode()
    def score(self, rows: Sequence[Ids], batch_size: int = 8) -> list[float]:
        """Return the score of each row.

        Args:
            rows: as `encode` returns them.
            batch_size: rows that are scored at a time; rows of about the same length are put together.

        Raises:
            UserError: 65, a row is longer than the model's positions.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        positions, longest = count_positions(self._model), max(lengths, default=0)
        if longest > positions:
            raise UserError(
                ExitCode.DATA,
                f"a prompt and its answer have {longest} tokens, the reward model {positions} positions",
                fix="shorter answers, or another reward model",
            )
        order = sorted(range(len(rows)), key=lambda row: -lengths[row])
        scores = [math.nan] * len(rows)
        for row, score in track(self._score_in_order(rows, order, batch_size), "scoring", len(rows)):
            scores[row] = score
        return scores

    def _score_in_order(
        self, rows: Sequence[Ids], order: Sequence[int], batch_size: int
    ) -> Iterator[tuple[int, float]]:
        """Iterate over rows in the given order, the longest first, with their scores."""
        for start in range(0, len(order), batch_size):
            batch = [rows[row] for row in order[start : start + batch_size]]
            ids = [row["input_ids"] for row in batch]
            padding = self._padding
            if padding is None:
                # Decoders are read out at the last token that is no padding, so it has to be an id that no row has.
                used = {token for row in ids for token in row}
                padding = self._config.pad_token_id = next(token for token in count() if token not in used)
            inputs = {"input_ids": pad(ids, padding), "attention_mask": pad([[1] * len(row) for row in ids], 0)}
            if self._segmented and SEGMENTS in batch[0]:
                inputs[SEGMENTS] = pad([row[SEGMENTS] for row in batch], 0)
            found = self._model(**{name: value.to(self._device) for name, value in inputs.items()}).logits
            yield from zip(order[start:], found[:, 0].tolist(), strict=False)


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return rows as a matrix, with `value` after the shorter ones; the first row is the longest."""
    return torch.tensor([[*row, *[value] * (len(rows[0]) - len(row))] for row in rows])


def count_positions(model: Any) -> float:
    """Return how many tokens a classifier can read; infinite where its configuration has no limit.

    Models such as RoBERTa have a position embedding with a padding index, and number the tokens from the next one on.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - module.padding_idx - 1
    return positions


def load_classifier(path: str) -> Any:
    """Load a classifier with one output.

    Raises:
        UserError: 67, it has another number of outputs, or weights are missing, unknown or of another shape.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = call_loader(AutoConfig.from_pretrained, path, trust_remote_code=False)
    outputs = getattr(config, "num_labels", None)
    if outputs != 1:
        raise UserError(ExitCode.MODEL, Problem(f"the model has {outputs} outputs, not 1", KEY, path), ONE_OUTPUT)
    model, info = call_loader(
        AutoModelForSequenceClassification.from_pretrained,
        path,
        config=config,
        dtype="float32",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, with their names
    )
    check_loaded(info, path, KEY, ONE_OUTPUT)
    check_finite(model, path, KEY)
    return model

"""`RewardModel`: a sequence classifier with one output, from a folder, that scores an answer to a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch

from dpo_lightning.data.progress import track
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.finite_weights import check_finite
from dpo_lightning.models.folder_checks import call_loader, check_folder, check_loaded
from dpo_lightning.models.folder_files import is_adapter_folder
from dpo_lightning.models.patterns import check_tokenizer_file

KEY = "--judge_model"
ONE_OUTPUT = "give a reward model: a folder of AutoModelForSequenceClassification with num_labels 1"


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

    def encode(self, messages: Sequence[Mapping[str, Any]], prompt: str, answer: str) -> list[int]:
        """Encode an answer: with the chat template, or without one as a pair of texts as encoders are trained.

        Args:
            messages: the prompt as chat messages.
            prompt: the prompt as text.
            answer: the answer.

        Returns:
            Token ids of both.

        Raises:
            UserError: the template cannot be used for the messages.
        """
        if not self._tokenizer.chat_template:
            return list(self._tokenizer(prompt, answer)["input_ids"])
        chat = [*map(dict, messages), {"role": "assistant", "content": answer}]
        return list(
            call_loader(
                lambda _: self._tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False), self.path
            )
        )

    @torch.inference_mode()
    def score(self, rows: Sequence[Sequence[int]], batch_size: int = 8) -> list[float]:
        """Return the score of each row.

        Args:
            rows: token ids, as `encode` returns them.
            batch_size: rows that are scored at a time; rows of about the same length are put together.

        Raises:
            UserError: 65, a row is longer than the model's positions.
        """
        positions = getattr(self._config, "max_position_embeddings", None) or math.inf
        longest = max(map(len, rows), default=0)
        if longest > positions:
            raise UserError(
                ExitCode.DATA,
                f"a prompt and its answer have {longest} tokens, the reward model {positions} positions",
                fix="shorter answers, or another reward model",
            )
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        scores = [math.nan] * len(rows)
        for row, score in track(self._score_in_order(rows, order, batch_size), "scoring", len(rows)):
            scores[row] = score
        return scores

    def _score_in_order(
        self, rows: Sequence[Sequence[int]], order: Sequence[int], batch_size: int
    ) -> Iterator[tuple[int, float]]:
        """Iterate over rows in the given order, the longest first, with their scores."""
        for start in range(0, len(order), batch_size):
            batch = [rows[row] for row in order[start : start + batch_size]]
            width = len(batch[0])
            padding = self._padding
            if padding is None:
                # Decoders are read out at the last token that is no padding, so it has to be an id that no row has.
                used = {token for row in batch for token in row}
                padding = self._config.pad_token_id = next(token for token in count() if token not in used)
            ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in batch])
            mask = (torch.arange(width) < torch.tensor([len(row) for row in batch])[:, None]).long()
            found = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).logits
            yield from zip(order[start:], found[:, 0].tolist(), strict=False)


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

"""Loads what an evaluation needs: the model and its reference as `ModelPair`, and the renderer of its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dpo_lightning.data.collate import Collator
from dpo_lightning.data.encoding.chat_templates import RunDate, choose_template
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.options import MAX_LENGTH, EvaluationOptions
from dpo_lightning.evaluation.record import NO_REFERENCE, Record
from dpo_lightning.evaluation.scoring import ModelPair
from dpo_lightning.log import logger
from dpo_lightning.losses import PairwiseLoss
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.ranks import port_held
from dpo_lightning.references.provenance import model_digests
from dpo_lightning.runs.checkpoint_model import ModelSource, open_model
from dpo_lightning.special_files import real_path
from dpo_lightning.stopping import pass_signals_on


class Models(NamedTuple):
    """What is evaluated, before weights are loaded.

    Attributes:
        source: the model, and the trained weights of a checkpoint.
        reference: the reference; None without one.
        digests: of the weights of both; the second is empty without a reference.
        loss: the loss that is reported.
    """

    source: ModelSource
    reference: CausalLM | None
    digests: tuple[str, str]
    loss: PairwiseLoss

    @property
    def policy(self) -> CausalLM:
        """The model; of a checkpoint, the one with which its run began."""
        return self.source.spec

    @property
    def below(self) -> bool:
        """Whether the reference is the base of the model's adapter, which needs no second copy of the weights."""
        if self.reference is None or self.policy.adapter_folder() is None:
            return False
        same = real_path(self.policy.base_path()) == real_path(self.reference.path)
        return same and self.reference.adapter_folder() is None

    def load(
        self,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        collator: Collator | None = None,
    ) -> ModelPair:
        """Load the weights of both.

        Raises:
            UserError: one of them cannot be loaded.
        """
        policy = self.source.build().to(device)
        other = None if self.reference is None or self.below else self.reference.build().to(device)
        return ModelPair(policy, other, self.below, autocast, collator)


def choose_models(options: EvaluationOptions, precision: str) -> Models:
    """Choose reference and loss, by the options or by the model's record, and check that they can be compared.

    Raises:
        UserError: the reference is missing, has another tokenizer, or is the model itself.
    """
    source = open_model(options.model)
    record = Record.of(source.stages)
    quantization = record.make_quantization() if source.adapted else None  # others were merged, or never quantized
    dtype = options.dtype if quantization is None else "float32"
    policy = replace(source.spec, dtype=dtype, quantization=quantization).under(precision)
    source = source._replace(spec=policy)
    if policy.quantization is not None:
        logger.info(f"base: {policy.quantization}, as in training")
    path, reason = options.reference, "given"
    if path is None:
        path, reason = record.find_reference()
    loss = record.make_loss(options.beta)
    if path is None or path == NO_REFERENCE:
        logger.info(f"reference: none ({reason})")
        return Models(source, None, (digest_of(source_digests(source)), ""), loss)
    reference = replace(policy, path=path, lora=None)
    if reference.tokenizer().get_vocab() != policy.tokenizer().get_vocab():
        raise UserError(
            ExitCode.MODEL,
            Problem("the reference has another tokenizer than the model", "--reference", path),
            fix="use a reference of the same family, or --reference none",
        )
    ours, theirs = source_digests(source), model_digests(reference)
    if all(ours[name] == theirs[name] for name in ("weights", "adapter")):
        raise UserError(
            ExitCode.CONFIG,
            Problem("the reference is the model itself: each reward and divergence would be 0", "--reference", path),
            fix="--reference PATH names the model before its training, --reference none compares with no model",
        )
    logger.info(f"reference: {path} ({reason})")
    return Models(source, reference, (digest_of(ours), digest_of(theirs)), loss)


def source_digests(source: ModelSource) -> dict[str, str]:
    """Return digests of a model by field name, as `model_digests`; of a checkpoint, with the weights that it has."""
    found = model_digests(source.spec)
    return found if source.trained is None else found | {"adapter": source.digest}


def make_fabric(accelerator: str, precision: str | None = None, devices: int = 1) -> Fabric:
    """Choose the devices to compute on.

    Raises:
        UserError: 64 for an accelerator that does not exist, 69 for devices that this machine does not have.
    """
    strategy = "ddp" if devices > 1 else "auto"
    try:
        return Fabric(accelerator=accelerator, strategy=strategy, devices=devices, precision=precision)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        code = ExitCode.CONFIG if isinstance(error, ValueError) else ExitCode.DEVICE
        what = Problem(str(error).splitlines()[0], "--accelerator", accelerator)
        raise UserError(code, what, fix="--accelerator auto; see python -m dpo_lightning doctor") from None


def launch(fabric: Fabric) -> None:
    """Start the other processes, if there are any, and pass signals on to them."""
    with port_held(fabric.strategy):
        fabric.launch()
    pass_signals_on(fabric.strategy)


def find_positions(model: CausalLM) -> float:
    """Return how many tokens a model can read; infinite where its configuration has no limit."""
    return getattr(model.config().get_text_config(), "max_position_embeddings", None) or math.inf


def choose_max_length(policy: CausalLM, options: EvaluationOptions) -> int:
    """Return how many tokens a row may have, by the options or by the model.

    Raises:
        UserError: 64 for a length that exceeds the model's positions.
    """
    positions = find_positions(policy)
    length = int(min(MAX_LENGTH, positions)) if options.max_length is None else options.max_length
    if length > positions:
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"max_length={length} exceeds the model's {positions} positions", "--max_length"),
            fix=f"--max_length {positions} or less",
        )
    return length


def make_renderer(policy: CausalLM, options: EvaluationOptions) -> Renderer:
    """Load the tokenizer of a model, with its chat template or that of a file.

    Raises:
        UserError: 67 if the tokenizer cannot be used.
    """
    tokenizer = policy.tokenizer()
    choose_template(tokenizer, options.template, options.chat_template, "--")
    day = RunDate(options.template_date).choose_day(tokenizer.chat_template)
    return Renderer(tokenizer, options.template, options.special_tokens, policy.end_ids(), day)

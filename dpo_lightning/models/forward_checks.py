"""Refusal of models that are not causal, or whose log-probabilities depend on the batch or on train mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpo_lightning.batches import Batch
from dpo_lightning.data.collate import Collator, Padded
from dpo_lightning.errors import ExitCode, Problem, UserError, lacks_memory
from dpo_lightning.logps import logps_of, token_logps
from dpo_lightning.models.dropout import active_dropouts
from dpo_lightning.models.lm_head import causal_lm
from dpo_lightning.models.missing_folders import KEY
from dpo_lightning.models.probe import (
    FLOAT32_TOLERANCE,
    HALF_TOLERANCE,
    exact_mode,
    list_generators,
    probe_batch,
    rounding_tolerance,
    trial,
)

CAUSAL_TOLERANCE = 1e-5
"""Largest change of earlier logits by a later token, as a fraction of the largest absolute logit."""

TRAINING_PASSES = 16
"""Passes in train mode that are tried if the model draws random numbers: a single one may equal eval mode by chance."""

OTHER_MODEL = "give a causal language model, such as Llama, Qwen or Mistral"


def check_model(model: Any, path: str = "") -> None:
    """Refuse a model in which a token sees later ones, or whose padded rows give other numbers than single sequences.

    The standard is `model(input_ids)` with one unpadded sequence and no other argument. A model whose logits are NaN
    passes here; the self-check reports it.

    Args:
        model: a transformers model with weights.
        path: its folder or hub id, for the message.

    Raises:
        UserError: the model is not causal, or padding changes its log-probabilities.
    """
    kind = model.config.model_type
    with refuse_errors(kind, path), exact_mode(model):
        batch = plain_probe(model, Padded())
        row = shortest(batch)
        logits = plain_logits(model, row)
        moved = measure_causal_leak(model, row, logits)
        if moved:
            what = f"{kind} is not a causal language model: the last token changes earlier logits by up to {moved:.2g}"
            raise UserError(ExitCode.MODEL, Problem(what, KEY, path), fix=OTHER_MODEL)
        off = measure_padding_effect(model, batch, logits)
        if off:
            what = (
                f"{kind} gives log-probabilities in padded rows that differ by up to {off:.2g} nats from a single row's"
            )
            raise UserError(ExitCode.MODEL, Problem(what, KEY, path), fix=OTHER_MODEL)


def check_left_padding(policy: nn.Module, layout: Collator) -> None:
    """Refuse rows padded on the left for a model that gives other log-probabilities there.

    Args:
        policy: the model, with or without an adapter.
        layout: how batches are laid out; other layouts than left padding pass.

    Raises:
        UserError: the log-probabilities differ.
    """
    if not isinstance(layout, Padded) or layout.side == "right":
        return
    model = causal_lm(policy)
    kind = model.config.model_type
    with refuse_errors(kind, ""), trial(model):
        batch = plain_probe(model, layout)
        off = measure_padding_effect(model, batch, plain_logits(model, shortest(batch)))
    if off:
        what = f"{kind} gives log-probabilities in rows padded on the left that differ by up to {off:.2g} nats"
        fix = "--data.collator.side right, or leave --data.collator out"
        raise UserError(ExitCode.MODEL, Problem(what, "data.collator"), fix=fix)


def check_training_mode(policy: nn.Module) -> None:
    """Refuse a policy whose train mode gives other log-probabilities than its eval mode, dropout aside.

    A policy with active dropout, or with noise in eval mode as well, is left to the self-check.

    Raises:
        UserError: the log-probabilities differ, such as for a router that draws its experts.
    """
    if any(True for _ in active_dropouts(policy)):
        return
    model = causal_lm(policy)
    with (
        refuse_errors(model.config.model_type, ""),
        trial(policy),
        torch.random.fork_rng(list_generators(model)),
    ):
        batch = plain_probe(model, Padded())
        expected = token_logps(policy, batch).values
        policy.train()
        off, drawn, limit = 0.0, True, 0.0
        for passes in range(TRAINING_PASSES):
            state = random_state(model)
            off = max(float((token_logps(policy, batch).values - expected).abs().max()), off)
            drawn = drawn and not torch.equal(random_state(model), state)
            # Noise may be smaller than rounding: where random numbers are drawn, results must be exactly equal.
            limit = 0.0 if drawn else rounding_tolerance(model) * float(expected.abs().max())
            if not off <= limit or (not drawn and passes):  # NaN as well
                break
        policy.eval()
        if off <= limit or not expected.isfinite().all():
            return
        if drawn and not torch.equal(token_logps(policy, batch).values, expected):
            return
    cause = "it draws random numbers there" if drawn else "its dropout is 0"
    what = f"{model.config.model_type} differs in train mode by up to {off:.2g} nats per token ({cause})"
    raise UserError(
        ExitCode.MODEL,
        Problem(what, KEY),
        fix="set the noise to 0 in config.json (a key with `jitter` or `noise`), or use another model: policy and "
        "reference have to be equal at the start",
    )


def independent_length(config: Any) -> tuple[int, str] | None:
    """Return the row length up to which log-probabilities do not depend on the other rows of a batch.

    Args:
        config: the transformers configuration of a model.

    Returns:
        Tokens and the cause of the limit, or None if there is no limit.
    """
    config = config.get_text_config().to_dict()
    sparse = ("index_topk", "indexer_budget")
    found = [(int(config[name]), f"its sparse attention ({name})") for name in sparse if config.get(name)]
    # LongRoPE and dynamic NTK choose their frequencies by the longest row of a batch.
    ropes = config.get("rope_parameters") or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        trained = rope.get("original_max_position_embeddings")
        lengths = {"longrope": trained, "dynamic": config.get("max_position_embeddings")}
        if length := lengths.get(rope.get("rope_type", "")):
            found.append((int(length), f"its {rope['rope_type']} positions"))
    return min(found, default=None)


@contextmanager
def refuse_errors(kind: str, path: str) -> Iterator[None]:
    """Turn exceptions of a model's own code into a refusal of the model; lack of memory is raised unchanged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        reason = " ".join([type(error).__name__, *str(error).split()[:20]])
        what = Problem(f"{kind} cannot score rows of token ids: {reason}", KEY, path)
        raise UserError(ExitCode.MODEL, what, fix=OTHER_MODEL) from error


def plain_probe(model: Any, layout: Collator) -> Batch:
    """Make the probe without the ids to which the model's config gives a meaning, such as those of images."""
    named = model.config.to_dict() | model.config.get_text_config().to_dict()
    special = [value for name, value in named.items() if name.endswith(("token_id", "token_index"))]
    return probe_batch(model, layout, frozenset(value for value in special if isinstance(value, int)))


def shortest(batch: Batch) -> Int[Tensor, " position"]:
    """Return the ids of the probe's last row, which has most padding."""
    return batch.input_ids[-1, batch.mask[-1]]


def measure_causal_leak(model: Any, ids: Int[Tensor, " position"], logits: Float[Tensor, "position vocab"]) -> float:
    """Measure by how much another last token changes the logits before it.

    Args:
        model: the model.
        ids: one sequence.
        logits: what a plain call gives for it.

    Returns:
        The largest change; 0 if it is rounding, or if logits are NaN.
    """
    other, before = ids.clone(), len(ids) - 1
    # Any token but the last one itself.
    other[before] = ids[0] if ids[0] != ids[before] else ids[1]
    moved = float((plain_logits(model, other)[:before] - logits[:before]).abs().max())
    # Inputs of one shape are rounded alike, unless experts get other groups of tokens or int8 scales span tokens.
    grouped = getattr(model, "is_quantized", False) or any("expert" in name for name, _ in model.named_modules())
    part = HALF_TOLERANCE if grouped and rounding_tolerance(model) != FLOAT32_TOLERANCE else CAUSAL_TOLERANCE
    return moved if moved > part * float(logits[:before].abs().max()) else 0.0


def measure_padding_effect(model: Any, batch: Batch, logits: Float[Tensor, "position vocab"]) -> float:
    """Measure by how much log-probabilities of a batch's last row differ from those of a plain call.

    Args:
        model: the model.
        batch: rows in a layout.
        logits: what a plain call gives for the last row.

    Returns:
        The largest difference in nats; 0 if it is rounding, or if the plain call gives NaN.
    """
    width, last = batch.mask.shape[1], len(batch.mask) - 1
    # Scored positions of the last row, then their index in the row without padding.
    own = batch.places // width == last
    places = (batch.mask[last].cumsum(0) - 1)[batch.places[own] % width]
    expected = logps_of(logits[places], batch.targets[own])
    if not expected.isfinite().all():
        return 0.0
    off = float((token_logps(model, batch).values[own] - expected).abs().max().nan_to_num(nan=torch.inf))
    return off if off > rounding_tolerance(model) * float(logits[places].amax(-1).abs().max()) else 0.0


def plain_logits(model: Any, ids: Int[Tensor, " position"]) -> Float[Tensor, "position vocab"]:
    """Return the float32 logits of `model(input_ids)` for one sequence."""
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float()


def random_state(model: Any) -> Tensor:
    """Return the states of the random generators of the CPU and of the model's device."""
    states = [torch.get_rng_state()]
    if model.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(model.device))
    return torch.cat(states)

"""Refusal of models that are not causal, or whose log-probabilities in a batch are not those of a plain call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpo_lightning.data.collate import Collator, Padded
from dpo_lightning.models.dropout import active_dropouts
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.lm_head import causal_lm
from dpo_lightning.models.probe import HALF_TOLERANCE, TOLERANCE, lacks_memory, on_device, probe, rounding, undisturbed
from dpo_lightning.logps import logps_of, token_logps
from dpo_lightning.models.folder import KEY
from dpo_lightning.batches import PreferenceBatch

CAUSAL_TOLERANCE = 1e-5
"""Part of the largest logit by which later tokens may move earlier logits."""

TRAINING_PASSES = 16
"""Passes in train mode of a model that draws random numbers there: one may by chance be that of eval mode."""

OTHER_MODEL = "give a causal language model, such as Llama, Qwen or Mistral"


def check_model(model: Any, path: str = "") -> None:
    """Refuse a model in which a token sees later ones, or whose padded rows give other numbers than single ones.

    The standard is `model(input_ids)` with one unpadded sequence and nothing else. A model whose logits are NaN is not
    refused here.

    Args:
        model: a transformers model with weights.
        path: where it came from, for the message.

    Raises:
        UserError: that is so.
    """
    kind = model.config.model_type
    with refusing(kind, path), undisturbed(model):
        batch = probe_batch(model, Padded())
        row = shortest(batch)
        logits = plain_logits(model, row)
        moved = later_tokens_move(model, row, logits)
        if moved:
            what = f"{kind} is not a causal language model: the last token moves earlier logits, by up to {moved:.2g}"
            raise UserError(ExitCode.MODEL, Problem(what, KEY, path), fix=OTHER_MODEL)
        off = off_plain(model, batch, logits)
        if off:
            what = f"{kind} gives other log-probabilities in padded rows than for a row alone, by up to {off:.2g} nats"
            raise UserError(ExitCode.MODEL, Problem(what, KEY, path), fix=OTHER_MODEL)


def check_layout(policy: nn.Module, layout: Collator) -> None:
    """Refuse rows padded on the left for a model that gives other log-probabilities there.

    Raises:
        UserError: that is so.
    """
    if not isinstance(layout, Padded) or layout.side == "right":
        return
    model = causal_lm(policy)
    kind = model.config.model_type
    with refusing(kind, ""), undisturbed(model), torch.compiler.set_stance("force_eager"):
        batch = probe_batch(model, layout)
        off = off_plain(model, batch, plain_logits(model, shortest(batch)))
    if off:
        what = f"{kind} gives other log-probabilities in rows padded on the left, by up to {off:.2g} nats"
        fix = "--data.collator.side right, or leave --data.collator out"
        raise UserError(ExitCode.MODEL, Problem(what, "data.collator"), fix=fix)


def check_training_mode(policy: nn.Module) -> None:
    """Refuse a policy whose passes in train mode differ from those in eval mode or from one another, dropout aside.

    A policy that has dropout, or noise in eval mode as well, is left to the self-check.

    Raises:
        UserError: that is so, such as for a router that draws its experts.
    """
    if any(True for _ in active_dropouts(policy)):
        return
    model = causal_lm(policy)
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        refusing(model.config.model_type, ""),
        undisturbed(policy),
        torch.compiler.set_stance("force_eager"),
        torch.random.fork_rng(devices),
    ):
        batch = probe_batch(model, Padded())
        expected = token_logps(policy, batch).values
        policy.train()
        off, drawn, limit = 0.0, True, 0.0
        for passes in range(TRAINING_PASSES):
            state = random_state(model)
            off = max(float((token_logps(policy, batch).values - expected).abs().max()), off)
            drawn = drawn and not torch.equal(random_state(model), state)
            # Noise may be smaller than rounding: what was drawn must not have moved anything.
            limit = 0.0 if drawn else rounding(model) * float(expected.abs().max())
            if not off <= limit or (not drawn and passes):  # NaN as well
                break
        policy.eval()
        if off <= limit or not expected.isfinite().all():
            return
        if drawn and not torch.equal(token_logps(policy, batch).values, expected):
            return
    cause = "it draws random numbers there" if drawn else "dropout is off"
    what = f"{model.config.model_type} gives other log-probabilities in train mode, by up to {off:.2g} nats ({cause})"
    raise UserError(
        ExitCode.MODEL,
        Problem(what, KEY),
        fix="set the noise to 0 in config.json (a key with `jitter` or `noise`), or give another model: policy and "
        "reference have to be one function at the start",
    )


def independent_length(config: Any) -> tuple[int, str] | None:
    """How long rows may be before one row's log-probabilities depend on the longest row of its batch, and why.

    Args:
        config: the transformers configuration of a model.

    Returns:
        Tokens and the cause in words; nothing where no length makes them depend on it.
    """
    config = config.get_text_config().to_dict()
    sparse = ("index_topk", "indexer_budget")
    found = [(int(config[name]), f"its sparse attention ({name})") for name in sparse if config.get(name)]
    ropes = config.get("rope_parameters") or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        trained = rope.get("original_max_position_embeddings")
        lengths = {"longrope": trained, "dynamic": config.get("max_position_embeddings")}
        if length := lengths.get(rope.get("rope_type", "")):
            found.append((int(length), f"its {rope['rope_type']} positions"))
    return min(found, default=None)


@contextmanager
def refusing(kind: str, path: str) -> Iterator[None]:
    """Turn what a model's own code raises into a refusal of the model; lack of memory is none of its faults."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        said = " ".join([type(error).__name__, *str(error).split()[:20]])
        what = Problem(f"{kind} cannot score rows of token ids: {said}", KEY, path)
        raise UserError(ExitCode.MODEL, what, fix=OTHER_MODEL) from error


def probe_batch(model: Any, layout: Collator) -> PreferenceBatch:
    """A few fixed tokens in a layout, on the model's device; none of those to which its config gives a meaning."""
    config = model.config.get_text_config()
    named = model.config.to_dict() | config.to_dict()
    special = [value for name, value in named.items() if name.endswith(("token_id", "token_index"))]
    pairs, indices = probe(config.vocab_size, frozenset(value for value in special if isinstance(value, int)))
    with torch.device("cpu"):  # lightning makes the GPU the default while a model is built
        batch = layout.pairs(pairs, indices)
    return on_device(batch, model)


def shortest(batch: PreferenceBatch) -> Int[Tensor, " position"]:
    """The ids of the probe's last row, which has most padding."""
    return batch.input_ids[-1, batch.mask[-1]]


def later_tokens_move(model: Any, ids: Int[Tensor, " position"], logits: Float[Tensor, "position vocab"]) -> float:
    """By how much another last token moves the logits before it; 0 where that is rounding, or where they are NaN."""
    other, before = ids.clone(), len(ids) - 1
    other[before] = ids[0] if ids[0] != ids[before] else ids[1]
    moved = float((plain_logits(model, other)[:before] - logits[:before]).abs().max())
    # Rows of one shape are rounded alike, unless experts see other groups of tokens, or numbers are quantized together.
    grouped = getattr(model, "is_quantized", False) or any("expert" in name for name, _ in model.named_modules())
    part = HALF_TOLERANCE if grouped and rounding(model) != TOLERANCE else CAUSAL_TOLERANCE
    return moved if moved > part * float(logits[:before].abs().max()) else 0.0


def off_plain(model: Any, batch: PreferenceBatch, logits: Float[Tensor, "position vocab"]) -> float:
    """By how much log-probabilities of a batch's last row differ from those of a plain call.

    Args:
        model: the model.
        batch: rows in a layout.
        logits: what a plain call gives for the last row.

    Returns:
        The largest difference in nats; 0 where that is rounding, or where the plain call gives NaN.
    """
    width, last = batch.mask.shape[1], len(batch.mask) - 1
    own = batch.places // width == last
    places = (batch.mask[last].cumsum(0) - 1)[batch.places[own] % width]
    expected = logps_of(logits[places], batch.targets[own])
    if not expected.isfinite().all():
        return 0.0
    off = float((token_logps(model, batch).values[own] - expected).abs().max().nan_to_num(nan=torch.inf))
    return off if off > rounding(model) * float(logits[places].amax(-1).abs().max()) else 0.0


def plain_logits(model: Any, ids: Int[Tensor, " position"]) -> Float[Tensor, "position vocab"]:
    """What `model(input_ids)` gives for one sequence."""
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float()


def random_state(model: Any) -> Tensor:
    """Where the random numbers of the CPU and of the model's device are."""
    states = [torch.get_rng_state()]
    if model.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(model.device))
    return torch.cat(states)

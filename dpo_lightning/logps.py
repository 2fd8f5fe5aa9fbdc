"""`score(model, batch)`: the only call of a model for training, and the only log-softmax."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpo_lightning.attention.flex import Forest
from dpo_lightning.batches import Batch
from dpo_lightning.sharding import run_within
from dpo_lightning.types import SequenceLogps, Statistic, TokenLogps

CHUNK = 2**25
"""Logits that are computed at once: 64 MiB in bf16, as much for their gradient, 128 MiB in float32."""

CACHED = 2**20
"""Logits that a CPU turns into log-probabilities at once: 4 MiB in float32, which fits in its caches."""


@runtime_checkable
class Head(Protocol):
    """A model in two parts, so that logits are computed at scored positions only."""

    def hidden(self, **inputs: Any) -> Float[Tensor, "row position dim"]:
        """Compute the backbone's last hidden states."""

    def logits(self, hidden: Float[Tensor, "token dim"]) -> Float[Tensor, "token vocab"]:
        """Compute logits from hidden states."""

    def weights(self) -> list[Tensor]:
        """Return the trained parameters that `logits` uses."""

    def is_repeatable(self) -> bool:
        """Whether the same hidden states always give the same logits, so that logits can be recomputed."""

    @property
    def vocabulary(self) -> int:
        """The number of logits per token."""


class Scored(NamedTuple):
    """Hidden states at the positions that predict a scored token, and the function that computes logits from them."""

    hidden: Float[Tensor, "scored dim"]
    logits_of: Callable[[Tensor], Tensor]


def score(
    model: nn.Module,
    batch: Batch,
    head: Head | None = None,
    statistics: Collection[Statistic] = (),
    reference: Scored | None = None,
) -> SequenceLogps:
    """Compute the log-probabilities that a model gives the batch's targets, summed per sequence.

    Args:
        model: a causal language model with the interface of Hugging Face: called with `input_ids`, `attention_mask`,
            `position_ids` and `logits_to_keep` (the positions whose logits are needed), it returns `.logits`.
        batch: sequences with shifted targets, in any layout.
        head: the same model in two parts. With it, logits are computed in chunks and never stored.
        statistics: what is needed besides sums and lengths.
        reference: the distributions of the reference, for `kl`.

    Returns:
        Sums in nats and numbers of scored tokens, `[seq]`, both float32.
    """
    others: dict[str, Tensor] = {}
    if {"collisions", "kl"}.isdisjoint(statistics):
        tokens = token_logps(model, batch, head)
    else:
        values, *found = run_within(model, _score_vocabulary, model, batch, head, reference)
        tokens = TokenLogps(values, batch.sequence_ids)
        columns = zip(("collisions", "kl"), found, strict=True)
        others = {
            name: reduce_by_sequence(TokenLogps(column, batch.sequence_ids), batch.num_sequences).sums
            for name, column in columns
            if name in statistics
        }
    if "tokens" in statistics:
        others["tokens"] = pad_by_sequence(tokens, batch)
    return reduce_by_sequence(tokens, batch.num_sequences)._replace(**others)


def _score_vocabulary(
    model: nn.Module, batch: Batch, head: Head | None, reference: Scored | None
) -> tuple[Tensor, Tensor, Tensor]:
    return vocabulary_statistics(compute_scored(model, batch, head), batch.targets, reference)


def token_logps(model: nn.Module, batch: Batch, head: Head | None = None) -> TokenLogps:
    """Compute the log-probability of every scored token of a batch; the arguments are those of `score`."""
    return run_within(model, _token_logps, model, batch, head)


def _token_logps(model: nn.Module, batch: Batch, head: Head | None) -> TokenLogps:
    hidden, logits_of = compute_scored(model, batch, head)
    if head is None or not head.is_repeatable():
        values = logps_of(hidden, batch.targets)
    else:
        rows = max(1, CHUNK // head.vocabulary)
        values = ChunkedLogps.apply(hidden, batch.targets, logits_of, rows, *head.weights())
    return TokenLogps(values, batch.sequence_ids)


def compute_scored(model: nn.Module, batch: Batch, head: Head | None = None) -> Scored:
    """Run a model up to the hidden states that predict scored tokens, or up to the logits without a `head`."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": batch.mask,
        "use_cache": False,
    }
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        inputs["output_router_logits"] = False  # its loss would use the mask below; see `models/router_loss.py`
    if batch.trees:  # transformers passes a 4-dimensional mask on unchanged, and our attention ignores it
        inputs |= {"attention_mask": batch.mask[:1, None, None, :1], "trees": Forest.of(batch.trees, *batch.mask.shape)}
    if head is not None and head.is_repeatable():
        return Scored(head.hidden(**inputs).flatten(0, 1).index_select(0, batch.places), head.logits)
    width = batch.input_ids.shape[1]
    # `logits_to_keep` selects columns, so all columns with a scored position in any row are kept.
    columns, kept = torch.unique(batch.places % width, return_inverse=True)
    logits = model(**inputs, logits_to_keep=columns).logits
    if logits.shape[1] != len(columns):  # some models ignore the argument and return all logits
        kept = batch.places % width
    return Scored(logits[batch.places // width, kept], lambda logits: logits)


def vocabulary_statistics(
    policy: Scored, targets: Int[Tensor, " scored"], reference: Scored | None = None
) -> tuple[Float[Tensor, " scored"], Float[Tensor, " scored"], Float[Tensor, " scored"]]:
    """Compute log-probabilities of the targets, `log sum_v p(v)^2`, and `KL(reference || policy)`, per token.

    Logits are computed in chunks, and recomputed in the backward pass.
    """

    def of_chunk(hidden: Tensor, targets: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = policy.logits_of(hidden).float().log_softmax(-1)
        values = log_probs.gather(1, targets[:, None]).squeeze(1)
        kl = torch.zeros_like(values)
        if reference is not None:
            known = reference.logits_of(others).float().log_softmax(-1)
            kl = nn.functional.kl_div(log_probs, known, reduction="none", log_target=True).sum(-1)
        return values, (2 * log_probs.detach()).logsumexp(-1), kl

    others = policy.hidden.detach() if reference is None else reference.hidden
    with torch.no_grad():
        # One row of logits shows the size of the vocabulary.
        vocabulary = policy.logits_of(policy.hidden[:1]).shape[-1]
    found = [
        checkpoint(of_chunk, *chunk, use_reentrant=False)
        for chunk in split_rows(max(1, CHUNK // vocabulary), policy.hidden, targets, others)
    ]
    empty = torch.zeros_like(targets, dtype=torch.float32)
    return tuple(map(torch.cat, zip(*found, strict=True))) if found else (empty,) * 3  # type: ignore[return-value]


@torch.no_grad()
def compare_distributions(
    policy: Scored, reference: Scored, targets: Int[Tensor, " scored"]
) -> tuple[Float[Tensor, " scored"], Float[Tensor, " scored"], Float[Tensor, " scored"]]:
    """Compute the targets' log-probabilities under policy and reference, and `KL(policy || reference)`, per token.

    The divergence is that of the whole distributions over the vocabulary, in nats. Logits are computed in chunks.
    """

    def of_chunk(hidden: Tensor, others: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = policy.logits_of(hidden).float().log_softmax(-1)
        known = reference.logits_of(others).float().log_softmax(-1)
        kl = nn.functional.kl_div(known, own, reduction="none", log_target=True)
        kl = kl.masked_fill(own.isneginf(), 0).sum(-1)  # of a token that the policy never generates
        values = (part.gather(1, targets[:, None]).squeeze(1) for part in (own, known))
        return (*values, kl.clamp(min=0))  # type: ignore[return-value] # rounding may give -1e-7

    rows = max(1, CHUNK // 4 // policy.logits_of(policy.hidden[:1]).shape[-1]) if len(targets) else 1
    found = [of_chunk(*chunk) for chunk in split_rows(rows, policy.hidden, reference.hidden, targets)]
    empty = torch.zeros_like(targets, dtype=torch.float32)
    return tuple(map(torch.cat, zip(*found, strict=True))) if found else (empty,) * 3  # type: ignore[return-value]


def pad_by_sequence(tokens: TokenLogps, batch: Batch) -> Float[Tensor, "seq token"]:
    """Put values in one row per sequence, followed by zeros.

    Rows are as wide as the batch: the longest sequence's length would have to be copied from the device.
    """
    place = torch.arange(len(tokens.values), device=tokens.values.device)
    counts = torch.zeros(batch.num_sequences, dtype=torch.long, device=place.device)
    counts = counts.index_add(0, tokens.sequence_ids, torch.ones_like(place))
    # The index within a sequence: that in the batch minus the sequence's first.
    position = place - (counts.cumsum(0) - counts)[tokens.sequence_ids]
    empty = tokens.values.new_zeros(batch.num_sequences, batch.mask.shape[1])
    return empty.index_put((tokens.sequence_ids, position), tokens.values)


def logps_of(logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Compute log-probabilities of targets in float32: bf16 would round a long sum by more than a typical margin."""
    return -nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def reduce_by_sequence(tokens: TokenLogps, num_sequences: int) -> SequenceLogps:
    """Sum and count scored tokens per sequence; both are 0 for a sequence without any."""
    empty = tokens.values.new_zeros(num_sequences)
    lengths = empty.index_add(0, tokens.sequence_ids, torch.ones_like(tokens.values))
    return SequenceLogps(empty.index_add(0, tokens.sequence_ids, tokens.values), lengths)


class ChunkedLogps(torch.autograd.Function):
    """Logits in chunks that are recomputed in the backward pass, so that memory does not grow with the batch."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], rows: int, *weights: Tensor
    ) -> Tensor:
        """Compute log-probabilities of `targets` `[token]` from `hidden` `[token dim]`."""
        ctx.save_for_backward(hidden, targets, *weights)
        ctx.logits_of, ctx.rows = logits_of, rows
        device = hidden.device.type
        # The backward pass recomputes logits in the precision of the forward pass.
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        values = hidden.new_empty(len(hidden), dtype=torch.float32)
        # `detach`: hooks such as those of torch's FLOP counter expect a graph if their input requires grad.
        for h, t, chunk in split_rows(rows, hidden.detach(), targets, values):
            for logits, own, place in split_for_cache(logits_of(h), t, chunk):
                place.copy_(logps_of(logits, own))
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Compute the gradients of hidden states and of the head's trained parameters."""
        hidden, targets, *weights = ctx.saved_tensors
        in_hidden = torch.empty_like(hidden)
        in_weights: list[Tensor] = []
        # One context around all chunks: autocast then casts the head's weight once.
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            for h, t, g, place in split_rows(ctx.rows, hidden, targets, gradient, in_hidden):
                part = h.detach().requires_grad_()
                # A view: hooks of torch's FLOP counter fail on a leaf in `autograd.grad`.
                logits = ctx.logits_of(part.view_as(part))
                own, *others = torch.autograd.grad(logits, [part, *weights], logits_gradient(logits.detach(), t, g))
                place.copy_(own)
                if in_weights:
                    torch._foreach_add_(in_weights, others)
                else:
                    in_weights = [part.float() for part in others]  # summed over chunks in float32
        sums = in_weights or map(torch.zeros_like, weights)
        return in_hidden, None, None, None, *(part.to(weight) for part, weight in zip(sums, weights, strict=True))


def logits_gradient(
    logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"], gradient: Float[Tensor, " token"]
) -> Float[Tensor, "token vocab"]:
    """Turn the gradient of log-probabilities into that of logits: `gradient * (one_hot(target) - softmax(logits))`."""
    found = torch.empty_like(logits)
    for own, t, g, place in split_for_cache(logits, targets, gradient[:, None], found):
        part = own.float().softmax(-1).mul_(-g)
        place.copy_(part.scatter_add_(1, t[:, None], g))
    return found


def split_for_cache(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors into pieces that fit in a CPU's caches; on other devices there is one piece."""
    rows = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    return split_rows(rows, logits, *others)


def split_rows(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split several tensors into pieces of `rows` rows; empty tensors have no pieces."""
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True) if len(tensors[0]) else iter(())

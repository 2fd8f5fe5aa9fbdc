"""`score(model, batch)`: the one place that a model is called for training, and the only log-softmax."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpo_lightning.attention.masks import Forest
from dpo_lightning.batches import Batch
from dpo_lightning.types import SequenceLogps, Statistic, TokenLogps

CHUNK = 2**25
"""Logits that are made at once, whatever the batch: 64 MiB in bf16, as much for their gradient, 128 MiB in float32."""

CACHED = 2**20
"""Logits that are turned into log-probabilities at once on a CPU: 4 MiB in float32, which its caches hold."""


@runtime_checkable
class Head(Protocol):
    """A model in two parts, so that only scored positions reach the vocabulary."""

    def hidden(self, **inputs: Any) -> Float[Tensor, "row position dim"]:
        """The last hidden states."""

    def logits(self, hidden: Float[Tensor, "token dim"]) -> Float[Tensor, "token vocab"]:
        """What the model makes of hidden states."""

    def weights(self) -> list[Tensor]:
        """What is trained in `logits`."""

    def repeatable(self) -> bool:
        """Whether the same hidden states give the same logits again, so that they need not be kept."""

    @property
    def vocabulary(self) -> int:
        """Logits per token."""


class Scored(NamedTuple):
    """What a model makes of the positions that predict a scored token: hidden states, and logits out of them."""

    hidden: Float[Tensor, "scored dim"]
    logits_of: Callable[[Tensor], Tensor]


def score(
    model: nn.Module,
    batch: Batch,
    head: Head | None = None,
    statistics: Collection[Statistic] = (),
    reference: Scored | None = None,
) -> SequenceLogps:
    """Log-probabilities that `model` gives the batch's targets, reduced by sequence.

    Args:
        model: a causal language model in the Hugging Face manner: called with `input_ids`, `attention_mask`,
            `position_ids` and `logits_to_keep` (the positions whose logits are wanted), it returns `.logits`.
        batch: sequences with shifted targets, in whatever layout.
        head: the same model in two parts. With it, logits are made a chunk at a time and never kept.
        statistics: what is wanted besides sums and lengths.
        reference: the distributions that `kl` is taken to.

    Returns:
        Sums in nats and numbers of scored tokens, `[seq]`, both float32.
    """
    others: dict[str, Tensor] = {}
    if {"collisions", "kl"}.isdisjoint(statistics):
        tokens = token_logps(model, batch, head)
    else:
        values, *found = vocabulary_statistics(scored_positions(model, batch, head), batch.targets, reference)
        tokens = TokenLogps(values, batch.sequence_ids)
        columns = zip(("collisions", "kl"), found, strict=True)
        others = {
            name: reduced(TokenLogps(column, batch.sequence_ids), batch.num_sequences).sums
            for name, column in columns
            if name in statistics
        }
    if "tokens" in statistics:
        others["tokens"] = by_sequence(tokens, batch)
    return reduced(tokens, batch.num_sequences)._replace(**others)


def token_logps(model: nn.Module, batch: Batch, head: Head | None = None) -> TokenLogps:
    """Log-probability of every scored token of a batch; the arguments are those of `score`."""
    hidden, logits_of = scored_positions(model, batch, head)
    if head is None or not head.repeatable():
        values = logps_of(hidden, batch.targets)
    else:
        rows = max(1, CHUNK // head.vocabulary)
        values = ChunkedLogps.apply(hidden, batch.targets, logits_of, rows, *head.weights())
    return TokenLogps(values, batch.sequence_ids)


def scored_positions(model: nn.Module, batch: Batch, head: Head | None = None) -> Scored:
    """The hidden states that predict scored tokens; logits themselves where a model is not to be had in two parts."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": batch.mask,
        "use_cache": False,
    }
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        inputs["output_router_logits"] = False  # the model would balance by the mask below; see `routers`
    if batch.trees:  # a mask of four dimensions is handed on as it is, and then not looked at
        inputs |= {"attention_mask": batch.mask[:1, None, None, :1], "trees": Forest.of(batch.trees, *batch.mask.shape)}
    if head is not None and head.repeatable():
        return Scored(head.hidden(**inputs).flatten(0, 1).index_select(0, batch.places), head.logits)
    width = batch.input_ids.shape[1]
    columns, kept = torch.unique(batch.places % width, return_inverse=True)
    logits = model(**inputs, logits_to_keep=columns).logits
    if logits.shape[1] != len(columns):  # some models have no such argument, and give all
        kept = batch.places % width
    return Scored(logits[batch.places // width, kept], lambda logits: logits)


def vocabulary_statistics(
    policy: Scored, targets: Int[Tensor, " scored"], reference: Scored | None = None
) -> tuple[Float[Tensor, " scored"], Float[Tensor, " scored"], Float[Tensor, " scored"]]:
    """Log-probabilities of the targets, `log sum_v p(v)^2`, and `KL(reference || policy)`, each per token.

    Logits are made a chunk at a time, and made again in the backward pass.
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
        vocabulary = policy.logits_of(policy.hidden[:1]).shape[-1]
    found = [
        checkpoint(of_chunk, *chunk, use_reentrant=False)
        for chunk in chunks(max(1, CHUNK // vocabulary), policy.hidden, targets, others)
    ]
    empty = torch.zeros_like(targets, dtype=torch.float32)
    return tuple(map(torch.cat, zip(*found, strict=True))) if found else (empty,) * 3  # type: ignore[return-value]


def by_sequence(tokens: TokenLogps, batch: Batch) -> Float[Tensor, "seq token"]:
    """Values in a row for each sequence, zeros behind them; as wide as the batch, so that no length is asked for."""
    place = torch.arange(len(tokens.values), device=tokens.values.device)
    counts = torch.zeros(batch.num_sequences, dtype=torch.long, device=place.device)
    counts = counts.index_add(0, tokens.sequence_ids, torch.ones_like(place))
    position = place - (counts.cumsum(0) - counts)[tokens.sequence_ids]
    empty = tokens.values.new_zeros(batch.num_sequences, batch.mask.shape[1])
    return empty.index_put((tokens.sequence_ids, position), tokens.values)


def logps_of(logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Log-probabilities of the targets, in float32: bf16 would round a long sum by more than a typical margin."""
    return -nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def reduced(tokens: TokenLogps, num_sequences: int) -> SequenceLogps:
    """Sums and numbers of scored tokens by sequence; a sequence without one has sum 0 and length 0."""
    empty = tokens.values.new_zeros(num_sequences)
    lengths = empty.index_add(0, tokens.sequence_ids, torch.ones_like(tokens.values))
    return SequenceLogps(empty.index_add(0, tokens.sequence_ids, tokens.values), lengths)


class ChunkedLogps(torch.autograd.Function):
    """Logits a chunk at a time, computed again in the backward pass: memory does not grow with the batch."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], rows: int, *weights: Tensor
    ) -> Tensor:
        """Log-probabilities of `targets` `[token]` from `hidden` `[token dim]`."""
        ctx.save_for_backward(hidden, targets, *weights)
        ctx.logits_of, ctx.rows = logits_of, rows
        device = hidden.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        values = hidden.new_empty(len(hidden), dtype=torch.float32)
        # `detach`: hooks of the head take what requires grad for part of a graph.
        for h, t, chunk in chunks(rows, hidden.detach(), targets, values):
            for logits, own, place in cached(logits_of(h), t, chunk):
                place.copy_(logps_of(logits, own))
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of hidden states and of what is trained in the head."""
        hidden, targets, *weights = ctx.saved_tensors
        in_hidden = torch.empty_like(hidden)
        in_weights: list[Tensor] = []
        # One context around all chunks: autocast then casts the head's weight once.
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            for h, t, g, place in chunks(ctx.rows, hidden, targets, gradient, in_hidden):
                part = h.detach().requires_grad_()
                logits = ctx.logits_of(part.view_as(part))  # hooks of the head want no leaf
                own, *others = torch.autograd.grad(logits, [part, *weights], logits_gradient(logits.detach(), t, g))
                place.copy_(own)
                if in_weights:
                    torch._foreach_add_(in_weights, others)
                else:
                    in_weights = [part.float() for part in others]  # the sum over chunks is one of float32
        sums = in_weights or map(torch.zeros_like, weights)
        return in_hidden, None, None, None, *(part.to(weight) for part, weight in zip(sums, weights, strict=True))


def logits_gradient(
    logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"], gradient: Float[Tensor, " token"]
) -> Float[Tensor, "token vocab"]:
    """From the gradient of log-probabilities to that of logits: `gradient * (one_hot(target) - softmax(logits))`."""
    found = torch.empty_like(logits)
    for own, t, g, place in cached(logits, targets, gradient[:, None], found):
        part = own.float().softmax(-1).mul_(-g)
        place.copy_(part.scatter_add_(1, t[:, None], g))
    return found


def cached(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces that a CPU's caches hold: elsewhere, all at once."""
    rows = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    return chunks(rows, logits, *others)


def chunks(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of `rows` rows of several tensors; none of empty ones."""
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True) if len(tensors[0]) else iter(())

"""`score(model, batch)`: the one place that a model is called for training, and the only log-softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpo_lightning.attention import Forest, block_mask
from dpo_lightning.types import SequenceLogps, TokenLogps

if TYPE_CHECKING:
    from dpo_lightning.types import Batch

CHUNK = 2**24
"""Logits that are held at once: 64 MiB in float32, whatever the batch."""


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


def score(model: nn.Module, batch: Batch, head: Head | None = None) -> SequenceLogps:
    """Log-probabilities that `model` gives the batch's targets, reduced by sequence.

    Args:
        model: a causal language model in the Hugging Face manner: called with `input_ids`, `attention_mask`,
            `position_ids` and `logits_to_keep` (the positions whose logits are wanted), it returns `.logits`.
        batch: sequences with shifted targets, in whatever layout.
        head: the same model in two parts. With it, logits are made a chunk at a time and never kept.

    Returns:
        Sums in nats and numbers of scored tokens, `[seq]`, both float32.
    """
    return reduced(token_logps(model, batch, head), batch.num_sequences)


def token_logps(model: nn.Module, batch: Batch, head: Head | None = None) -> TokenLogps:
    """Log-probability of every scored token of a batch; the arguments are those of `score`."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": batch.mask,
        "use_cache": False,
    }
    if batch.trees:  # a mask of four dimensions is handed on as it is; without FlexAttention, only the trees count
        rows, width = batch.mask.shape
        blocks = block_mask(batch.trees, rows, width, batch.mask.device) if batch.mask.is_cuda else None
        inputs |= {"attention_mask": blocks or batch.mask[:1, None, None, :1], "trees": Forest(batch.trees)}
    if head is None or not head.repeatable():
        width = batch.input_ids.shape[1]
        columns, kept = torch.unique(batch.places % width, return_inverse=True)
        logits = model(**inputs, logits_to_keep=columns).logits
        values = logps_of(logits[batch.places // width, kept], batch.targets)
    else:
        hidden = head.hidden(**inputs).flatten(0, 1).index_select(0, batch.places)
        rows = max(1, CHUNK // head.vocabulary)
        values = ChunkedLogps.apply(hidden, batch.targets, head.logits, rows, *head.weights())
    return TokenLogps(values, batch.sequence_ids)


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
        parts = chunks(rows, hidden.detach(), targets)  # hooks of the head take what requires grad for part of a graph
        return torch.cat([hidden.new_zeros(0, dtype=torch.float32), *(logps_of(logits_of(h), t) for h, t in parts)])

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
                values = logps_of(ctx.logits_of(part.view_as(part)), t)  # hooks of the head want no leaf
                own, *others = torch.autograd.grad(values, [part, *weights], g)
                place.copy_(own)
                in_weights = list(torch._foreach_add(in_weights, others)) if in_weights else list(others)
        return in_hidden, None, None, None, *(in_weights or map(torch.zeros_like, weights))


def chunks(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of `rows` rows of several tensors; none of empty ones."""
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True) if len(tensors[0]) else iter(())

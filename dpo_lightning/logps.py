"""`score(model, batch)`: the one place that a model is called for training, and the only log-softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpo_lightning.types import IGNORE, SequenceLogps

if TYPE_CHECKING:
    from dpo_lightning.types import Batch


def score(model: nn.Module, batch: Batch) -> SequenceLogps:
    """Log-probabilities that `model` gives the batch's targets, reduced by sequence.

    Args:
        model: a causal language model in the Hugging Face manner: called with `input_ids`, `attention_mask`,
            `position_ids` and `logits_to_keep` (the positions whose logits are wanted), it returns `.logits`.
        batch: sequences with shifted targets, in whatever layout.

    Returns:
        Sums in nats and numbers of scored tokens, `[seq]`, both float32.
    """
    # Only columns in which some row has a target need the vocabulary: prompts never reach the output head.
    columns = (batch.targets != IGNORE).any(dim=0).nonzero().squeeze(-1)
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.position_ids,
        logits_to_keep=columns,
        use_cache=False,
    ).logits
    return sequence_logps(logits, batch.targets[:, columns], batch.sequence_ids[:, columns], batch.num_sequences)


def sequence_logps(
    logits: Float[Tensor, "row kept vocab"],
    targets: Int[Tensor, "row kept"],
    sequence_ids: Int[Tensor, "row kept"],
    num_sequences: int,
) -> SequenceLogps:
    """Reduce logits to one sum per sequence; positions whose target is `IGNORE` count nowhere.

    Returns:
        Sums `[num_sequences]` and numbers of scored tokens; a sequence without one has sum 0 and length 0.
    """
    scored = targets != IGNORE
    # bf16 logits round a sum of hundreds of tokens by more than a typical margin: float32 from here on.
    token_logps = -nn.functional.cross_entropy(logits[scored].float(), targets[scored], reduction="none")
    owners = sequence_ids[scored]
    sums = token_logps.new_zeros(num_sequences).index_add(0, owners, token_logps)
    lengths = token_logps.new_zeros(num_sequences).index_add(0, owners, torch.ones_like(token_logps))
    return SequenceLogps(sums, lengths)

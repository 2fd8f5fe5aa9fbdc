"""Log-probabilities of answers under a model and its reference, and the divergence between the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpo_lightning.batches import Batch
from dpo_lightning.data.collate import Collator, select_collator
from dpo_lightning.data.examples import Encoded, EncodedAnswer, Origin
from dpo_lightning.logps import Scored, compare_distributions, compute_scored, reduce_by_sequence, token_logps
from dpo_lightning.models.attention_backend import takes_trees
from dpo_lightning.models.dropout import without_dropout
from dpo_lightning.models.forward_checks import check_left_padding
from dpo_lightning.models.lm_head import SplitHead, causal_lm, find_head
from dpo_lightning.references.adapter_disabled import without_adapter
from dpo_lightning.types import SequenceLogps, TokenLogps


class ScoredAnswers(NamedTuple):
    """The answers of a batch, `[seq]`, in its order.

    Attributes:
        policy: sums and lengths under the model.
        reference: the same under the reference; None without one.
        kl: KL(model || reference) of the whole vocabulary, summed over the scored tokens, in nats; None without one.
    """

    policy: SequenceLogps
    reference: SequenceLogps | None
    kl: Tensor | None


@dataclass
class ModelPair:
    """A model and its reference, in eval mode and on one device.

    Attributes:
        policy: the model.
        reference: the reference: a model, the same model with its adapter disabled (`BELOW`), or None.
        autocast: the context of a forward pass.
        given_collator: the layout; by default, the one that computes the fewest tokens.
    """

    policy: nn.Module
    reference: nn.Module | None = None
    below: bool = False
    """Whether the reference is the model with its adapter disabled."""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    given_collator: Collator | None = None
    head: SplitHead | None = field(init=False)
    reference_head: SplitHead | None = field(init=False)
    collator: Collator = field(init=False)

    def __post_init__(self) -> None:
        models = [model for model in (self.policy, self.reference) if model is not None]
        for model in models:
            without_dropout(model)
            model.eval()
            for weight in model.parameters():
                # Autocast keeps converted weights for its whole block only if they require gradients; the others are
                # converted for each generated token.
                weight.requires_grad_(weight.is_floating_point())
        self.head = find_head(self.policy)
        self.reference_head = self.head if self.reference is None else find_head(self.reference)
        trees = all(takes_trees(causal_lm(model)) for model in models)
        self.collator = select_collator(self.given_collator, takes_trees=trees)
        for model in models:
            check_left_padding(model, self.collator)

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference to compare with."""
        return self.below or self.reference is not None

    @contextmanager
    def as_reference(self) -> Iterator[nn.Module]:
        """Yield the reference."""
        if self.reference is not None:
            yield self.reference
            return
        with without_adapter(self.policy):
            yield self.policy

    @torch.no_grad()
    def score(self, batch: Batch) -> ScoredAnswers:
        """Score the answers of a batch, which is moved to the model's device."""
        batch = batch.to(causal_lm(self.policy).device)
        count = batch.num_sequences
        with self.autocast():
            if not self.has_reference:
                tokens = token_logps(self.policy, batch, self.head)
                return ScoredAnswers(reduce_by_sequence(tokens, count), None, None)
            policy = compute_scored(self.policy, batch, self.head)
            with self.as_reference() as reference:
                hidden, logits_of = compute_scored(reference, batch, self.reference_head)

            def compute_logits(hidden: Tensor) -> Tensor:
                with self.as_reference():  # the head may have an adapter as well
                    return logits_of(hidden)

            values = compare_distributions(policy, Scored(hidden, compute_logits), batch.targets)
        own, known, kl = (reduce_by_sequence(TokenLogps(part, batch.sequence_ids), count) for part in values)
        return ScoredAnswers(own, known, kl.sums)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Collate rows to a batch for `score`."""
        return self.collator.collate(rows, range(len(rows)))


def make_row(prompt: Sequence[int], answer: Sequence[int]) -> Encoded:
    """Return a generated answer as a row whose tokens are all scored."""
    ids = list(answer)
    return Encoded(Origin("generated", 1), prompt, (EncodedAnswer(ids, [True] * len(ids)),))

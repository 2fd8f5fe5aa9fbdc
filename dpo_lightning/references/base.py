"""`ReferencePolicy`: the interface of every reference, and its identity in checkpoints."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import isabstract
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lightning.batches import Batch
from dpo_lightning.data.collate import Padded
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import Scored, compute_scored, score
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.lm_head import SplitHead, causal_lm
from dpo_lightning.models.probe import FLOAT32_TOLERANCE, HALF_TOLERANCE, probe_batch, trial
from dpo_lightning.sharding import is_split
from dpo_lightning.types import SequenceLogps, Statistic

REFERENCE_KEY = "model.reference"

TOKENS: tuple[Statistic, ...] = ("tokens",)
"""The statistic by which two references are compared: one log-probability per scored token."""


class ReferencePolicy(nn.Module, ABC):
    """The model that a policy is compared with.

    It gets no gradients and is no part of a checkpoint's `state_dict`. A checkpoint holds its identity instead (a
    digest of the weights and the log-probabilities of a few tokens), and resuming against another reference is refused.
    """

    sharded = False
    """Whether policy and reference are sharded over ranks after `bind`."""

    def __init__(self) -> None:
        super().__init__()
        self._digest = ""
        self._probe = torch.zeros(0)
        self._tolerance = 0.0
        self._head: SplitHead | None = None
        self._start_tolerance = 0.0

    @classmethod
    def kinds(cls) -> list[type[ReferencePolicy]]:
        """List every concrete reference class, by which `--model.reference` may name it."""
        found: list[type[ReferencePolicy]] = []
        for kind in cls.__subclasses__():
            found += [kind, *kind.kinds()]
        return [kind for kind in found if not isabstract(kind)]

    @abstractmethod
    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Prepare the reference from the policy before the first optimizer step.

        Args:
            policy: the model to be trained, with the weights that it starts from.
            builder: what the policy was built from.

        Raises:
            UserError: this kind of reference would not equal the policy's starting point.
        """

    @abstractmethod
    def as_model(self, policy: nn.Module) -> Any:
        """Return a context manager that yields a model which computes the reference's log-probabilities."""

    def shard(self, policy: nn.Module, shard_model: Callable[[nn.Module], None]) -> None:
        """Split the weights that the reference holds over ranks; one without any does nothing.

        Args:
            policy: the policy, which is sharded and has the weights that it starts from.
            shard_model: shards a model as the policy was.
        """

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Update the reference after an optimizer step; a fixed reference does nothing.

        Args:
            policy: the model after the step.
            step: number of optimizer steps so far, this one included.
        """

    def held_weights(self) -> Mapping[str, Tensor]:
        """Return the weights that the reference stores itself, by name."""
        return {}

    def broadcast(self) -> None:
        """Copy the held weights of rank 0 to all ranks: a new adapter may have been initialized differently on each."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # What is split was copied from rank 0 before it was split.
            for value in (value for value in self.held_weights().values() if not is_split(value)):
                torch.distributed.broadcast(value.data, 0)

    @property
    def equals_start(self) -> bool:
        """Whether policy and reference are the same function before the first step."""
        return True

    @property
    def start_tolerance(self) -> float:
        """How far policy and reference may differ before the first step: in nats per token and relative to a sum.

        0 means exactly equal, which holds when both run the same kernels on the same batch. With `torch.compile` they
        differ slightly, because the graphs with and without gradients are compiled separately.
        """
        return self._start_tolerance

    @property
    def model_path(self) -> str | None:
        """The folder or hub id of another model that is the reference; None where the policy's own start is."""
        return None

    @property
    def has_model(self) -> bool:
        """Whether a model is in memory, so that the reference can also generate text or give whole distributions."""
        return True

    def takes_trees(self) -> bool:
        """Whether the reference computes correctly for packed rows and shared prefixes."""
        return True

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Compute log-probabilities under the reference, without gradients, in the layout and kernels of the policy.

        Args:
            policy: the model that is trained.
            batch: the sequences to score.
            rows: which data the batch's indices refer to, `train` or `eval`.
            statistics: what the loss needs besides sums and lengths.
        """
        own = [name for name in statistics if name == "tokens"]  # the others are computed from the policy alone
        with torch.no_grad(), self.as_model(policy) as model:
            return score(model, batch, self._head, own)

    def distributions(self, policy: nn.Module, batch: Batch) -> Scored:
        """Compute the reference's distribution over the vocabulary at every scored token, for a KL divergence.

        Raises:
            UserError: the reference has no model in memory.
        """

        def logits(hidden: Tensor) -> Tensor:
            with torch.no_grad(), self.as_model(policy):
                return logits_of(hidden)

        with torch.no_grad(), self.as_model(policy) as model:
            hidden, logits_of = compute_scored(model, batch, self._head)
        return Scored(hidden, logits)

    def record_identity(self, policy: nn.Module, digest: str) -> None:
        """Store what distinguishes this reference from others.

        Args:
            policy: the model to be trained.
            digest: digest of the reference's weights.
        """
        self._digest = digest
        with self.as_model(policy) as model:
            reference = model
        with policy_probe(reference) as batch:
            found = self(policy, batch, statistics=TOKENS).tokens
        self._probe = found.float().flatten().cpu()
        self._tolerance = FLOAT32_TOLERANCE if causal_lm(reference).dtype == torch.float32 else HALF_TOLERANCE

    def digest(self, policy: nn.Module) -> str:
        """Return the digest of the reference's weights as loaded, which does not depend on the precision of the run."""
        return self._digest

    def identity(self, policy: nn.Module) -> dict[str, Any]:
        """Return what a checkpoint stores about the reference: its digest and log-probabilities of the probe."""
        return {"reference_digest": self.digest(policy), "reference_probe": self._probe}

    def check_identity(self, policy: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        """Refuse to resume against a reference other than the one that the run began with.

        The digest detects other weights. The probe detects equal weights that compute something else: another
        quantization, another initialization of the adapter, or another version of a library.

        Args:
            policy: the model to be trained.
            checkpoint: entries as `identity` returned them.

        Raises:
            UserError: the reference differs.
        """
        what, known = "the checkpoint was trained against another reference", checkpoint.get("reference_probe")
        same = checkpoint.get("reference_digest") == self.digest(policy)
        if same and known is not None and known.shape == self._probe.shape:
            if torch.allclose(known, self._probe, rtol=0, atol=self._tolerance * max_abs(known)):
                return
            off = float((known - self._probe).abs().max())
            what += f": its weights are equal, its log-probabilities differ by up to {off:.2g} nats"
        raise UserError(
            ExitCode.CONFIG,
            Problem(what, "ckpt_path"),
            fix="use the --model.policy.path and --model.reference of the run that wrote it, which is another "
            "than that of the folder if the checkpoint was copied",
        )


@contextmanager
def policy_probe(model: nn.Module) -> Iterator[Batch]:
    """Yield a few fixed pairs as a batch, while the policy is in eval mode, without autocast and uncompiled."""
    batch = probe_batch(causal_lm(model), Padded())
    with trial(model):
        yield batch


def max_abs(values: Tensor) -> float:
    """Return the largest absolute value, or 0 for an empty tensor."""
    return float(values.abs().max()) if len(values) else 0.0


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of names, shapes and up to 256 evenly spaced values of every tensor."""
    digest = hashlib.sha256()
    for name, value in named:
        flat = value.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)][:256].float().cpu()
        digest.update(f"{name} {tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def frozen_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the parameters that are not trained: all of a frozen copy, the base below an adapter."""
    return ((name, value) for name, value in model.named_parameters() if not value.requires_grad)


def check_same_tokenizer(builder: CausalLM, other: CausalLM, option: str) -> None:
    """Refuse a reference model with another vocabulary: log-probabilities are comparable over the same tokens only.

    Args:
        builder: the policy's.
        other: the reference's.
        option: the option of the reference that names the other model.

    Raises:
        UserError: the vocabularies differ.
    """
    if builder.tokenizer().get_vocab() != other.tokenizer().get_vocab():
        raise UserError(
            ExitCode.MODEL,
            Problem("the reference has another tokenizer than the policy", f"{REFERENCE_KEY}.{option}", other.path),
            fix="use a reference of the same family",
        )

"""What every reference is asked, and the anchor by which a run that goes on knows it again."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import isabstract
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lightning.batches import Batch, PreferenceBatch
from dpo_lightning.data.collate import Padded
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import Scored, score, scored_positions
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.lm_head import SplitHead, causal_lm
from dpo_lightning.models.probe import HALF_TOLERANCE, TOLERANCE, on_device, probe, undisturbed
from dpo_lightning.types import SequenceLogps, Statistic

KEY = "model.reference"

TOKENS: tuple[Statistic, ...] = ("tokens",)


class ReferencePolicy(nn.Module, ABC):
    """What a policy is compared with. It has no gradient, no place in a checkpoint, and an anchor that is in it."""

    def __init__(self) -> None:
        """Start unbound."""
        super().__init__()
        self._digest = ""
        self._probe = torch.zeros(0)
        self._tolerance = 0.0
        self._head: SplitHead | None = None
        self._nearness = 0.0

    @classmethod
    def kinds(cls) -> list[type[ReferencePolicy]]:
        """Every reference that can be named, whatever lies between it and this class."""
        found: list[type[ReferencePolicy]] = []
        for kind in cls.__subclasses__():
            found += [kind, *kind.kinds()]
        return [kind for kind in found if not isabstract(kind)]

    @abstractmethod
    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Take what is needed from the policy before its first step.

        Raises:
            UserError: this reference would not be the policy's starting point.
        """

    @abstractmethod
    def activated(self, policy: nn.Module) -> Any:
        """A context in which the yielded model is the reference."""

    def after_step(self, policy: nn.Module, step: int) -> None:
        """What an optimizer step means to the reference; nothing, where it stays at the start.

        Args:
            policy: after the step.
            step: the number of steps with this one.
        """

    def named(self) -> Mapping[str, Tensor]:
        """The weights that this reference holds itself, by name."""
        return {}

    def align(self) -> None:
        """Give every process the first one's weights: an adapter may have begun with another draw on each."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for value in self.named().values():
                torch.distributed.broadcast(value.data, 0)

    @property
    def starts_equal(self) -> bool:
        """Whether policy and reference are the same function at the first step."""
        return True

    @property
    def nearness(self) -> float:
        """By how much log-probabilities may differ at such a start: nats per scored token, and part of a sum.

        Nothing where both run the same kernels on the same batch; compiled graphs with and without gradients differ.
        """
        return self._nearness

    @property
    def live(self) -> bool:
        """Whether there is a model to ask, for answers as well."""
        return True

    def takes_trees(self) -> bool:
        """Whether the reference can be asked in every layout."""
        return True

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Log-probabilities under the reference, without a gradient; the policy runs in the same layout and kernels.

        Args:
            policy: the model that is trained.
            batch: what is scored.
            rows: the part of the data, `train` or `eval`, that the batch's indices count in.
            statistics: what the loss needs besides sums and lengths.
        """
        own = [name for name in statistics if name == "tokens"]  # the others are the policy's
        with torch.no_grad(), self.activated(policy) as model:
            return score(model, batch, self._head, own)

    def distributions(self, policy: nn.Module, batch: Batch) -> Scored:
        """The reference's distributions over the vocabulary at every scored token, for a divergence from them.

        Raises:
            UserError: there is no model to ask.
        """

        def logits(hidden: Tensor) -> Tensor:
            with torch.no_grad(), self.activated(policy):
                return logits_of(hidden)

        with torch.no_grad(), self.activated(policy) as model:
            hidden, logits_of = scored_positions(model, batch, self._head)
        return Scored(hidden, logits)

    def remember(self, policy: nn.Module, digest: str) -> None:
        """Keep what tells this reference from another: a digest of weights, and what it says about a few tokens."""
        self._digest = digest
        with self.activated(policy) as model:
            asked = model
        with probing(asked) as batch:
            found = self(policy, batch, statistics=TOKENS).tokens
        self._probe = found.float().flatten().cpu()
        self._tolerance = TOLERANCE if causal_lm(asked).dtype == torch.float32 else HALF_TOLERANCE

    def digest(self, policy: nn.Module) -> str:
        """The fingerprint of the reference's weights as they were loaded, whatever the precision of the run."""
        return self._digest

    def anchor(self, policy: nn.Module) -> dict[str, Any]:
        """What a checkpoint keeps of the reference that the run began with."""
        return {"reference_digest": self.digest(policy), "reference_probe": self._probe}

    def check_anchor(self, policy: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        """Refuse to go on against another reference than the run began with.

        A digest tells other weights; the probe tells the same weights that have become another function: by another
        quantization, another start of the adapter, or another version of a library.

        Raises:
            UserError: it is another.
        """
        said, known = "the checkpoint was trained against another reference", checkpoint.get("reference_probe")
        same = checkpoint.get("reference_digest") == self.digest(policy)
        if same and known is not None and known.shape == self._probe.shape:
            if torch.allclose(known, self._probe, rtol=0, atol=self._tolerance * largest(known)):
                return
            off = float((known - self._probe).abs().max())
            said += f": its weights are the same, and its log-probabilities differ by up to {off:.2g} nats"
        raise UserError(
            ExitCode.CONFIG,
            Problem(said, "ckpt_path"),
            fix="give --model.policy.path (and --model.reference) of the run that wrote it",
        )


@contextmanager
def probing(model: nn.Module) -> Iterator[PreferenceBatch]:
    """A few fixed tokens, where the model is, and nothing that would disturb what is said about them."""
    pairs, indices = probe(causal_lm(model).config.get_text_config().vocab_size)
    with torch.device("cpu"):  # lightning makes the GPU the default while a model is built
        batch = Padded().pairs(pairs, indices)
    # Compiled layers run as they are: a few tokens are not worth a graph.
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        yield on_device(batch, causal_lm(model))


def largest(values: Tensor) -> float:
    """The largest size, 0 where there is none."""
    return float(values.abs().max()) if len(values) else 0.0


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Names, sizes and up to 256 values of every tensor."""
    digest = hashlib.sha256()
    for name, value in named:
        flat = value.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)][:256].float().cpu()
        digest.update(f"{name} {tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def frozen_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is not trained, by name: all of a frozen copy, the base below an adapter."""
    return ((name, value) for name, value in model.named_parameters() if not value.requires_grad)


def check_same_tokenizer(builder: CausalLM, other: CausalLM, option: str) -> None:
    """Log-probabilities can only be compared over the same tokens; `option` of the reference names the other model."""
    if builder.tokenizer().get_vocab() != other.tokenizer().get_vocab():
        raise UserError(
            ExitCode.MODEL,
            Problem("the reference has another tokenizer than the policy", f"{KEY}.{option}", other.path),
            fix="use a reference of the same family",
        )

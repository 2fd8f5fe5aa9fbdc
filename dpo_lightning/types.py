"""Every record that crosses a file boundary, from a row of a file to the number per pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:  # the records of the data path are usable without torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Message: TypeAlias = Mapping[str, Any]
"""One chat turn: `role`, `content`, and what the template needs for tools (`tool_calls`, `name`, ...)."""

Text: TypeAlias = str | tuple[Message, ...]
"""A prompt or an answer: a plain string, or chat messages."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from; printed as `file:line` in every message about it."""

    file: str
    line: int
    nth: int = 1
    """Its number among the rows of this line: an array may stand on one."""

    def __str__(self) -> str:
        """`file:line`, and which row of it from the second on."""
        return f"{self.file}:{self.line}" + (f" (row {self.nth} of the line)" if self.nth > 1 else "")


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """One comparison: `chosen` was preferred to `rejected` as an answer to `prompt`.

    Either all three texts are strings, or all are message tuples (`chosen` and `rejected` then end with an
    assistant message, and may begin with the turns that led to it).
    """

    origin: Origin
    prompt: Text
    chosen: Text
    rejected: Text
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One demonstration: `completion` is what the model should answer to `prompt`.

    For a conversation, `prompt` holds the messages before the first assistant turn and `completion` all that
    follow; every assistant turn of it is learned.
    """

    origin: Origin
    prompt: Text
    completion: Text
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """Token ids that follow a prompt, and which of them are scored (the assistant's own, its EOS included).

    `cut` tells that the end was lost to `max_length`, and the EOS with it.
    """

    ids: Sequence[int]
    scored: Sequence[bool]
    cut: bool = False


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Both answers follow the same `prompt_ids`."""

    origin: Origin
    prompt_ids: Sequence[int]
    chosen: EncodedAnswer
    rejected: EncodedAnswer

    @property
    def answers(self) -> tuple[EncodedAnswer, ...]:
        """Chosen and rejected."""
        return self.chosen, self.rejected

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class EncodedSFT:
    """A prompt and the completion that is learned."""

    origin: Origin
    prompt_ids: Sequence[int]
    completion: EncodedAnswer

    @property
    def answers(self) -> tuple[EncodedAnswer, ...]:
        """The completion alone."""
        return (self.completion,)

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion.ids)


class Tree(NamedTuple):
    """Where sequences with a common beginning lie in a row: the trunk once, then what each has of its own.

    A trunk token sees the trunk before it; a branch token sees the whole trunk and its own branch before it. There is a
    branch for every sequence; that of a sequence by itself is empty.
    """

    row: int
    start: int
    trunk: int
    branches: tuple[int, ...]
    numbers: tuple[int, ...]
    """The sequence that each branch belongs to."""


class PreferenceBatch(NamedTuple):
    """`B` pairs as `2B` sequences: chosen answers are sequences `0..B-1`, rejected ones `B..2B-1`.

    Attributes:
        input_ids: token ids.
        position_ids: positions within the sequence, so that neither padding nor neighbours change anything.
        mask: True on real tokens.
        places: for each scored token, the position that predicts it, counted through the rows.
        targets: the scored tokens' ids, those of a sequence in its order.
        sequence_ids: the sequence that each scored token belongs to.
        trees: which token sees which; empty where every row is one causal sequence.
        indices: the row of the data set per pair, -1 for a pair that only fills up a rank's share.
    """

    input_ids: Int[Tensor, "row position"]
    position_ids: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]
    trees: tuple[Tree, ...]
    indices: Int[Tensor, " pair"]

    @property
    def num_sequences(self) -> int:
        """Two per pair."""
        return 2 * len(self.indices)


class SFTBatch(NamedTuple):
    """Demonstrations, one sequence each; the attributes are those of `PreferenceBatch`."""

    input_ids: Int[Tensor, "row position"]
    position_ids: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]
    trees: tuple[Tree, ...]
    indices: Int[Tensor, " sequence"]

    @property
    def num_sequences(self) -> int:
        """One per demonstration."""
        return len(self.indices)


Batch: TypeAlias = PreferenceBatch | SFTBatch


class TokenLogps(NamedTuple):
    """Log-probability of each scored token in nats, in the order of the batch's `targets`, and whose token it is."""

    values: Float[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]


class SequenceLogps(NamedTuple):
    """Log-probabilities of each sequence's scored tokens: their sum in nats, and how many they are."""

    sums: Float[Tensor, " seq"]
    lengths: Float[Tensor, " seq"]


class PairLogps(NamedTuple):
    """What a loss is given: summed log-probabilities of both answers, and their numbers of scored tokens."""

    policy_chosen: Float[Tensor, " pair"]
    policy_rejected: Float[Tensor, " pair"]
    reference_chosen: Float[Tensor, " pair"]
    reference_rejected: Float[Tensor, " pair"]
    chosen_lengths: Float[Tensor, " pair"]
    rejected_lengths: Float[Tensor, " pair"]

    @classmethod
    def of(cls, policy: SequenceLogps, reference: SequenceLogps) -> PairLogps:
        """Pair up the `2B` sequences of a `PreferenceBatch`."""
        chosen, rejected = policy.sums.chunk(2)
        reference_chosen, reference_rejected = reference.sums.chunk(2)
        return cls(chosen, rejected, reference_chosen, reference_rejected, *policy.lengths.chunk(2))

    @property
    def chosen_logratios(self) -> Float[Tensor, " pair"]:
        """Log pi(chosen) - log ref(chosen)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_logratios(self) -> Float[Tensor, " pair"]:
        """Log pi(rejected) - log ref(rejected)."""
        return self.policy_rejected - self.reference_rejected

    @property
    def margins(self) -> Float[Tensor, " pair"]:
        """The difference of the log-ratios, `h` in the formulas."""
        return self.chosen_logratios - self.rejected_logratios

    def detach(self) -> PairLogps:
        """The same numbers without their graph."""
        return PairLogps(*(value.detach() for value in self))


class PreferenceOutput(NamedTuple):
    """A loss's answer per pair. Rewards are implicit (`beta * log-ratio` for DPO), detached."""

    losses: Float[Tensor, " pair"]
    chosen_rewards: Float[Tensor, " pair"]
    rejected_rewards: Float[Tensor, " pair"]

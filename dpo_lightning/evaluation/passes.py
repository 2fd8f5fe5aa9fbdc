"""The two passes of an evaluation over its rows: scoring pairs, and answering prompts; both can be interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from dpo_lightning.data.examples import Encoded
from dpo_lightning.data.progress import track
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.answers import measure_repetition
from dpo_lightning.evaluation.chat_server import ChatRequest, ChatServer
from dpo_lightning.evaluation.endpoint import BadRequestError
from dpo_lightning.evaluation.held_out import HeldOut
from dpo_lightning.evaluation.scoring import ModelPair, make_row
from dpo_lightning.evaluation.work_file import WorkFolder
from dpo_lightning.losses import PairwiseLoss
from dpo_lightning.models.generation import decode_answers, generate_ids
from dpo_lightning.sampling import Sampling
from dpo_lightning.stopping import Stopped, requested
from dpo_lightning.types import PairLogps, SequenceLogps

SCORES, ANSWERS = "scores", "answers"

REQUESTS = 8
"""Requests that are sent to a server at a time."""

Values = Mapping[int, Mapping[str, Any]]
"""Number of a row -> what was computed for it."""


class Pass(NamedTuple):
    """A pass over rows.

    Attributes:
        name: under which its results are kept.
        title: what it does, for the progress.
        batches: this process's batches, lists of the numbers of rows.
        compute: computes the values of the rows of a batch.
    """

    name: str
    title: str
    batches: Sequence[Sequence[int]]
    compute: Callable[[Sequence[int]], Values]

    def run(self, work: WorkFolder) -> None:
        """Compute the rows that are not kept yet, and keep each batch as soon as it is done.

        A signal or a time limit ends the loop; the caller lets all processes agree on it.
        """
        done = work.load(self.name)
        left = [rows for batch in self.batches if (rows := [row for row in batch if row not in done])]
        with suppress(Stopped):
            for batch in iterate(left, self.title):
                work.append(self.name, self.compute(batch))


def iterate(batches: Sequence[Sequence[int]], title: str) -> Iterator[Sequence[int]]:
    """Iterate over batches, with the progress in rows."""
    rows = track((row for batch in batches for row in batch), title, sum(map(len, batches)))
    for batch in batches:
        yield batch
        for _ in batch:
            next(rows, None)
    next(rows, None)  # ends the bar


def divide(lengths: Sequence[int], size: int, rank: int, world_size: int) -> list[list[int]]:
    """Divide rows into batches of about the same length, the longest first, and return those of one process.

    Args:
        lengths: tokens of each row.
        size: rows of a batch.
        rank: the index of the process.
        world_size: the number of processes.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return batches[rank::world_size]


def score_pairs(models: ModelPair, loss: PairwiseLoss, pairs: Sequence[Encoded], numbers: Sequence[int]) -> Values:
    """Compute log-probabilities, loss and rewards of some pairs.

    Raises:
        UserError: a log-probability is not finite.
    """
    rows = [pairs[number] for number in numbers]
    batch = models.collate(rows)
    scored = models.score(batch)
    policy, reference = scored.policy, scored.reference
    columns = {f"{side}_logps": values for side, values in halve(policy.sums)}
    columns |= {f"{side}_tokens": values.long() for side, values in halve(policy.lengths)}
    columns |= compute_rewards(loss, policy, reference, batch.to(policy.sums.device))
    if reference is not None and scored.kl is not None:
        columns |= {f"reference_{side}_logps": values for side, values in halve(reference.sums)}
        columns |= {f"{side}_kl": values for side, values in halve(scored.kl)}
    lists = {name: values.tolist() for name, values in columns.items()}
    found = {number: {name: lists[name][place] for name in lists} for place, number in enumerate(numbers)}
    for number, values in found.items():
        check_finite(values, str(pairs[number].origin))
    return found


def compute_rewards(
    loss: PairwiseLoss, policy: SequenceLogps, reference: SequenceLogps | None, batch: Any
) -> dict[str, Tensor]:
    """Return loss, the loss's own rewards and margins of pairs; nothing where it needs a reference and there is none.

    The log-ratio margin is the same quantity for each loss: the difference of log pi(y|x) - log ref(y|x), in nats.
    """
    if reference is None and not loss.reference_free:
        return {}
    logps = PairLogps.of(policy, policy if reference is None else reference, batch)
    output = loss(logps)
    columns = {
        "loss": output.losses,
        "chosen_reward": output.chosen_rewards,
        "rejected_reward": output.rejected_rewards,
        "margin": output.chosen_rewards - output.rejected_rewards,
    }
    return columns if reference is None else {**columns, "logratio_margin": logps.margins}


def halve(values: Tensor) -> list[tuple[str, Tensor]]:
    """Split the values of a batch of pairs into those of chosen and of rejected answers."""
    return list(zip(("chosen", "rejected"), values.chunk(2), strict=True))


def check_finite(values: Mapping[str, Any], origin: str) -> None:
    """Check that all values of a row are finite.

    Raises:
        UserError: one is not.
    """
    bad = next((name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)), None)
    if bad is not None:
        raise UserError(
            ExitCode.MODEL,
            Problem(f"{bad} is {values[bad]}", origin),
            fix="--precision 32-true, or a model whose weights are finite",
        )


def answer_prompts(
    models: ModelPair,
    stops: frozenset[int],
    tokenizer: Any,
    rows: HeldOut,
    sampling: Sampling,
    numbers: Sequence[int],
) -> Values:
    """Generate an answer to some prompts, and measure how far the model is from its reference at each token of it."""
    prompts = [rows.prompts[number] for number in numbers]
    with models.autocast():
        answers = generate_ids(models.policy, prompts, sampling, stops)
    texts = decode_answers(tokenizer, answers)
    divergences: list[float | None] = [None] * len(numbers)
    if models.has_reference:
        batch = models.collate([make_row(*both) for both in zip(prompts, answers, strict=True)])
        kl = models.score(batch).kl
        divergences = [None] * len(numbers) if kl is None else kl.tolist()
    found = {
        number: {
            "generated": text,
            "tokens": len(ids),
            "ended": ids[-1] in stops,
            "repetition": measure_repetition(ids),
            "kl": divergence,
        }
        for number, text, ids, divergence in zip(numbers, texts, answers, divergences, strict=True)
    }
    for number, values in found.items():
        check_finite(values, str(rows.examples[number].origin))
    return found


def answer_by_server(
    server: ChatServer, tokenizer: Any, rows: HeldOut, sampling: Sampling, numbers: Sequence[int]
) -> Values:
    """Take the answers to some prompts from a server, several at a time; their tokens are counted by the tokenizer.

    Raises:
        UserError: the server does not answer, or refuses a prompt; the row is named.
    """
    prompts = [rows.examples[number].prompt for number in numbers]
    chats = [({"role": "user", "content": each},) if isinstance(each, str) else each for each in prompts]
    seeds = [sampling.prompt_seed(rows.prompts[number]) for number in numbers]
    tools = [rows.examples[number].tools for number in numbers]
    requests = [ChatRequest(*each) for each in zip(chats, seeds, tools, strict=True)]
    found = {}
    for place, reply in server.answer_all(requests, sampling, REQUESTS):
        number = numbers[place]
        if isinstance(reply, BadRequestError):
            problems = [replace(each, where=f"{rows.examples[number].origin}") for each in reply.problems]
            raise UserError(reply.code, problems, reply.fix)
        text = reply.text.strip()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        measured = {"tokens": len(ids), "ended": reply.ended, "repetition": measure_repetition(ids), "kl": None}
        found[number] = {"generated": text, **measured}
        if requested():
            break
    return found

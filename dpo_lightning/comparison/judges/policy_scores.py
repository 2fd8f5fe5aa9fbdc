"""Scores of a preference-tuned model against its reference, for the judge `ImplicitReward`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from dpo_lightning.comparison.judges.implicit import ImplicitReward
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.examples import Encoded, Example, Origin, Text
from dpo_lightning.data.progress import track
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.loading import choose_max_length, choose_models, make_fabric, make_renderer
from dpo_lightning.evaluation.options import EvaluationOptions
from dpo_lightning.evaluation.passes import divide
from dpo_lightning.evaluation.scoring import ModelPair
from dpo_lightning.hardware import choose_precision


def load_implicit(options: EvaluationOptions) -> ImplicitReward:
    """Load a model and its reference as a judge.

    Args:
        options: `model`, `reference`, `max_length`, `batch_size`, `accelerator` and `precision` of it are used.

    Raises:
        UserError: one of them cannot be loaded, or the model has no reference.
    """
    precision = options.precision or choose_precision(options.accelerator)[0]
    models = choose_models(options, precision)
    if models.reference is None:
        raise UserError(
            ExitCode.CONFIG,
            Problem("an implicit reward needs a reference", "--judge_model", options.model),
            fix="--judge_reference PATH, the model before its preference training",
        )
    fabric = make_fabric(options.accelerator, precision)
    pair = models.load(fabric.device, fabric.autocast, options.collator)
    encoder = Encoder(make_renderer(models.policy, options), choose_max_length(models.policy, options))
    described = {
        "model": options.model,
        "reference": models.reference.path,
        "digests": list(models.digests),
        "precision": precision,
    }
    return ImplicitReward(partial(score_answers, pair, encoder, options.batch_size), described)


def score_answers(
    pair: ModelPair,
    encoder: Encoder,
    batch_size: int,
    prompts: Sequence[Text],
    answers: Sequence[str],
    origins: Sequence[Origin],
) -> list[float]:
    """Return log pi(y|x) - log ref(y|x) of each answer with its end token, in nats.

    Raises:
        UserError: 65, a prompt and its answer are longer than `max_length`, or hold a control token.
    """
    try:
        rows = encoder.encode(map(make_example, origins, prompts, answers))
    except UserError as error:
        if error.problems != tuple(encoder.counts.too_long):
            raise
        fix = "raise --max_length if the judge has more positions, or compare shorter answers"
        raise UserError(error.code, error.problems, fix) from None
    scores = [0.0] * len(rows)
    for number, score in track(score_rows(pair, rows, batch_size), "scoring", len(rows)):
        scores[number] = score
    return scores


def make_example(origin: Origin, prompt: Text, answer: str) -> Example:
    """Make a row of a prompt and an answer, which is a message where the prompt is messages."""
    if isinstance(prompt, str):
        return Example(origin, prompt, (answer,))
    return Example(origin, tuple(prompt), (({"role": "assistant", "content": answer},),))


def score_rows(pair: ModelPair, rows: Sequence[Encoded], batch_size: int) -> Iterator[tuple[int, float]]:
    """Iterate over the numbers of rows, the longest first, and their scores."""
    for numbers in divide([row.length for row in rows], batch_size, 0, 1):
        scored = pair.score(pair.collate([rows[number] for number in numbers]))
        if scored.reference is None:
            raise ValueError("the pair has no reference")
        yield from zip(numbers, (scored.policy.sums - scored.reference.sums).tolist(), strict=True)

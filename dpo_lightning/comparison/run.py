"""`compare`: reads or generates the answers of several models, has them judged, and writes the report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dpo_lightning.comparison.judges.base import Judge
from dpo_lightning.comparison.pairing import match_results
from dpo_lightning.comparison.report import Report, format_lines, make_report, write_report
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.chat_server import ChatServer
from dpo_lightning.evaluation.options import EvaluationOptions
from dpo_lightning.evaluation.result_file import Result, read_result
from dpo_lightning.folder_names import check_output_path, unwritable_error
from dpo_lightning.json_files import read_json
from dpo_lightning.log import logger
from dpo_lightning.models.folder_checks import looks_like_hub_id

RESULTS = (".json", ".jsonl")
"""Endings of the names of result files."""


@dataclass(frozen=True)
class ComparisonOptions:
    """The options of a comparison; `compare --help` describes those that are not described here.

    Attributes:
        models: result files of `evaluate`, or models.
        judge: `implicit`, `reward_model`, `llm` or `person`.
        output: the JSON file or the page; the other one and the verdicts that are kept are written beside it.
        generation: how models are evaluated; `model` and `output` of it are replaced. Its sampling seed is also
            that of the judge.
        judge_name: the name of the judge's model at a server.
        requests: requests to a server at a time.
    """

    models: Sequence[str]
    judge: str
    output: str
    generation: EvaluationOptions
    judge_model: str | None = None
    judge_reference: str | None = None
    judge_prompt: str | None = None
    judge_name: str | None = None
    judge_tokens: int = 512
    requests: int = 4
    allow: Collection[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        check_output_path(self.output, "--output", "--output comparison.json", file=True)
        if Path(self.output).suffix not in (".json", ".html"):
            what = Problem("the output is neither a .json nor a .html file", "--output", self.output)
            raise UserError(ExitCode.CONFIG, what, fix="--output comparison.json")
        for name, count in (("--judge_tokens", self.judge_tokens), ("--requests", self.requests)):
            if count < 1:
                raise UserError(ExitCode.CONFIG, Problem("expected 1 or more", name, str(count)), fix=f"{name} 1")
        if not 2 <= len(self.models) <= 26:
            raise UserError(ExitCode.CONFIG, f"{len(self.models)} models are given", fix="give 2 to 26 of them")
        if self.judge == "llm" and "://" in str(self.judge_model):
            ChatServer(str(self.judge_model))  # refuses a bad URL before models answer
        if self.judge_model is None and self.judge != "person":
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"the judge {self.judge} needs a model", "--judge_model"),
                fix="--judge_model PATH" + " or URL" * (self.judge == "llm"),
            )


def compare(options: ComparisonOptions) -> Report:
    """Compare models, write the report and log its figures.

    Raises:
        UserError: the answers cannot be compared or judged, or the output cannot be written; 75 if a judge was
            interrupted, whose verdicts are kept.
    """
    output = Path(options.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        check_output(output)
        results = [load_result(options, nth) for nth in range(len(options.models))]
        matched = match_results(results, options.allow)
        judge = make_judge(options)
        verdicts = judge.decide(matched.prompts, matched.answers, matched.origins)
        report = make_report(matched, verdicts, judge.describe())
        paths = write_report(report, output)
    except OSError as error:
        raise unwritable_error(error, output) from None
    for line in format_lines(report):
        logger.info(line)
    logger.info(f"written: {paths[0]} and {paths[1]}")
    return report


def check_output(output: Path) -> None:
    """Check that an existing output is a comparison, which is replaced, and not a file of evaluate or of the user.

    Raises:
        UserError: 73, it is something else.
    """
    place, page = output.with_suffix(".json"), output.with_suffix(".html")
    if not place.exists():
        if not page.exists():
            return
        place = page  # of evaluate, whose items are in a .jsonl file, or of the user
    try:
        content = read_json(place)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or "comparisons" not in content:
        raise UserError(
            ExitCode.OUTPUT,
            Problem("the file has something else than a comparison", "--output", str(place)),
            fix="choose another --output",
        )


def load_result(options: ComparisonOptions, nth: int) -> Result:
    """Read the answers of a model, or generate them into a file beside the output.

    Raises:
        UserError: the file cannot be read, or the model cannot be evaluated; 64 for a model without `--data`.
    """
    name = options.models[nth]
    if not is_model(name):
        return read_result(name, answered=True)
    if not options.generation.data:
        raise UserError(
            ExitCode.CONFIG,
            Problem("a model needs prompts", "--data", name),
            fix="--data FILE, or give result files of evaluate",
        )
    from dpo_lightning.evaluation.run import evaluate

    output = Path(options.output)
    place = output.with_name(f"{output.stem}.{chr(ord('A') + nth)}.jsonl")
    return evaluate(replace(options.generation, model=name, output=str(place)))


def is_model(name: str) -> bool:
    """Whether a name is that of a model folder, a checkpoint or a model on a hub, and not of a result file."""
    path = Path(name)
    missing = not path.exists() and path.suffix not in RESULTS
    return path.is_dir() or path.suffix == ".ckpt" or (missing and looks_like_hub_id(name))


def make_judge(options: ComparisonOptions) -> Judge:
    """Create the judge; models are loaded.

    Raises:
        UserError: its model or its prompt cannot be used.
    """
    output, generation, path = Path(options.output), options.generation, str(options.judge_model)
    kept, seed = output.with_name(f"{output.stem}.verdicts.jsonl"), generation.sampling.seed
    if options.judge == "person":
        from dpo_lightning.comparison.judges.person import PersonJudge

        return PersonJudge(kept, seed)
    if options.judge == "implicit":
        from dpo_lightning.comparison.judges.policy_scores import load_implicit

        return load_implicit(replace(generation, model=path, reference=options.judge_reference))
    if options.judge == "reward_model":
        from dpo_lightning.comparison.judges.reward_model import RewardModelJudge
        from dpo_lightning.models.reward_model import RewardModel

        return RewardModelJudge(RewardModel(path, choose_device(generation)), generation.batch_size)
    from dpo_lightning.comparison.judges.llm import LanguageModelJudge, read_template
    from dpo_lightning.comparison.judges.speakers import LocalSpeaker, ServerSpeaker, Speaker

    template = read_template(options.judge_prompt)
    speaker: Speaker
    if "://" in path:
        speaker = ServerSpeaker(ChatServer(path, options.judge_name), options.requests)
    else:
        speaker = LocalSpeaker(path, choose_device(generation), generation.batch_size)
    return LanguageModelJudge(speaker, template, kept, seed, options.judge_tokens)


def choose_device(generation: EvaluationOptions) -> torch.device:
    """Return the device of `--accelerator`."""
    from dpo_lightning.evaluation.loading import make_fabric

    return make_fabric(generation.accelerator).device

"""`make_tasks`: the commands of each point, out of its whole config and the options of the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.sweeps.grid import SEED, Point
from dpo_lightning.sweeps.manifest import identify
from dpo_lightning.sweeps.slots import Task

SAME_REFERENCE = ("model.loss", "model.learning_rate", "model.optimizer", "model.lr_scheduler", "trainer", SEED)
"""Keys that may be swept, with all below them, without a change of the reference's log-probabilities."""

CHANGES_PRECISION = "trainer.precision"

ROW_OPTIONS = (
    "format",
    "first_wins",
    "max_length",
    "overlong",
    "template",
    "chat_template",
    "template_date",
    "special_tokens",
    "bad_rows",
    "limit_rows",
)
"""Options of the data that `evaluate` has under the same names, so that held-out rows are encoded as in training."""


@dataclass(frozen=True)
class Resolved:
    """A point's config as `fit` reads it.

    Attributes:
        config: the whole config, nested, defaults included.
        looks_up: whether the loss takes reference log-probabilities from a file, and the config names no reference.
    """

    config: dict[str, Any]
    looks_up: bool

    def with_seed(self, seed: str | None) -> Resolved:
        """Return the same with another seed; None keeps it."""
        return self if seed is None else replace(self, config=self.config | {SEED: int(seed)})

    def with_date(self, day: str) -> Resolved:
        """Return the same with a date for chat templates that write one."""
        data = self.config["data"]
        return replace(
            self, config=self.config | {"data": data | {"init_args": data["init_args"] | {"template_date": day}}}
        )

    @property
    def model(self) -> dict[str, Any]:
        """The options of the model."""
        return self.config["model"]["init_args"]

    @property
    def held_out(self) -> list[str]:
        """The files of held-out rows."""
        files = self.config["data"]["init_args"].get("eval") or []
        return [files] if isinstance(files, str) else [str(file) for file in files]

    @property
    def evaluation_flags(self) -> list[str]:
        """The options of `evaluate` by which rows and numbers are those of training."""
        data, trainer = self.config["data"]["init_args"], self.config["trainer"]
        options = {name: data.get(name) for name in ROW_OPTIONS}
        options |= {f"columns.{ours}": theirs for ours, theirs in (data.get("columns") or {}).items()}
        options |= {name: trainer[name] for name in ("precision", "accelerator") if isinstance(trainer[name], str)}
        given = data.get("ignore_columns") or []
        ignored = [given] if isinstance(given, str) else [str(name) for name in given]
        flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return [*flags, *(["--ignore_columns", *ignored] if ignored else [])]

    @property
    def start(self) -> str:
        """The model to which the trained one is compared: the config's reference, else the start of training."""
        options = (self.model.get("reference") or {}).get("init_args") or {}
        named = options["model"] if "model" in options else options.get("path")  # `path` of Precomputed is no model
        return str(named or self.model["policy"]["path"])


def keeps_reference(keys: Sequence[str]) -> bool:
    """Whether the reference's log-probabilities are the same at all points, by the keys that are swept."""
    return all(
        key != CHANGES_PRECISION and any(f"{key}.".startswith(f"{same}.") for same in SAME_REFERENCE) for key in keys
    )


def make_tasks(
    points: Sequence[Point],
    resolved: Sequence[Resolved],
    arguments: Sequence[str],
    rows: Sequence[str],
    options: Sequence[str],
) -> list[Task]:
    """Return what has to be run for each point.

    Args:
        points: of the sweep.
        resolved: the config of each.
        arguments: of `fit`, the same for all points.
        rows: files of held-out rows; empty for those of the config.
        options: more arguments of `evaluate`.

    Raises:
        UserError: 64, there are no held-out rows.
    """
    tasks = []
    for point, config in zip(points, resolved, strict=True):
        files = list(rows) or config.held_out
        if not files:
            what = Problem("the config names no held-out rows, by which points are compared", "data.eval")
            raise UserError(ExitCode.CONFIG, what, fix="--data.eval FILE, or --eval_data FILE")
        evaluate = ["--data", *files, "--reference", config.start, *config.evaluation_flags, *options]
        digest = digest_of([evaluate, [identify(Path(file)) for file in files]])
        tasks.append(Task(point, [*arguments, *point.flags()], evaluate, digest))
    return tasks

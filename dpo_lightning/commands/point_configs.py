"""The options of each point of a sweep, read before anything is trained: those of `fit` and those of `evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from dpo_lightning import cli
from dpo_lightning.commands import evaluate
from dpo_lightning.commands.row_options import take_columns
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.stopping import raise_if_requested
from dpo_lightning.sweeps.grid import SEED, Point
from dpo_lightning.sweeps.plan import Resolved


class ResolveCLI(cli.PreferenceCLI):
    """A CLI with the options of `fit` that keeps the config in `resolved` and stops where the run would begin."""

    resolved: Resolved

    def before_instantiate_classes(self) -> None:
        """Leave the folder alone."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Create no trainer, since this machine may lack the config's device."""
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        self._dump_config()
        module: Any = self.model
        looks_up = isinstance(module, PreferenceModule) and module.given_reference is None
        looks_up = looks_up and not module.loss.reference_free and "kl" not in module.loss.statistics
        ResolveCLI.resolved = Resolved(self.config_dump, looks_up)


def resolve(points: Sequence[Point], arguments: Sequence[str], known: dict[str, Resolved]) -> list[Resolved]:
    """Return the config of each point; nothing is loaded or written.

    Args:
        points: of the sweep.
        arguments: of `fit`, the same for all points.
        known: settings that have been resolved before; those that are new are added.

    Raises:
        UserError: as `fit`, of the first point whose config is refused.
    """
    for point in points:
        raise_if_requested()
        setting = str(point.setting)  # seeds differ in nothing else
        if setting not in known:
            cli.main(["fit", *arguments, *point.flags(), "--output_dir=unused"], ResolveCLI)
            known[setting] = ResolveCLI.resolved
    return [known[str(point.setting)].with_seed(point.overrides.get(SEED)) for point in points]


def split_evaluate(text: str) -> list[str]:
    """Split options of `evaluate` that are given as one text.

    Raises:
        UserError: 64, `evaluate` has no such option, or a quotation mark is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        what = Problem(str(error), "--evaluate", text)
        raise UserError(ExitCode.CONFIG, what, fix="--evaluate '--max_new_tokens 64'") from None
    rest, columns = take_columns(["--model=unused", "--data=unused", "--output=unused.json", *words])
    evaluate.make_options(evaluate.make_parser().parse_args(rest), columns)
    return words

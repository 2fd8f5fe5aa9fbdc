"""`precompute`: the reference's log-probabilities of every row, computed once into a file that runs share."""

from __future__ import annotations

import os
import re
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from dpo_lightning import cli
from dpo_lightning.cli import PreferenceCLI
from dpo_lightning.config.option_help import find_topic, format_help
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import check_output_path
from dpo_lightning.log import logger
from dpo_lightning.loss_requirements import check_reference
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.references import AdapterDisabled, FrozenAdapter, FrozenCopy, ReferencePolicy
from dpo_lightning.references.precomputed import Precomputed

NAME = "precompute"


class ScoringTrainer(Trainer):
    """A trainer that sets up a run as `fit` does, up to the first step, and stops there."""

    def precompute(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Compute the reference's log-probabilities of every row once, into a file that runs share.

        Args:
            model: the module, whose reference is `Precomputed`.
            datamodule: the data module with the rows.
            ckpt_path: must be None, since the reference is the start of a run; it exists for config.yaml of a run.
            weights_only: has no effect without a checkpoint.
        """
        self.limit_train_batches = self.limit_val_batches = self.num_sanity_val_steps = 0
        self.fit(model, datamodule=datamodule)


class PrecomputeCLI(PreferenceCLI):
    """Parses the options of `fit`, and `--out` and `--shard`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The only command, `precompute`, and the arguments of its method that the parser leaves out."""
        return {NAME: {"model", "datamodule"}}

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Use the trainer class that has the method `precompute`."""
        self.trainer_class = ScoringTrainer
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the path of the file, and the part of the rows to compute."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--out", type=str, help="The file; left out, outputs/reference/ under its digest.")
        parser.add_argument(
            "--shard", type=str, help="I/N computes part I of N (1/4 to 4/4), auto takes them from a Slurm array."
        )

    def _parse_ckpt_path(self) -> None:
        path = self.config[NAME].get("ckpt_path")
        if path is not None:
            raise UserError(
                ExitCode.CONFIG,
                Problem("a reference is where a run begins, not a checkpoint of it", "ckpt_path", str(path)),
                fix="leave --ckpt_path out; for another model, --model.reference Precomputed --model.reference.model "
                "RUN/final_model",
            )

    def after_instantiate_classes(self) -> None:
        """Replace the reference of the config by a `Precomputed` one."""
        super().after_instantiate_classes()
        if not isinstance(self.model, PreferenceModule):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{type(self.model).__name__} has no reference", "model"),
                fix="--config configs/dpo.yaml, or another recipe with a reference",
            )
        config = self.config[NAME]
        self.reference = precomputed(self.model.given_reference)
        if config.out is not None:
            check_output_path(config.out, "--out", "--out reference.safetensors", file=True)
            self.reference.path = config.out
        self.reference.share = share(config.shard) if config.shard else None
        check_reference(self.model.loss, self.reference)
        self.model.given_reference = self.reference

    def after_precompute(self) -> None:
        """Log the command that uses the file, or how to join the parts."""
        if self.reference.share is not None:
            number, count = self.reference.share
            logger.info(
                f"part {number + 1} of {count} is there; {NAME} without --shard, or the first fit, joins all parts"
            )
        else:
            named = {name: getattr(self.reference, name) for name in ("path", "model")}
            flags = "".join(f" --model.reference.{name} {value}" for name, value in named.items() if value)
            day = self.datamodule.template_date.written
            flags += f" --data.template_date {day}" if day else ""
            logger.info(f"use it: fit with the same options and --model.reference Precomputed{flags}")


def precomputed(given: ReferencePolicy | None) -> Precomputed:
    """The `Precomputed` reference that has the same log-probabilities as the one given.

    Raises:
        UserError: the reference cannot be precomputed.
    """
    if given is None or isinstance(given, (AdapterDisabled, FrozenAdapter)):
        return Precomputed()
    if isinstance(given, FrozenCopy):
        return Precomputed(model=given.path)
    if isinstance(given, Precomputed):
        return given
    raise UserError(
        ExitCode.CONFIG,
        Problem(f"{type(given).__name__} cannot be precomputed", "model.reference"),
        fix="--model.reference Precomputed, with --model.reference.model PATH for another model",
    )


def share(text: str) -> tuple[int, int]:
    """Parse `I/N`, or `auto` for this task of a Slurm array, to the index from 0 and the number of shares."""
    if text == "auto":
        task, first, step, count = (
            os.environ.get(f"SLURM_ARRAY_TASK_{name}", default)
            for name, default in (("ID", ""), ("MIN", "0"), ("STEP", "1"), ("COUNT", "1"))
        )
        if not task.isdecimal():
            raise UserError(
                ExitCode.CONFIG,
                Problem("auto needs SLURM_ARRAY_TASK_ID and _COUNT, which a Slurm array sets", "shard"),
                fix="--shard 1/4, 2/4, ...",
            )
        return (int(task) - int(first)) // int(step), int(count)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, whole = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= whole:
        raise UserError(
            ExitCode.CONFIG,
            Problem("the share is not of the form I/N, I from 1 to N", "shard", text),
            fix="--shard 1/4, 2/4, 3/4 or 4/4",
        )
    return number - 1, whole


def main(argv: list[str]) -> int:
    """Run `precompute` with the arguments `argv`, and return the exit code."""
    if (topic := find_topic(argv)) is not None:
        print(format_help(NAME, topic))
        return 0
    return cli.main([NAME, *argv], PrecomputeCLI)

"""`fit`, `validate`, `test` and `predict`: LightningCLI with one folder per run and short errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dpo_lightning import callbacks as project_callbacks
from dpo_lightning.activity import activity
from dpo_lightning.callbacks.first_step import values_reported
from dpo_lightning.callbacks.summary import evaluate_final, summarize
from dpo_lightning.config.class_paths import OPENED, check_names, imports_restricted, iterate_texts, take_allowed
from dpo_lightning.config.files import ConfigFile, read_command_line
from dpo_lightning.config.key_check import check_keys
from dpo_lightning.config.library_errors import translate_error, translate_failure, user_error
from dpo_lightning.config.library_noise import silence_libraries
from dpo_lightning.config.loggers import make_folder_optional, place_in
from dpo_lightning.config.nulls import check_nulls
from dpo_lightning.config.option_table import read_options
from dpo_lightning.config.output_paths import check_outputs
from dpo_lightning.config.overrides import find_dropped_options, loss_defaults
from dpo_lightning.config.own_modules import own_module_error
from dpo_lightning.config.parse_errors import Known, parser_error
from dpo_lightning.config.trainer_options import (
    check_machine,
    check_seed,
    check_trainer,
    read_max_time,
    set_stopping_interval,
)
from dpo_lightning.data.text_datamodule import TextDataModule
from dpo_lightning.default_callbacks import add_checkpoint_files, add_default_callbacks, describe_run
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import UserError
from dpo_lightning.folder_names import CHECKPOINTS, CONFIG
from dpo_lightning.hardware import choose_precision
from dpo_lightning.kto import KTOModule
from dpo_lightning.listwise import ListwiseDPOModule
from dpo_lightning.log import is_first_process, logger
from dpo_lightning.logger_failures import tolerate_failures
from dpo_lightning.optimizers import check_options
from dpo_lightning.policy_module import PolicyModule
from dpo_lightning.ranks import limit_waiting, meet, port_held
from dpo_lightning.runs.disk_space import BYTES_PER_TRAINED_VALUE, check_space
from dpo_lightning.runs.earlier_run import EarlierRun, describe_checkpoint, find_earlier_run, is_continued, rewind
from dpo_lightning.runs.log_files import keep_tables_whole
from dpo_lightning.runs.plan import report_plan
from dpo_lightning.runs.resume import check_checkpoint, find_checkpoint, run_config, run_state, take_recorded
from dpo_lightning.runs.run_folder import RunFolder
from dpo_lightning.sft import SFTModule
from dpo_lightning.stopping import disable_lightning_handlers, raise_if_requested, set_deadline

PROGRAM = "python -m dpo_lightning"

MODULES = (DPOModule, KTOModule, ListwiseDPOModule, SFTModule)
"""The modules that `--model` names; each has the data that it takes as `data_module`."""


class RaisingLightningParser(LightningArgumentParser):
    """LightningCLI's parser, which raises errors without the usage text and takes no abbreviated keys."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"exit_on_error": False, "allow_abbrev": False} | options)


class PreferenceCLI(LightningCLI):
    """LightningCLI with a folder per run, a precision chosen by the hardware, and an evaluation at the end."""

    earlier: EarlierRun | None = None
    fingerprint: Mapping[str, Any] = {}
    """The run in the folder from which this command goes on, and what the checkpoint says of its run."""

    def __init__(self, args: list[str], files: Sequence[ConfigFile] | None = None) -> None:
        """Parse the command line and run the subcommand `args[0]`; `files` are its config files, if they are read."""
        for name in project_callbacks.__all__:  # a config may name a class by its short name once it is imported
            getattr(project_callbacks, name)
        make_folder_optional()
        self.files = read_command_line(args) if files is None else files
        self.config_files: list[Mapping[str, Any]] = [file.content for file in self.files]
        super().__init__(
            PolicyModule,
            TextDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=42,
            trainer_defaults={"max_epochs": 1, "num_sanity_val_steps": 0, "enable_model_summary": False},
            parser_class=RaisingLightningParser,
            parser_kwargs={"prog": PROGRAM},
            auto_configure_optimizers=False,
            args=args,
        )

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse the command line and check the options that need no class to be built."""
        own = [action.dest for action in self._subcommand_parsers[args[0]]._actions]
        check_keys(args, self.files, own)
        known = collect_names(own)
        try:
            self.config = parser.parse_args([*args, *loss_defaults(self.config_files, args)])
        except ArgumentError as error:
            failed = user_error(error.__cause__) or own_module_error(error, OPENED)
            raise (failed or parser_error(str(error), known, args)) from None
        config = self.config[self.config.subcommand]
        check_names(config, {"model": PolicyModule, "data": TextDataModule, "trainer": Trainer})
        check_nulls({section: config.get(section) for section in ("model", "data", "trainer")})
        check_seed(config.seed_everything)
        check_trainer(config.trainer, self.config.subcommand)
        check_outputs(config, args)
        config.fresh = config.fresh and "--fresh" in args  # a config file cannot move folders, only the flag can

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options of the run's folder."""
        parser.add_argument("--output_dir", type=str, required=True, help="The run's folder, to begin or continue it.")
        parser.add_argument(
            "--final", type=Literal["last", "best"], help="Weights of final_model: the last or the best."
        )
        parser.add_argument("--fresh", action="store_true", help="Move a run that is already in output_dir aside.")

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint from which a run goes on; refuse one of other hyperparameters, which Lightning takes."""
        command = self.config.subcommand
        config = self.config[command]
        path, folder = config.get("ckpt_path"), Path(config.output_dir)
        if command == "fit" and not config.fresh and is_continued(folder, path):
            take_recorded(folder / CONFIG, config)
            self._dump_config()
            with values_reported(str(folder / CHECKPOINTS)):
                self.earlier = find_earlier_run(folder, self.config_dump)
            self.fingerprint = self.earlier.fingerprint
            if self.earlier.finished:
                raise SystemExit(0)
            if self.earlier.checkpoint is not None:
                config.ckpt_path = str(self.earlier.checkpoint)
                return
        if path is not None:
            take_recorded(run_config(find_checkpoint(str(path))), config)
            self._dump_config()
            with values_reported(str(path)):
                content = check_checkpoint(str(path), self.config_dump, compare=command == "fit")
                self.fingerprint = run_state(content).get("run", {})
                if command == "fit" and RunFolder(config.output_dir).holds(path):
                    self.earlier = describe_checkpoint(Path(path), content)

    def before_instantiate_classes(self) -> None:
        """Check the run's folder, and choose the precision if the config leaves it out."""
        config = self.config[self.subcommand]
        for line in find_dropped_options(self.config_files, config):
            logger.warning(line)
        self.folder = RunFolder(config.output_dir)
        self.parser.add_instantiator(place_in(self.folder.path), Logger, subclasses=True)
        if self.subcommand == "fit" and is_first_process():
            reads, again = iterate_texts([config.model, config.data]), self.earlier is not None
            self.folder.check(fresh=config.fresh, again=again, ckpt_path=config.ckpt_path, reads=reads)
        if self.subcommand == "predict" and is_first_process():
            self.folder.check_writable()
            self.folder.check_links()
        if config.trainer.precision is None:
            config.trainer.precision, reason = choose_precision(str(config.trainer.accelerator))
            logger.info(f"precision: {config.trainer.precision} ({reason})")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer, whose logs, checkpoints and results are written into the run's folder."""
        given = self._get(self.config_init, "trainer")
        root = str(self.folder.path)
        if given.get("logger") in (None, True):
            fitting = self.subcommand == "fit"
            kwargs["logger"] = TensorBoardLogger(root, "tensorboard", "", default_hp_metric=False) if fitting else False
        if self.subcommand == "fit":
            kwargs["plugins"] = add_checkpoint_files(given.get("plugins"))
        several = given.get("callbacks") or []
        callbacks: list[Callback] = [several] if isinstance(several, Callback) else list(several)
        kwargs["max_time"] = None  # Lightning would end training as if it were complete
        final = self.config[self.subcommand].get("final")
        kwargs["callbacks"] = add_default_callbacks(callbacks, self.folder.path, self.subcommand, given, final)
        if self.subcommand == "fit" and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            kwargs["enable_checkpointing"] = False  # or Lightning would write checkpoints of its own
        try:
            trainer = super().instantiate_trainer(default_root_dir=root, **kwargs)
        except (TypeError, ValueError, ImportError) as error:  # the name of an accelerator, a number of devices
            raise MisconfigurationException(str(error)) from error
        disable_lightning_handlers(trainer)
        keep_tables_whole(trainer.loggers)
        tolerate_failures(trainer.loggers)
        limit_waiting(trainer.strategy)
        check_machine(trainer, given.precision)
        return trainer

    def after_instantiate_classes(self) -> None:
        """Refuse rows of another kind than the module trains on, and wrong options of its optimizer."""
        self.datamodule.check_module(self.model)
        if self.subcommand == "fit":
            check_options(self.model, self.config[self.subcommand].trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand and release the folder's lock afterwards."""
        self.datamodule.run_folder = self.folder.path
        set_deadline(read_max_time(self.config[subcommand].trainer))
        raise_if_requested()
        try:
            path = self.config[subcommand].get("ckpt_path")
            with values_reported(path, self.trainer), port_held(self.trainer.strategy):
                super()._run_subcommand(subcommand)
        finally:
            self.folder.release()

    def fit(self, **kwargs: Any) -> None:
        """Prepare the data, lock the folder and train; remove the folder if the run fails before its first step."""
        self.datamodule.prepare("fit", self.model, self.trainer.world_size)
        with values_reported(kwargs.get("ckpt_path")):
            describe_run(self.trainer, self.model, self.datamodule, self.fingerprint)
        report_plan(self.trainer, self.datamodule)
        raise_if_requested()
        if "eval" in self.datamodule.encoded:
            set_stopping_interval(self.trainer)
        meet(self.trainer)
        if is_first_process():
            check_space(self.folder.path, BYTES_PER_TRAINED_VALUE * self.model.spec.count_trained_values())
            self.folder.claim(fresh=self.config[self.subcommand].fresh)
            if self.earlier is not None:
                rewind(self.earlier, self.trainer, self.folder.path)
            self._dump_config()
            self.datamodule.template_date.save_option(self.config_dump["data"]["init_args"])
            self.folder.write_config(yaml.safe_dump(self.config_dump, sort_keys=False, allow_unicode=True))
        try:
            with activity("training"):
                self.trainer.fit(**kwargs)
        except BaseException:
            if is_first_process() and self.trainer.global_step == 0:
                self.folder.abandon()
            raise

    def after_fit(self) -> None:
        """Evaluate the final weights unless a validation has, and log the summary."""
        if "eval" in self.datamodule.encoded:
            evaluate_final(self.trainer, self.model, self.datamodule)
        summarize(self.trainer)


def collect_names(own: Sequence[str]) -> Known:
    """Return every key of the trainer and of this package's classes, and the class names that each key takes."""
    table = read_options()
    classes = {place: [kind.name for kind in kinds] for place, kinds in table.places.items()}
    return Known(list(dict.fromkeys([*table.list_keys("fit"), *own])), classes)


def main(args: list[str], kind: type[PreferenceCLI] = PreferenceCLI, files: Sequence[ConfigFile] | None = None) -> int:
    """Run the subcommand `args[0]` and return its exit code; `files` are its config files, if they are read already."""
    silence_libraries()
    args, packages = take_allowed(args)
    try:
        with imports_restricted(packages), activity(args[0]):
            kind(args, files)
    except UserError:
        raise
    except SystemExit as stop:  # raised by --help, by --print_config, and by Lightning on Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return int(stop.code or 0)
    except Exception as error:
        failed = user_error(error) or translate_failure(error) or own_module_error(error, packages)
        if (known := failed or translate_error(error)) is None:
            raise
        raise known from error
    return 0


__all__ = ["DPOModule", "KTOModule", "PreferenceCLI", "SFTModule", "main"]

"""`fit`, `validate`, `test` and `predict`: LightningCLI with one folder per run and short errors."""

from __future__ import annotations

import re
from inspect import isabstract, signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dpo_lightning import callbacks as project_callbacks
from dpo_lightning import losses
from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.callbacks.summary import summarize
from dpo_lightning.config.class_paths import check_names, imports_restricted, iterate_texts, take_allowed
from dpo_lightning.config.files import config_paths, read_config
from dpo_lightning.config.library_errors import translate_error, user_error
from dpo_lightning.config.library_noise import silence_libraries
from dpo_lightning.config.output_paths import check_outputs
from dpo_lightning.config.overrides import find_dropped_options, loss_defaults
from dpo_lightning.config.parse_errors import Known, parser_error, unknown_option_error
from dpo_lightning.config.trainer_options import check_environment, check_trainer, set_stopping_interval
from dpo_lightning.config.values import check_arguments
from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.data.samplers import describe_steps
from dpo_lightning.data.text_datamodule import CACHE, TextDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import UserError
from dpo_lightning.hardware import choose_precision
from dpo_lightning.kto import KTOModule
from dpo_lightning.listwise import ListwiseDPOModule
from dpo_lightning.log import is_first_process, logger
from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization
from dpo_lightning.models.lora import LORA_KEY
from dpo_lightning.models.quantization import QUANTIZATION_KEY
from dpo_lightning.policy_module import PolicyModule
from dpo_lightning.references import ReferencePolicy
from dpo_lightning.runs.resume import check_checkpoint, take_date
from dpo_lightning.runs.run_folder import CHECKPOINTS, RunFolder, check_space
from dpo_lightning.sft import SFTModule

PROGRAM = "python -m dpo_lightning"

MODULES = (DPOModule, KTOModule, ListwiseDPOModule, SFTModule)
"""The modules that `--model` names; each has the data that it takes as `data_module`."""

BYTES_PER_TRAINED_VALUE = 16
"""A checkpoint holds a weight and AdamW's two moments, the final model the weight again: four float32 values."""


class RaisingLightningParser(LightningArgumentParser):
    """LightningCLI's parser, which raises errors without the usage text and takes no abbreviated keys."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"exit_on_error": False, "allow_abbrev": False} | options)


class PreferenceCLI(LightningCLI):
    """LightningCLI with a folder per run, a precision chosen by the hardware, and an evaluation at the end."""

    def __init__(self, args: list[str]) -> None:
        """Parse the command line and run the subcommand `args[0]`."""
        for name in project_callbacks.__all__:  # a config may name a class by its short name once it is imported
            getattr(project_callbacks, name)
        self.config_files = [read_config(path) for path in config_paths(args)]
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
        known = collect_names(self._subcommand_parsers[args[0]])
        sections = {key.partition(".")[0] for key in known.keys}
        for name in [name for content in self.config_files for name in content if name not in sections]:
            raise unknown_option_error(str(name), known.keys)  # jsonargparse ignores an unknown section that is empty
        try:
            self.config = parser.parse_args([*args, *loss_defaults(self.config_files, args)])
        except ArgumentError as error:
            raise (user_error(error.__cause__) or parser_error(str(error), known)) from None
        config = self.config[self.config.subcommand]
        check_names(config, {"model": PolicyModule, "data": TextDataModule, "trainer": Trainer})
        check_trainer(config.trainer, self.config.subcommand)
        check_outputs(config, args)
        config.fresh = config.fresh and "--fresh" in args  # a config file cannot move folders, only the flag can

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options of the run's folder."""
        parser.add_argument("--output_dir", type=str, required=True, help="The run's folder; a new one for every run.")
        parser.add_argument("--fresh", action="store_true", help="Move a run that is already in output_dir aside.")

    def _parse_ckpt_path(self) -> None:
        """Refuse a checkpoint of other hyperparameters, where Lightning would take those of the checkpoint."""
        command = self.config.subcommand
        path = self.config[command].get("ckpt_path")
        if path:
            take_date(str(path), self.config[command])
            self._dump_config()
            check_checkpoint(str(path), self.config_dump, compare=command == "fit")

    def before_instantiate_classes(self) -> None:
        """Check the run's folder, and choose the precision if the config leaves it out."""
        config = self.config[self.subcommand]
        for line in find_dropped_options(self.config_files, config):
            logger.warning(f"{line}")
        self.folder = RunFolder(config.output_dir)
        if self.subcommand == "fit" and is_first_process():
            reads = iterate_texts([config.model, config.data])
            self.folder.check(fresh=config.fresh, ckpt_path=config.get("ckpt_path"), reads=reads)
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
        several = given.get("callbacks") or []
        callbacks: list[Callback] = [several] if isinstance(several, Callback) else list(several)
        kwargs["callbacks"] = add_default_callbacks(callbacks, self.folder.path, self.subcommand, given)
        try:
            return super().instantiate_trainer(default_root_dir=root, **kwargs)
        except (TypeError, ValueError, ImportError) as error:  # the name of an accelerator, a number of devices
            raise MisconfigurationException(str(error)) from error

    def after_instantiate_classes(self) -> None:
        """Raise if the data module's rows are of another kind than the module trains on."""
        self.datamodule.check_module(self.model)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand and release the folder's lock afterwards."""
        self.datamodule.default_cache = self.folder.path.parent / CACHE
        try:
            super()._run_subcommand(subcommand)
        finally:
            self.folder.release()

    def fit(self, **kwargs: Any) -> None:
        """Prepare the data, lock the folder and train; remove the folder if the run fails before its first step."""
        config = self.config[self.subcommand]
        self.datamodule.prepare("fit", self.model, self.trainer.world_size)
        self._report_plan()
        if "eval" in self.datamodule.encoded:
            set_stopping_interval(self.trainer)
        if is_first_process():
            check_space(self.folder.path, BYTES_PER_TRAINED_VALUE * self.model.spec.count_trained_values())
            self.folder.claim(fresh=config.fresh)
            self._dump_config()
            self.datamodule.template_date.save_option(self.config_dump["data"]["init_args"])
            self.folder.write_config(yaml.safe_dump(self.config_dump, sort_keys=False, allow_unicode=True))
        try:
            self.trainer.fit(**kwargs)
        except BaseException:
            if is_first_process() and self.trainer.global_step == 0:
                self.folder.abandon()
            raise

    def after_fit(self) -> None:
        """Evaluate the final weights unless a validation has, and log the summary."""
        measures = [callback for callback in self.trainer.callbacks if isinstance(callback, MeasureCallback)]  # type: ignore[attr-defined]
        measured = any(callback.evaluated_step == self.trainer.global_step for callback in measures)
        if "eval" in self.datamodule.encoded and not measured:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        summarize(self.trainer)

    def _report_plan(self) -> None:
        trainer, data = self.trainer, self.datamodule
        rows, held_out = len(data.encoded["train"]), len(data.encoded.get("eval", ()))
        line, window = f"data: {rows} training rows, {held_out} held out", trainer.accumulate_grad_batches
        if held_out and trainer.limit_val_batches == 0:
            logger.info(f"note: none of the {held_out} held-out rows is evaluated: trainer.limit_val_batches is 0")
        if data.max_tokens:  # the data module reports the steps once the layout is chosen
            window *= trainer.world_size
            logger.info(f"{line}; max_tokens={data.max_tokens} a batch in place of batch_size, {window} batches a step")
            return
        each = data.batch_size * trainer.world_size
        logger.info(f"{line}; {each * window} rows a step, {describe_steps(trainer, -(-rows // each))}")


def add_default_callbacks(callbacks: list[Callback], folder: Path, command: str | None, trainer: Any) -> list[Callback]:
    """Add what every run has: progress lines, a checkpoint of the last step and the final model, or predictions."""
    if not any(isinstance(callback, project_callbacks.ProgressLog) for callback in callbacks):
        callbacks.insert(0, project_callbacks.ProgressLog())
    if command == "fit":
        checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        for callback in checkpoints:
            callback.dirpath = callback.dirpath or str(folder / CHECKPOINTS)
            write_out_metrics(callback)
        if not checkpoints and trainer.get("enable_checkpointing") is not False:
            callbacks.append(ModelCheckpoint(folder / CHECKPOINTS, save_last=True, save_top_k=0))
        if not any(isinstance(callback, project_callbacks.FinalModel) for callback in callbacks):
            callbacks.append(project_callbacks.FinalModel())
        return callbacks
    # Commands other than `fit` write nothing but predictions.
    kept = [c for c in callbacks if not isinstance(c, (ModelCheckpoint, project_callbacks.FinalModel))]
    return [*kept, project_callbacks.PredictionWriter()] if command == "predict" else kept


def write_out_metrics(checkpoint: ModelCheckpoint) -> None:
    """Write metrics' names into a checkpoint's file name with `_` for `/`, of which Lightning would make folders."""
    if checkpoint.filename and checkpoint.auto_insert_metric_name:

        def insert_name(field: re.Match[str]) -> str:
            return f"{field[1].replace('/', '_')}{checkpoint.CHECKPOINT_EQUALS_CHAR}{field[0]}"

        checkpoint.filename = re.sub(r"\{(.*?)[:}]", insert_name, checkpoint.filename)
        checkpoint.auto_insert_metric_name = False


def collect_names(parser: Any) -> Known:
    """Return every key of the trainer and of this package's classes, and the class names that each key takes."""
    owners: dict[str, list[Any]] = {
        "model": list(MODULES),
        "data": TextDataModule.__subclasses__(),
        "data.collator": [Padded, Packed, SharedPrefix, PackedSharedPrefix],
        "model.loss": [getattr(losses, name) for name in losses.__all__ if not isabstract(getattr(losses, name))],
        "model.reference": ReferencePolicy.kinds(),
        "trainer.callbacks": [getattr(project_callbacks, name) for name in project_callbacks.__all__],
    }
    parts = owners | {"model.policy": [CausalLM], LORA_KEY: [Lora], QUANTIZATION_KEY: [Quantization]}
    keys = [action.dest for action in parser._actions if action.dest != "help"]
    keys += [f"{key}.{name}" for key, kinds in parts.items() for kind in kinds for name in signature(kind).parameters]
    return Known(keys, {key: [kind.__name__ for kind in kinds] for key, kinds in owners.items()})


def main(args: list[str], kind: type[PreferenceCLI] = PreferenceCLI) -> int:
    """Run the subcommand `args[0]` and return its exit code."""
    silence_libraries()
    check_environment()
    args, packages = take_allowed(args)
    check_arguments(args)
    try:
        with imports_restricted(packages):
            kind(args)
    except UserError:
        raise
    except SystemExit as stop:  # raised by --help, by --print_config, and by Lightning on Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return int(stop.code or 0)
    except Exception as error:
        known = translate_error(error)
        if known is None:
            raise
        raise known from error
    return 0


__all__ = ["DPOModule", "KTOModule", "PreferenceCLI", "SFTModule", "main"]

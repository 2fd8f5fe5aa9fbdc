"""`MonitorCheck`: metrics that callbacks monitor are looked up before training; one that comes late ends no run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.callbacks.optimizer_log import NORM, RATE
from dpo_lightning.callbacks.router_balance import RouterBalance
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

OWN = ("dpo_lightning", "lightning")
"""Packages whose modules and callbacks log known metrics only."""

KEY = "trainer.callbacks.monitor"


class MonitorCheck(Callback):
    """Check the metrics that `ModelCheckpoint` and `EarlyStopping` monitor, before the model is loaded.

    A name that the run never logs is refused. A metric of the run that is not measured yet when it is needed, such as
    one of an evaluation that `max_steps` comes before, is no error: nothing is saved or stopped then.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse unknown names, and let the callbacks wait for known ones.

        Raises:
            UserError: 64, with each name that this run does not log.
        """
        if stage != "fit":
            return
        known = set(list_metrics(trainer))
        watching = [callback for callback in list_watching(trainer) if callback.monitor not in known]
        problems = [Problem(describe_unknown(callback.monitor, trainer), KEY) for callback in watching]
        if problems and logs_known_metrics(trainer, pl_module):
            near = difflib.get_close_matches(watching[0].monitor, sorted(known), n=1, cutoff=0.5)
            names = sorted({name.partition("/")[2] for name in known if "/" in name})
            fix = f"--{KEY} {near[0] if near else 'train/loss'}; after train/ or eval/ comes one of {', '.join(names)}"
            raise UserError(ExitCode.CONFIG, problems, fix=fix)
        for callback in list_watching(trainer):
            if callback.monitor in known:
                wait_for_metric(callback)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log why training stopped early."""
        for callback in list_watching(trainer):
            if isinstance(callback, EarlyStopping) and callback.stopping_reason.value:
                reason = str(callback.stopping_reason_message).removesuffix(" Signaling Trainer to stop.")
                logger.info(f"stopped early: {reason}")


def list_watching(trainer: Any) -> list[Any]:
    """Return the callbacks that monitor a metric."""
    return [c for c in trainer.callbacks if isinstance(c, (EarlyStopping, ModelCheckpoint)) and c.monitor is not None]


def list_metrics(trainer: Any) -> Iterator[str]:
    """Iterate over the names of the metrics of a run that it logs, or that Lightning adds."""
    for callback in trainer.callbacks:
        if isinstance(callback, MeasureCallback):
            evaluated = is_evaluated(trainer) and not isinstance(callback, RouterBalance)
            stages = ("train", "eval") if evaluated else ("train",)
            yield from (f"{stage}/{name}" for stage in stages for name in callback.list_logged())
    yield from (RATE, NORM, "epoch", "step")


def is_evaluated(trainer: Any) -> bool:
    """Whether held-out rows are evaluated during training, as far as that is known."""
    encoded = getattr(trainer.datamodule, "encoded", None)
    return trainer.limit_val_batches != 0 and (encoded is None or "eval" in encoded)


def logs_known_metrics(trainer: Any, module: LightningModule) -> bool:
    """Whether no class of the user's own, or of another package, may log a metric."""
    packages = {type(part).__module__.partition(".")[0] for part in (module, *trainer.callbacks)}
    return packages <= {*OWN} and not any(isinstance(part, LearningRateMonitor) for part in trainer.callbacks)


def describe_unknown(name: str, trainer: Any) -> str:
    """Describe why a run has no metric of a name."""
    if name.startswith("eval/") and not is_evaluated(trainer):
        return f"{name} is not measured: no held-out rows are evaluated (data.eval, trainer.limit_val_batches)"
    return f"this run has no metric {name!r}"


def wait_for_metric(callback: Any) -> None:
    """Let a callback do nothing while its metric is not measured yet."""
    if isinstance(callback, EarlyStopping):
        callback.strict = False
        return
    save = callback._save_topk_checkpoint

    def save_measured(trainer: Trainer, candidates: dict[str, Any]) -> None:
        if callback.monitor in candidates:
            save(trainer, candidates)
        else:
            what = f"ModelCheckpoint saves nothing at step {trainer.global_step}"
            logger.info(f"note: {what}: {callback.monitor} is not measured yet")

    callback._save_topk_checkpoint = save_measured

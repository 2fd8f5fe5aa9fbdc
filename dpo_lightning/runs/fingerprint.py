"""What a run trains, on what and by which code: compared before a checkpoint is continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging

from dpo_lightning.data.cache.keys import digest_tokenizer
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.data.row_loaders import get_seed
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.runs.file_digests import data_digests
from dpo_lightning.runs.lineage import folder_digest
from dpo_lightning.version import __version__

Fingerprint = Mapping[str, Any]

LIBRARIES = ("torch", "lightning", "transformers", "peft")

MODEL, BASE, TOKENIZER, TEMPLATE = "the model", "the adapter's base model", "the tokenizer", "the chat template"
DATA, ROWS, CODE = "training data", "the number of rows of an optimizer step", "versions"
SEED, AVERAGES, BAD_ROWS = "the seed", "the averaging of weights", "what is done with bad rows"

HINTS = {
    MODEL: "--model.policy.path",
    BASE: "--model.policy.path",
    TOKENIZER: "--model.policy.path",
    TEMPLATE: "--data.chat_template, --data.template_date",
    ROWS: "--data.batch_size x --trainer.accumulate_grad_batches x --trainer.devices",
    SEED: "--seed_everything",
    AVERAGES: "--trainer.callbacks",
    BAD_ROWS: "--data.bad_rows",
}
"""What is compared -> the options that determine it."""


def take_fingerprint(module: Any, data: Any, trainer: Any) -> dict[str, Any]:
    """Return what a checkpoint of a run says of the run, of plain types.

    Args:
        module: a module of this package, whose weights need not be loaded.
        data: its data module.
        trainer: the trainer.
    """
    spec, tokenizer = module.spec, module.tokenizer
    adapted, window = spec.adapter_folder() is not None, trainer.accumulate_grad_batches * trainer.world_size
    renderer = data.renderer(tokenizer, module.end_ids)
    return {
        MODEL: folder_digest(spec.path),
        BASE: folder_digest(spec.base_path()) if adapted else "",
        TOKENIZER: digest_tokenizer(tokenizer),
        TEMPLATE: digest_of([tokenizer.chat_template, str(renderer.day)]),
        DATA: dict(data_digests(data.files).get("train", {})),
        ROWS: f"{data.max_tokens} tokens x {window}" if data.max_tokens else data.batch_size * window,
        SEED: get_seed(),
        AVERAGES: [type(each).__name__ for each in trainer.callbacks if isinstance(each, WeightAveraging)],
        BAD_ROWS: None if data.bad_rows == "error" else data.bad_rows,  # checkpoints of earlier versions have none
        CODE: {"dpo-lightning": __version__} | {name: version(name) for name in LIBRARIES},
    }


def check_fingerprint(before: Fingerprint, now: Fingerprint, where: str) -> None:
    """Refuse to continue a checkpoint of another model, tokenizer, template or data; report other versions.

    Args:
        before: of the checkpoint's run.
        now: of this run.
        where: the checkpoint.

    Raises:
        UserError: 64, with each difference.
    """
    problems = list(find_changes(before, now, where))
    if problems:
        fix = "restore what has changed, or begin a new run from these weights: --model.policy.path RUN/final_model"
        raise UserError(ExitCode.CONFIG, problems, fix=fix)
    old, new = before.get(CODE, {}), now[CODE]
    others = [f"{name} {new[name]} (was {old.get(name)})" for name in new if new[name] != old.get(name)]
    if others:
        logger.warning(f"the run began with other versions, so it may not be continued exactly: {', '.join(others)}")


def find_changes(before: Fingerprint, now: Fingerprint, where: str) -> Iterator[Problem]:
    """Iterate over what has changed since a checkpoint was written."""
    for name, hint in HINTS.items():
        if before.get(name) != now[name]:
            shown = f": {now[name]}, was {before.get(name)}" if name in (ROWS, SEED, AVERAGES) else ""
            yield Problem(f"{name} has changed since the checkpoint was written ({hint}){shown}", where)
    old, new = before.get(DATA, {}), now[DATA]
    if sorted(old.values()) != sorted(new.values()):  # renamed files are the same rows
        changed = [path for path in new if new[path] not in old.values()] or list(new)
        yield Problem("the training data have changed since the checkpoint was written", where, ", ".join(changed))

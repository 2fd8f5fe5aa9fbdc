"""Exceptions of libraries for a user's mistake or a full machine, translated into errors that name the remedy."""

from __future__ import annotations

import errno
import re

from lightning.fabric.utilities.exceptions import MisconfigurationException

from dpo_lightning.errors import ExitCode, Problem, UserError, lacks_memory

PROGRAM = "python -m dpo_lightning"

REASON = re.compile(r"Errors:\n\s*- (?:Problem with given class_path '([\w.]+)':\s*)?(.*)")
"""In jsonargparse's message about an object that cannot be created: its class and the reason of the first alternative.
"""


def user_error(error: BaseException | None) -> UserError | None:
    """Return the `UserError` that a library wrapped into another exception, if any."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def translate_error(error: Exception) -> UserError | None:
    """Translate an exception of a library into a `UserError`, or return None if it is unknown."""
    text = str(error)
    if known := user_error(error):
        return known
    if isinstance(error, ValueError) and (reason := REASON.search(text)):
        place, what = reason.groups("")
        return UserError(ExitCode.CONFIG, Problem(what, place), fix="change the options of this class, or leave it out")
    if text.startswith("Early stopping conditioned on metric"):
        return UserError(ExitCode.CONFIG, text.splitlines()[0], fix="set --trainer.callbacks.monitor to one of these")
    if isinstance(error, MisconfigurationException):
        if "invalid accelerator name" not in text and re.search(r"\bgpus?\b|cuda|mps|devices?\b", text, re.IGNORECASE):
            fix = f"{PROGRAM} doctor lists the devices of this machine"
            return UserError(ExitCode.DEVICE, text.splitlines()[0], fix)
        return UserError(ExitCode.CONFIG, text.splitlines()[0], fix=f"{PROGRAM} fit --help lists the options")
    if lacks_memory(error):
        return UserError(
            ExitCode.IO,
            "the device is out of memory",
            fix="--data.batch_size 1 --trainer.accumulate_grad_batches 16, a smaller --data.max_tokens or "
            "--data.max_length, --model.policy.gradient_checkpointing true, or --model.policy.lora.r 16",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        return UserError(
            ExitCode.IO,
            f"writing failed: {error.strerror}",
            fix="free some space, or choose --output_dir on another disk",
        )
    if "Error(s) in loading state_dict" in text or "doesn't match the size of" in text:
        return UserError(
            ExitCode.CONFIG,
            Problem("the checkpoint belongs to another model", "ckpt_path", text.splitlines()[-1].strip()),
            fix="use the run's own config.yaml",
        )
    return None

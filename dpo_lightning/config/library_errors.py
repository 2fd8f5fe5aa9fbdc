"""What libraries raise for a user's mistake or a full machine, as errors that name the remedy."""

from __future__ import annotations

import errno
import re

from lightning.fabric.utilities.exceptions import MisconfigurationException

from dpo_lightning.errors import ExitCode, Problem, UserError

PROGRAM = "python -m dpo_lightning"

REASON = re.compile(r"Errors:\n\s*- (?:Problem with given class_path '([\w.]+)':\s*)?(.*)")
"""In the parser's message about an object that cannot be made: its class and why, the first alternative's."""


def user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` that a library wrapped into something else."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def translated(error: Exception) -> UserError | None:
    """What a library raised for a user's mistake or a full machine, in this project's words."""
    text = str(error)
    if known := user_error(error):
        return known
    if isinstance(error, ValueError) and (reason := REASON.search(text)):
        place, what = reason.groups("")
        return UserError(ExitCode.CONFIG, Problem(what, place), fix="change its options, or leave it out")
    if text.startswith("Early stopping conditioned on metric"):
        return UserError(ExitCode.CONFIG, text.splitlines()[0], fix="--trainer.callbacks.monitor with one of these")
    if isinstance(error, MisconfigurationException):
        if "invalid accelerator name" not in text and re.search(r"\bgpus?\b|cuda|mps|devices?\b", text, re.IGNORECASE):
            fix = f"{PROGRAM} doctor shows what this machine has"
            return UserError(ExitCode.DEVICE, text.splitlines()[0], fix)
        return UserError(ExitCode.CONFIG, text.splitlines()[0], fix=f"{PROGRAM} fit --help lists the options")
    if "out of memory" in text.lower() or "can't allocate memory" in text:
        return UserError(
            ExitCode.IO,
            "the device is out of memory",
            fix="--data.batch_size 1 --trainer.accumulate_grad_batches 16, a smaller --data.max_tokens or "
            "--data.max_length, --model.policy.gradient_checkpointing true, or --model.policy.lora.r 16",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        return UserError(ExitCode.IO, f"writing failed: {error.strerror}", fix="make room, or --output_dir elsewhere")
    if "Error(s) in loading state_dict" in text or "doesn't match the size of" in text:
        return UserError(
            ExitCode.CONFIG,
            Problem("the checkpoint belongs to another model", "ckpt_path", text.splitlines()[-1].strip()),
            fix="give the config that the run was started with (its config.yaml)",
        )
    return None

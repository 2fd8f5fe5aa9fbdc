"""Suppression of messages in which libraries report on themselves."""

from __future__ import annotations

import logging
import warnings

from dpo_lightning.terminal import clean_libraries


def silence_libraries() -> None:
    """Suppress progress bars, messages and warnings of libraries that do not concern the run."""
    from transformers.utils import logging as transformers_logging

    clean_libraries()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*`srun` command is available on your system but is not used.*",  # a login node, or one process of a job
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*LeafSpec.*",
        ".*when logging on epoch level in distributed setting.*",  # metrics are already reduced over ranks
        ".*is_gradient_checkpointing.*",
        ".*but have no logger configured.*",  # only `fit` has a logger; other commands print a table
        ".*callbacks used to create the checkpoint need to be provided.*",  # a checkpoint that is evaluated
        ".*The dirpath has changed.*",  # a run that is resumed in another folder
        ".*Detected pickle protocol.*",  # of a file that is no checkpoint, which is refused
        ".*Found missing adapter keys.*",  # they are refused
        ".*Initializing zero-element tensors.*",  # of a model that is refused
    ):
        warnings.filterwarnings("ignore", pattern)

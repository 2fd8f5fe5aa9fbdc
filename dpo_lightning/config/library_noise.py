"""Silence for what libraries say about themselves, so that what concerns the run can be read."""

from __future__ import annotations

import logging
import warnings

from dpo_lightning.terminal import clean_libraries


def quiet() -> None:
    """Silence what libraries say about themselves; what concerns the run is said by the run."""
    from transformers.utils import logging as transformers_logging

    clean_libraries()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*LeafSpec.*",
        ".*when logging on epoch level in distributed setting.*",  # our means are reduced already
        ".*is_gradient_checkpointing.*",
        ".*but have no logger configured.*",  # outside of `fit` nothing is logged, the table says it
        ".*The dirpath has changed.*",  # a run that goes on in another folder
    ):
        warnings.filterwarnings("ignore", pattern)

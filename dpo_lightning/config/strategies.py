"""The check of `trainer.strategy`: lightning's strategies that this package's runs cannot use."""

from __future__ import annotations

import re
from typing import Any

from jsonargparse import Namespace

from dpo_lightning.config.class_paths import members
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.sharding import FSDP2, unsupported_error

KEY = "trainer.strategy"

OTHER_SHARDING = re.compile(
    r"fsdp(_cpu_offload)?|deepspeed(_\w+)?|(FSDP|DeepSpeed|ModelParallel)Strategy", re.IGNORECASE
)
"""Names and classes of lightning's strategies that shard models."""

COPIES = re.compile(r"ddp_(spawn|fork|notebook)(_\w+)?", re.IGNORECASE)
"""Names of strategies whose ranks begin as copies of the first process, and do not run the command themselves."""

OTHER_DEVICES = re.compile(r"(single_)?(xla|tpu)(_\w+)?|(Single(Device)?)?(XLA|TPU)Strategy", re.IGNORECASE)
"""Names and classes of strategies for devices that no run was ever seen on."""


def check_strategy(strategy: Any) -> bool:
    """Refuse strategies with which models, ranks or devices are others than this package's modules support.

    Args:
        strategy: the parsed option: a name, or a class with options.

    Returns:
        Whether models are sharded.

    Raises:
        UserError: 64, the strategy is one of these.
    """
    given, options = strategy, dict[str, Any]()
    if isinstance(strategy, Namespace):
        given, options = members(strategy).get("class_path"), members(members(strategy).get("init_args"))
    name = str(given).rpartition(".")[2]
    if OTHER_SHARDING.fullmatch(name):
        raise unsupported_error(name)
    method = options.get("start_method")
    if COPIES.fullmatch(name) or (name == "DDPStrategy" and method not in (None, "popen")):
        shown = f"{name} with start_method={method}" if options else name
        what = f"{shown} copies the first process, where this package's ranks run the command themselves"
        raise UserError(ExitCode.CONFIG, Problem(what, KEY), fix=f"--{KEY} ddp")
    if OTHER_DEVICES.fullmatch(name):
        what = f"{name} is for TPUs, which are not supported"
        raise UserError(ExitCode.CONFIG, Problem(what, KEY), fix=f"--{KEY} auto, on a CPU or GPU")
    return name in (FSDP2, "FSDP2Strategy")

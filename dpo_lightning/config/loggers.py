"""Loggers of a config: they write into the run's folder, unless another place is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from dpo_lightning.config.class_paths import find_option
from dpo_lightning.log import is_first_process

PLACES = {
    "CSVLogger": ("save_dir",),
    "CometLogger": ("offline_directory",),
    "LitLogger": ("root_dir",),
    "MLFlowLogger": ("tracking_uri", "save_dir", "artifact_location"),
    "TensorBoardLogger": ("save_dir",),
    "WandbLogger": ("save_dir", "dir"),
}
"""Lightning's loggers -> the options that name their folder, the first of which is filled in if all are left out."""

MLFLOW, SERVER = "MLFlowLogger", "MLFLOW_TRACKING_URI"


def make_folder_optional() -> None:
    """Let configs leave out the folder of the loggers that require one; `place_in` fills it in."""
    for kind in (CSVLogger, TensorBoardLogger):
        option = find_option(kind, "save_dir")
        if option is not None and option.default is option.empty:
            kind.__init__.__defaults__ = (None, *(kind.__init__.__defaults__ or ()))


def place_in(folder: Path) -> Callable[..., Any]:
    """Return a function that makes a logger of a class with options, for jsonargparse: by default within a folder."""

    def make(kind: type[Any], *args: Any, **options: Any) -> Any:
        name = next((base.__name__ for base in kind.__mro__ if base.__name__ in PLACES), "")
        places = PLACES.get(name, ())
        if name == MLFLOW and os.environ.get(SERVER):  # the default of `tracking_uri`
            places = ()
        if places and all(is_left_out(kind, place, options) for place in places):
            options |= database_in(folder) if name == MLFLOW else {places[0]: str(folder)}
        return kind(*args, **options)

    return make


def database_in(folder: Path) -> dict[str, str]:
    """Return MLflow's options for a database in a folder; its client refuses the plain files of older versions.

    Each process opens one, of which only the first writes.
    """
    home = folder.absolute()
    place = home / "mlflow.db" if is_first_process() else ":memory:"
    return {"tracking_uri": f"sqlite:///{place}", "artifact_location": str(home / "mlartifacts")}


def is_left_out(kind: type[Any], name: str, options: dict[str, Any]) -> bool:
    """Whether an option is missing or has the default of its class."""
    taken = find_option(kind, name)
    default = taken.default if taken else None
    given = options.get(name, default)
    return given is None or os.fspath(given) == default

"""How a model came to be: a record of every stage that made it, kept beside its weights and inherited by the next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.errors import UserError
from dpo_lightning.log import logger
from dpo_lightning.models.causal_lm import ORIGIN_FILE
from dpo_lightning.models.folder import adapter_base, weights_digest
from dpo_lightning.models.folder_files import read_json

SHOWN = 16
"""Characters of a digest that a card shows."""

UNRECORDED = "no record"
"""What a stage is called that this package did not run."""


class Stage(NamedTuple):
    """One step of the way: a run, an export, or weights that came without a record."""

    what: str
    """The module that trained, `export`, or `no record`."""

    policy: Mapping[str, Any]
    """The options of the model that the stage began with; its `path` at least."""

    start: str
    """Digest of the weights in that path; empty for a hub id."""

    digest: str
    """Digest of the weights that the stage left."""

    steps: int = 0
    """Optimizer steps."""

    settings: Mapping[str, str] = {}
    """Loss, reference, learning rate and the like, in the words of a card."""

    data: Mapping[str, Mapping[str, str]] = {}
    """For `train` and `eval`: the files, and the digest of each."""

    def line(self) -> str:
        """The stage in a card."""
        parts = [f"`{plain(self.what)}`" + (f", {self.steps} optimizer steps" if self.steps else "")]
        parts.append(f"from `{plain(self.policy.get('path'))}`" + digested(self.start))
        lora = self.policy.get("lora")
        if isinstance(lora, Mapping):
            told = ", ".join(f"{name}={value}" for name, value in lora.items() if value is not None)
            parts.append(f"a new adapter `{plain(told)}`")
        parts += [f"{plain(name)} `{plain(value)}`" for name, value in self.settings.items()]
        for rows, files in self.data.items():
            parts += [f"{plain(rows)} data `{plain(path)}`" + digested(digest) for path, digest in files.items()]
        return "; ".join(parts) + f"; gave weights{digested(self.digest)}"


def plain(value: object) -> str:
    """A text of a record, which may come from elsewhere, on one line and without what ends a code span."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).replace("`", "'").split())


def digested(digest: str) -> str:
    """The beginning of a digest, in brackets; nothing where there is none."""
    return f" ({plain(digest)[:SHOWN]})" if digest else ""


def section(stages: Sequence[Stage]) -> str:
    """The part of a card that tells every stage."""
    lines = [f"{number}. {stage.line()}" for number, stage in enumerate(stages, 1)]
    return "\n".join(["", "## Stages", "", "Digests of weights and of data files are in brackets.", "", *lines, ""])


def folder_digest(path: str | Path) -> str:
    """A fingerprint of the weights that lie in a folder, the adapter's where it holds one; empty for a hub id."""
    folder = Path(path)
    if not folder.is_dir():
        return ""
    adapter = (folder / "adapter_config.json").exists()
    return weights_digest(folder, "adapter_model*.safetensors" if adapter else "model*.safetensors")


def chain(path: str | Path) -> list[Stage]:
    """Every stage that made the model or adapter in a folder, the first one first; none for an untouched model.

    Weights that are not those of the last stage are told and get a stage of their own, without a record.
    """
    folder = Path(path)
    if not folder.is_dir():
        return []
    stages, digest = recorded(folder), folder_digest(folder)
    if not stages and not (folder / "adapter_config.json").exists():
        return []
    if not stages:
        stages = chain(adapter_base(folder))
    if not stages or stages[-1].digest != digest:
        logger.info(f"note: how the weights in {path} were made is not recorded, or they were changed since")
        stages.append(Stage(UNRECORDED, {"path": str(path)}, "", digest))
    return stages


def recorded(folder: Path) -> list[Stage]:
    """The stages that a folder's record holds; a record that cannot be read is told, and counts as none."""
    path = folder / ORIGIN_FILE
    if not path.exists():
        return []
    try:
        return [stage_of(entry) for entry in read_json(path).get("stages", [])]
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        logger.info(f"note: {path} is damaged: what it tells of earlier stages is lost")
        return []


def stage_of(entry: Mapping[str, Any]) -> Stage:
    """A stage out of its JSON; what is of another kind raises."""
    what, start, digest, steps = (entry[name] for name in ("what", "start", "digest", "steps"))
    if not isinstance(steps, int) or not all(isinstance(text, str) for text in (what, start, digest)):
        raise TypeError
    policy, settings, data = (dict(entry[name]) for name in ("policy", "settings", "data"))
    files = {rows: {str(path): str(digest) for path, digest in dict(each).items()} for rows, each in data.items()}
    return Stage(what, policy, start, digest, steps, settings, files)


def record(folder: Path, stages: Sequence[Stage]) -> None:
    """Write the stages beside the weights that they made, and beside what else is told there."""
    path = folder / ORIGIN_FILE
    content = read_json(path) if path.exists() else {}
    content["stages"] = [stage._asdict() for stage in stages]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")

"""The lineage of a model: a record of every training stage, kept beside the weights and copied by the next stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.activity import activity
from dpo_lightning.errors import UserError
from dpo_lightning.log import logger
from dpo_lightning.models.causal_lm import ORIGIN_FILE
from dpo_lightning.models.folder_checks import adapter_base, weights_digest
from dpo_lightning.models.folder_files import is_adapter_folder, read_json
from dpo_lightning.references.provenance import DIGEST_CHARS

UNRECORDED = "no record"
"""`Stage.what` of weights that this package did not train."""

WEIGHTS = "weights"
"""The setting of a stage that says which weights of a run were written, where they are not the last ones."""


class Stage(NamedTuple):
    """One step of a model's lineage: a run, an export, or weights without a record."""

    what: str
    """The module that trained, `export`, or `no record`."""

    policy: Mapping[str, Any]
    """The options of the model from which the stage started; at least its `path`."""

    start: str
    """Digest of the weights at that path; empty for a hub id."""

    digest: str
    """Digest of the weights that the stage wrote."""

    steps: int = 0
    """Number of optimizer steps."""

    settings: Mapping[str, str] = {}
    """Loss, reference, learning rate and the like, as a model card shows them."""

    data: Mapping[str, Mapping[str, str]] = {}
    """For `train` and `eval`: the files, and the digest of each."""

    def line(self) -> str:
        """Format the stage as one line of a model card."""
        parts = [f"`{to_plain_text(self.what)}`" + (f", {self.steps} optimizer steps" if self.steps else "")]
        parts.append(f"from `{to_plain_text(self.policy.get('path'))}`" + format_digest(self.start))
        lora = self.policy.get("lora")
        if isinstance(lora, Mapping):
            options = ", ".join(f"{name}={value}" for name, value in lora.items() if value is not None)
            parts.append(f"a new adapter `{to_plain_text(options)}`")
        parts += [f"{to_plain_text(name)} `{to_plain_text(value)}`" for name, value in self.settings.items()]
        for rows, files in self.data.items():
            parts += [
                f"{to_plain_text(rows)} data `{to_plain_text(path)}`" + format_digest(digest)
                for path, digest in files.items()
            ]
        return "; ".join(parts) + f"; gave weights{format_digest(self.digest)}"


def to_plain_text(value: object) -> str:
    """Put a text, which may come from another's file, on one line without backquotes, for a code span."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).replace("`", "'").split())


def format_digest(digest: str) -> str:
    """Return the first characters of a digest in parentheses; an empty string without a digest."""
    return f" ({to_plain_text(digest)[:DIGEST_CHARS]})" if digest else ""


def format_section(stages: Sequence[Stage]) -> str:
    """Format the section of a model card that lists the stages."""
    lines = [f"{number}. {stage.line()}" for number, stage in enumerate(stages, 1)]
    return "\n".join(["", "## Stages", "", "Digests of weights and of data files are in brackets.", "", *lines, ""])


@activity("hashing the model's files")
def folder_digest(path: str | Path) -> str:
    """Return a digest of the weights in a folder, the adapter's if it holds one; empty for a hub id."""
    folder = Path(path)
    if not folder.is_dir():
        return ""
    adapter = is_adapter_folder(folder)
    return weights_digest(folder, "adapter_model*.safetensors" if adapter else "model*.safetensors")


def trace_stages(path: str | Path) -> list[Stage]:
    """List the stages that made the model or adapter in a folder, the first one first.

    Weights that differ from those of the last stage are logged and get a stage without a record. A base model without a
    record has no stages.
    """
    folder = Path(path)
    if not folder.is_dir():
        return []
    stages, digest = read_stages(folder), folder_digest(folder)
    if not stages and not is_adapter_folder(folder):
        return []
    if not stages:
        # An adapter without a record still inherits the stages of its base.
        stages = trace_stages(adapter_base(folder))
    if not stages or stages[-1].digest != digest:
        logger.info(f"note: the weights in {path} have no record of their training, or were changed since")
        stages.append(Stage(UNRECORDED, {"path": str(path)}, "", digest))
    return stages


def read_stages(folder: Path) -> list[Stage]:
    """Read the stages of a folder's record; an unreadable record is logged and counts as none."""
    path = folder / ORIGIN_FILE
    if not path.exists():
        return []
    try:
        return [parse_stage(entry) for entry in read_json(path).get("stages", [])]
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        logger.info(f"note: {path} is damaged; its record of earlier stages is lost")
        return []


def trained_steps(folder: Path) -> int:
    """Return after how many steps the model in a folder was written; -1 for a folder that is missing or incomplete."""
    stages = read_stages(folder) if folder.is_dir() else []
    return stages[-1].steps if stages and stages[-1].digest == folder_digest(folder) else -1


def written_weights(folder: Path) -> str:
    """Return which weights of its run the model in a folder has; empty for the last ones."""
    stages = read_stages(folder) if folder.is_dir() else []
    return stages[-1].settings.get(WEIGHTS, "") if stages else ""


def parse_stage(entry: Mapping[str, Any]) -> Stage:
    """Make a stage from its JSON.

    Raises:
        KeyError, TypeError, ValueError: the JSON has another form.
    """
    what, start, digest, steps = (entry[name] for name in ("what", "start", "digest", "steps"))
    if not isinstance(steps, int) or not all(isinstance(text, str) for text in (what, start, digest)):
        raise TypeError
    policy, settings, data = (dict(entry[name]) for name in ("policy", "settings", "data"))
    files = {rows: {str(path): str(digest) for path, digest in dict(each).items()} for rows, each in data.items()}
    return Stage(what, policy, start, digest, steps, settings, files)


def write_stages(folder: Path, stages: Sequence[Stage]) -> None:
    """Write the stages into the record beside the weights; its other entries are kept."""
    path = folder / ORIGIN_FILE
    content = read_json(path) if path.exists() else {}
    content["stages"] = [stage._asdict() for stage in stages]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")

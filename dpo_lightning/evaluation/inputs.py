"""`describe_inputs`: everything that the results of an evaluation depend on."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from dpo_lightning.callbacks.final_model import VERSIONS, package_version
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.evaluation.chat_server import ChatServer
from dpo_lightning.evaluation.held_out import HeldOut, make_readable
from dpo_lightning.evaluation.loading import Models
from dpo_lightning.evaluation.options import EvaluationOptions
from dpo_lightning.runs.file_digests import data_digests


def describe_inputs(
    options: EvaluationOptions,
    models: Models,
    renderer: Renderer,
    rows: HeldOut,
    precision: str,
    server: ChatServer | None,
) -> dict[str, Any]:
    """Return everything that the results depend on, as the summary has it under `made_by`.

    Raises:
        UserError: the server does not answer, and the name of its model is not given.
    """
    reference = None
    if models.reference is not None:
        reference = {"path": models.reference.path, "digest": models.digests[1]}
    sampling = asdict(options.sampling) if options.generate else None
    kept = [
        {"texts": [make_readable(text) for text in (row.prompt, *row.answers)], "tools": row.tools, "group": row.group}
        | {"language": language, "values": [getattr(row, name) for name in row.annotations()]}
        for row, language in zip(rows.examples, rows.languages, strict=True)
    ]
    return {
        "dpo_lightning": package_version("dpo-lightning"),
        "model": {"path": options.model, "digest": models.digests[0]},
        "reference": reference,
        "data": data_digests({"data": options.data}).get("data", {}),
        "prompts": digest_of([make_readable(row.prompt) for row in rows.examples]),
        "rows": digest_of(kept),
        "template": digest_of([options.template, renderer.tokenizer.chat_template, str(renderer.day)]),
        "truncation": f"max_length {options.max_length}, overlong {options.overlong}",
        "sampling": sampling,
        "generator": {"url": options.generator, "model": server.name} if server else "local",
        "precision": precision,
        "quantization": str(models.policy.quantization or "none"),
        "dtype": options.dtype,
        "loss": repr(models.loss),
        "versions": {name: version(name) for name in VERSIONS if name != "dpo-lightning"},
    }

"""`describe_inputs`: everything that the results of an evaluation depend on."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpo_lightning.callbacks.final_model import VERSIONS, package_version
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.errors import UserError
from dpo_lightning.evaluation.chat_server import ChatServer
from dpo_lightning.evaluation.held_out import HeldOut, make_readable
from dpo_lightning.evaluation.loading import Models
from dpo_lightning.evaluation.options import EvaluationOptions
from dpo_lightning.evaluation.result_file import read_result
from dpo_lightning.log import logger
from dpo_lightning.runs.file_digests import data_digests

TIMEOUT = 10.0
"""Seconds in which a server lists its models where the output is complete, so that nothing else is needed of it."""


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
        "generator": {"url": options.generator, "model": name_model(options, server)} if server else "local",
        "precision": precision,
        "quantization": str(models.policy.quantization or "none"),
        "dtype": options.dtype,
        "loss": repr(models.loss),
        "versions": {name: version(name) for name in VERSIONS if name != "dpo-lightning"},
    }


def name_model(options: EvaluationOptions, server: ChatServer) -> str:
    """Return the name of a server's model: for a complete output whose server is down, the one that the output has.

    Raises:
        UserError: the server does not answer, and the name is neither given nor known from the output.
    """
    recorded = read_recorded_name(options)
    if options.served_model is not None or recorded is None:
        return server.name
    try:
        return ChatServer(server.base, timeout=TIMEOUT, tries=1).name
    except UserError:
        logger.info(f"note: the server lists no models: its model is taken to be {recorded}, as in the output")
        return recorded


def read_recorded_name(options: EvaluationOptions) -> str | None:
    """Return the name of the model that answered a complete output; None if there is none of the same server."""
    try:
        stored = None if options.fresh else read_result(Path(options.output)).summary
    except UserError:
        return None
    made_by = (stored or {}).get("made_by")
    generator = made_by.get("generator") if isinstance(made_by, dict) else None
    if not isinstance(generator, dict) or generator.get("url") != options.generator:
        return None
    return str(generator.get("model"))

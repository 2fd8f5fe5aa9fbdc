"""`export`: merge an adapter into its base, as one whole model for tools that do not read adapters."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.runs.new_folder import NewFolder
from dpo_lightning.runs.run_folder import check_space

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.models.merging import Agreement
    from dpo_lightning.runs.lineage import Stage

PROGRAM = "python -m dpo_lightning"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""The names of these types in llama.cpp's converter."""


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser(f"{PROGRAM} export", description=__doc__)
    options.add_argument("--model", required=True, help="adapter folder, model folder or hub id")
    options.add_argument("--out", required=True, help="the new model's folder")
    options.add_argument(
        "--dtype", choices=BYTES, default="float32", help="weights that are written; merged in float32"
    )
    options.add_argument("--max_shard_size", default="5GB", help="split the weights into files of at most this size")
    options.add_argument("--fresh", action="store_true", help="move a folder that is already there aside")
    return options


def main(argv: list[str]) -> int:
    """Merge, write, and compare the logits of the written model with those of the adapter model."""
    args = make_parser().parse_args(argv)

    from safetensors import SafetensorError

    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.models.folder_checks import check_folder, count_values
    from dpo_lightning.models.merging import check_mergeable, check_shard_size

    silence_libraries()
    size = check_shard_size(args.max_shard_size)
    spec = CausalLM(args.model, attention="eager")
    base, adapter = spec.base_path(), spec.adapter_folder()
    folder = check_folder(base)
    out = NewFolder(args.out, "out")
    out.check([part for part in (folder, adapter) if part is not None], fresh=args.fresh)
    check_mergeable(spec)
    if folder is not None:
        check_space(out.path, BYTES[args.dtype] * count_values(folder), "out")
    try:
        with out.write() as partial:
            write_export(spec, partial, args.dtype, size, out.path.name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            ExitCode.IO,
            Problem(f"the folder cannot be written: {reason}", "out", args.out),
            fix="free some disk space, or --out on another disk",
        ) from error
    report_next(out.path, args.dtype)
    return 0


def write_export(spec: CausalLM, folder: Path, dtype: str, size: str, name: str) -> None:
    """Write the model, its stages and its card into an empty folder.

    Raises:
        UserError: logits of the merged, the written or the reloaded model differ by more than rounding.
    """
    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.models.merging import cast_weights, compare_logits, merge_adapter, probe_logits, write_model
    from dpo_lightning.runs.lineage import Stage, folder_digest, trace_stages, write_stages

    stages, tokenizer = trace_stages(spec.path), spec.tokenizer()
    report_source(spec, stages, dtype)
    model: Any = spec.build()
    expected = probe_logits(model)
    if spec.adapter_folder() is not None:
        model = merge_adapter(model)
        check_agreement(compare_logits(expected, probe_logits(model), "float32"), "merged in float32")
    write_model(model, tokenizer, folder, dtype, size)
    cast_weights(model, "float32")
    written = probe_logits(model)
    check_agreement(compare_logits(expected, written, dtype), f"rounded to {dtype}")
    del model  # frees its memory before the written one is loaded
    found = probe_logits(CausalLM(str(folder), attention="eager").build())
    check_agreement(compare_logits(written, found, "float32"), "read back from its files")
    whole = compare_logits(expected, found, dtype)
    logger.info(
        f"check: logits of the written model, read back, differ by {whole} ({expected[..., 0].numel()} positions)"
    )
    policy = {"path": spec.path, "base": spec.base_path()}
    settings = {"weights": dtype, "largest difference of a logit": str(whole)}
    stages.append(Stage("export", policy, folder_digest(spec.path), folder_digest(folder), settings=settings))
    write_stages(folder, stages)
    make_export_card(spec, name, stages).save(folder / "README.md")


def report_source(spec: CausalLM, stages: Sequence[Stage], dtype: str) -> None:
    """Report what is merged into what, and what a user should know of the result's precision."""
    base = spec.base_path()
    if spec.adapter_folder() is None:
        logger.info(f"model: {spec.path} is a whole model: there is nothing to merge, it is written anew as {dtype}")
    else:
        logger.info(f"model: the adapter {spec.path}, merged in float32 into {base}, written as {dtype}")
        if any(stage.policy.get("quantization") for stage in stages):
            logger.info(
                "note: the adapter was trained on quantized weights and is merged into the unquantized ones of its "
                "base, so that no update is rounded away; answers differ from those in training by the error of "
                "quantization"
            )
    stored = str(getattr(spec.config(), "dtype", None)).removeprefix("torch.")
    if dtype == "float32" and stored in ("bfloat16", "float16"):
        logger.info(
            f"note: the base is stored as {stored}; --dtype {stored} makes the folder half as large, and rounds"
        )


def check_agreement(agreement: Agreement, when: str) -> None:
    """Raise if logits differ by more than rounding.

    Args:
        agreement: the comparison of two models' logits.
        when: what was done between the two, for the message.

    Raises:
        UserError: the comparison does not hold.
    """
    if not agreement.holds:
        raise UserError(
            ExitCode.MODEL,
            Problem(f"the model's logits differ by {agreement} when it is {when}"),
            fix="use the adapter folder itself, or --dtype float32; nothing was written",
        )


def make_export_card(spec: CausalLM, name: str, stages: Sequence[Stage]) -> ModelCard:
    """Return the model card: what was merged or copied, and every earlier stage."""
    from dpo_lightning.models.transformers4 import supported_versions
    from dpo_lightning.runs.lineage import format_section
    from dpo_lightning.runs.model_card import make_card

    base, adapter = spec.base_path(), spec.adapter_folder()
    source = f"the adapter `{spec.path}`, merged into `{base}`" if adapter else f"`{spec.path}`, written anew"
    read = f"It is read by {supported_versions(spec.config().model_type)}."
    body = f"Exported by `dpo_lightning`: {source}.\n\n{read}\n{format_section(stages)}"
    return make_card(name, body, base, "transformers")


def report_next(folder: Path, dtype: str) -> None:
    """Report the folder and its size, and commands that use or convert it."""
    size = sum(entry.stat().st_size for entry in folder.iterdir())
    files = len(list(folder.glob("*.safetensors")))
    where = shlex.quote(str(folder))
    logger.info(f"exported: {folder} ({size / 1e9:.2f} GB, {dtype}, weights in {files} file{'s' * (files > 1)})")
    logger.info(f"next: {PROGRAM} infer --model {where} --instruction 'What does a mutex do?'")
    gguf = shlex.quote(f"{folder}.gguf")
    logger.info(
        "GGUF, by llama.cpp's own converter (not run here): "
        f"python llama.cpp/convert_hf_to_gguf.py {where} --outfile {gguf} --outtype {OUTTYPES[dtype]}"
    )

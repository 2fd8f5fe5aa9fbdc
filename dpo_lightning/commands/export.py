"""`export`: one whole model, out of an adapter and its base, or out of a checkpoint of a run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import check_output_path
from dpo_lightning.log import logger
from dpo_lightning.runs.disk_space import check_space
from dpo_lightning.runs.new_folder import NewFolder

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from dpo_lightning.models.merging import Agreement
    from dpo_lightning.runs.checkpoint_model import ModelSource
    from dpo_lightning.runs.lineage import Stage

PROGRAM = "python -m dpo_lightning"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""The names of these types in llama.cpp's converter."""


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser(f"{PROGRAM} export", description=__doc__)
    options.add_argument("--model", required=True, help="adapter folder, .ckpt file of a run, model folder or hub id")
    options.add_argument("--out", required=True, help="the new model's folder")
    options.add_argument(
        "--dtype", choices=BYTES, default="float32", help="weights that are written; merged in float32"
    )
    options.add_argument("--keep_adapter", action="store_true", help="write a checkpoint's adapter as it is")
    options.add_argument("--max_shard_size", default="5GB", help="split the weights into files of at most this size")
    options.add_argument("--fresh", action="store_true", help="move a folder that is already there aside")
    return options


def main(argv: list[str]) -> int:
    """Merge, write, and compare the logits of the written model with those of the model that was read."""
    args = make_parser().parse_args(argv)
    check_output_path(args.out, "--out", "--out NAME")

    from safetensors import SafetensorError

    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.models.folder_checks import check_folder, count_values
    from dpo_lightning.models.merging import check_mergeable, check_shard_size
    from dpo_lightning.runs.checkpoint_model import open_model

    silence_libraries()
    size = check_shard_size(args.max_shard_size)
    source = open_model(args.model, attention="eager")
    base = check_folder(source.spec.base_path())
    read = [base, source.spec.adapter_folder(), None if source.trained is None else Path(args.model).parent]
    out = NewFolder(args.out, "out")
    out.check([part for part in read if part is not None], fresh=args.fresh)
    if args.keep_adapter:
        check_adapter(source, args.dtype)
    else:
        check_mergeable(source.spec)
    if base is not None and not args.keep_adapter:
        check_space(out.path, BYTES[args.dtype] * count_values(base), "out")
    try:
        with out.write() as partial:
            if args.keep_adapter:
                write_adapter(source, partial, out.path.name)
            else:
                write_export(source, partial, args.dtype, size, out.path.name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            ExitCode.IO,
            Problem(f"the folder cannot be written: {reason}", "out", args.out),
            fix="free some disk space, or --out on another disk",
        ) from error
    report_next(out.path, "an adapter" if args.keep_adapter else args.dtype)
    return 0


def check_adapter(source: ModelSource, dtype: str) -> None:
    """Refuse to keep the adapter of a model that has none, or to round it.

    Raises:
        UserError: 64.
    """
    if source.trained is None or not source.adapted:
        what = Problem("only a checkpoint of a run that trains an adapter has one to keep", "--model", source.path)
        raise UserError(ExitCode.CONFIG, what, fix="leave --keep_adapter out")
    if dtype != "float32":
        raise UserError(ExitCode.CONFIG, Problem("an adapter is kept in float32", "--dtype", dtype), fix="leave it out")


def write_adapter(source: ModelSource, folder: Path, name: str) -> None:
    """Write the adapter of a checkpoint, its stages and its card into an empty folder, as `final_model/` has them.

    Raises:
        UserError: logits of the model with the written adapter differ by more than rounding.
    """
    from dpo_lightning.models.causal_lm import CausalLM, save_model
    from dpo_lightning.models.merging import compare_logits, probe_logits
    from dpo_lightning.runs.lineage import folder_digest, write_stages

    model = source.build()
    save_model(model, source.spec.tokenizer(), folder, source.spec.base_path())
    *earlier, last = source.stages
    stages = [*earlier, last._replace(digest=folder_digest(folder))]
    write_stages(folder, stages)
    expected = probe_logits(model)
    del model
    found = probe_logits(CausalLM(str(folder), attention="eager").build())
    check_agreement(compare_logits(expected, found, "float32"), "read back from its files")
    make_export_card(source, name, stages, "peft").save(folder / "README.md")


def write_export(source: ModelSource, folder: Path, dtype: str, size: str, name: str) -> None:
    """Write the whole model, its stages and its card into an empty folder.

    Raises:
        UserError: logits of the merged, the written or the reloaded model differ by more than rounding.
    """
    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.models.merging import cast_weights, compare_logits, merge_adapter, probe_logits, write_model
    from dpo_lightning.runs.lineage import Stage, folder_digest, write_stages

    report_source(source, dtype)
    tokenizer, model = source.spec.tokenizer(), source.build()
    expected = probe_logits(model)
    if source.adapted:
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
    policy = {"path": source.path, "base": source.spec.base_path()}
    settings = {"weights": dtype, "largest difference of a logit": str(whole)}
    stages = [*source.stages, Stage("export", policy, source.digest, folder_digest(folder), settings=settings)]
    write_stages(folder, stages)
    make_export_card(source, name, stages, "transformers").save(folder / "README.md")


def report_source(source: ModelSource, dtype: str) -> None:
    """Report what is merged into what, and what a user should know of the result's precision."""
    base = source.spec.base_path()
    if not source.adapted:
        logger.info(f"model: {source.path} is a whole model: there is nothing to merge, it is written anew as {dtype}")
    else:
        logger.info(f"model: the adapter {source.path}, merged in float32 into {base}, written as {dtype}")
        if any(stage.policy.get("quantization") for stage in source.stages):
            logger.info(
                "note: the adapter was trained on quantized weights and is merged into the unquantized ones of its "
                "base, so that no update is rounded away; answers differ from those in training by the error of "
                "quantization"
            )
    stored = str(getattr(source.spec.config(), "dtype", None)).removeprefix("torch.")
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


def make_export_card(source: ModelSource, name: str, stages: Sequence[Stage], library: str) -> ModelCard:
    """Return the model card: what was merged or copied, and every earlier stage."""
    from dpo_lightning.models.transformers4 import supported_versions
    from dpo_lightning.runs.lineage import format_section
    from dpo_lightning.runs.model_card import make_card

    base = source.spec.base_path()
    what = f"`{source.path}`, written anew"
    if source.adapted:
        what = f"the adapter `{source.path}`" + (f", merged into `{base}`" if library == "transformers" else "")
    read = f"It is read by {supported_versions(source.spec.config().model_type)}."
    body = f"Exported by `dpo_lightning`: {what}.\n\n{read}\n{format_section(stages)}"
    return make_card(name, body, base, library)


def report_next(folder: Path, kind: str) -> None:
    """Report the folder and its size, and commands that use or convert it.

    Args:
        folder: of the model.
        kind: the data type of a whole model, or `an adapter`.
    """
    size = sum(entry.stat().st_size for entry in folder.iterdir())
    files = len(list(folder.glob("*.safetensors")))
    where = shlex.quote(str(folder))
    logger.info(f"exported: {folder} ({size / 1e9:.2f} GB, {kind}, weights in {files} file{'s' * (files > 1)})")
    logger.info(f"next: {PROGRAM} infer --model {where} --instruction 'What does a mutex do?'")
    if kind not in BYTES:
        return
    gguf = shlex.quote(f"{folder}.gguf")
    logger.info(
        "GGUF, by llama.cpp's own converter (not run here): "
        f"python llama.cpp/convert_hf_to_gguf.py {where} --outfile {gguf} --outtype {OUTTYPES[kind]}"
    )

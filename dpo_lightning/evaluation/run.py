"""`evaluate`: scores held-out pairs and answers their prompts, then writes items, summary and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from dpo_lightning.data.checks.scripts import choose_script, count_scripts
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.examples import Example
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.answers import is_refusal, matches_language, read_question
from dpo_lightning.evaluation.chat_server import ChatServer
from dpo_lightning.evaluation.held_out import (
    HeldOut,
    check_prompts,
    encode_held_out,
    make_readable,
    read_answer,
    read_held_out,
)
from dpo_lightning.evaluation.inputs import describe_inputs
from dpo_lightning.evaluation.loading import (
    Models,
    choose_max_length,
    choose_models,
    find_positions,
    launch,
    make_fabric,
    make_renderer,
)
from dpo_lightning.evaluation.options import GENERATED_TOGETHER, EvaluationOptions
from dpo_lightning.evaluation.passes import (
    ANSWERS,
    SCORES,
    Pass,
    Values,
    answer_by_server,
    answer_prompts,
    divide,
    score_pairs,
)
from dpo_lightning.evaluation.report import page_path, write_page
from dpo_lightning.evaluation.result_file import (
    Result,
    left_out_path,
    list_left_out,
    read_result,
    summary_path,
    write_result,
)
from dpo_lightning.evaluation.summary import summarize
from dpo_lightning.evaluation.work_file import WorkFolder
from dpo_lightning.folder_names import unwritable_error
from dpo_lightning.hardware import choose_precision
from dpo_lightning.log import is_first_process, logger
from dpo_lightning.stopping import Stopped, raise_if_requested, release_ranks, requested


def evaluate(options: EvaluationOptions) -> Result:
    """Evaluate a model on held-out rows, or continue an evaluation that was interrupted.

    Returns:
        Items and summary, which were written to `options.output` and beside it. An output of the same inputs that is
        there already is returned.

    Raises:
        UserError: an option, the rows or a model cannot be used; 73 where the output has other inputs.
    """
    precision = options.precision
    if precision is None:
        precision, reason = choose_precision(options.accelerator)
        logger.info(f"precision: {precision} ({reason})")
    server = None if options.generator is None else ChatServer(options.generator, options.served_model)
    read = read_held_out(options.data, options.kind, options.read)
    raise_if_requested()
    models = choose_models(options, precision)
    renderer = make_renderer(models.policy, options)
    length = choose_max_length(models.policy, options)
    options = replace(options, max_length=length)
    rows = encode_held_out(read, renderer, length, options.overlong)
    if options.generate and options.generator is None:
        check_prompts(rows, find_positions(models.policy))
    raise_if_requested()
    made_by = describe_inputs(options, models, renderer, rows, precision, server)
    known = find_finished(options, made_by)
    if known is not None:
        if is_first_process():
            write_page(known)  # which may be missing, or of an earlier version
        return known
    fabric = make_fabric(options.accelerator, precision, options.devices)
    if precision == "16-mixed" and fabric.device.type == "cpu":  # Lightning would compute in bfloat16
        what = Problem("a processor does not compute in float16", "--precision", precision)
        raise UserError(ExitCode.DEVICE, what, fix="--precision 32-true, or leave it out")
    launch(fabric)
    work = WorkFolder(Path(options.output), fabric.global_rank)
    try:
        if fabric.is_global_zero:
            work.begin(made_by)
        fabric.barrier()
        run_passes(options, models, renderer, rows, fabric, work, server)
        fabric.barrier()
        found = {name: work.load(name) for name in (SCORES, ANSWERS)}
        fabric.barrier()  # the first process removes the folder
        items = [make_item(number, rows, options, found) for number in range(len(rows.examples))]
        measures, slices = summarize(items)
        summary: dict[str, Any] = {"made_by": made_by}
        summary["empty_answers"] = sum(item.get("generated") == "" for item in items) if server else 0
        summary |= {"measures": measures, "slices": slices, "left_out": len(rows.left_out)}
        if not fabric.is_global_zero:
            return Result(items, summary, Path(options.output))
        result = write_result(Path(options.output), items, summary)
        write_page(result)
        list_left_out(result.path, rows.left_out)
        work.remove()
        return result
    finally:
        work.release()


def run_passes(
    options: EvaluationOptions,
    models: Models,
    renderer: Renderer,
    rows: HeldOut,
    fabric: Fabric,
    work: WorkFolder,
    server: ChatServer | None,
) -> None:
    """Load the weights, and compute what is not kept yet of this process's share of the rows."""
    share = fabric.global_rank, fabric.world_size
    pair: Any = None  # is loaded only where something is computed with it
    if rows.pairs or (options.generate and server is None):
        pair = models.load(fabric.device, fabric.autocast, options.collator)
    passes = []
    if rows.pairs:
        batches = divide([row.length for row in rows.pairs], options.batch_size, *share)
        passes.append(Pass(SCORES, "scoring", batches, partial(score_pairs, pair, models.loss, rows.pairs)))
    if options.generate:
        batches = divide([len(prompt) for prompt in rows.prompts], GENERATED_TOGETHER * options.batch_size, *share)
        given = renderer.tokenizer, rows, options.sampling
        compute: Callable[[Sequence[int]], Values] = partial(answer_prompts, pair, renderer.stops, *given)
        if server is not None:
            compute = partial(answer_by_server, server, *given)
        passes.append(Pass(ANSWERS, "answering", batches, compute))
    for each in passes:
        each.run(work)
        stop_together(fabric)


def stop_together(fabric: Fabric) -> None:
    """Stop all processes if one of them is to stop.

    Raises:
        Stopped: in every process; a later start goes on with the rows that are kept.
    """
    flag: Any = torch.tensor(int(requested()), device=fabric.device)
    flag = fabric.all_reduce(flag, reduce_op="sum")
    if flag > 0:
        release_ranks()
        raise Stopped("the rows that were computed are kept")


def find_finished(options: EvaluationOptions, made_by: Mapping[str, Any]) -> Result | None:
    """Return the result of the same inputs, if it is complete; None if there is no output.

    Raises:
        UserError: 73, the output has other inputs.
    """
    output = Path(options.output)
    check_beside(output, options)
    if not output.exists() or options.fresh:
        check_writable(output)
        return None
    try:
        result = read_result(output)
        stored = (result.summary or {}).get("made_by", {})
    except UserError:
        stored = {}
    changed = sorted(name for name in {*made_by, *stored} if made_by.get(name) != stored.get(name))
    if not changed:
        if is_first_process():
            logger.info(f"{output}: evaluated before, of the same inputs")
        return result
    if not stored and WorkFolder(output).holds(made_by):  # it ended between the items and their summary
        return None
    what = f"the file has results of other inputs: {', '.join(changed)}" if stored else "the file has other content"
    raise UserError(
        ExitCode.OUTPUT,
        Problem(what, "--output", str(output)),
        fix="choose another --output, or --fresh to replace it",
    )


def check_beside(output: Path, options: EvaluationOptions) -> None:
    """Check that no file of rows is replaced, and no summary or page that belongs to another output.

    Raises:
        UserError: 73, one would be.
    """
    beside = [path for path in (summary_path(output), page_path(output), left_out_path(output)) if path.exists()]
    read = [path for path in map(Path, options.data) if path.is_file()]
    rows = [path for path in (output, *beside) if path.exists() and any(map(path.samefile, read))]
    if rows:
        raise UserError(
            ExitCode.OUTPUT,
            Problem("the output would replace a file of --data", "--output", str(rows[0])),
            fix="choose another --output",
        )
    if beside and not output.exists() and not options.fresh:
        raise UserError(
            ExitCode.OUTPUT,
            Problem("the summary or the page would replace a file of another output", "--output", str(beside[0])),
            fix="choose another --output, or --fresh to replace it",
        )


def check_writable(output: Path) -> None:
    """Create the folder of an output.

    Raises:
        UserError: 73, it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise IsADirectoryError(21, "it is a folder")
    except OSError as error:
        raise unwritable_error(error, output) from None


def make_item(
    number: int, rows: HeldOut, options: EvaluationOptions, found: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return a row as the output has it: texts, where it came from, its answer, and what was computed of it."""
    example = rows.examples[number]
    chosen, rejected = map(read_answer, example.answers) if example.answers else (None, None)
    item: dict[str, Any] = {
        "prompt": make_readable(example.prompt),
        "chosen": chosen,
        "rejected": rejected,
        "file": example.origin.file,
        "line": example.origin.line,
        "group": example.group,
        "language": rows.languages[number] or name_script(example),
    }
    given = found[ANSWERS].get(number)
    if given is not None:
        item |= {**given, "seed": options.sampling.prompt_seed(rows.prompts[number])}
        item["refusal"] = is_refusal(item["generated"])
        item["language_match"] = matches_language(example.prompt, item["generated"])
    return item | dict(found[SCORES].get(number, {}))


def name_script(example: Example) -> str:
    """Return the script of a prompt, such as `Latin` or `Hangul`; empty for a prompt of few letters."""
    return choose_script(count_scripts(read_question(example.prompt)))

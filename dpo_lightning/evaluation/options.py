"""`EvaluationOptions`: what is evaluated, on which rows, against which reference, and how answers are generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dpo_lightning.data.collate import Collator
from dpo_lightning.data.encoding.control_tokens import SpecialTokens
from dpo_lightning.data.encoding.rendering import Template
from dpo_lightning.data.encoding.tokenization import Overlong
from dpo_lightning.data.load import ReadOptions
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.held_out import Kind
from dpo_lightning.folder_names import check_output_path
from dpo_lightning.sampling import Sampling

GENERATED_TOGETHER = 4
"""Prompts that are answered at a time, for each pair that is scored at a time: generating takes less memory."""

MAX_LENGTH = 1024
"""Tokens of a row, where no other number is given and the model reads as many."""


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of an evaluation; `evaluate --help` describes those that are not described here.

    Attributes:
        model: a model or adapter folder, a `.ckpt` file of a run, or a hub id.
        data: files of rows: pairs, or prompts alone.
        output: the file for the items, `NAME.json` or `NAME.jsonl`; the summary and the page are written beside it.
        reference: the model to compare with, `none`, or None for the one that the model's record names.
        beta: in place of that of the loss in the model's record.
        generate: whether the prompts are answered.
        generator: the URL of a server that answers the prompts in place of the model.
        max_length: tokens of a prompt and its longer answer; None takes the model's positions, up to `MAX_LENGTH`.
        served_model: the name of the model at the server; None takes the first that the server lists.
        precision: as in `--trainer.precision`; None chooses by the hardware.
        collator: the layout of batches; None takes the one that computes the fewest tokens.
        read: how the columns of the files are read.
        fresh: replace an output of other inputs.
    """

    model: str
    data: Sequence[str]
    output: str
    reference: str | None = None
    beta: float | None = None
    kind: Kind = "auto"
    generate: bool = True
    generator: str | None = None
    served_model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 8
    max_length: int | None = None
    overlong: Overlong = "error"
    template: Template = "auto"
    chat_template: str | None = None
    template_date: str | None = None
    special_tokens: SpecialTokens = "refuse"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    precision: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    collator: Collator | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    fresh: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("max_length", self.max_length, 2),
            ("devices", self.devices, 1),
            ("limit_rows", self.read.limit_rows, 1),
        ):
            if value is not None and value < least:
                raise UserError(
                    ExitCode.CONFIG, Problem(f"{name}={value} is less than {least}", f"--{name}"), f"--{name} {least}"
                )
        if self.beta is not None and not 0 < self.beta < math.inf:
            raise UserError(
                ExitCode.CONFIG, Problem("expected a positive number", "--beta", str(self.beta)), "--beta 0.1"
            )
        if self.reference == "":
            raise UserError(ExitCode.CONFIG, Problem("the path is empty", "--reference"), "--reference none, or a path")
        if self.generator is not None and not self.generate:
            what = Problem("a server is given, and no answers are wanted", "--generator, --no_generate")
            raise UserError(ExitCode.CONFIG, what, fix="leave one of the two out")
        check_output_path(self.output, "--output", "--output evaluation.json", file=True)
        if Path(self.output).suffix not in (".json", ".jsonl"):
            raise UserError(
                ExitCode.CONFIG,
                Problem("the output is neither a .json nor a .jsonl file", "--output", self.output),
                fix="--output evaluation.json",
            )

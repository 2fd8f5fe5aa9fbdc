"""A kind of row that the package does not have, written whole in this file as docs/extending.md tells, and trained."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from lightning.pytorch import Trainer
from support import whole_runs
from torch import Tensor
from torch.optim import SGD

from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.callbacks.prediction_writer import PredictionWriter
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.callbacks.summary import summarize
from dpo_lightning.data.examples import Encoded, Example
from dpo_lightning.data.kinds.fields import fit_answer, parse_number
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.turn_marks import check_no_mark
from dpo_lightning.data.text_datamodule import TextDataModule
from dpo_lightning.logps import score
from dpo_lightning.losses.base import PolicyLoss
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.references import FrozenCopy
from dpo_lightning.references.precomputed import Precomputed

# data/kinds/graded.py


@dataclass(frozen=True, slots=True)
class EncodedGraded(Encoded):
    noun: ClassVar[str] = "graded answers"
    grade: float = field(kw_only=True)

    @property
    def columns(self) -> Mapping[str, float | bool]:
        return {"grades": self.grade}


@dataclass(frozen=True, slots=True)
class GradedExample(Example):
    encoded = EncodedGraded
    grade: float = field(kw_only=True)


class GradedKind(RowKind):
    """`prompt, completion, grade`."""

    example = GradedExample
    columns = ("prompt", "completion", "grade")
    answers = ("completion",)

    def parse(self, name: str, value: Any) -> Any:
        return parse_number(value, self.quote_name(name)) if name == "grade" else super().parse(name, value)

    def fit(self, row: Any, values: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        prompt = self.context.add_turns(row, self.context.add_input(row, values["prompt"]))
        answer, name = values["completion"], self.quote_name("completion")
        if not (isinstance(prompt, str) and isinstance(answer, str)):
            prompt, answer = fit_answer(prompt, answer, name)
            check_no_mark(answer, len(answer), name)
        return prompt, (answer,)


# data/datamodules.py


class GradedDataModule(TextDataModule):
    kind = GradedKind


# graded.py


class GradedLogps(NamedTuple):
    policy: Tensor
    reference: Tensor
    lengths: Tensor
    grades: Tensor

    @classmethod
    def of(cls, policy, reference, batch):
        return cls(policy.sums, reference.sums, policy.lengths, batch.columns["grades"])

    @property
    def margins(self):
        return self.policy - self.reference

    @property
    def each(self):
        return self.margins, self.policy, self.lengths

    def detach(self):
        return self._make(value.detach() for value in self)

    def select(self, rows):
        return self._make(value[rows] for value in self)

    def at_start(self):
        return self._replace(reference=self.policy)


class GradedOutput(NamedTuple):
    losses: Tensor
    rewards: Tensor

    @property
    def margins(self):
        return self.rewards


@dataclass(frozen=True)
class RegressionLoss(PolicyLoss):
    beta: float = 0.1

    def __call__(self, logps):
        rewards = self.beta * logps.margins
        return GradedOutput((rewards - logps.grades) ** 2, rewards.detach())


# callbacks/graded_rewards.py


class GradedRewards(MeasureCallback):
    names = ("loss", "rewards")

    def values(self, outputs, batch):
        values = {"loss": outputs["output"].losses, "rewards": outputs["output"].rewards}
        return values, {"loss": batch.weights, "rewards": batch.indices >= 0}


# graded.py again


class GradedModule(PreferenceModule):
    data_module = GradedDataModule

    def __init__(
        self, policy, loss=RegressionLoss(), reference=None, learning_rate=0.05, optimizer=SGD, lr_scheduler=None
    ):
        super().__init__(policy, loss, reference, learning_rate, optimizer, lr_scheduler)

    def configure_callbacks(self):
        return self.exclude_given(GradedRewards(), SelfCheck())

    def compare(self, batch, rows="train"):
        policy = score(self.policy, batch, self.head, self.loss.statistics)
        logps = GradedLogps.of(policy, self.reference(self.policy, batch, rows), batch)
        return self.loss(logps), logps

    def columns(self, output, logps):
        values = {"loss": output.losses, "reward": output.rewards, "grade": logps.grades, "logps": logps.policy}
        return {name: column.tolist() for name, column in values.items()}


# The end of what a kind needs.

GRADES = (0.5, -1.0, 2.0, 0.0, 1.5)


def data_of(folder: Path) -> GradedDataModule:
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen"], "grade": GRADES[k % 5]}
        for k, row in enumerate(whole_runs.preference_rows(7))
    ]
    held_out = [row | {"prompt": row["prompt"] + " Well?", "grade": "-1e0"} for row in rows[:3]]
    paths = [whole_runs.write_rows(folder, name, part) for name, part in (("train", rows), ("eval", held_out))]
    return GradedDataModule(*paths, batch_size=2, max_length=64)


@pytest.mark.usefixtures("place")
def test_a_new_kind_trains_predicts_and_may_be_precomputed(tiny_llama, tmp_path, capsys):
    """Against a frozen copy and a file: the start of its loss, and the same curve."""
    curves = []
    for reference in (FrozenCopy(), Precomputed()):
        module, data = GradedModule(CausalLM(str(tiny_llama)), reference=reference), data_of(tmp_path)
        memory, trainer = whole_runs.fit(module, data, tmp_path, max_epochs=2, accumulate_grad_batches=4)
        curves.append(memory.curve("train/loss"))
    out = capsys.readouterr().out
    assert out.count("self-check: passed") == 2
    assert "computing 10 of 10 rows" in out
    grades = [GRADES[k % 5] for k in range(7)]
    assert curves[0][0] == pytest.approx(sum(grade**2 for grade in grades) / 7, rel=1e-6)
    assert curves[0][1] < 0.99 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    summarize(trainer)
    assert json.loads((tmp_path / "metrics.json").read_text())["eval/rows"] == 3
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[PredictionWriter()])
    trainer.predict(module, datamodule=data, return_predictions=False)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(line["line"], line["grade"]) for line in lines] == [(1, -1.0), (2, -1.0), (3, -1.0)]


@pytest.mark.usefixtures("place")
def test_its_rows_are_checked_as_all_rows_are(tmp_path):
    """Every fault of a row at once, by file and line."""
    from dpo_lightning.data.load import load_examples
    from dpo_lightning.errors import UserError

    path = whole_runs.write_rows(tmp_path, "bad", [{"prompt": "a", "completion": "b", "grade": 1}, {"grade": "good"}])
    with pytest.raises(UserError) as told:
        load_examples(GradedKind, path)
    assert [problem.what for problem in told.value.problems] == [
        *("no column 'prompt'", "no column 'completion'", "'grade' is not a finite number"),
    ]
    assert all(problem.where == f"{path}:2" for problem in told.value.problems)


@pytest.mark.usefixtures("place")
def test_an_answer_of_messages_loses_those_of_its_prompt(tmp_path):
    from dpo_lightning.data.load import load_examples

    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    rows = [{"prompt": turns[:1], "completion": answer, "grade": 1} for answer in (turns, turns[1:])]
    examples, _ = load_examples(GradedKind, whole_runs.write_rows(tmp_path, "turns", rows))
    assert [len(text) for example in examples for text in (example.prompt, *example.answers)] == [1, 1, 1, 1]


class UncheckedKind(GradedKind):
    parse = RowKind.parse


@pytest.mark.usefixtures("place")
def test_a_column_that_is_a_field_is_no_text_by_default(tmp_path):
    from dpo_lightning.data.load import load_examples

    rows = [{"prompt": f"a{grade}", "completion": "b", "grade": grade} for grade in (1, 2.5)]
    examples, _ = load_examples(UncheckedKind, whole_runs.write_rows(tmp_path, "plain", rows))
    assert [example.grade for example in examples] == [1, 2.5]

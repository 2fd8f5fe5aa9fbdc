"""The pass over the rows: longest first, once, kept as it goes, shared out, and the same file whoever ends it."""

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import short_runs, tiny_models
from support.precomputed import data, files, loaded, looked_up, scoring_of

from dpo_lightning.data.collate import Padded
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.kto import KTOModule
from dpo_lightning.listwise import ListwiseDPOModule
from dpo_lightning.references import precomputed as module
from dpo_lightning.references import reference_pass as scoring
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.references.row_index import row_digests
from dpo_lightning.references.table_file import read

pytestmark = pytest.mark.usefixtures("place")


def sums_of(path):
    """The sum of each answer of a file, by its digest."""
    table = read(path)[1]
    return dict(zip(map(bytes, table.keys), table.sums()[0].tolist(), strict=True))


def test_only_rows_that_are_new_are_computed(tiny_llama, file, counted):
    made = looked_up(tiny_llama, file)
    (path,) = files()
    before = sums_of(path)
    held_out = short_runs.write_pairs(Path("eval.jsonl"), rows=3, prompt="Another question")
    counted.clear()
    made = looked_up(tiny_llama, file, eval=str(held_out))
    assert sum(counted) == 1  # two of the three are training rows as well
    assert made.reference._answers["eval"].sums.shape == (6,)
    assert files() == [path]
    after = sums_of(path)
    assert after.items() >= before.items()
    assert len(after) == len(before) + 2


def test_an_answer_that_is_in_several_pairs_has_one_value(tiny_llama):
    shared = [{"prompt": "Which?", "chosen": "This one.", "rejected": "No" * k} for k in range(1, 6)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, shared)))
    made = looked_up(tiny_llama, "rows.jsonl")
    assert len(read(files()[0])[1].keys) == 6
    assert len(set(made.reference._answers["train"].sums[::2].tolist())) == 1


def test_the_device_on_which_models_are_made_is_not_that_of_the_pass(tiny_llama, file):
    """Lightning makes it the default while a model is built; here one that holds no values."""
    made = loaded(tiny_llama, Precomputed())
    run = scoring_of(made, data(file))
    with torch.device("meta"):
        made.reference.look_up(made.policy, run)
    assert made.reference._answers["train"].sums.device.type == "cpu"
    assert torch.equal(
        made.reference._answers["train"].sums, looked_up(tiny_llama, file).reference._answers["train"].sums
    )


def test_the_keys_of_a_pair_are_its_answers(tiny_llama, file):
    made = short_runs.ready(tiny_llama)
    rows = data(file)
    rows.prepare("fit", made)
    keys = [row_digests(row) for row in rows.encoded["train"]]
    assert len({key for pair in keys for key in pair}) == 18


def test_batches_are_those_of_training_longest_rows_first(tiny_llama, file):
    """As many pairs, or as many tokens."""
    made = short_runs.ready(tiny_llama)
    for options, layout in (({"batch_size": 4}, Padded()), ({"max_tokens": 300}, Padded())):
        run = scoring_of(made, data(file, **options))
        rows = sorted(run.rows["train"], key=lambda row: -row.length)
        batches = run.batches(rows, layout)
        assert [place for batch in batches for place in batch] == list(range(len(rows)))
        if "max_tokens" in options:
            held = [len(batch) * max(layout.tokens(rows[place]) for place in batch) for batch in batches]
            assert all(tokens <= 300 for tokens in held)
            assert 1 < len(batches) < len(rows)
        else:
            assert [len(batch) for batch in batches] == [4, 4, 1]
    assert [len(batch) for batch in scoring_of(made, data(file, max_tokens=128)).batches(rows[:1], layout)] == [1]


def test_a_reference_that_is_no_number_is_refused(file, tmp_path):
    broken = tiny_models.make_gpt2()
    broken.transformer.ln_f.weight.data.fill_(3e38)  # finite, its logits are not
    folder = tiny_models.save(tmp_path / "broken", broken, tiny_models.make_tokenizer())
    with pytest.raises(UserError, match=r"a reference log-probability is not finite at .*pairs.jsonl:\d") as raised:
        looked_up(folder, file)
    assert raised.value.code == ExitCode.MODEL
    assert files() == []


def in_a_child(work):
    """Run a function in a forked process; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(120)
    return child.exitcode


def test_a_pass_that_is_killed_goes_on_where_it_was(tiny_llama, file, monkeypatch):
    straight = looked_up(tiny_llama, file, Precomputed(path="straight.safetensors"))
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    real = scoring.score_rows
    calls = multiprocessing.get_context("fork").Value("i", 0)

    def counting(*args):
        calls.value += 1
        if calls.value == 4:
            os._exit(9)
        return real(*args)

    monkeypatch.setattr(module, "score_rows", counting)
    assert in_a_child(lambda: looked_up(tiny_llama, file, Precomputed(path="killed.safetensors"))) == 9
    assert not Path("killed.safetensors").exists()
    assert len(list(Path("killed.safetensors.parts").iterdir())) == 3
    again = looked_up(tiny_llama, file, Precomputed(path="killed.safetensors"))
    assert calls.value == 4 + 2  # five batches, three of which are kept
    assert Path("killed.safetensors").read_bytes() == Path("straight.safetensors").read_bytes()
    assert not Path("killed.safetensors.parts").exists()
    assert torch.equal(again.reference._answers["train"].sums, straight.reference._answers["train"].sums)


def test_an_interrupted_pass_keeps_what_it_has(tiny_llama, file, monkeypatch):
    real, calls = scoring.score_rows, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "score_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        looked_up(tiny_llama, file)
    assert len(list(next(Path("outputs/reference").glob("*.parts")).iterdir())) == 1
    looked_up(tiny_llama, file)
    assert len(calls) == 3 + 3
    assert [path.suffix for path in files()] == [".safetensors"]


def test_processes_that_compute_one_file_at_once(tiny_llama, file, monkeypatch):
    looked_up(tiny_llama, file, Precomputed(path="alone.safetensors"))
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=looked_up, args=(tiny_llama, file, Precomputed(path="shared.safetensors")))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert Path("shared.safetensors").read_bytes() == Path("alone.safetensors").read_bytes()
    assert not Path("shared.safetensors.parts").exists()


def test_shares_are_joined(tiny_llama, file, counted):
    for number in range(3):
        made = loaded(tiny_llama, Precomputed(path="shared.safetensors"))
        made.reference.share = (number, 3)
        made.reference.look_up(made.policy, scoring_of(made, data(file)))
    assert sorted(counted) == [1, 2, 2, 2, 2]
    assert not Path("shared.safetensors").exists()
    looked_up(tiny_llama, file, Precomputed(path="shared.safetensors"))
    assert sum(counted) == 9
    looked_up(tiny_llama, file, Precomputed(path="alone.safetensors"))
    assert Path("shared.safetensors").read_bytes() == Path("alone.safetensors").read_bytes()


RANKS = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    from support import short_runs
    from dpo_lightning.data.datamodules import PreferenceDataModule
    from dpo_lightning.log import log_to_terminal
    from dpo_lightning.references.precomputed import Precomputed
    from lightning.pytorch import Callback
    from lightning.pytorch.strategies import DDPStrategy

    class Tell(Callback):
        def on_train_end(self, trainer, pl_module):
            weights = [value.detach() for value in pl_module.policy.parameters()]
            torch.save(weights, Path({out!r}, f"{{trainer.global_rank}}.pt"))

    torch.set_num_threads(1)
    log_to_terminal()
    made = short_runs.module({model!r}, Precomputed(path="ranks.safetensors"))
    options = dict(shuffle=False, allow="leak")
    rows = PreferenceDataModule(train={file!r}, eval={file!r}, batch_size=1, max_length=128, **options)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    options = dict(strategy=strategy, devices=2, enable_checkpointing=False, callbacks=[Tell()])
    short_runs.fit(made, None, Path({out!r}), steps=5, data=rows, **options)
"""


def test_two_ranks_share_the_pass_and_train_as_one(tiny_llama, file, tmp_path):
    """Nine rows: the last one of the second rank only fills up."""
    places = {
        "tests": str(Path(__file__).parents[1]),
        "model": str(tiny_llama),
        "file": str(file),
        "out": str(tmp_path),
    }
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(RANKS).format(**places))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reference: computing 5 of 9 rows" in done.stdout
    assert done.stdout.count("computing") == 1
    looked_up(tiny_llama, file, Precomputed(path="alone.safetensors"), batch_size=1)
    assert Path("ranks.safetensors").read_bytes() == Path("alone.safetensors").read_bytes()
    live = short_runs.module(tiny_llama)
    rows = data(file, eval=str(file), shuffle=False)
    short_runs.fit(live, file, tmp_path / "live", steps=5, data=rows, enable_checkpointing=False)
    left, right = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for one, two, alone in zip(left, right, live.policy.parameters(), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, alone.detach(), rtol=1e-3, atol=1e-4)


def test_ranks_that_see_no_common_disk_are_told(tiny_llama, file, monkeypatch):
    """The second of two ranks, for which no first one writes."""
    made = loaded(tiny_llama, Precomputed())
    run = scoring_of(made, data(file), rank=1, world_size=2)
    with pytest.raises(UserError, match="on a disk that every process sees"):
        made.reference.look_up(made.policy, run)


@pytest.mark.parametrize(
    ("module_type", "name"),
    [
        (DPOModule, "PreferenceDataModule"),
        (KTOModule, "UnpairedDataModule"),
        (ListwiseDPOModule, "RankedDataModule"),
    ],
)
def test_without_a_data_module_the_fix_names_the_one_of_this_module(module_type, name):
    trainer = SimpleNamespace(datamodule=None, lightning_module=module_type.__new__(module_type))
    with pytest.raises(UserError) as caught:
        scoring.ScoringContext.of(trainer, tokenizer=None)
    assert caught.value.code == ExitCode.CONFIG
    assert f"datamodule={name}(...)" in caught.value.fix

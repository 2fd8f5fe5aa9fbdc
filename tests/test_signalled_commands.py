"""Signals at chosen places of real commands: exit codes, what is left, and that the same command goes on."""

import signal

import pytest
import yaml
from support.command_line import quiet_bench, refused, run
from support.signalled import run_signalled

from dpo_lightning import stopping
from dpo_lightning.callbacks.stop_at_batches import StopAtBatches


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    """The recipe without its samples, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return quiet_bench(tmp_path, tiny_llama)


def stopped(signals, place, *args, code=75):
    """Check the exit code of a command that gets signals, and that it prints few lines; return them."""
    ended, said = run_signalled(signals, place, *args)
    assert ended == code, said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 25, said
    return said


def test_fit_during_imports(bench, tmp_path):
    said = stopped("SIGINT", "import:numpy", "fit", *bench.options())
    assert said.endswith("error: stopped by SIGINT: nothing new was saved\nfix: run the same command again\n")
    assert not (tmp_path / "run").exists()


def test_a_command_without_a_boundary_during_imports(tiny_llama):
    """It ends when the import is over, before it answers; a note may have been printed by then."""
    args = ("infer", "--model", tiny_llama, "--instruction", "hi")
    assert stopped("SIGINT", "import:torch._tensor", *args, code=130).splitlines()[-1] == "interrupted"


def test_fit_before_its_rows_are_read(bench, tmp_path):
    """Nothing is left, so that the same command begins afresh."""
    said = stopped("SIGTERM", "dpo_lightning.data.text_datamodule:TextDataModule.prepare:1", "fit", *bench.options())
    assert "stopped by SIGTERM: nothing new was saved" in said
    assert not (tmp_path / "run").exists()


def test_two_ranks_of_which_one_gets_a_signal_while_the_model_is_built(bench, tmp_path):
    """Lightning has started the other one; both stop before the first step."""
    args = ("fit", *bench.options(), "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2")
    said = stopped("SIGUSR1", "dpo_lightning.models.causal_lm:CausalLM.build:1", *args)
    assert "stopped by SIGUSR1: nothing new was saved" in said
    assert said.count("error: stopped by") == 1
    assert not (tmp_path / "run").exists()


def test_a_time_limit_is_kept_from_lightning(bench, tmp_path, monkeypatch):
    """It would end training as if that were complete; the config of the run has it nevertheless."""
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.callback_connector.Timer", None)
    assert bench.fit("--trainer.max_steps=1", "--trainer.max_time=99:00:00:00").code == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["trainer"]["max_time"] == "99:00:00:00"
    assert bench.fit("--trainer.max_steps=1", out="other").code == 0
    monkeypatch.setattr(stopping, "BEGAN", stopping.BEGAN - 3600)
    ran = bench.fit("--trainer.max_time=00:01:00:00", out="third")
    refused(ran, 75, "stopped by trainer.max_time: nothing new was saved", "run the same command again")
    assert not (tmp_path / "third").exists()


def test_lightning_registers_no_handlers(bench, monkeypatch):
    """Its own hang with several ranks."""
    found = []
    monkeypatch.setattr(StopAtBatches, "on_train_start", lambda *_: found.append(signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert bench.fit("--trainer.max_steps=1").code == 0
    assert found == [before]


def test_two_interrupts_end_at_once(bench, tmp_path):
    place = "dpo_lightning.data.text_datamodule:TextDataModule.prepare:1"
    assert "interrupted" in stopped("SIGINT,SIGINT", place, "fit", *bench.options(), code=130)
    assert not (tmp_path / "run").exists()


def test_precompute_goes_on(bench, tmp_path):
    """With the rows that it has computed; the file is that of a pass that was not stopped."""
    args = ("precompute", *bench.options(), "--data.batch_size=2", "--out")
    said = stopped("SIGUSR1", "dpo_lightning.references.precomputed:score_rows:2", *args, "a.safetensors")
    assert "stopped by SIGUSR1: the reference's log-probabilities so far are kept" in said
    assert "it goes on" in said
    # It is not stopped by a signal that it was started to ignore, as by nohup.
    place = "dpo_lightning.references.precomputed:score_rows:1"
    code, said = run_signalled("SIGHUP", place, *args, "a.safetensors", ignored="SIGHUP")
    assert code == 0, said
    assert "computing 9 of 13 rows" in said
    assert run(*args, "b.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_infer(tiny_llama):
    args = ("infer", "--model", tiny_llama, "--instruction", "hi", "--max_new_tokens", 20)
    place = "dpo_lightning.models.generation:SampleByPrompt.__call__:3"
    assert stopped("SIGHUP", place, *args, code=129) == "ended by SIGHUP\n"

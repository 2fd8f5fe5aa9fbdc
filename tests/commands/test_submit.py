"""`submit`: what is sent to Slurm, by a program in the place of sbatch that writes down its call, and what is not."""

import subprocess
import sys
import warnings

import pytest
from support.command_line import CONFIGS, ROOT, refused, run, watch_loading
from support.fake_slurm import calls, options, run_script, script

from dpo_lightning.commands import job_scripts
from dpo_lightning.commands.submit import parse_array, remove_option
from dpo_lightning.errors import UserError


def test_a_command_is_sent_after_its_checks(slurm, monkeypatch):
    """Its rows are checked and encoded, no weights are loaded, and the job is told how many processes there are."""
    loaded = watch_loading(monkeypatch)
    for name in ("SLURM_CPU_BIND", "SLURM_NTASKS", "SRUN_CPUS_PER_TASK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")  # as in a shell on a node
    ran = slurm.submit("--nodes", 2, "--time", "2:00:00", "--sbatch=--qos=long", fit=["--data.batch_size=2"])
    assert ran.code == 0, ran
    assert "AutoModelForCausalLM" not in loaded
    path = script(slurm)
    assert calls(slurm) == [f"--parsable --qos=long {path.relative_to(slurm.folder)}"]  # it wins over the site
    for said in ("job 41: 2 nodes, 2 GPUs on each", "squeue --job 41", "scancel 41", f"{path.stem}-41.log"):
        assert said in ran.out
    found = options(path.read_text())
    assert found == {
        "nodes": "2", "ntasks-per-node": "2", "gpus-per-node": "2", "time": "2:00:00", "qos": "long", "requeue": "",
        "job-name": path.stem, "output": f"outputs/jobs/{path.stem}-%j.log", "signal": "B:USR1@300",
        "open-mode": "append",
    }  # fmt: skip
    variables = (slurm.folder / "variables").read_text()
    assert variables == "SBATCH_ACCOUNT=mine\n", "a variable would win over the script"
    code, words = run_script(path)
    assert code == 0
    program = [sys.executable, "-m", "dpo_lightning", "fit", *slurm.options(), "--data.batch_size=2"]
    assert words == ["--kill-on-bad-exit=0", "--wait=900", *program, "--trainer.num_nodes=2", "--trainer.devices=2"]


def test_words_arrive_as_they_were_typed(slurm):
    """Quotes, dollars, spaces and line breaks."""
    odd = 'it\'s $HOME `ls` "x" * #'
    (slurm.folder / odd).symlink_to(slurm.model)
    data = next(word for word in slurm.options() if str(word).startswith("--data.eval=")).partition("=")[2]
    evaluate = ["evaluate", "--model", odd, "--data", data, "--output", "a b.json"]
    assert run("submit", "--site", slurm.site, "--", *evaluate).code == 0
    assert run_script(script(slurm))[1][-len(evaluate) :] == evaluate


def test_a_dry_run_prints_and_sends_nothing(slurm):
    ran = slurm.submit("--dry-run")
    assert ran.code == 0, ran
    text = ran.out[ran.out.index("#!/bin/bash") :]
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert options(text)["gpus-per-node"] == "1"
    assert "site.env; sbatch --parsable outputs/jobs/" in text
    assert calls(slurm) == []
    assert not (slurm.folder / "outputs/jobs").exists()


def test_a_chain_waits_for_all_before(slurm):
    """Each job begins only if all before it have stopped without being done, and none is requeued."""
    assert slurm.submit("--chain=3").code == 0
    assert [call.rpartition(" ")[0] for call in calls(slurm)] == [
        "--parsable",
        "--parsable --dependency=afternotok:41 --kill-on-invalid-dep=yes",
        "--parsable --dependency=afternotok:41:42 --kill-on-invalid-dep=yes",
    ]
    assert "no-requeue" in options(script(slurm).read_text())
    assert run_script(script(slurm), CODE="75")[0] == 75
    code, words = run_script(script(slurm), CODE="76", SLURM_JOB_NAME="this")
    assert (code, words[0], words[-1]) == (76, "--state=PENDING", "--name=this")


def test_a_stopped_job_is_requeued_a_limited_number_of_times(slurm):
    """An element of an array names itself."""
    assert slurm.submit().code == 0
    names = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2"}
    (slurm.folder / "bin/sleep").symlink_to("/bin/true")
    for count, last in (("2", ["requeue", "41_2"]), ("3", ["--trainer.devices=1"])):
        code, words = run_script(script(slurm), CODE="75", SLURM_RESTART_COUNT=count, **names)
        assert words[-len(last) :] == last
        assert code == 75


def test_without_gpus_the_processes_are_counted(slurm):
    assert slurm.submit("--gpus=0", "--processes=2", fit=["--data.batch_size=2"]).code == 0
    found = options(script(slurm).read_text())
    assert "gpus-per-node" not in found
    assert found["ntasks-per-node"] == "2"
    assert run_script(script(slurm))[1][-1] == "--trainer.devices=2"


def test_what_begins_anew_each_time_is_not_requeued(slurm):
    (slurm.folder / "bin/sleep").symlink_to("/bin/true")
    assert run("submit", "--site", slurm.site, "--", "validate", *slurm.options()).code == 0
    code, words = run_script(script(slurm), CODE="75")
    assert (code, words[-1]) == (75, "--trainer.devices=1")  # nothing was called after srun


def test_a_signal_while_modules_are_loaded(slurm):
    """The program is not started any more, and the job is requeued."""
    assert slurm.submit().code == 0
    (slurm.folder / "bin/sleep").symlink_to("/bin/true")
    slurm.site.write_text(f"{slurm.site.read_text()}kill -USR1 $$\n")
    assert run_script(script(slurm)) == (75, ["requeue", "41"])


def test_the_elements_of_an_array_are_those_of_the_sweep(slurm):
    """A count or the manifest of the sweep; each element takes its point."""
    over = ["--over", "model.loss.beta", 0.1, 0.5, "--output_dir", "sweep", "--point", "auto"]
    rest = [word for word in slurm.options() if not str(word).startswith(("--config", "--output_dir"))]
    sweep = ["--", "sweep", "--config", CONFIGS / "dpo.yaml", *over, *rest]
    refused(run("submit", "--site", slurm.site, "--array=3", *sweep), 64, "expected 2")
    refused(run("submit", "--site", slurm.site, "--nodes=2", *sweep), 64, "sweep is one process on one node")
    assert run("submit", "--site", slurm.site, "--array=2%1", *sweep).code == 0
    assert options(script(slurm).read_text())["array"] == "1-2%1"
    _, words = run_script(script(slurm))
    assert words.count("--point=auto") == 1
    assert "auto" not in words
    assert not any(word.startswith("--trainer.devices") for word in words)
    refused(run("submit", "--site", slurm.site, "--array=nowhere", *sweep), 66, "no manifest")


def test_a_search_is_one_job(slurm):
    rest = [word for word in slurm.options() if not str(word).startswith("--output_dir")]
    search = [
        "--",
        "sweep",
        *rest,
        "--engine",
        "optuna",
        "--over",
        "model.loss.beta",
        "0.01..1",
        "--output_dir",
        "found",
    ]
    refused(run("submit", "--site", slurm.site, "--array=2", *search), 64, "Optuna chooses points one after the other")
    assert run("submit", "--site", slurm.site, "--gpus=2", *search).code == 0
    _, words = run_script(script(slurm))
    assert words[-1] == "--jobs=2"
    assert options(script(slurm).read_text())["ntasks-per-node"] == "1"


def test_parts_of_a_precomputation(slurm):
    rest = slurm.options()
    assert run("submit", "--site", slurm.site, "--array=4", "--", "precompute", *rest, "--shard", "auto").code == 0
    _, words = run_script(script(slurm))
    assert words[-1] == "--shard=auto"
    assert words.count("--shard") == 0


def test_a_script_is_not_overwritten(slurm):
    job_scripts.create_script("once", "#!/bin/sh\n")
    with pytest.raises(UserError, match="File exists"):
        job_scripts.create_script("once", "#!/bin/sh\n")


def test_small_parts():
    assert remove_option(["--point", "auto", "--x", "1", "--point=auto", "--point", "2"], "--point") == [
        "--x", "1", "--point", "2",
    ]  # fmt: skip
    assert parse_array("5%2", 0) == "1-5%2"


def test_the_shipped_facts_are_bash_that_needs_nothing(monkeypatch, tmp_path):
    """Their program is the environment of the project's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    found = job_scripts.read_site(None)
    assert found.file == ROOT / "containers/slurm/site.env"
    assert (found.gpus, found.runner) == (4, [".venv/bin/python", "-m", "dpo_lightning"])
    assert not [name for name in found.environment if name.startswith("SBATCH_")]


def test_a_run_on_a_login_node_says_nothing_of_srun(slurm):
    """Lightning warns wherever a program of that name is found."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert slurm.fit("--trainer.max_steps=1").code == 0
    assert not [each for each in said if "srun" in str(each.message)]

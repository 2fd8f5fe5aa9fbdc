"""What `submit` refuses before a job waits in the queue, and what sbatch refuses."""

import shlex

import pytest
from support.command_line import refused, run
from support.fake_slurm import calls, run_script, script


@pytest.mark.parametrize(
    ("own", "fit", "code", "said"),
    [
        (["--gpus=3"], [], 64, "a node has 2 GPUs"),
        (["--gpus=2"], ["--trainer.devices=4"], 64, "4 contradicts 2 of the job at trainer.devices"),
        (["--nodes=2"], ["--trainer.num_nodes=3"], 64, "3 contradicts 2 of the job at trainer.num_nodes"),
        (["--gpus=0"], ["--trainer.accelerator=gpu"], 64, "the job has no GPU"),
        (["--processes=2"], [], 64, "there is a process for each GPU"),
        (["--nodes=0"], [], 64, "expected 1 or more"),
        (["--array=4"], [], 64, "fit takes no share"),
        (["--time=soon"], [], 64, "not a time"),
        (["--time=5"], [], 64, "little or nothing is left"),
        (["--sbatch=--time=90"], [], 64, "submit sets this at --sbatch"),
        (["--sbatch=-a1-4"], [], 64, "submit sets this at --sbatch"),
        ([], ["--fresh"], 64, "begin anew whenever it is requeued at --fresh"),
        (["--sbatch=qos=long"], [], 64, "not an option of sbatch"),
        (["--bogus"], [], 64, "--bogus"),
        ([], ["--data.train=gone.json"], 66, "gone.json"),
        ([], ["--model.policy.path=gone"], 66, "gone"),
        ([], ["--model.learning_rte=1"], 64, "learning_rte"),
        ([], ["--data.max_length=100000"], 64, "positions"),
    ],
)
def test_what_cannot_work_is_refused_before_it_waits(slurm, own, fit, code, said):
    refused(slurm.submit(*own, fit=fit), code, said)
    assert calls(slurm) == []


def test_a_time_limit_of_the_site_is_checked(slurm):
    slurm.site.write_text(f"{slurm.site.read_text()}export SBATCH_TIMELIMIT=5\n")
    refused(slurm.submit(), 64, "SBATCH_TIMELIMIT in")
    assert slurm.submit("--time=60").code == 0


def test_numbers_of_a_config_give_way(slurm):
    """Those of a recipe for several devices, not those that were typed."""
    (slurm.folder / "two.yaml").write_text("trainer: {devices: 2, strategy: ddp}\n")
    ran = slurm.submit(fit=["--config=two.yaml"])
    assert ran.code == 0, ran
    assert "trainer.devices: 2 in the config gives way to 1 of the job" in ran.out + ran.err
    assert run_script(script(slurm))[1][-1] == "--trainer.devices=1"


def test_an_evaluation_is_checked(slurm):
    data = next(word for word in slurm.options() if str(word).startswith("--data.eval=")).partition("=")[2]
    submit = ["submit", "--site", slurm.site, "--", "evaluate", "--output=found.json"]
    refused(run(*submit, "--model=gone", "--data", data), 66, "gone")
    refused(run(*submit, "--model", slurm.model, "--data=gone.json"), 66, "gone.json")
    assert calls(slurm) == []


def test_a_used_folder_is_refused_and_a_finished_run_not_sent(slurm):
    assert slurm.fit("--trainer.max_steps=1").code == 0
    refused(slurm.submit(fit=["--model.learning_rate=1"]), 73, "output_dir")
    ran = slurm.submit(fit=["--trainer.max_steps=1"])
    assert ran.code == 0, ran
    assert "finished" in ran.out
    assert calls(slurm) == []


def test_commands_that_do_not_go_on_are_not_sent(slurm):
    for words in (["infer"], ["bogus"], []):
        refused(run("submit", "--site", slurm.site, "--", *words), 64, "fit, precompute")
    refused(run("submit", "fit", "--config", "x"), 64, "fit")


def test_facts_that_are_wrong(slurm):
    """A file that is missing or not bash, a program or an image that is not there."""
    refused(run("submit", "--site", "gone.env", "--", "fit"), 66, "gone.env")
    for text, said in (
        ("RUNNER=(python", "bash cannot read it"),
        ("RUNNER=(no-such-program x)\nGPUS_PER_NODE=1", "there is no such program"),
        ("RUNNER=(bash image.sif)\nGPUS_PER_NODE=1", "there is no such image"),
        ("RUNNER=(bash)\nGPUS_PER_NODE=many", "expected a number of GPUs"),
    ):
        slurm.site.write_text(text)
        refused(slurm.submit(), 64, said)


def test_what_sbatch_says(slurm):
    program = slurm.folder / "bin/sbatch"
    for line, code in (
        ("sbatch: error: invalid account", 64),
        ("sbatch: error: Unable to contact slurm controller", 75),
    ):
        program.write_text(f"#!/bin/sh\necho {shlex.quote(line)} >&2\nexit 1\n")
        refused(slurm.submit("--name", f"n{code}"), code, line)
    program.unlink()
    slurm.site.write_text(slurm.site.read_text() + f"PATH={slurm.folder}/bin:/nowhere\n")
    ran = slurm.submit("--name", "nowhere")
    refused(ran, 69, "there is no sbatch here")

"""Which functions and objects of allowed packages an option may call, and what a user's own functions may do."""

import os
import subprocess
import sys

import pytest
from support.command_line import CONFIGS, ROOT, refused, watch_loading

COMMAND = "[fit, --config, {recipe}, --output_dir, inner, --allow-class-path, subprocess, --model.optimizer, {inner}]"
OPTIMIZERS = {
    "the program": "{class_path: dpo_lightning.__main__.main, init_args: {argv: ARGV}}",
    "a command": "{class_path: dpo_lightning.cli.main, init_args: {args: ARGV}}",
    "a function that removes": "{class_path: dpo_lightning.runs.new_folder.clear_folder, init_args: {folder: victim}}",
    "a method": "{class_path: dpo_lightning.runs.run_folder.RunFolder.abandon}",
    "a function of torch": "{class_path: torch.optim.swa_utils.get_swa_avg_fn}",
    "its name alone": "dpo_lightning.runs.new_folder.clear_folder",
    "a method by its name": "torch.optim.AdamW.step",
    "a class of another kind": "{class_path: dpo_lightning.runs.run_folder.RunFolder, init_args: {path: x}}",
    "a callback": "RewardMargins",
}


@pytest.mark.parametrize("command", ["fit", "doctor"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_a_class_of_optimizers(bench, monkeypatch, command, name):
    """No function of an allowed package is called, least of all one that runs a command or empties a folder."""
    loaded = watch_loading(monkeypatch)
    (bench.folder / "victim").mkdir()
    (bench.folder / "victim" / "keep").touch()
    inner = "'{class_path: subprocess.getoutput, init_args: {cmd: touch ran}}'"
    argv = COMMAND.format(recipe=CONFIGS / "dpo.yaml", inner=inner)
    text = f"model:\n  init_args:\n    optimizer: {OPTIMIZERS[name].replace('ARGV', argv)}\n"
    refused(bench.run(command, *bench.overlay(text)), 64, "at model.optimizer")
    assert (bench.folder / "victim" / "keep").exists()
    assert {path.name for path in bench.folder.iterdir()} == {"eval.jsonl", "train.jsonl", "overlay.yaml", "victim"}
    assert not loaded


HOOKS = (
    "dpo_lightning.__main__.main",
    "dpo_lightning.runs.new_folder.clear_folder",
    "{class_path: dpo_lightning.__main__.main, init_args: {argv: [doctor]}}",
    "{class_path: dpo_lightning.losses.DPOLoss}",
    "lightning.pytorch.callbacks.model_checkpoint.warning_cache.warn",
    "peft.get_peft_model",
    "bitsandbytes.functional.quantize_4bit",
    "torchmetrics.functional.accuracy",
    "{class_path: torchmetrics.MeanMetric}",
)


CALLBACKS = (
    "LambdaCallback, init_args: {on_fit_start: HOOK}",
    "BackboneFinetuning, init_args: {lambda_func: HOOK}",
    "ThroughputMonitor, init_args: {batch_size_fn: HOOK}",
    "StochasticWeightAveraging, init_args: {swa_lrs: 0.1, avg_fn: HOOK}",
    "ModelPruning, init_args: {pruning_fn: HOOK}",
)


@pytest.mark.parametrize(
    ("callback", "hook"),
    [*((CALLBACKS[0], hook) for hook in HOOKS), *((other, HOOKS[1]) for other in CALLBACKS[1:])],
)
def test_a_hook_is_no_function_of_ours(bench, callback, hook):
    """Where a type says only that something is called, nothing of these packages is: no function, and no object."""
    kind = callback.replace("HOOK", hook)
    text = f"trainer:\n  callbacks:\n  - {{class_path: lightning.pytorch.callbacks.{kind}}}\n"
    refused(bench.fit(*bench.overlay(text)), 64, "at trainer.callbacks")
    assert not (bench.folder / "run").exists()


STRATEGY = "trainer: {strategy: {class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {OPTION: WHAT}}}"
SCHEDULER = "lr_scheduler: {class_path: torch.optim.lr_scheduler.LambdaLR, init_args: {lr_lambda: WHAT}}"
PLACES = (
    STRATEGY.replace("OPTION", "ddp_comm_hook"),
    STRATEGY.replace("OPTION", "ddp_comm_state"),
    "trainer: {profiler: {class_path: lightning.pytorch.profilers.PyTorchProfiler, dict_kwargs: {schedule: WHAT}}}",
    "trainer: {plugins: [WHAT]}",
    "trainer: {logger: WHAT}",
    "trainer: {accelerator: WHAT}",
    "model: {init_args: {lr_scheduler: WHAT}}",
    f"model: {{init_args: {{{SCHEDULER}}}}}",
    "model: {init_args: {loss: {class_path: dpo_lightning.losses.DPOLoss, init_args: {divergence: WHAT}}}}",
    "model: {init_args: {policy: {lora: {target_modules: WHAT}}}}",
    "model: {init_args: {policy: WHAT}}",
    "data: {init_args: {collator: WHAT}}",
    "data: WHAT",
    "model: WHAT",
)


@pytest.mark.parametrize("text", PLACES)
@pytest.mark.parametrize(
    "what",
    [
        "{class_path: dpo_lightning.runs.new_folder.clear_folder, init_args: {folder: victim}}",
        "{class_path: dpo_lightning.runs.run_folder.RunFolder, init_args: {path: x}}",
    ],
)
def test_every_option_takes_its_own_kind_alone(bench, text, what):
    (bench.folder / "victim").mkdir()
    (bench.folder / "victim" / "keep").touch()
    refused(bench.fit(*bench.overlay(text.replace("WHAT", what))), 64)
    assert (bench.folder / "victim" / "keep").exists()
    assert not (bench.folder / "run").exists()


OWN_FUNCTIONS = """
from dpo_lightning.__main__ import main

def halve(step):
    return 0.5**step

class Inner(__import__("lightning").pytorch.Callback):
    def __init__(self, argv: list[str]):
        self.argv = argv

    def on_fit_start(self, *_):
        print("inner command:", main(self.argv))
"""


@pytest.fixture
def own(bench, monkeypatch):
    """A module of the user's own with a function and a callback."""
    (bench.folder / "own_functions.py").write_text(OWN_FUNCTIONS)
    monkeypatch.syspath_prepend(str(bench.folder))
    yield
    sys.modules.pop("own_functions", None)


def test_a_function_of_the_users_own_may_be_named(bench, own):
    """Of a package that the command line opens, and of no other."""
    overlay = bench.overlay(f"model: {{init_args: {{{SCHEDULER}}}}}".replace("WHAT", "own_functions.halve"))
    refused(bench.fit(*overlay), 64, "own_functions.halve", "--allow-class-path")
    ran = bench.fit(*overlay, "--allow-class-path", "own_functions")
    assert ran.code == 0, ran
    assert "lr_lambda: own_functions.halve" in (bench.folder / "run" / "config.yaml").read_text()
    other = bench.overlay("model: {init_args: {optimizer: dpo_lightning.runs.new_folder.clear_folder}}")
    refused(bench.fit(*other, "--allow-class-path", "own_functions", out="other"), 64, "at model.optimizer")


def test_a_command_within_a_command_opens_nothing(bench, own):
    """Whoever may start one: what it could open is open to the outer one's config. Without the flag it may run."""
    inner = ["fit", "--config", str(CONFIGS / "dpo.yaml"), "--allow-class-path", "subprocess"]
    text = "trainer:\n  callbacks:\n  - {class_path: own_functions.Inner, init_args: {argv: ARGV}}\n"
    allow = ("--allow-class-path", "own_functions", "--trainer.max_steps", "1")
    ran = bench.fit(*bench.overlay(text.replace("ARGV", str(inner))), *allow)
    assert ran.code == 0, ran
    assert "inner command: 64" in ran.out
    assert "a nested command cannot allow packages at --allow-class-path\n  | subprocess" in ran.err
    ran = bench.fit(*bench.overlay(text.replace("ARGV", "[fit, --help]")), *allow, out="second")
    assert "inner command: 0" in ran.out, ran


def test_nothing_runs_in_a_process_of_its_own(bench):
    """The command as a user types it, with a recipe and an overlay of someone else."""
    inner = "'{class_path: subprocess.getoutput, init_args: {cmd: touch ran}}'"
    argv = COMMAND.format(recipe=CONFIGS / "dpo.yaml", inner=inner)
    overlay = bench.overlay(
        f"model: {{init_args: {{optimizer: {{class_path: dpo_lightning.__main__.main, init_args: {{argv: {argv}}}}}}}}}"
    )
    command = [sys.executable, "-m", "dpo_lightning", "fit", *bench.options(), *overlay]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert "not a class at model.optimizer\n  | dpo_lightning.__main__.main" in done.stderr
    assert not (bench.folder / "ran").exists()

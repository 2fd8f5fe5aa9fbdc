"""`ModelCheckpoint` and `EarlyStopping` through the command line: names with slashes, names that no run has, metrics
that come late, and the run's own checkpoints beside them.
"""

import pytest
from support.command_line import refused, run, watch_loading
from support.run_results import find_difference, read_run

SAVER = "{class_path: ModelCheckpoint, init_args: {OPTIONS}}"
STOPPER = "{class_path: EarlyStopping, init_args: {OPTIONS}}"
BEST = 'monitor: eval/rewards/accuracies, mode: max, save_top_k: 2, save_last: true, filename: "{step}-{eval/loss:.2f}"'


def add(bench, *callbacks):
    """The flags of an overlay that adds callbacks."""
    return bench.overlay(f"trainer: {{callbacks+: [{', '.join(callbacks)}]}}")


def saver(options):
    return SAVER.replace("OPTIONS", options)


def stopper(options):
    return STOPPER.replace("OPTIONS", options)


def names(bench, out="run"):
    return {path.name for path in (bench.folder / out / "checkpoints").iterdir()}


def complete(bench, ran, out="run"):
    """A run that was not lost: a model, and what it came to."""
    assert ran.code == 0, ran
    assert (bench.folder / out / "final_model/model.safetensors").exists()
    return bench.json("metrics.json", out)


def test_a_file_name_with_a_metric_that_has_a_slash(bench):
    complete(bench, bench.fit(*add(bench, saver(BEST)), "--trainer.max_epochs=2"))
    found = names(bench)
    assert {"last.ckpt", "manifest.json"} < found
    saved = sorted(found - {"last.ckpt", "previous.ckpt", "manifest.json"})
    assert [name.partition("-")[0] for name in saved] == ["step=2", "step=4"]
    assert all(name.partition("-")[2].startswith("eval_loss=0.") for name in saved)


@pytest.mark.parametrize("where", ["run", "other"])
def test_it_resumes_with_the_config_of_the_run(bench, where):
    """From the file in the middle: in its own folder and in another one, as a run that went on without a stop."""
    complete(bench, bench.fit(*add(bench, saver(BEST)), "--trainer.max_epochs=2"))
    first = next(path for path in (bench.folder / "run/checkpoints").glob("step=2-*"))
    before = read_run(bench.folder / "run")
    ran = run(
        "fit", "--config", bench.folder / "run/config.yaml", "--output_dir", bench.folder / where, "--ckpt_path", first
    )
    complete(bench, ran, where)
    after = read_run(bench.folder / where)
    if where == "run":
        assert find_difference(before, after) == ""
    else:
        assert (after.step, after.metrics) == (before.step, before.metrics)


def test_another_config_does_not_resume_from_it(bench):
    complete(bench, bench.fit(*add(bench, saver(BEST))))
    (first,) = (bench.folder / "run/checkpoints").glob("step=2-*")
    ran = bench.fit("--model.loss.beta=0.9", "--ckpt_path", first, out="other")
    refused(ran, 64, "model.loss.beta is 0.9, the checkpoint's run had 0.1")


@pytest.mark.parametrize("options", ["save_last: true", "save_top_k: 0", "monitor: train/loss", "save_top_k: -1"])
def test_the_runs_own_checkpoint_stays(bench, options):
    """It is of the last step, also where another callback would name its own file so; the same command goes on."""
    complete(bench, bench.fit(*add(bench, saver(options)), "--trainer.max_epochs=2"))
    assert "last.ckpt" in names(bench)
    ran = bench.fit(*add(bench, saver(options)), "--trainer.max_epochs=3")
    assert complete(bench, ran)["step"] == 6
    assert "continuing after step 4" in ran.out


@pytest.mark.parametrize("callback", [saver("monitor: eval/los"), stopper("monitor: eval/los")])
@pytest.mark.parametrize("cap", ["-1", "1"])
def test_a_metric_that_no_run_has_is_refused_before_weights_are_loaded(bench, monkeypatch, callback, cap):
    loaded = watch_loading(monkeypatch)
    ran = bench.fit(*add(bench, callback), "--trainer.max_steps", cap)
    refused(ran, 64, "this run has no metric 'eval/los' at trainer.callbacks.monitor", "monitor eval/loss;")
    assert "AutoModelForCausalLM" not in loaded
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("flags", [("--data.eval", "null"), ("--trainer.limit_val_batches", "0")])
@pytest.mark.parametrize("callback", [saver("monitor: eval/loss"), stopper("monitor: eval/loss")])
def test_a_held_out_metric_without_evaluations(bench, callback, flags):
    ran = bench.fit(*add(bench, callback), *flags)
    refused(ran, 64, "eval/loss is not measured: no held-out rows are evaluated", "monitor train/loss;")


OWN = """
from lightning.pytorch import Callback

class Own(Callback):
    def on_validation_end(self, trainer, module):
        module.trainer.callback_metrics["eval/own"] = module.trainer.callback_metrics["eval/loss"]
"""


def test_a_metric_of_the_users_own_callback_is_monitored(bench, monkeypatch):
    (bench.folder / "own_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(bench.folder)
    own = add(bench, "{class_path: own_metrics.Own}", saver("monitor: eval/own"))
    ran = bench.fit(*own, "--allow-class-path", "own_metrics")
    complete(bench, ran)
    assert "epoch=0-step=2.ckpt" in names(bench)


@pytest.mark.parametrize(
    "callback",
    [
        stopper("monitor: eval/loss"),
        stopper("monitor: eval/loss, check_on_train_epoch_end: true"),
        stopper("monitor: train/loss"),
        saver("monitor: eval/loss"),
        saver("monitor: eval/loss, every_n_train_steps: 1"),
    ],
)
def test_a_cap_before_the_first_evaluation_costs_nothing(bench, callback):
    ran = bench.fit(*add(bench, callback), "--trainer.max_steps=1", "--trainer.log_every_n_steps=50")
    assert complete(bench, ran)["eval/pairs"] == 5


@pytest.mark.parametrize(
    "callback", [stopper("monitor: train/loss, check_on_train_epoch_end: false"), saver("monitor: train/loss")]
)
def test_an_evaluation_before_the_first_log_line_costs_nothing(bench, callback):
    """The means of training are known every `log_every_n_steps` only."""
    ran = bench.fit(*add(bench, callback), "--trainer.val_check_interval=1", "--trainer.log_every_n_steps=50")
    assert complete(bench, ran)["step"] == 2


@pytest.mark.parametrize("cap", [[], ["--trainer.max_steps=7"]])
@pytest.mark.parametrize("metric", ["eval/loss", "train/loss"])
def test_a_stop_by_a_metric_leaves_a_whole_run(bench, metric, cap):
    """With a cap on the steps and without one; the reason is logged, and the run is over."""
    worse = add(bench, stopper(f"monitor: {metric}, patience: 1, min_delta: 100.0"))
    options = [*worse, "--trainer.max_epochs=9", *cap]
    ran = bench.fit(*options)
    assert complete(bench, ran)["step"] == 4
    assert f"stopped early: Monitored metric {metric} did not improve in the last 1 records." in ran.out
    assert "finished" in bench.fit(*options).out


@pytest.mark.parametrize("metric", ["train/loss", "train/grad_norm", "train/learning_rate"])
def test_every_metric_of_training_keeps_its_best_checkpoint(bench, metric):
    options = f"monitor: {metric}, mode: max, every_n_train_steps: 1, save_top_k: 4, filename: '{{step}}'"
    complete(bench, bench.fit(*add(bench, saver(options)), "--trainer.max_epochs=2"))
    assert {f"step={k}.ckpt" for k in (1, 2, 3, 4)} < names(bench)

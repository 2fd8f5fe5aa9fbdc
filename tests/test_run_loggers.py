"""Loggers of a config through the command line: where they write, one row a step, and packages that are missing."""

import importlib.util
import json

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from support.command_line import refused, run

from dpo_lightning.config.loggers import place_in
from dpo_lightning.runs.log_files import StepTable, read_table

TABLE = "run/lightning_logs/version_0/metrics.csv"
EVERY_STEP = ("--trainer.max_epochs=2", "--trainer.val_check_interval=1", "--trainer.logger=CSVLogger")


def steps(path):
    return [int(row["step"]) for row in read_table(path)]


def test_a_table_has_one_row_a_step(bench):
    """Measures, optimizer, evaluation and the monitor of the learning rate, each of which logs on its own."""
    monitor = bench.overlay("trainer: {callbacks+: [{class_path: LearningRateMonitor}]}")
    ran = bench.fit(*monitor, *EVERY_STEP)
    assert ran.code == 0, ran
    rows = read_table(bench.folder / TABLE)
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    for row in rows[1:]:
        assert {"train/loss", "train/rewards/ties", "train/grad_norm", "eval/loss", "eval/rewards/ties"} <= set(row)
    assert "lr-AdamW" in rows[1]


@pytest.mark.parametrize("every", [1, 2, 100])
def test_rows_are_written_while_the_run_goes_on(every, tmp_path):
    """Every so many steps, also where no logged step is the last of them, as Lightning would have it."""
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=every)
    StepTable(logger)
    for step in range(3, 9, 3):
        for name in ("loss", "accuracy"):
            logger.log_metrics({name: step}, step)
    assert steps(tmp_path / "metrics.csv") == ([3] if every < 100 else [])
    logger.finalize("success")
    assert read_table(tmp_path / "metrics.csv") == [
        {"step": f"{step}", "loss": f"{step}", "accuracy": f"{step}"} for step in (3, 6)
    ]


def test_values_that_come_after_their_row_was_written_belong_to_it(tmp_path):
    """As an evaluation after a checkpoint, also with another prefix and with columns that are new."""
    logger = CSVLogger(tmp_path, name="", version="", prefix="p")
    StepTable(logger)
    for values, step in [({"a": 1}, 2), ({"a": 2}, 4), ({"b": 3}, 4), ({"b": 4}, 6)]:
        logger.log_metrics(values, step)
        logger.save()
    assert read_table(tmp_path / "metrics.csv") == [
        {"p-a": "1", "step": "2"},
        {"p-a": "2", "p-b": "3", "step": "4"},
        {"p-b": "4", "step": "6"},
    ]


def test_only_the_first_process_writes_a_table(tmp_path, monkeypatch):
    """Others have a logger without a table."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = CSVLogger(tmp_path, name="", version="")
    StepTable(logger)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.save()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger", "lightning.pytorch.loggers.CSVLogger"])
def test_a_logger_writes_into_the_run(bench, kind):
    ran = bench.fit("--trainer.logger", kind)
    assert ran.code == 0, ran
    (written,) = (bench.folder / "run/lightning_logs").iterdir()
    assert [path.name for path in written.iterdir() if path.name.startswith(("metrics.csv", "events"))]
    assert {path.name for path in bench.folder.iterdir()} == {"train.jsonl", "eval.jsonl", "run", "encoded"}


def test_the_folder_is_that_of_each_run(bench):
    """The saved config names none, so that it also serves a run in another folder."""
    several = bench.overlay("trainer: {logger: [{class_path: CSVLogger}, {class_path: TensorBoardLogger}]}")
    assert bench.fit(*several).code == 0
    saved = yaml.safe_load((bench.folder / "run/config.yaml").read_text())["trainer"]["logger"]
    assert [one["init_args"]["save_dir"] for one in saved] == [None, None]
    ran = run("fit", "--config", bench.folder / "run/config.yaml", "--output_dir", bench.folder / "other")
    assert ran.code == 0, ran
    assert (bench.folder / "other/lightning_logs/version_0/metrics.csv").exists()
    assert steps(bench.folder / TABLE) == [1, 2]


def test_a_folder_that_is_named_is_used(bench):
    ran = bench.fit("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={bench.folder}/logs")
    assert ran.code == 0, ran
    assert steps(bench.folder / "logs/lightning_logs/version_0/metrics.csv") == [1, 2]


class Named:
    """Stands for a logger whose package is not installed here, with Lightning's options."""

    def __init__(self, save_dir="./x", dir=None, tracking_uri=None, artifact_location=None):
        self.given = {"save_dir": save_dir, "dir": dir, "tracking_uri": tracking_uri, "files": artifact_location}


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("WandbLogger", {"save_dir": "./x", "dir": None}, {"save_dir": "RUN"}),
        ("WandbLogger", {}, {"save_dir": "RUN"}),
        ("WandbLogger", {"save_dir": "mine"}, {"save_dir": "mine"}),
        ("WandbLogger", {"dir": "mine"}, {"save_dir": "./x", "dir": "mine"}),
        ("MLFlowLogger", {}, {"tracking_uri": "sqlite:///RUN/mlflow.db", "files": "RUN/mlartifacts"}),
        ("MLFlowLogger", {"tracking_uri": "http://localhost:1"}, {"tracking_uri": "http://localhost:1", "files": None}),
        ("MLFlowLogger", {"save_dir": "mine"}, {"save_dir": "mine", "tracking_uri": None}),
        ("OtherLogger", {"save_dir": "./x"}, {"save_dir": "./x"}),
    ],
)
def test_where_loggers_of_other_packages_write(name, options, found, tmp_path):
    base = type(name, (Named,), {})
    made = place_in(tmp_path / "run")(type("Own", (base,), {}), **options)
    assert {key: str(made.given[key]).replace(str(tmp_path / "run"), "RUN") for key in found} == {
        key: str(value) for key, value in found.items()
    }


def test_a_server_of_mlflow_in_the_environment_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    made = place_in(tmp_path)(type("MLFlowLogger", (Named,), {}), tracking_uri="http://localhost:1")
    assert made.given["tracking_uri"] == "http://localhost:1"
    assert made.given["files"] is None


def test_only_the_first_process_opens_the_database_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    made = place_in(tmp_path)(type("MLFlowLogger", (Named,), {}))
    assert made.given["tracking_uri"] == "sqlite:///:memory:"


@pytest.mark.parametrize(
    ("kind", "package", "module"),
    [("WandbLogger", "wandb", "wandb"), ("MLFlowLogger", "mlflow", "mlflow"), ("CometLogger", "comet-ml", "comet_ml")],
)
def test_a_missing_package_is_named(bench, kind, package, module):
    if importlib.util.find_spec(module):
        pytest.skip(f"{package} is installed")
    ran = bench.fit("--trainer.logger", kind)
    refused(ran, 64, f"the package {package}>=", f"fix: pip install '{package}>=")
    assert not (bench.folder / "run").exists()


def test_wandb_offline(bench, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ran = bench.fit("--trainer.logger=WandbLogger", "--trainer.logger.project=dpo")
    assert ran.code == 0, ran
    assert list((bench.folder / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert not (bench.folder / "wandb").exists()


def test_mlflow_in_the_run(bench):
    mlflow = pytest.importorskip("mlflow")
    ran = bench.fit("--trainer.logger=MLFlowLogger")
    assert ran.code == 0, ran
    client = mlflow.MlflowClient(f"sqlite:///{bench.folder}/run/mlflow.db")
    (logged,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    history = client.get_metric_history(logged.info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2]
    assert {path.name for path in bench.folder.iterdir()} == {"train.jsonl", "eval.jsonl", "run", "encoded"}


def test_the_summary_is_that_of_the_last_row(bench):
    assert bench.fit("--trainer.logger=CSVLogger").code == 0
    last, metrics = read_table(bench.folder / TABLE)[-1], json.loads((bench.folder / "run/metrics.json").read_text())
    assert {name: float(value) for name, value in last.items()} == {name: metrics[name] for name in last}


def test_tensorboard_without_a_folder_is_a_mistake_of_a_program():
    """What a config may leave out, a program still has to name."""
    with pytest.raises(TypeError):
        TensorBoardLogger()

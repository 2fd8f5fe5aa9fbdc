"""Every YAML under configs/: parsed and instantiated without a weight, run for two steps, and repeated to the bit."""

import json
import math
import re

import pytest
import yaml
from safetensors.torch import load_file
from support import tiny_models
from support.command_line import CONFIGS, ON_CPU, QUIET, ROOT, run, watch_loading
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpo_lightning import (
    DPOModule,
    KTOModule,
    ListwiseDPOModule,
    PreferenceDataModule,
    RankedDataModule,
    SFTDataModule,
    SFTModule,
    UnpairedDataModule,
)
from dpo_lightning.cli import PreferenceCLI
from dpo_lightning.config.class_paths import imports_restricted

FILES = sorted(path.name for path in CONFIGS.glob("**/*.yaml"))
OVERLAYS = ["smoke.yaml", "warmup.yaml"]
RECIPES = [name for name in FILES if name not in OVERLAYS]
KINDS = {
    "dpo": (DPOModule, PreferenceDataModule),
    "dpo-listwise": (ListwiseDPOModule, RankedDataModule),
    "kto": (KTOModule, UnpairedDataModule),
    "sft": (SFTModule, SFTDataModule),
}
ANSWERS = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "rewards/ties"}
LOGPS = {"logps/chosen", "logps/rejected", "logps/margins", "logps/accuracies", "logps/ref_accuracies"}
ORDER = {"rewards/best", "rewards/worst", "rewards/margins", "rewards/accuracies", "rewards/ties"}
JUDGED = {"kl", "desirable", "logps/chosen", "logps/rejected"} | {
    f"rewards/{name}" for name in ("chosen", "rejected", "margins")
}
MEASURED = {
    "dpo": {"loss"} | ANSWERS | LOGPS,
    "dpo-listwise": {"loss"} | ORDER,
    "kto": {"loss"} | JUDGED,
    "sft": {"loss"},
}
ROWS = {
    "dpo": "data/preference_eval.json",
    "dpo-listwise": "data/ranked_eval.json",
    "kto": "data/thumbs_eval.json",
}
SAMPLES = "eval/samples/text_summary"


class Instantiated(PreferenceCLI):
    """The command line up to where the run would begin."""

    def _run_subcommand(self, subcommand):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with as many positions as the recipes ask for."""
    llama = tiny_models.make_llama(max_position_embeddings=512)
    return tiny_models.save(tmp_path_factory.mktemp("model"), llama, tiny_models.make_chat_tokenizer())


@pytest.fixture(scope="module")
def trials(tmp_path_factory, model):
    """Each recipe, run for two steps on its own data with a tiny model: folder and what was printed."""
    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the recipes name data/
        yield {name: trial(name, outputs / name.removesuffix(".yaml"), model) for name in RECIPES}


def trial(name, folder, model):
    options = ("--config", CONFIGS / name, "--config", CONFIGS / "smoke.yaml", *QUIET, *ON_CPU)
    options += ("--trainer.devices", 1, "--trainer.strategy", "auto")  # several are tried in tests/sharding
    ran = run("fit", *options, "--model.policy.path", model, "--output_dir", folder)
    assert ran.code == 0, ran
    return folder, ran


def batch_size(name):
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))["data"]["init_args"]["batch_size"]


def samples(name):
    """Whether the recipe samples answers, which sharded models cannot."""
    return "Samples" in (CONFIGS / name).read_text(encoding="utf-8")


def kind_of(name):
    """The longest of the kinds that the name begins with."""
    return max((kind for kind in KINDS if name.startswith(kind)), key=len)


def test_every_file_is_known():
    """A new recipe is counted here, and thereby instantiated and run below."""
    assert FILES == [
        "dpo-ddp.yaml",
        "dpo-fsdp2.yaml",
        "dpo-listwise.yaml",
        "dpo-lora.yaml",
        "dpo-qlora.yaml",
        "dpo.yaml",
        "kto.yaml",
        "sft.yaml",
        "smoke.yaml",
        "warmup.yaml",
    ]
    assert {kind_of(name) for name in RECIPES} == set(KINDS)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("overlay", [[], *([overlay] for overlay in OVERLAYS)])
def test_a_recipe_is_instantiated_without_loading_anything(monkeypatch, tmp_path, name, overlay):
    """What stands in the file is what the objects hold."""
    loaded = watch_loading(monkeypatch)
    written = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    assert written["output_dir"] == f"outputs/{name.removesuffix('.yaml')}"
    args = ["fit", f"--config={CONFIGS / name}", *(f"--config={CONFIGS / file}" for file in overlay), *ON_CPU]
    with imports_restricted([]):
        cli = Instantiated([*args, f"--output_dir={tmp_path / 'run'}"])
    module, data = KINDS[kind_of(name)]
    options = written["model"]["init_args"]
    assert (type(cli.model), type(cli.datamodule)) == (module, data)
    assert cli.model.spec.path == options["policy"]["path"]
    assert (cli.model.spec.lora is not None) == ("lora" in options["policy"])
    assert cli.model.learning_rate == options["learning_rate"]
    assert cli.datamodule.batch_size == written["data"]["init_args"]["batch_size"]
    wanted = {entry["class_path"] for entry in written["trainer"]["callbacks"]}
    assert wanted <= {type(callback).__name__ for callback in cli.trainer.callbacks}
    steps = 2 if "smoke.yaml" in overlay else written["trainer"].get("max_steps", -1)
    assert cli.trainer.max_steps == steps
    assert (cli.model.lr_scheduler is not None) == ("warmup.yaml" in overlay)
    if "loss" in options:
        assert cli.model.loss.beta == options["loss"]["init_args"]["beta"]
    assert not loaded
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_how_it_is_run(name):
    """Its first lines hold a command that names it."""
    head = (CONFIGS / name).read_text(encoding="utf-8").splitlines()[:2]
    assert re.search(rf"python -m dpo_lightning fit --config .*configs/{re.escape(name)}", " ".join(head))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_a_whole_folder(trials, name):
    folder, ran = trials[name]
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "final_model",
        "metrics.json",
        "tensorboard",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "manifest.json"}
    assert [path.name for path in folder.rglob("*.ckpt")] == ["last.ckpt"]  # Lightning adds none of its own
    held = {path.name for path in (folder / "final_model").iterdir()}
    weights = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
    assert {weights, "README.md", "tokenizer.json", "tokenizer_config.json"} <= held
    assert "capped at 2 by trainer.max_steps" in ran.out
    assert "Traceback" not in ran.out + ran.err


@pytest.mark.parametrize("name", RECIPES)
def test_curves_have_the_names_of_the_field(trials, name):
    """TRL's, under train/ and eval/, so that dashboards carry over; one value per step, all of them numbers."""
    folder, _ = trials[name]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    measured, shown = MEASURED[kind_of(name)], set(events.Tags()["scalars"]) - {"epoch"}
    assert {f"train/{part}" for part in measured} <= shown
    held_out = {f"eval/{part}" for part in measured} if kind_of(name) in ROWS else set()
    assert held_out == {tag for tag in shown if tag.startswith("eval/")}
    for tag in shown:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == ([2] if tag in held_out else [1, 2]), tag
        assert all(math.isfinite(event.value) for event in events.Scalars(tag)), tag
    metrics = json.loads((folder / "metrics.json").read_text())
    for tag in held_out | {"train/loss"}:
        assert events.Scalars(tag)[-1].value == pytest.approx(metrics[tag], rel=1e-6), tag


@pytest.mark.parametrize("name", [name for name in RECIPES if kind_of(name) in ROWS and samples(name)])
def test_samples_are_text_in_tensorboard(trials, name):
    """Prompt, policy and reference side by side, two prompts."""
    folder, _ = trials[name]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert SAMPLES in events.Tags()["tensors"]
    table = events.Tensors(SAMPLES)[-1].tensor_proto.string_val[0].decode()
    head, rule, *rows = table.split("\n")
    assert (head, rule) == ("| prompt | policy | reference |", "| --- | --- | --- |")
    prompts = [row["prompt"] for row in json.loads((ROOT / ROWS[kind_of(name)]).read_text(encoding="utf-8"))]
    assert len(rows) == 2
    assert all(row.split(" | ")[0].removeprefix("| ") in prompts for row in rows)


@pytest.mark.parametrize("name", RECIPES)
def test_the_summary_says_what_metrics_json_holds(trials, name):
    folder, ran = trials[name]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["step"] == 2
    assert f"summary after 2 steps, {folder}" in ran.out
    assert f"training loss       {metrics['train/loss']:.4f}" in ran.out
    if kind_of(name) == "sft":
        return
    if kind_of(name) == "dpo-listwise":
        order = metrics["eval/rewards/accuracies"]
        assert metrics["eval/lists"] == 4
        assert f"held-out order      {order:.3f} of a list's pairs by implicit reward (4 lists" in ran.out
        assert f"held-out loss       {metrics['eval/loss']:.4f}" in ran.out
        assert "self-check: passed (starting loss 2.484907, margins 0" in ran.out  # (ln 3! + ln 4!) / 2
        return
    if kind_of(name) == "kto":
        assert metrics["eval/answers"] == 16  # two batches of eight
        good = round(16 * metrics["eval/desirable"])
        assert f"held-out rewards    {metrics['eval/rewards/chosen']:.4f} of {good} good answers" in ran.out
        assert f"{metrics['eval/rewards/rejected']:.4f} of {16 - good} bad answers" in ran.out
        assert f"loss       {metrics['eval/loss']:.4f} (divergence {metrics['eval/kl']:.4f} nats)" in ran.out
        assert "self-check: passed (starting loss 0.500000, margins 0" in ran.out
        return
    low, high = metrics["eval/rewards/accuracies_ci95"]
    pairs = 2 * batch_size(name)  # two batches
    assert metrics["eval/pairs"] == pairs
    assert 0 <= low <= metrics["eval/rewards/accuracies"] <= high <= 1
    assert f"held-out accuracy   {metrics['eval/rewards/accuracies']:.3f} by implicit reward" in ran.out
    assert f"95 % interval {low:.3f} to {high:.3f}, {pairs} pairs" in ran.out
    assert f"held-out loss       {metrics['eval/loss']:.4f}" in ran.out
    for line in ("  prompt  ", "  policy  ", "  reference  "):
        assert (line in ran.out) is samples(name)
    assert "self-check: passed (starting loss 0.693147, margins 0" in ran.out


@pytest.mark.parametrize("name", RECIPES)
def test_the_saved_config_repeats_the_run_to_the_bit(trials, tmp_path, name):
    """config.yaml alone, with another folder: the same numbers and the same weights."""
    folder, _ = trials[name]
    ran = run("fit", "--config", folder / "config.yaml", "--output_dir", tmp_path / "again")
    assert ran.code == 0, ran
    again = tmp_path / "again"
    assert (again / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()
    (weights,) = (folder / "final_model").glob("*.safetensors")
    before, after = load_file(weights), load_file(again / "final_model" / weights.name)
    assert before.keys() == after.keys()
    assert all((after[key] == value).all() for key, value in before.items())
    kept = [yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")) for path in (folder, again)]
    assert kept[0] | {"output_dir": ""} == kept[1] | {"output_dir": ""}


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_answers(trials, name):
    """A whole model, and an adapter that finds its base."""
    folder, _ = trials[name]
    ran = run("infer", "--model", folder / "final_model", "--instruction", "Hello?", "--max_new_tokens", "8")
    assert ran.code == 0, ran
    assert ran.out.strip()

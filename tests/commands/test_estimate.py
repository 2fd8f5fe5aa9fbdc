"""`doctor --config`: what it says, that nothing is loaded or written, and that bad configs are the usual errors."""

import re

import pytest
from support.command_line import CONFIGS, Bench, refused, run, watch_loading

from dpo_lightning.commands import estimate
from dpo_lightning.models.causal_lm import CausalLM


@pytest.fixture
def told(tiny_llama, tmp_path, monkeypatch):
    """The estimate of a recipe on a tiny model."""

    def estimated(*more, recipe="dpo.yaml"):
        monkeypatch.setattr(CausalLM, "build", lambda _: pytest.fail("a model was loaded"))
        flags = ("--model.policy.path", tiny_llama, "--output_dir", tmp_path / "run", "--trainer.precision", "32-true")
        ran = run("doctor", "--config", CONFIGS / recipe, *flags, *more)
        assert not list(tmp_path.iterdir())
        return ran

    return estimated


def numbers(ran):
    """GiB by the line's name."""
    assert ran.code == 0, ran
    return {name: float(number) for name, number in re.findall(r"^  (\w+) +([\d.]+) GiB", ran.out, re.MULTILINE)}


@pytest.mark.parametrize("recipe", ["dpo.yaml", "dpo-lora.yaml", "dpo-qlora.yaml", "kto.yaml", "sft.yaml"])
def test_the_lines_add_up(told, recipe, monkeypatch):
    loaded = watch_loading(monkeypatch)
    ran = told(recipe=recipe)
    found = numbers(ran)
    total = found.pop("total")
    assert total == pytest.approx(sum(found.values()), abs=0.005)
    assert {"weights", "gradients", "optimizer", "reference", "activations", "logits"} <= found.keys()
    assert ("adapter" in found) == ("lora" in recipe)
    assert ("what saves memory" in ran.out) == (recipe != "dpo-qlora.yaml")  # there, a tiny model is the least part
    assert set(loaded) <= {"AutoConfig"}
    assert re.search(r"^this machine: [\d.]+ GiB of ", ran.out, re.MULTILINE)


def test_what_a_recipe_has_already_is_not_proposed(told):
    ran = told("--data.max_length", "64", recipe="dpo-qlora.yaml")
    for flag in ("lora.r", "quantization", "gradient_checkpointing", "Precomputed", "8bit", "batch_size"):
        assert flag not in ran.out.partition("what saves")[2], flag
    assert "PagedAdamW8bit" in ran.out
    assert "4 bits nf4, scales quantized" in ran.out


def test_a_proposal_saves_what_it_says(told):
    ran = told()
    saved = dict(re.findall(r"^ +([\d.]+) GiB  --(data\.max_length \d+)", ran.out, re.MULTILINE))
    ((amount, flag),) = saved.items()
    name, value = flag.split()
    again = told(f"--{name}", value)
    assert numbers(ran)["total"] - numbers(again)["total"] == pytest.approx(float(amount), abs=0.002)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "a frozen copy"),
        (("--model.policy.lora.r", "2"), "keeps no weights"),
        (("--model.reference", "Precomputed"), "keeps no weights"),
        (("--model.loss", "SimPOLoss"), "keeps no weights"),
        (("--model.policy.lora.r", "2", "--model.reference", "FrozenCopy"), "a frozen copy"),
        (("--model.policy.lora.r", "2", "--model.policy.lora.init_lora_weights", "pissa"), "the adapter only"),
        (("--model.policy.lora.r", "2", "--model.reference", "Synced"), "the adapter only"),
        (("--model.reference", "Synced"), "a frozen copy"),
    ],
)
def test_the_reference_is_the_one_that_the_run_would_have(told, flags, line):
    (found,) = re.findall(r"^  reference .*", told(*flags).out, re.MULTILINE)
    assert found.endswith(line)


@pytest.mark.parametrize("start", ["pissa", "olora", "mica", "orthogonal"])
def test_a_start_on_whole_weights_is_not_offered_quantized_ones(told, start):
    ran = told("--model.policy.lora.init_lora_weights", start, recipe="dpo-lora.yaml")
    assert "total" in numbers(ran)
    assert "quantization.bits" not in ran.out


def test_too_little_memory_is_said(told, monkeypatch):
    monkeypatch.setattr(estimate, "find_memory", lambda: ("memory", 2**20))
    assert "0.0 GiB of memory: this is too little" in told().out


def test_bad_configs_are_the_usual_errors(tiny_llama, tmp_path):
    bench = Bench(tmp_path, tiny_llama)
    refused(run("doctor", "--config", "nowhere.yaml"), 66, "nowhere.yaml")
    refused(run("doctor", "--config", CONFIGS / "smoke.yaml"), 64, "model are missing")
    refused(run("doctor", *bench.overlay("model: 3")), 64)
    flags = ("--config", CONFIGS / "dpo.yaml", "--model.policy.path")
    refused(run("doctor", *flags, tmp_path / "nowhere"), 66, "the model folder does not exist")
    (tmp_path / "empty").mkdir()
    refused(run("doctor", *flags, tmp_path / "empty"), 67, "config.json")
    refused(run("doctor", "--model.policy.path", "x"), 64)


def test_a_schedule_is_tried_without_a_trainer(told):
    """The machine may lack its device."""
    ran = told("--config", CONFIGS / "warmup.yaml")
    assert ran.code == 0, ran
    refused(told("--model.policy.dtype=float16"), 64, "float16 is not trained")


def test_a_used_folder_is_no_hindrance(tiny_llama, tmp_path):
    bench = Bench(tmp_path, tiny_llama)
    assert bench.fit("--trainer.max_steps", "1").code == 0
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    assert run("doctor", "--config", tmp_path / "run" / "config.yaml").code == 0
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before

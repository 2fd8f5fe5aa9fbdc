"""Every option that is compared where a run goes on: each alone is a difference, and what trains nothing is none."""

from dataclasses import fields
from inspect import signature

import pytest
from lightning.pytorch import Trainer
from support import tiny_models
from support.command_line import Bench, refused, watch_loading

from dpo_lightning import DPOModule, KTOModule, ListwiseDPOModule, SFTModule, losses
from dpo_lightning.config.files import read_config
from dpo_lightning.data.datamodules import PreferenceDataModule, RankedDataModule, SFTDataModule, UnpairedDataModule
from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization
from dpo_lightning.references import ReferencePolicy
from dpo_lightning.runs.resume import differences, flatten

FREE_DATA = {"num_workers", "eval", "batch_size"}
TRAINER = {
    "limit_train_batches",
    "overfit_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
}
"""Options of the trainer that change what is trained; others say where, how long and what is shown."""


def parameters(kind):
    """The options of a class."""
    return set(signature(kind).parameters) - {"self", "args", "kwargs"}


def data_options():
    """Every option of every kind of data."""
    kinds = (PreferenceDataModule, SFTDataModule, UnpairedDataModule, RankedDataModule)
    return sorted(set.union(*map(parameters, kinds)))


def model_options():
    """Every option of every module, and of what lies within them."""
    names = {name for kind in (DPOModule, KTOModule, ListwiseDPOModule, SFTModule) for name in parameters(kind)}
    inner = {
        "policy": {field.name for field in fields(CausalLM)},
        "policy.init_args.lora": {field.name for field in fields(Lora)},
        "policy.init_args.quantization": {field.name for field in fields(Quantization)},
        "loss": set.union(*(parameters(getattr(losses, name)) for name in losses.__all__)),
        "reference": set.union(*map(parameters, ReferencePolicy.kinds())),
        "optimizer": {"weight_decay", "betas", "fused"},
        "lr_scheduler": {"step_size", "gamma"},
    }
    names |= {f"{part}.{name}" for part, several in inner.items() for name in ("class_path", *several)}
    return sorted(names)


def changes(key):
    """What is said where one option differs."""
    same = {"model.class_path": "DPOModule", "data.class_path": "PreferenceDataModule", key: "one"}
    return [str(problem) for problem in differences(same, {**same, key: "other"}, "config.yaml")]


@pytest.mark.parametrize("name", data_options())
def test_an_option_of_the_data(name):
    """It decides which rows there are, which ids they have, or how they become batches."""
    if name in FREE_DATA:
        assert changes(f"data.init_args.{name}") == []
    else:
        told = f"data.{name} is 'other', the checkpoint's run had 'one' at config.yaml"
        assert changes(f"data.init_args.{name}") == [told]
        assert len(changes(f"data.init_args.{name}.init_args.part")) == 1


@pytest.mark.parametrize("name", model_options())
def test_an_option_of_the_model(name):
    assert len(changes(f"model.init_args.{name}")) == 1


@pytest.mark.parametrize("name", sorted(parameters(Trainer)))
def test_an_option_of_the_trainer(name):
    assert len(changes(f"trainer.{name}")) == (name in TRAINER)


@pytest.mark.parametrize("key", ["seed_everything", "model.class_path", "data.class_path"])
def test_what_stands_above(key):
    assert len(changes(key)) == 1


@pytest.mark.parametrize("key", ["output_dir", "fresh", "ckpt_path", "optimizers"])
def test_what_trains_nothing(key):
    assert changes(key) == []


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_llama):
    """A run of one epoch, and a chat template like its model's."""
    bench = Bench(tmp_path_factory.mktemp("options"), tiny_llama)
    ran = bench.fit()
    assert ran.code == 0, ran
    (bench.folder / "own.jinja").write_text(tiny_models.CHATML)
    (bench.folder / "other.jsonl").write_bytes(bench.train.read_bytes())
    return bench


def test_the_run_wrote_every_option(first):
    """What is not written cannot be compared."""
    written = dict(flatten(read_config(str(first.folder / "run" / "config.yaml"))))
    for name in parameters(PreferenceDataModule):
        assert f"data.init_args.{name}" in written
    for name in TRAINER:
        assert f"trainer.{name}" in written


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.overlong", "drop"], "data.overlong is 'drop', the checkpoint's run had 'error'"),
        (["--data.overlong", "truncate"], "data.overlong is 'truncate', the checkpoint's run had 'error'"),
        (["--data.max_length", "100"], "data.max_length is 100, the checkpoint's run had 128"),
        (["--data.template", "raw"], "data.template is 'raw', the checkpoint's run had 'auto'"),
        (["--data.template", "chat"], "data.template is 'chat', the checkpoint's run had 'auto'"),
        (["--data.chat_template", "own.jinja"], "data.chat_template is 'own.jinja', the checkpoint's run had None"),
        (["--data.special_tokens", "neutralize"], "data.special_tokens is 'neutralize', the checkpoint's run had"),
        (["--data.columns", '{"prompt": "chosen"}'], "data.columns.prompt is 'chosen', the checkpoint's run had None"),
        (["--data.train", "other.jsonl"], "data.train is 'other.jsonl'"),
        (["--data.shuffle", "false"], "data.shuffle is False, the checkpoint's run had True"),
        (["--data.collator", "Padded"], "data.collator.class_path is 'dpo_lightning.data.Padded'"),
        (["--data.max_tokens", "150"], "data.max_tokens is 150, the checkpoint's run had None"),
        (["--data.strict", "true"], "data.strict is True, the checkpoint's run had False"),
        (["--data.allow", "contradictions"], "data.allow is 'contradictions', the checkpoint's run had None"),
        (["--trainer.limit_train_batches", "1"], "trainer.limit_train_batches is 1, the checkpoint's run had None"),
        (["--trainer.overfit_batches", "1"], "trainer.overfit_batches is 1, the checkpoint's run had 0.0"),
        (["--trainer.gradient_clip_algorithm", "value"], "trainer.gradient_clip_algorithm is 'value'"),
    ],
)
def test_the_command_is_refused(flags, said, first, monkeypatch):
    """Before anything is loaded, and with the way on."""
    monkeypatch.chdir(first.folder)
    loaded = watch_loading(monkeypatch)
    last = first.folder / "run" / "checkpoints" / "last.ckpt"
    ran = first.fit("--trainer.max_epochs", "2", "--ckpt_path", last, *flags, out="again")
    refused(ran, 64, said, "config.yaml", "--config")
    assert not loaded
    assert not (first.folder / "again").exists()

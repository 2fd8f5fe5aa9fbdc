"""Classes of a config that do not exist or have no value: the message names the class that was meant."""

import pytest
from support.command_line import refused, watch_loading

FILES = {
    "a callback in a list": (
        "trainer: {callbacks: [RewardMargins, {class_path: Sample}]}",
        "does not exist at trainer.callbacks\n  | Sample",
        "did you mean Samples?",
    ),
    "no class of a module": ("model: {class_path: dpo_lightning.DPOModul}", "does not exist", "mean DPOModule?"),
    "no class of a library": (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStoping}]}",
        "did you mean lightning.pytorch.callbacks.EarlyStopping?",
    ),
    "a section of nothing": ("model:\n", "model has no value at", "class_path:"),
    "a class of nothing": ("trainer: {callbacks: [{class_path: }]}", "trainer.callbacks.class_path has no value"),
    "options of nothing": ("data: {init_args: }", "data.init_args has no value"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_class_that_does_not_exist(bench, monkeypatch, case):
    loaded = watch_loading(monkeypatch)
    text, *said = FILES[case]
    refused(bench.fit(*bench.overlay(text)), 64, *said)
    assert not loaded
    assert not (bench.folder / "run").exists()

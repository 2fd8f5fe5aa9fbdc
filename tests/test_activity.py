"""What a command is doing is logged in each minute in which nothing else is."""

import logging

import pytest

from dpo_lightning import activity as module
from dpo_lightning.activity import EVERY, HEARTBEAT, Heartbeat, activity, bar_shown, format_duration

LOGGER = logging.getLogger("dpo_lightning")


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: seconds[0])
    return seconds


@pytest.fixture
def heart(clock):
    """A heartbeat that no thread watches."""
    made = Heartbeat()
    LOGGER.addHandler(made)
    yield made
    LOGGER.removeHandler(made)


def beats(heart, clock, caplog, until):
    """The lines that come in the seconds up to a time, when the heartbeat is asked as often as it wants."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "dpo_lightning"):
        LOGGER.addHandler(caplog.handler)
        try:
            while clock[0] <= until:
                clock[0] += max(heart.beat(), 0.1)
        finally:
            LOGGER.removeHandler(caplog.handler)
    return list(dict.fromkeys(record.getMessage() for record in caplog.records))


def test_a_silent_activity_is_logged_each_minute(heart, clock, caplog):
    heart.begin("loading models/a")
    assert beats(heart, clock, caplog, 170) == [
        "loading models/a: 50 s so far",
        "loading models/a: 1 min 40 s so far",
        "loading models/a: 2 min 30 s so far",
    ]
    assert EVERY < 60


def test_a_line_of_something_else_is_enough(heart, clock, caplog):
    heart.begin("training")
    clock[0] = 40.0
    LOGGER.info("training: step 1")
    assert beats(heart, clock, caplog, 80) == []
    assert beats(heart, clock, caplog, 95) == ["training: 1 min 30 s so far"]


def test_the_innermost_activity_is_named(heart, clock, caplog):
    heart.begin("fit")
    heart.begin("writing a checkpoint")
    assert beats(heart, clock, caplog, 55) == ["writing a checkpoint: 50 s so far"]
    heart.end()
    assert beats(heart, clock, caplog, 101) == ["fit: 1 min 40 s so far"]


def test_nothing_is_logged_without_an_activity_or_beside_a_bar(heart, clock, caplog):
    """A command may wait for a person."""
    assert beats(heart, clock, caplog, 200) == []
    heart.begin("training")
    heart.shown = 1
    assert beats(heart, clock, caplog, 400) == []


def test_an_activity_ends_with_its_block_whatever_happens():
    @activity("inner")
    def fail():
        raise ValueError

    before = list(HEARTBEAT._activities)
    with pytest.raises(ValueError), activity("outer"), bar_shown():  # noqa: PT011
        fail()
    assert before == HEARTBEAT._activities
    assert HEARTBEAT.shown == 0


def test_a_run_names_what_it_is_doing(bench, monkeypatch):
    """Each part of a run that may take long without a line."""
    begun = []
    real = Heartbeat.begin
    monkeypatch.setattr(Heartbeat, "begin", lambda self, what: (begun.append(what), real(self, what))[1])
    ran = bench.fit("--model.reference", "Precomputed", "--model.reference.path", bench.folder / "run/reference.bin")
    assert ran.code == 0, ran
    assert set(begun) == {
        "fit", "computing the reference", "training", f"loading {bench.model}", "hashing the model's files",
        "writing a checkpoint", "sampling answers", "writing the model",
    }  # fmt: skip
    begun.clear()
    assert bench.fit("--model.reference", "Precomputed", "--model.reference.path", bench.folder / "run/reference.bin",
                     "--trainer.max_epochs=2").code == 0  # fmt: skip
    assert {"checking the checkpoints", "reading a checkpoint"} < set(begun)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (45, "45 s"), (125, "2 min 5 s"), (12000, "3 h 20 min")],
)
def test_a_time_has_two_units(seconds, text):
    assert format_duration(seconds) == text

"""What all tests share: offline, one thread, shapes checked, and tiny models in folders."""

import importlib
import os
import shutil
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests run: other tests run beside them

import hypothesis
import jaxtyping
import pytest
import torch._dynamo
from support import tiny_models
from support.toy_setup import Toy

LAUNCHER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")

SHAPED = tuple(
    f"dpo_lightning.{name}"
    for name in (
        "batches",
        "types",
        "attention.masks",
        "attention.tree",
        "logps",
        "models.lm_head",
        "losses",
        "metrics",
    )
)
"""The modules whose public signatures hold tensors: shapes and types are checked at every call."""


def check_shapes():
    """Import `SHAPED` with beartype on every function."""
    with jaxtyping.install_import_hook(SHAPED, "beartype.beartype"):
        for name in SHAPED:
            importlib.import_module(name)


SLOWEST = (
    "test_images",
    "test_benchmarks",
    "test_gpu_check",
    "test_slurm_runs",  # after the images, of which it uses one
    "test_stop_anywhere",
    "test_setup_failures",
    "test_whole_sweep",
    "test_setup_interrupted",
    "test_setup",
    "test_stop_two_ranks",
    "test_ranks",
    "test_transformers4",
)
"""Files that take minutes: they run first, in this order, so that several processes end at about the same time."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Survive the crash of a worker."""
    from support.file_scheduling import FileScheduling

    return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    """Move the tests of `SLOWEST` to the front."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(SLOWEST)))


torch.set_num_threads(1)
hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("unhurried")
check_shapes()

from support import command_line, precomputed, short_runs  # noqa: E402 - what imports the package comes after the hook

from dpo_lightning.log import log_to_terminal  # noqa: E402

log_to_terminal()


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer without a chat template."""
    return tiny_models.make_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer():
    """A tokenizer with SmolLM2's template, whose EOS also pads."""
    return tiny_models.make_chat_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """The folder of a Llama-type model with a chat template; read it, do not write into it."""
    return tiny_models.save(
        tmp_path_factory.mktemp("llama"), tiny_models.make_llama(), tiny_models.make_chat_tokenizer()
    )


@pytest.fixture(autouse=True)
def variables_of_launchers():
    """Ranks and ports that libraries leave in the environment do not reach the next test."""
    kept = {name: os.environ.get(name) for name in LAUNCHER_VARIABLES}
    yield
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """The folder of a GPT-2-type model without a chat template, with dropout; do not write into it."""
    return tiny_models.save(
        tmp_path_factory.mktemp("gpt2"), tiny_models.make_gpt2(dropout=0.1), tiny_models.make_tokenizer()
    )


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A model folder of the test's own."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture(scope="session")
def trained(tiny_llama, tmp_path_factory):
    """An adapter folder with its tokenizer; read it, do not write into it."""
    from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model

    folder = tmp_path_factory.mktemp("adapter")
    builder = CausalLM(str(tiny_llama), lora=Lora(r=2))
    save_model(builder.build(), builder.tokenizer(), folder, str(tiny_llama))
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """An adapter folder of the test's own."""
    return shutil.copytree(trained, tmp_path / "adapter")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of the test's own to work in: files without a path lie there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    """The recipe on a tiny model, in a folder of the test's own to work in."""
    monkeypatch.chdir(tmp_path)
    return command_line.Bench(tmp_path, tiny_llama)


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    """Nine pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl", rows=9)


@pytest.fixture
def counted(monkeypatch):
    """The numbers of pairs that are scored at a time for a precomputed reference."""
    return precomputed.count_pairs(monkeypatch)


@pytest.fixture(scope="session")
def toy_copies(tmp_path_factory):
    """A toy project whose set-up succeeded, and copies of its folders."""
    toy = Toy(tmp_path_factory.mktemp("setup"))
    code, said = toy.install()
    assert code == 0, said
    for folder in (toy.root, toy.index):
        shutil.copytree(folder, folder.with_name(f"{folder.name}-copy"), symlinks=True)
    return toy


@pytest.fixture
def toy(toy_copies):
    """A toy project whose set-up succeeded, for a test to change: at one path, as an environment cannot be moved."""
    for folder in (toy_copies.root, toy_copies.index):
        shutil.rmtree(folder)
        shutil.copytree(folder.with_name(f"{folder.name}-copy"), folder, symlinks=True)
    return toy_copies


LONGEST = 60
"""Seconds after which a test is given up as one that waits for ever; nothing takes a part of that."""


@pytest.fixture
def given_up():
    """Let what would wait for ever fail."""

    def stop(*_):
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)

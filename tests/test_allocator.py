"""Memory that is freed is kept for the next step: counted in pages that the system had to find."""

import os
import subprocess
import sys

import pytest
import runs

from dpo_lightning import allocator, module
from dpo_lightning.allocator import OWN_CHOICE, keep_freed_memory

PAGES = """
import resource, sys
from array import array
from dpo_lightning.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = array("b", bytes(1)) * 2**26
        del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how, **variables):
    """What `keep_freed_memory` returned, and the page faults of the second ten blocks of 64 MiB."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_CHOICE} | variables
    done = subprocess.run(
        [sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True, env=environment
    )
    returned, _, faults = done.stdout.split()
    return returned, int(faults)


def test_freed_memory_is_not_mapped_anew():
    assert pages("as it is") == ("None", pytest.approx(10 * 2**14, rel=0.1))
    returned, faults = pages("kept")
    assert returned == "True"
    assert faults < 100


@pytest.mark.parametrize("name", OWN_CHOICE)
def test_what_the_user_has_settled_stays(name):
    values = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}
    returned, faults = pages("kept", **{name: values.get(name, "1048576")})
    assert returned == "False"
    assert faults > 10_000


def test_where_there_is_no_such_option_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory() is False


@pytest.mark.parametrize(("checkpointing", "calls"), [(False, 1), (True, 0)])
def test_training_on_a_cpu_asks_for_it_unless_memory_is_what_counts(
    checkpointing, calls, tiny_llama, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: made.append(1))
    file = runs.write_pairs(tmp_path / "pairs.jsonl")
    runs.fit(runs.module(tiny_llama, gradient_checkpointing=checkpointing), file, tmp_path, enable_checkpointing=False)
    assert len(made) == calls

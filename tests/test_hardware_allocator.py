"""What the C library does with memory that is freed: counted in pages that the system had to find, and in bytes."""

import os
import subprocess
import sys

import pytest
from support import short_runs

from dpo_lightning import hardware
from dpo_lightning import policy_module as module
from dpo_lightning.hardware import OWN_CHOICE, settle_memory

SETTLE = """
import resource, sys
from array import array
from dpo_lightning.hardware import settle_memory
print(settle_memory(keep=sys.argv[1] == "keep") if len(sys.argv) > 1 else None)
def block(mebibytes):
    return array("b", bytes(1)) * (mebibytes * 2**20)
"""
PAGES = """
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block(64)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HOLES = """
block(20)
kept = []
for _ in range(10):
    large = block(20)
    kept.append((block(1), large))
kept = [small for small, _ in kept]
print(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20)
"""


def told(script, *how, **variables):
    """What `settle_memory` returned, and the last number that a script prints after it."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_CHOICE} | variables
    command = [sys.executable, "-c", SETTLE + script, *how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    returned, *_, number = done.stdout.split()
    return returned, int(number)


def test_freed_memory_is_not_mapped_anew():
    assert told(PAGES) == ("None", pytest.approx(10 * 2**14, rel=0.1))
    returned, faults = told(PAGES, "keep")
    assert returned == "True"
    assert faults < 100


HEAP = """
import ctypes
libc = ctypes.CDLL(None)
libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_ssize_t]
def grown():
    before = libc.sbrk(0)
    libc.free(libc.malloc(3 * 2**30))  # its pages are never touched
    return (libc.sbrk(0) - before) // 2**20
"""


def test_all_freed_memory_is_kept():
    assert told(HEAP + "print(grown())") == ("None", 0)
    returned, mebibytes = told(HEAP + "print(grown())", "keep")
    assert returned == "True"
    assert mebibytes >= 3000


def test_the_last_word_counts():
    """A second fit of a process, with checkpointing."""
    assert told(HEAP + "settle_memory(keep=False); print(grown())", "keep") == ("True", 0)


def test_freed_memory_leaves_no_holes():
    assert told(HOLES)[1] > 200
    returned, held = told(HOLES, "hand back")
    assert returned == "True"
    assert held < 100


@pytest.mark.parametrize("name", OWN_CHOICE)
def test_what_the_user_has_settled_stays(name):
    values = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}
    returned, faults = told(PAGES, "keep", **{name: values.get(name, "1048576")})
    assert returned == "False"
    assert faults > 10_000


def test_where_there_is_no_such_option_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert settle_memory(keep=True) is False
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: object())
    assert settle_memory(keep=True) is False


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_on_a_cpu_is_for_speed_unless_memory_is_what_counts(
    checkpointing, tiny_llama, file, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(module, "settle_memory", lambda *, keep, least: made.append(keep))
    short_runs.fit(
        short_runs.module(tiny_llama, gradient_checkpointing=checkpointing), file, tmp_path, enable_checkpointing=False
    )
    assert made == [not checkpointing]

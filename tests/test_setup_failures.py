"""A set-up that fails leaves the environment that was there."""

import resource
import shutil

import pytest

TESTS = "requirements/test.lock"
CPU = "requirements/cpu.lock"


def spoil_hash(toy, lock, package):
    digest = (toy.root / lock).read_text().split(f"{package}==")[1].split("sha256:")[1][:64]
    toy.edit(lock, digest, digest[::-1])


def lose_index(toy):
    shutil.rmtree(toy.index)
    toy.index.mkdir()


def grow(toy):
    """A package that is larger than a file may become in `FULL`."""
    old = toy.digest(next(toy.index.glob("parser-1.0-*.whl")))
    toy.edit(TESTS, old, toy.digest(toy.package("parser", files={"parser.py": b"#" * (2 << 20)})))


def break_backend(toy):
    (toy.root / "broken").touch()


FULL = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))}
ANEW, MORE, PROJECT = (CPU, ()), (None, (TESTS,)), ("pyproject.toml", ())
FAILURES = {
    "no index, made anew": (ANEW, lose_index, {}, "is a package index within reach?"),
    "no index, a lock more": (MORE, lose_index, {}, "is a package index within reach?"),
    "a wrong hash, made anew": (ANEW, lambda toy: spoil_hash(toy, CPU, "backend"), {}, "DO NOT MATCH THE HASHES"),
    "a wrong hash, a lock more": (MORE, lambda toy: spoil_hash(toy, TESTS, "parser"), {}, "DO NOT MATCH THE HASHES"),
    "a wrong pip": (ANEW, lambda toy: spoil_hash(toy, "requirements/pip.lock", "pip"), {}, "could not install pip"),
    "a full disk, made anew": (ANEW, grow, FULL, "could not install"),
    "a full disk, a lock more": (MORE, grow, FULL, "could not install the packages"),
    "a broken backend, made anew": (ANEW, break_backend, {}, "could not install this project"),
    "a broken backend, a lock more": (MORE, break_backend, {}, "could not install this project"),
    "a broken backend, another project": (PROJECT, break_backend, {}, "could not install this project"),
    "a package that no lock has": (MORE, lambda toy: toy.edit(TESTS, *parser(toy)), {}, "cover 1.0 requires parser>=1"),
}
"""Name -> (what is out of date, the fault, how the process starts, what is said)."""


def parser(toy):
    """The last package of the tests' lock, and nothing instead."""
    text = (toy.root / TESTS).read_text()
    return text[text.index("parser==") :], ""


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure(toy, case):
    (changed, extra), fault, how, expected = FAILURES[case]
    before = toy.tree()
    if changed:
        toy.edit(changed)
    fault(toy)
    code, said = toy.install(*extra, **how)
    assert code == 1, said
    assert expected in said
    assert f"{toy.venv} is again what it was before" in said
    assert toy.tree() == before
    assert toy.packages()["torch"] == "1.0+cpu"

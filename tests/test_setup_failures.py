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


def lose_record(toy, content=None):
    """An environment that works, and a record of it that is gone, or without its content, as after a power failure."""
    state = toy.venv / ".dpo-lightning"
    state.unlink()
    if content is not None:
        state.write_text(content)


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


@pytest.mark.parametrize("content", [None, "", "\0" * 100], ids=["gone", "empty", "zeros"])
@pytest.mark.parametrize("fault", [lose_index, break_backend, lambda toy: spoil_hash(toy, CPU, "backend")])
def test_a_failure_without_a_record_of_what_was_there(toy, content, fault):
    """It is made anew, as nothing tells what it has; it stays where that fails, also in the calls that follow."""
    lose_record(toy, content)
    before = toy.tree()
    fault(toy)
    for _ in range(2):
        code, said = toy.install()
        assert code == 1, said
        assert f"{toy.venv} is again what it was before" in said
        assert toy.tree() == before
        assert toy.packages()["torch"] == "1.0+cpu"


@pytest.mark.parametrize("content", [None, "", "\0" * 100], ids=["gone", "empty", "zeros"])
def test_it_is_made_anew_without_a_record(toy, content):
    lose_record(toy, content)
    code, said = toy.install()
    assert code == 0, said
    assert "anew" in said
    assert toy.packages().keys() == {"pip", "torch", "backend", "toy"}
    assert toy.install() == (0, "")

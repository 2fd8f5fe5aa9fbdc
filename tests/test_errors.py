"""The form of a refusal: what, where, the text, the remedy, and a number that scripts can rely on."""

import pytest
import torch

from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt, lacks_memory


def test_exit_codes_are_promised():
    """Scripts compare these numbers: none may move."""
    assert {code.name: code.value for code in ExitCode} == {
        "CONFIG": 64,
        "DATA": 65,
        "INPUT_MISSING": 66,
        "MODEL": 67,
        "DEVICE": 69,
        "BUG": 70,
        "OUTPUT": 73,
        "IO": 74,
        "RESUMABLE": 75,
        "DIVERGED": 76,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("안녕, wörld", "안녕, wörld"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31mred\x00", r"\x1b[31mred\x00"),
        ("\ud800", r"\ud800"),
        ("\u202eevil\u200b", r"\u202eevil\u200b"),
        (12, "12"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
        ("x" * 10**6, "x" * 79 + "…"),
    ],
)
def test_excerpt_is_short_and_harmless(text, shown):
    """80 characters on one line, nothing in it that moves a cursor or turns the text."""
    assert excerpt(text) == shown
    excerpt(text).encode()


@pytest.mark.parametrize(
    ("problem", "lines"),
    [
        (Problem("it is wrong"), ["it is wrong"]),
        (Problem("it is wrong", "rows.json:3"), ["it is wrong at rows.json:3"]),
        (Problem("it is wrong", "model.loss", "a\nb"), ["it is wrong at model.loss", r"  | a\nb"]),
        (Problem("it is wrong", text="x"), ["it is wrong", "  | x"]),
    ],
)
def test_a_problem_says_what_where_and_shows_the_text(problem, lines):
    assert str(problem).splitlines() == lines


def test_an_error_has_one_line_for_each_problem_and_one_remedy():
    error = UserError(ExitCode.DATA, [Problem("a", "f:1"), Problem("b", "f:2", "t")], fix="mend them")
    assert str(error).splitlines() == ["error: a at f:1", "error: b at f:2", "  | t", "fix: mend them"]
    assert error.args == (str(error),)
    assert (error.code, error.fix, len(error.problems)) == (65, "mend them", 2)


def test_problems_of_several_kinds_have_a_remedy_each():
    """Neighbours that share one are followed by it once."""
    problems = [Problem("a", "f:1", fix="x"), Problem("a", "f:2", fix="x"), Problem("b", "f:3", "t", "y"), Problem("c")]
    lines = ["error: a at f:1", "error: a at f:2", "fix: x", "error: b at f:3", "  | t", "fix: y", "error: c", "fix: z"]
    assert str(UserError(ExitCode.DATA, problems, fix="z")).splitlines() == lines


def test_an_error_may_be_a_word_without_a_remedy():
    assert str(UserError(ExitCode.IO, "the disk is full")) == "error: the disk is full"
    assert str(UserError(ExitCode.IO, Problem("full", "/dev/sda"))) == "error: full at /dev/sda"


@pytest.mark.parametrize(
    ("count", "last"), [(10, None), (11, "... and 1 more problem"), (1000, "... and 990 more problems")]
)
def test_ten_problems_are_shown_and_the_rest_is_counted(count, last):
    """Never more than 25 lines, however much is wrong."""
    problems = (Problem(f"bad {i}", f"f:{i}", "text" * 100) for i in range(count))
    lines = str(UserError(ExitCode.DATA, problems, fix="mend")).splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [f"error: bad {i} at f:{i}" for i in range(10)]
    assert len(lines) <= 25
    assert lines[-1] == "fix: mend"
    assert lines[-2].startswith(last or "  | text")


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA error"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("unsupported memory format option Preserve"), False),
        (ValueError("its key memory is not known"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error, lacks):
    assert lacks_memory(error) is lacks


def test_problems_with_texts_and_remedies_of_their_own_fit_on_a_screen():
    problems = [Problem(f"problem {n}", f"f:{n}", "text", f"mend {n}") for n in range(12)]
    lines = str(UserError(ExitCode.DATA, problems, fix="mend all")).splitlines()
    assert len(lines) <= 25
    assert lines[-3:] == ["fix: mend 6", "... and 5 more problems", "fix: mend all"]

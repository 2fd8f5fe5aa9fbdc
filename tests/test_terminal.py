"""What reaches the terminal: no control character of data, names, answers or libraries, and every letter as it is."""

import io
import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
from support.command_line import Bench, json_lines, pairs, refused, run

from dpo_lightning.callbacks.summary import sample_lines
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.models import streaming
from dpo_lightning.terminal import CONTROL, clean_libraries, escape_controls, one_line, quote

HOSTILE = {
    "a colour": "\x1b[31mred",
    "the cursor": "\x1b[2J\x1b[1;1H\x1b[A",
    "a title": "\x1b]0;title\x07",
    "a link": "\x1b]8;;http://evil.example\x1b\\text\x1b]8;;\x1b\\",
    "the clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "a device string": "\x1bP+q\x1b\\",
    "a bell": "\x07",
    "a carriage return": "good\rbad",
    "a backspace": "good\b\b\b\bbad",
    "eight bits": "\x9b31m\x9d0;title\x9c\x85",
    "a delete": "\x7f",
    "an override": "\u202eevil\u202c",
    "an isolate": "\u2066evil\u2069",
    "a line separator": "a\u2028b\u2029c",
    "half a pair": "\ud83d",
    "a NUL": "a\0b",
}
PLAIN = "안녕하세요 한글, ひらがな, wörld, שלום, नमस्ते, 👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️ 🇰🇷, می‌خواهم"


def clean(text):
    """Whether a text can do nothing to a terminal."""
    return not CONTROL.search(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_control_characters_become_escapes(name):
    text = HOSTILE[name]
    for shown in (escape_controls(text), one_line(text), quote(text)):
        assert clean(shown)
        assert "\\" in shown
        assert shown.encode()
    assert escape_controls(escape_controls(text)) == escape_controls(text)


def test_letters_and_emoji_stay_whole():
    assert escape_controls(PLAIN) == one_line(PLAIN) == PLAIN
    families = PLAIN.replace("🏴󠁧󠁢󠁥󠁮󠁧󠁿 ", "")  # the letters in this flag are invisible ones: a quotation shows them
    assert quote(families) == families


def test_lines_of_a_text_stay_and_names_have_one():
    assert escape_controls("a\n\tb") == "a\n\tb"
    assert one_line("a\n\tb") == r"a\n\tb"
    assert quote("a\n\tb\u200b") == r"a\n\tb\u200b"


@pytest.mark.parametrize("name", HOSTILE)
def test_an_error_is_harmless_in_every_part(name):
    text = HOSTILE[name]
    error = UserError(ExitCode.DATA, Problem(f"wrong {text}", f"file{text}:3", text), fix=f"mend {text}")
    assert clean(str(error))
    assert len(str(error).splitlines()) == 3


def test_a_name_forges_no_line():
    error = UserError(ExitCode.DATA, Problem("a\nfix: rm", "b\nfix: rm", "c\nfix: rm"), fix="d\nfix: rm")
    assert [line[:5] for line in str(error).split("\n")] == ["error", "  | c", "fix: "]


def test_a_said_line_is_harmless(capsys):
    for text in HOSTILE.values():
        logger.info(f"final model: {text}")
    out = capsys.readouterr().out
    assert clean(out)
    assert len(out.splitlines()) == len(HOSTILE)


def test_samples_of_a_summary(capsys):
    for text in HOSTILE.values():
        for line in sample_lines(f"a\n {text}", text, PLAIN):
            logger.info(line)
    out = capsys.readouterr().out
    assert clean(out)
    assert PLAIN in out


def test_messages_of_libraries(capsys):
    before = warnings.formatwarning
    factory = logging.getLogRecordFactory()
    logger, stream = logging.getLogger("a library"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        clean_libraries()
        once = warnings.formatwarning
        clean_libraries()
        assert warnings.formatwarning is once
        for text in HOSTILE.values():
            logger.error("%s is odd", text)
            assert clean(warnings.formatwarning(text, UserWarning, "file.py", 1, ""))
    finally:
        warnings.formatwarning = before
        logging.setLogRecordFactory(factory)
        logger.removeHandler(handler)
    assert clean(stream.getvalue())
    assert stream.getvalue().count("is odd") == len(HOSTILE)


def test_an_answer_keeps_its_lines_and_letters(tiny_llama, monkeypatch):
    """Also where standard output is a pipe or a file: what is written is the same everywhere."""
    hostile = "".join(HOSTILE.values())
    monkeypatch.setattr(streaming, "decode_answers", lambda *_: [f"one\n\ttwo {PLAIN}{hostile}"])
    ran = run("infer", "--model", tiny_llama, "--instruction", "hi")
    assert ran.code == 0
    assert ran.out == f"one\n\ttwo {PLAIN}{escape_controls(hostile)}\n"
    assert clean(ran.out)


def test_samples_at_the_end_of_a_run(tiny_llama, tmp_path, monkeypatch):
    from dpo_lightning.callbacks import samples

    hostile = "".join(text for name, text in HOSTILE.items() if name != "half a pair")  # no tokenizer decodes to that
    monkeypatch.setattr(samples, "answer", lambda _, __, prompts, *___: [f"one\ntwo {PLAIN}{hostile}"] * len(prompts))
    ran = Bench(tmp_path, tiny_llama).fit("--trainer.max_steps", 1)
    assert ran.code == 0
    assert clean(ran.out + ran.err)
    assert f"one two {PLAIN}" in ran.out


@pytest.mark.parametrize("name", [name for name in HOSTILE if "line" not in name])
def test_rows_names_and_columns(tiny_llama, tmp_path, name):
    text = HOSTILE[name].replace("\0", "\x01").replace("\ud83d", "\udce9")
    bench = Bench(tmp_path, tiny_llama)
    rows = [*pairs(8), {"prompt": "p", "chosen": "a" + HOSTILE[name], "rejected": "b"}, {f"column{text}": 1}]
    odd = tmp_path / f"rows{text.replace('/', '')}.jsonl"
    for path in (tmp_path / "rows.jsonl", odd):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ran = bench.fit(f"--data.train={path}")
        refused(ran, ran.code)
        assert ran.code in (64, 65)
        assert clean(ran.out + ran.err)
    for flag in ("--output_dir", "--model.policy.path", f"--model.{text}", "--trainer.accelerator", "--ckpt_path"):
        ran = bench.fit(f"{flag}={tmp_path}/x{text}")
        refused(ran, ran.code)
        assert clean(ran.out + ran.err), flag


@pytest.mark.parametrize("where", ["value", "key", "list"])
def test_a_config_with_control_characters_is_refused(tiny_llama, tmp_path, where):
    bench = Bench(tmp_path, tiny_llama)
    text = {"value": r'trainer: {accelerator: "c\e[31m"}', "key": r'"tr\u202Eainer": 1',
            "list": r'data: {train: ["a.json", "\a"]}'}[where]  # fmt: skip
    ran = bench.fit(*bench.overlay(text))
    refused(ran, 64, "control characters")
    assert clean(ran.err)
    assert not (tmp_path / "run").exists()


def test_a_model_folder_of_an_odd_name(tiny_llama, tmp_path):
    for k, text in enumerate(HOSTILE.values()):
        folder = tmp_path / f"{k}{text.replace('/', '').replace(chr(0), '').replace(chr(0xD83D), chr(0xDCE9))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"auto_map": {text: text}}))
        for args in (("infer", "--model", folder, "--instruction", "x"), ("export", "--model", folder, "--out", "x")):
            ran = run(*args)
            refused(ran, 67)
            assert clean(ran.err)


def test_a_terminal_without_the_letters(tiny_llama):
    """An ASCII terminal gets escapes, not a traceback."""
    code = (
        "import sys; from dpo_lightning.models import streaming; from dpo_lightning.__main__ import main;"
        f"streaming.decode_answers = lambda *_: ['안녕'];"
        f"sys.exit(main(['infer', '--model', {str(tiny_llama)!r}, '--instruction', 'hi']))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == rb"\uc548\ub155" + b"\n"


def test_rows_that_are_refused_show_letters_as_they_are(tiny_llama, tmp_path):
    same = {"prompt": "p"} | dict.fromkeys(("chosen", "rejected"), "한글 👩‍👩‍👧")
    path = json_lines(tmp_path / "rows.jsonl", [*pairs(8), same])
    ran = Bench(tmp_path, tiny_llama).fit(f"--data.train={path}")
    refused(ran, 65)
    assert "\\u200d" not in ran.err

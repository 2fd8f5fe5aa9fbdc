"""What the README says is so: its commands are run, in order, on a tiny model and for two steps; its flags exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from support import tiny_models
from support.command_line import QUIET, ROOT, run

from dpo_lightning.errors import ExitCode
from dpo_lightning.models.folder import EMBEDDED
from dpo_lightning.runs.resume import flatten, format_key

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM = ["python", "-m", "dpo_lightning"]
NOT_RUN = {
    "make setup": "installs everything; tests/test_setup.py does that",
    "make test": "is what runs this test",
    "make lint": "is a step of its own",
    "make lock": "resolves all packages anew, from their registry",
    "make clean": "removes what other tests are using",
    "make tensorboard": "serves until it is stopped",
}
"""Commands that cannot be run here, and why."""

SHORT = {
    "fit": ("--config", "configs/smoke.yaml", *QUIET),
    "validate": ("--config", "configs/smoke.yaml", *QUIET),
    "test": ("--config", "configs/smoke.yaml", *QUIET),
    "predict": QUIET,
    "infer": ("--max_new_tokens", "8"),
}
"""What each command gets added here, so that it takes a moment."""

BITS = ("--model.policy.quantization.bits", "4")
"""An option that is left out has no keys of its own."""

RECORDER = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument" >> "$RECORD"; done
"""


def blocks(language):
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands():
    """Every command of the README's shell blocks, in order."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_listed(words):
    return " ".join(words[:2]) in NOT_RUN


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of what the commands need, with a tiny model in the place of the embedded one."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "data"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / EMBEDDED).parent.mkdir()
    model = tiny_models.make_llama(max_position_embeddings=1024)
    tiny_models.save(folder / EMBEDDED, model, tiny_models.make_chat_tokenizer())
    recorder = folder / "venv" / "bin" / "python"
    recorder.parent.mkdir(parents=True)
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    return folder


def made(words, place):
    """The command that a make target runs: make is run, with a Python that only writes down its arguments."""
    record = place / "record"
    record.unlink(missing_ok=True)
    # Phony or not, a target of -o is taken as done: nothing is installed.
    done = subprocess.run(
        ["make", "-o", "setup", f"VENV={place / 'venv'}", *words[1:]],
        cwd=place,
        env={**os.environ, "RECORD": str(record)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert record.exists(), f"{shlex.join(words)} runs no Python: list it in NOT_RUN, with a reason"
    return [PROGRAM[0], *record.read_text(encoding="utf-8").split("\0")[:-1]]


def test_every_command_is_run_or_listed():
    """A new command is run below, or has its reason above; and what is listed exists."""
    found = commands()
    assert len(found) >= 10
    for words in found:
        known = words[:3] == PROGRAM or words[0] == "make" or is_listed(words)
        assert known, f"the README says {shlex.join(words)!r}: run it here, or list it in NOT_RUN with a reason"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][a-z-]*)(?: [a-z-]+)*:", makefile, re.MULTILINE)
    assert {name.removeprefix("make ") for name in NOT_RUN} <= set(targets)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_commands_work_in_their_order(place, monkeypatch):
    """Each may use what those before it left."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("dpo_lightning.commands.doctor.damage", lambda _: "")  # the tiny model is another one
    ran = []
    for words in commands():
        if is_listed(words):
            continue
        command = made(words, place) if words[0] == "make" else words
        assert command[:3] == PROGRAM, command
        result = run(*command[3:], *SHORT.get(command[3], ()))
        assert result.code == 0, f"{shlex.join(words)}: {result}"
        ran.append(command[3])
    assert {"fit", "validate", "predict", "infer", "doctor"} <= set(ran)
    assert {"dpo", "sft", "dpo-lora"} <= {path.name for path in (place / "outputs").iterdir()}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_hands_words_on_as_they_were_typed(place):
    """Quotes, dollars and spaces, and only the flags of variables that were given."""
    assert made(["make", "dpo"], place)[3:] == ["fit", "--config", "configs/dpo.yaml"]
    words = ["make", "infer", "MODEL=my model", 'INSTRUCTION=it\'s $5 "or" `ls`?']
    assert made(words, place)[3:] == ["infer", "--model=my model", '--instruction=it\'s $5 "or" `ls`?']


def test_the_loss_of_the_readme_trains(place, monkeypatch):
    """The block, saved under its name, with the flags that the text gives."""
    (block,) = (block for block in blocks("python") if "PreferenceLoss" in block and "class " in block)
    flags = " ".join(re.search(r"`(--allow-class-path[^`]*)`", README).group(1).split())
    (place / "my_losses.py").write_text(block, encoding="utf-8")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    options = ("--config", "configs/dpo.yaml", *SHORT["fit"], "--output_dir", "outputs/own")
    result = run("fit", *options, *shlex.split(flags))
    sys.modules.pop("my_losses", None)
    assert result.code == 0, result
    assert "self-check: passed (starting loss 4.000000" in result.out


def test_the_python_of_the_readme_runs(place, monkeypatch, capsys):
    """As it stands, from imports to the last step."""
    (block,) = (block for block in blocks("python") if "Trainer(" in block)
    monkeypatch.chdir(place)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["module"].trainer.global_step == int(re.search(r"max_steps=(\d+)", block).group(1))
    assert "self-check: passed" in capsys.readouterr().out


def test_every_flag_of_the_readme_exists(place, monkeypatch):
    """`--model.…`, `--data.…` and `--trainer.…`, wherever they stand."""
    monkeypatch.chdir(place)
    options = ("--config", "configs/dpo.yaml", "--model.policy.lora.r", "8", *BITS, "--output_dir", "x")
    printed = run("fit", *options, "--print_config")
    known = {format_key(key) for key, _ in flatten(yaml.safe_load(printed.out))}
    known |= {"model.optimizer", "model.loss", "model.loss.target", "model.loss.divergence", "model.reference.path"}
    flags = set(re.findall(r"--((?:model|data|trainer)\.[\w.]*\w)", README))
    assert len(flags) >= 12
    assert flags <= known


def test_the_exit_codes_of_the_readme_are_ours():
    section = README.partition("### Exit codes")[2].partition("\n#")[0]
    codes = {int(number) for number in re.findall(r"\b[67]\d\b", section)}
    assert codes <= {code.value for code in ExitCode}
    assert len(codes) >= 9

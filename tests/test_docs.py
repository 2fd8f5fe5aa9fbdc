"""Commands and code of README and docs are run, in order, on a tiny model and for two steps; their flags exist."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from support import tiny_models
from support.command_line import QUIET, ROOT, run

from dpo_lightning.errors import ExitCode
from dpo_lightning.models.folder_checks import EMBEDDED
from dpo_lightning.runs.resume import flatten, format_key

README = "README.md"
NAMES = "evaluation compare models references data formats layouts memory resuming devices"
NAMES += " multi-process gpu logging sweep containers"
PAGES = [README, *(f"docs/{name}.md" for name in NAMES.split())]
"""Pages with commands, in an order in which each finds what it needs."""

ALL_LISTED = ("docs/gpu.md", "docs/containers.md", "docs/multi-process.md")
"""Of these, every command is listed in `NOT_RUN`."""

PROGRAM = ["python", "-m", "dpo_lightning"]
NOT_RUN = {
    "make setup": "installs everything; tests/test_setup.py does that",
    "make test": "is what runs this test",
    "make gpu-check": "is run part by part by tests/test_gpu_check.py",
    "make image": "tests/containers/ builds the image and the SIF, and runs them",
    "make sif": "the same",
    "docker run": "the same, with podman",
    "podman run": "the same",
    "apptainer run": "the same",
    "make lint": "is a step of its own",
    "make lock": "resolves all packages anew, from their registry",
    "make clean": "removes what other tests are using",
    "make tensorboard": "serves until it is stopped",
    "--trainer.devices 2": "two processes are started by other tests (tests/support/two_ranks.py)",
    "--trainer.logger WandbLogger": "wandb is not installed",
}
"""Commands that cannot be run here, by what they hold, and why."""

SHORT = {
    "fit": ("--config", "configs/smoke.yaml", *QUIET),
    "validate": ("--config", "configs/smoke.yaml", *QUIET),
    "test": ("--config", "configs/smoke.yaml", *QUIET),
    "predict": QUIET,
    "infer": ("--max_new_tokens", "8"),
    "sweep": ("--dry_run",),  # tests/sweeps/test_whole_sweep.py runs one
    "evaluate": ("--max_new_tokens", "8", "--accelerator", "cpu"),
    "compare": ("--max_new_tokens", "8", "--accelerator", "cpu"),
}
"""What each command gets added here, so that it takes a moment."""

BITS = ("--model.policy.quantization.bits", "4")
"""An option that is left out has no keys of its own."""

RECORDER = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument" >> "$RECORD"; done
"""


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def commands(page):
    """Every command of a page's shell blocks, in order."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] != "source"]


def is_listed(words):
    return any(part in f"{shlex.join(words)} " for part in (f"{part} " for part in NOT_RUN))


def shorten(command):
    """The arguments of a command with what makes it short; a flag of the page counts more than the overlay."""
    name, rest = command[3], command[4:]
    place = rest.index("--config") + 2 if "--config" in rest else len(rest)
    return [name, *rest[:place], *SHORT.get(name, ()), *rest[place:]]


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
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) >= 25
    for words in found:
        known = words[:3] == PROGRAM or words[0] == "make" or is_listed(words)
        assert known, f"the docs say {shlex.join(words)!r}: run it here, or list it in NOT_RUN with a reason"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][a-z-]*)(?: [a-z-]+)*:", makefile, re.MULTILINE)
    assert {name.removeprefix("make ") for name in NOT_RUN if name.startswith("make ")} <= set(targets)


def test_no_page_with_commands_is_left_out():
    """Those of docs/losses.md are run by tests/test_loss_page.py."""
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md") if "```bash" in path.read_text()}
    pages -= {"docs/formats.template.md"}  # the page that it becomes is listed
    assert pages <= {*PAGES, "docs/losses.md"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ALL_LISTED])
def test_the_commands_work_in_their_order(place, monkeypatch, page):
    """Each may use what those before it left."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("dpo_lightning.commands.doctor.damage", lambda _: "")  # the tiny model is another one
    for name, text in re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL):
        (place / name).write_text(text, encoding="utf-8")
    ran = 0
    for words in commands(page):
        if is_listed(words):
            continue
        command = made(words, place) if words[0] == "make" else words
        assert command[:3] == PROGRAM, command
        result = run(*shorten(command))
        assert result.code == 0, f"{shlex.join(words)}: {result}"
        ran += 1
    assert ran


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_hands_words_on_as_they_were_typed(place):
    """Quotes, dollars and spaces, and only the flags of variables that were given."""
    assert made(["make", "dpo"], place)[3:] == ["fit", "--config", "configs/dpo.yaml"]
    words = ["make", "infer", "MODEL=my model", 'INSTRUCTION=it\'s $5 "or" `ls`?']
    assert made(words, place)[3:] == ["infer", "--model=my model", '--instruction=it\'s $5 "or" `ls`?']


def test_the_python_of_the_docs_runs(place, monkeypatch, capsys):
    """As it stands, from imports to the last step."""
    (block,) = blocks("docs/python.md", "python")
    monkeypatch.chdir(place)
    names = {}
    exec(compile(block, "python.md", "exec"), names)
    assert names["module"].trainer.global_step == int(re.search(r"max_steps=(\d+)", block).group(1))
    assert "self-check: passed" in capsys.readouterr().out


def test_the_pipeline_of_the_docs_answers(place, monkeypatch, capsys):
    """With the merged model that the page's commands left."""
    (block,) = blocks("docs/models.md", "python")
    monkeypatch.chdir(place)
    exec(compile(block, "models.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_links_lead_somewhere():
    for page in [README, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(page)):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_the_readme_is_of_one_sitting():
    assert len(read(README).splitlines()) <= 200


def test_every_flag_of_the_docs_exists(place, monkeypatch):
    """`--model.…`, `--data.…` and `--trainer.…`, wherever they stand."""
    monkeypatch.chdir(place)
    options = ("--config", "configs/dpo.yaml", "--model.policy.lora.r", "8", *BITS, "--output_dir", "x")
    printed = run("fit", *options, "--print_config")
    known = {format_key(key) for key, _ in flatten(yaml.safe_load(printed.out))}
    known |= {"model.optimizer", "model.loss", "model.loss.divergence", "model.reference.path", "model.policy"}
    known |= {
        "data.columns.prompt",
        "data.columns.input",
        "data.collator.side",
        "trainer.logger.save_dir",
        "trainer.logger.project",
        "trainer.logger.offline",
        "trainer.logger.id",
        "model.lr_scheduler.warmup_ratio",
    }
    flags = set(re.findall(r"--((?:model|data|trainer)\.[\w.]*\w)", "\n".join(map(read, PAGES))))
    assert len(flags) >= 12
    assert flags <= known


def test_the_exit_codes_of_the_docs_are_ours():
    codes = {int(number) for number in re.findall(r"^\| (\d+) \|", read("docs/exit-codes.md"), re.MULTILINE)}
    assert codes - {0, 130} == {code.value for code in ExitCode}

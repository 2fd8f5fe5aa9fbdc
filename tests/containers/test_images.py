"""The image and the SIF of this checkout: the same each time, closed to the network, and the same numbers inside."""

import csv
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.container_builds import BUILD, ROOT, STRANGER, check, require, run_outside

from dpo_lightning.models.folder_checks import EMBEDDED
from dpo_lightning.version import __version__

MODEL = ROOT / EMBEDDED
DOCKERFILE = ROOT / "containers" / "Dockerfile"
NONE = "nothing can be written here"
STEPS = 3
FIT = ("fit", "--config", "configs/dpo-lora.yaml", "--trainer.max_steps", STEPS, "--trainer.log_every_n_steps", 1)
FIT = (*FIT, "--data.batch_size", 2, "--trainer.limit_val_batches", 0, "--trainer.precision", "32-true")
FIT = (*FIT, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir")


def read_losses(folder):
    """The loss of each step, digit for digit."""
    (file,) = folder.rglob("metrics.csv")
    with file.open(encoding="utf-8") as lines:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(lines) if row["train/loss"]}


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """What a run outside of any container comes to."""
    if not (MODEL / "model.safetensors").exists():
        pytest.skip("the embedded model is not there: `make test` fetches it")
    folder = tmp_path_factory.mktemp("outside")
    run_outside(*FIT, folder / "run", "--output_dir", folder / "run")
    found = read_losses(folder)
    assert len(found) == STEPS
    assert len(set(found.values())) == STEPS
    return found


@pytest.fixture
def outputs(tmp_path):
    """A folder that any user may write into."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.mark.slow
def test_two_builds_have_one_digest(builds, image):
    builds.make_image("localhost/dpo_lightning:again")
    one, other = builds.inspect(image), builds.inspect("localhost/dpo_lightning:again")
    for field in ("FromImageID", "FromImageDigest"):
        assert one[field] == other[field]


@pytest.mark.slow
def test_what_the_image_says_of_itself(builds, image):
    shown = builds.inspect(image)
    config = shown["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/opt/venv/bin/dpo-lightning"]
    assert {"HF_HUB_OFFLINE=1", "HOME=/tmp"} <= set(config["Env"])
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["version"] == __version__
    assert labels["base.name"] == builds.make_base()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert all("pip.conf" not in step["created_by"] for step in shown["OCIv1"]["history"])


@pytest.mark.slow
def test_nothing_can_be_written_and_nobody_reached(builds, image):
    """By a UID without a name; the system's files are whole, the font of Hangul among them."""
    script = f"""
        id -un 2>/dev/null && exit 1
        [ "$(id -u)" = {STRANGER} ] || exit 1
        for place in / /opt /opt/venv /workspace /workspace/outputs; do touch $place/file 2>/dev/null && exit 1; done
        python - <<'PYTHON' || exit 1
import getpass, pathlib, socket, dpo_lightning, torch
from dpo_lightning.sweeps.fonts import find_fonts
assert getpass.getuser() == "dpo" and pathlib.Path.home() == pathlib.Path("/tmp")
assert "NanumGothic" in find_fonts()
assert {{name for _, name in socket.if_nameindex()}} == {{"lo"}}
assert pathlib.Path(torch.__spec__.cached).is_file() and pathlib.Path(dpo_lightning.__spec__.cached).is_file()
PYTHON
        echo {NONE}
    """
    said = builds.run(image, "-c", script, flags=['--entrypoint=["/bin/bash"]'])
    assert said.splitlines()[-1] == NONE


@pytest.mark.slow
def test_the_bill_of_materials_is_complete(builds, image):
    shown = builds.run(image, "/opt/dpo_lightning/sbom/sbom.cdx.json", flags=['--entrypoint=["/bin/cat"]'])
    components = {part["purl"]: part for part in json.loads(shown)["components"]}
    lock = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9][\w.-]*)==([^ ]+)(?= \\$)", lock, re.MULTILINE)
    assert len(pins) >= 80
    assert {f"pkg:pypi/{name}@{pin.replace('+', '%2B')}" for name, pin in pins} <= components.keys()
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in components)
    unknown = [purl for purl, part in components.items() if part["licenses"][0]["license"]["name"] == "not declared"]
    assert len(unknown) <= 5, unknown


@pytest.mark.slow
def test_fit_in_the_image_has_the_losses_of_fit_outside(builds, image, losses, outputs):
    mounts = {MODEL.resolve(): f"/workspace/{MODEL.relative_to(ROOT)}:ro", outputs: "/workspace/outputs"}
    builds.run(
        image, *FIT, "outputs/run", "--output_dir", "outputs/run", mounts=mounts, flags=["--env=OMP_NUM_THREADS=1"]
    )
    assert read_losses(outputs) == losses
    assert {path.stat().st_uid for path in outputs.rglob("*")} == {STRANGER}


@pytest.mark.slow
def test_fit_in_the_sif_has_the_losses_of_fit_outside(sif, losses, outputs):
    """Its own test passed when it was made; neither the home nor the folder of the caller is seen inside."""
    command = ["apptainer", "run", "--containall", "--no-home", "--pwd", "/workspace", "--env", "OMP_NUM_THREADS=1"]
    command += [
        "--bind",
        f"{MODEL.resolve()}:/workspace/{MODEL.relative_to(ROOT)}:ro",
        "--bind",
        f"{outputs}:/workspace/outputs",
    ]
    check([*command, sif, *FIT, "outputs/run", "--output_dir", "outputs/run"])
    assert read_losses(outputs) == losses
    assert "fit --config" in check(["apptainer", "run-help", sif])
    assert f"org.opencontainers.image.version: {__version__}" in check(["apptainer", "inspect", "--labels", sif])


TOY = """
FROM {base}
RUN mkdir -p /opt/venv/bin && cd /opt/venv/bin && ln -s /usr/bin/{doctor} dpo-lightning && ln -s /usr/bin/true python
"""


@pytest.mark.slow
@pytest.mark.parametrize("doctor", ["true", "false"])
def test_a_sif_is_the_same_each_time_and_tested(builds, tmp_path, doctor):
    """A small image with the program's names; where the doctor finds something missing, there is no SIF."""
    require("apptainer", "mksquashfs")
    (tmp_path / "Dockerfile").write_text(TOY.format(base=builds.make_base(), doctor=doctor))
    toy = f"localhost/toy:{doctor}"
    check(["buildah", "build", "--isolation=chroot", "--tag", toy, tmp_path], env=builds.environment)
    files = [tmp_path / "one.sif", tmp_path / "two.sif"]
    for file in files:
        variables = builds.environment | {"IMAGE": toy, "SIF": str(file)}
        done = subprocess.run([BUILD, "sif"], env=variables, capture_output=True, text=True)
        assert (done.returncode == 0) == file.exists() == (doctor == "true"), done.stderr
        if doctor == "false":
            return
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("base", ["", "python:3.11-slim", "python@sha256:0123"])
def test_a_base_without_a_digest_is_refused(base):
    done = subprocess.run(
        [BUILD, "image"], env={**os.environ, "BASE": base, "ENGINE": "podman"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "by its digest" in done.stderr


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_each_engine_is_called_with_flags_that_it_knows(engine, tmp_path):
    """A program of its name writes down what it is called with; the real one, where it is there, knows the flags."""
    fake = tmp_path / engine
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENGINE": engine, "BASE": f"python@sha256:{'0' * 64}"}
    given |= {"TORCH": "cuda", "WHEELS": "/wheels", "PIP_CONF": "/pip.conf", "SOURCE_DATE_EPOCH": "1"}
    words = check([BUILD, "image"], env={**os.environ, **given}).splitlines()
    assert {"TORCH=cuda", "dpo_lightning:cuda", "wheels=/wheels", "id=pip.conf,src=/pip.conf"} <= set(words)
    assert "SOURCE_DATE_EPOCH=1" in words or words[words.index("--timestamp") + 1] == "1"
    build = words[: words.index("build") + 1]
    if shutil.which(engine) and (engine != "docker" or not subprocess.run(["docker", "buildx", "version"]).returncode):
        known = check([engine, *build, "--help"])
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))


def read_stages():
    """The names of the Dockerfile's arguments and stages, and what the stages stand on."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    arguments = re.findall(r"^ARG (\w+)", text, re.MULTILINE)
    return arguments, re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)


def test_no_base_is_preset():
    arguments, stages = read_stages()
    assert "BASE" in arguments
    names = {name for _, name in stages}
    assert all(base in {"scratch", "${BASE}"} | names for base, _ in stages)


def test_the_examples_name_what_there_is():
    """The devcontainer's build, and the folders that the EDF mounts."""
    folder = ROOT / ".devcontainer"
    container = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    arguments, stages = read_stages()
    build = container["build"]
    assert (folder / build["dockerfile"]).resolve() == DOCKERFILE
    assert (folder / build["context"]).resolve() == ROOT
    assert set(build["args"]) <= set(arguments)
    assert build["target"] in {name for _, name in stages}
    edf = tomllib.loads((ROOT / "containers" / "dpo_lightning.toml").read_text(encoding="utf-8"))
    assert edf["workdir"] == "/workspace"
    assert all(Path(mount.split(":")[1]).is_relative_to("/workspace") for mount in edf["mounts"])

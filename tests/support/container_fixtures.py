"""Fixtures: the image and the SIF of this checkout, built once for all tests and all processes that run them.

A folder of tests has them by `from support.container_fixtures import builds, image, sif` in its conftest.py, and by
`allow_time` in its `pytest_collection_modifyitems`.
"""

import pytest

from support.container_builds import Builds, require

SECONDS = 3000
"""Seconds that such a test may take: the first one waits for the image, which other tests run beside."""


def allow_time(items):
    """Give `SECONDS` to the tests that need an image."""
    for item in items:
        if {"builds", "image", "sif"} & set(item.fixturenames):
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(scope="session")
def builds(tmp_path_factory, worker_id):
    """Where images lie: with several processes, a folder that they share."""
    require("buildah", "podman", "mmdebstrap")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "images"
    folder.mkdir(exist_ok=True)
    return Builds(folder)


@pytest.fixture(scope="session")
def image(builds):
    """The name of the image of this checkout."""
    name = "localhost/dpo_lightning:test"
    made = builds.folder / "image"
    with builds.locked("image"):
        if not made.exists():
            builds.make_image(name)
            made.touch()
    return name


@pytest.fixture(scope="session")
def sif(builds, image):
    """The path of the SIF of that image."""
    require("apptainer", "mksquashfs")
    path = builds.folder / "dpo_lightning-cpu.sif"
    with builds.locked("sif"):
        if not path.exists():
            builds.make_sif(image, path)
    return path

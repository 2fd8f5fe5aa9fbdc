"""A private Slurm for the tests of this folder; all are skipped, by name, where none can run."""

import pytest
from support.container_fixtures import allow_time, builds, image, sif
from support.slurm_cluster import Cluster, find_obstacle
from support.slurm_jobs import Workplace

__all__ = ["builds", "image", "sif"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two nodes on loopback."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def workplace(cluster, tmp_path_factory):
    """A folder for runs of the program."""
    return Workplace(cluster, tmp_path_factory.mktemp("runs"))


def pytest_collection_modifyitems(items):
    """Allow for the time that an image takes."""
    allow_time(items)

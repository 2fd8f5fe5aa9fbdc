"""What the tests of images share."""

from support.container_fixtures import allow_time, builds, image, sif

__all__ = ["builds", "image", "sif"]


def pytest_collection_modifyitems(items):
    """Allow for the time that an image takes."""
    allow_time(items)

"""Commands in forks of one process that has imported everything."""

import pytest
from support.cases import Stand


@pytest.fixture(scope="session")
def stand(tmp_path_factory):
    """Runs a case in a folder of its own."""
    made = Stand(tmp_path_factory.mktemp("cases"))
    yield made
    made.close()

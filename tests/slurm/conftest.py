"""The SLURM that all tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import CannotStart, Cluster


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if not request.config.getoption("--slurm"):
        pytest.skip("make test-slurm")
    try:
        cluster = Cluster()
    except CannotStart as error:
        pytest.skip(f"SLURM cannot run here: {error}")
    yield cluster
    cluster.close()

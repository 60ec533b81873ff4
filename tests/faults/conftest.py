"""What the fault suite's tests share."""

import sys
from collections.abc import Iterator

import pytest

from tests.faults.killing import Nursery


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    if sys.platform != "linux":
        pytest.skip("forks a process that has torch loaded, which only Linux takes well")
    nursery = Nursery()
    yield nursery
    nursery.close()

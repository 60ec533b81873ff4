"""Fixtures that the fault tests share."""

import sys
from collections.abc import Iterator

import pytest

from tests.faults.killing import ForkServer


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    if sys.platform != "linux":
        pytest.skip("forks a process that has loaded torch, which is safe on Linux only")
    server = ForkServer()
    yield server
    server.close()

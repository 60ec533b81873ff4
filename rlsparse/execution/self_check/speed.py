"""A training step against one of TRL's GRPOTrainer: workload W1 of experiments/benchmarks, measured in turns."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlsparse.algorithm import Algorithm
from rlsparse.config.compose import compose
from rlsparse.config.schema import ConfigError
from rlsparse.execution.self_check.findings import EMBEDDED, Figure, Finding, Setting
from rlsparse.runtime.machine import usable_cpus
from rlsparse.storage.atomic import read_object

SCRIPT = Path(__file__).parent.parent.parent.parent / "experiments" / "benchmarks" / "vs_trl.py"
TIMEOUT = 3 * 3600  # seconds
W1 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SETTINGS = ("trl", "trl_tuned", "trl_tuned_no_checkpointing")
QUICK_SETTINGS = ("trl_tuned",)
# of TRL with vLLM in its own process; vLLM knows no token that never occurs, so it ignores the end token instead
WITH_VLLM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import vs_trl
tuned = vs_trl.TRL["trl_tuned"]
vs_trl.TRL["trl_tuned_vllm"] = lambda work: {
    **tuned(work),
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.3,
    "generation_kwargs": {"ignore_eos": True},
}
vs_trl.main()
"""


def speed(setting: Setting) -> Iterator[Finding]:
    """Yield the times and the peak memory of both sides, for each setting of TRL, and with vLLM on either side.

    Raises:
        RuntimeError: the benchmark has failed.
    """
    reason = _obstacle(setting)
    if reason is not None:
        yield Finding.skipped("W1 against TRL", reason)
        return
    report = _measured(setting, _Race(QUICK_SETTINGS if setting.quick else SETTINGS))
    yield from _steps(report)
    yield _rollout(report)
    try:
        Algorithm.build(compose(["rollout=vllm"])).rollout.check(quantized=False)
    except ConfigError as error:
        yield Finding.skipped("W1 with rollout=vllm against TRL", str(error))
    else:
        report = _measured(setting, _Race(QUICK_SETTINGS, full_only=True, overrides=("rollout=vllm",)))
        yield from (replace(one, name=f"{one.name}, rollout=vllm") for one in _steps(report))
    if find_spec("vllm") is None:
        reason = "vLLM is not installed in this environment, where TRL would import it"
        yield Finding.skipped("W1 against TRL with vLLM", reason)
    else:
        program = ("-c", WITH_VLLM, str(SCRIPT.parent))
        yield from _steps(_measured(setting, _Race(("trl_tuned_vllm",), program)))


@dataclass(frozen=True)
class _Race:
    """What the benchmark measures.

    Attributes:
        settings: of TRL.
        program: arguments of Python that start the benchmark.
        full_only: measure no sparse method of ours.
        overrides: of ours.
    """

    settings: Sequence[str]
    program: Sequence[str] = ()
    full_only: bool = False
    overrides: Sequence[str] = ()

    def words(self, setting: Setting, out: Path) -> list[str]:
        """Return the command."""
        words = [sys.executable, *(self.program or [str(SCRIPT)]), "--model", setting.model]
        words += ["--device", setting.device, "--settings", ",".join(self.settings), "--out", str(out)]
        words += ["--full-only"] if self.full_only else []
        words += ["--steps", "2", "--new-tokens", "32"] if setting.quick else []
        words += ["--threads", str(usable_cpus())] if setting.device == "cpu" else []
        large = ["train.max_tokens_per_microbatch=8192"] if setting.device == "cuda" else []
        if overrides := [*self.overrides, *large]:
            words += ["--overrides", ",".join(overrides)]
        return words


def _obstacle(setting: Setting) -> str | None:
    """Return why the benchmark cannot run here; None if it can."""
    if not SCRIPT.is_file():
        return "the benchmark is in experiments/benchmarks of the checkout, which an installed package does not have"
    if find_spec("trl") is None:
        return "TRL is not installed; pip install 'rlsparse[bench]' installs it"
    if setting.model in EMBEDDED:
        return f"TRL's side asks questions in a chat template, which model={setting.model} lacks; give --model {W1}"
    return None


def _measured(setting: Setting, race: _Race) -> Mapping[str, Any]:
    """Run the benchmark in a process of its own and return its report.

    Raises:
        RuntimeError: it has failed, or has not ended in time.
    """
    out = setting.scratch / "vs_trl.json"
    out.unlink(missing_ok=True)
    command = race.words(setting, out)
    # with several GPUs, the Trainer of transformers would use all of them for one process
    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": first_gpu}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the benchmark has not ended within {TIMEOUT} seconds") from error
    report = read_object(out)
    if done.returncode != 0 or report is None:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise RuntimeError(f"the benchmark has ended with exit code {done.returncode}: {last.strip()}")
    return report


def _steps(report: Mapping[str, Any]) -> Iterator[Finding]:
    for case, settings in report["time"].items():
        for name, times in settings.items():
            spread, detail = report["spread"][case][name], report["detail"][case][name]
            yield Finding.of(
                f"{case} against {name}",
                Figure("times faster than TRL", times),
                Figure("spread", f"{spread[0]} to {spread[1]}"),
                Figure("counted steps", report["work"]["steps"] - 1),
                Figure("step", detail["ours_seconds"]["wall"], "s"),
                Figure("step of TRL", detail["trl_seconds"], "s"),
                Figure("peak memory", detail["ours_peak_bytes"] / 2**30, "GiB"),
                Figure("peak memory of TRL", detail["trl_peak_bytes"] / 2**30, "GiB"),
            )


def _rollout(report: Mapping[str, Any]) -> Finding:
    rollout, work = report["rollout"], report["work"]
    return Finding.of(
        "rollout against generate of transformers",
        Figure("speed", rollout["ours"], "tokens/s"),
        Figure("speed of generate", rollout["generate"], "tokens/s"),
        Figure("work", f"{work['prompts']} prompts x {work['group_size']} completions x {work['new_tokens']} tokens"),
    )

"""Evaluate a model, or the adapter of a finished run, on benchmarks: ``python -m rlsparse.evaluate``.

The files are those of a run: ``answers.jsonl``, ``metrics.jsonl``, ``summary.json``, ``config.yaml``. Where the adapter
or the model is what a finished run has exported, the files of that run get the results of benchmarks that it has not
evaluated itself, as those of its last step.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlsparse.config.checks import check_writable, problems
from rlsparse.config.compose import as_yaml, check_group_options, config_dir, register_schemas, run_config
from rlsparse.config.hydra_errors import one_line_errors
from rlsparse.config.ranges import shown
from rlsparse.config.run_id import LABELS, Identity, Inputs, files_digest, identify
from rlsparse.config.schema import ConfigError, EvaluateConfig, ModelConfig
from rlsparse.config.words import read_words
from rlsparse.runtime.logs import log_to_terminal
from rlsparse.runtime.preload import import_all, quieten
from rlsparse.storage.atomic import read_object, read_yaml, write_whole
from rlsparse.storage.jsonl import JsonLines, read_rows, write_rows
from rlsparse.storage.locks import claimed
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.streams import prepare_streams
from rlsparse.storage.summary import (
    DONE,
    Summary,
    benchmark_results,
    model_name,
    provenance,
    read_summary,
    write_summary,
)
from rlsparse.tracking.metrics import benchmark_row

if TYPE_CHECKING:
    from rlsparse.components.task import Task
    from rlsparse.model.policy import Policy
    from rlsparse.model.source import ModelSource
    from rlsparse.rollout import RolloutEngine
    from rlsparse.tracking.profiling import Clock
    from rlsparse.training.evaluate import Examiner, Outcome

EXPERIMENT = "evaluate"  # folder under runs_dir
PATIENCE = 60.0  # seconds to wait for another process that works on a run
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """Holds the result of a check without errors.

    Attributes:
        source: of the model, with the adapter if there is one.
        engine: samples the completions.
        tasks: of the benchmarks, by name.
    """

    source: "ModelSource"
    engine: "RolloutEngine"
    tasks: "Mapping[str, Task]"
    identity: Identity


def evaluate(config: EvaluateConfig, overrides: Sequence[str] = ()) -> Summary:
    """Evaluate a model on benchmarks and write the files; benchmarks that are finished are only read.

    Args:
        overrides: what the user asked for.

    Returns:
        The content of ``summary.json``.

    Raises:
        ConfigError: bad input, before any model loads.
    """
    quieten()
    log_to_terminal()
    checked = preflight(config)
    identity = checked.identity
    folder = RunFolder(Path(config.out) if config.out is not None else Path(config.runs_dir, EXPERIMENT, identity.id))
    check_writable("out" if config.out is not None else "runs_dir", str(folder.path))
    run = _run_of(config)
    with claimed(folder.path, config.sweep.lock) as ours:
        if not ours:
            raise ConfigError(f"{folder.path}: another process works on it; wait for it, or give another out=DIR")
        summary = read_summary(folder.path)
        _refuse_other_files(folder, identity)
        if summary is not None:
            log.info("%s: finished before, skipped", folder.path)
        else:
            about = provenance(identity, EXPERIMENT, LABELS[EvaluateConfig], config.seed, list(overrides))
            about["versions"] |= checked.engine.versions()
            write_whole(folder.config, as_yaml(config))
            write_whole(folder.provenance, json.dumps(about, indent=1))
            summary = {**about, **_Evaluation(config, checked, folder)()}
            write_summary(folder.path, summary)
            log.info("written to %s", folder.path)
    if run is not None:
        _add_to_run(run, folder, config)
    return summary


def _refuse_other_files(folder: RunFolder, identity: Identity) -> None:
    """Refuse a folder with the files of a run or of another evaluation.

    Raises:
        ConfigError: it holds some.
    """
    files = (folder.config, folder.metrics, folder.answers, folder.samples, folder.summary, folder.provenance)
    found = [file.name for file in files if file.exists()]
    begun = read_object(folder.provenance) or {}
    if found and begun.get("config_hash") != identity.config_hash:
        raise ConfigError(f"out={folder.path}: holds {found[0]} of a run or of another evaluation; give a new folder")


@dataclass
class _Evaluation:
    """An evaluation from loading to its results, or from the benchmark at which an earlier attempt was cut off."""

    config: EvaluateConfig
    checked: Checked
    folder: RunFolder

    def __call__(self) -> Summary:
        """Return the results for the summary."""
        from rlsparse.runtime.devices import resolve_device
        from rlsparse.tracking.profiling import Clock, peak_memory

        device = resolve_device(self.config.device)
        clock = Clock(device)
        done = self._finished()
        left = {name: task for name, task in self.checked.tasks.items() if name not in done}
        if left:
            with self._examiner(device, clock) as (examine, policy):
                for name, task in left.items():
                    self._write(name, self._ask(examine, policy, name, task), clock.last["benchmarks"])
        rows = read_rows(self.folder.metrics)
        return {
            "status": "finished",
            "error": None,
            "device": str(device),
            "setting": {"model": model_name(self.config.model), "adapter": self.config.adapter_path},
            "benchmarks": benchmark_results(rows),
            # over all attempts
            "time": {"total": clock.elapsed(), "benchmarks": sum(row["time/benchmarks"] for row in rows)},
            "peak_memory_bytes": peak_memory(device),
        }

    def _finished(self) -> set[str]:
        """Return the benchmarks that an earlier attempt has finished, after removing the answers to others."""
        rows = [row for row in read_rows(self.folder.metrics) if row.get("kind") == "benchmark"]
        done = {key.split("/")[1] for row in rows for key in row if key.startswith("benchmark/")}
        if done:
            log.info("finished before: %s", ", ".join(sorted(done)))
        write_rows(self.folder.metrics, rows)
        write_rows(self.folder.answers, [row for row in read_rows(self.folder.answers) if row["benchmark"] in done])
        return done

    @contextmanager
    def _examiner(self, device: Any, clock: "Clock") -> "Iterator[tuple[Examiner, Policy]]":
        from rlsparse.model.adapters import attach_saved
        from rlsparse.model.loading import load_policy
        from rlsparse.rollout import RolloutSampler
        from rlsparse.runtime.devices import cpu_threads, sharing_cpus
        from rlsparse.runtime.distributed import ALONE
        from rlsparse.runtime.oom import MemoryLimits
        from rlsparse.training.evaluate import Examiner

        policy = load_policy(self.config.model, device, self.config.dtype)
        if self.config.adapter_path is not None:
            attach_saved(policy, self.checked.source)
        with (
            cpu_threads(self.config.threads, policy.model.num_parameters()),
            sharing_cpus(device, ALONE),
            closing(self.checked.engine.fitting(policy)) as engine,
        ):
            limits = MemoryLimits(engine.max_rows, microbatch=1, tokens=1)  # the latter two are not used here
            sampler = RolloutSampler(policy, engine, limits, ALONE)
            yield Examiner(sampler, self.config.eval, self.config.seed, clock), policy

    def _ask(self, examine: "Examiner", policy: "Policy", name: str, task: "Task") -> "list[Outcome]":
        from rlsparse.training.benchmarks import benchmark_set, judges

        with judges() as judging:
            return examine(benchmark_set(policy, name, judging.scorer(task), self.config.eval))

    def _write(self, name: str, outcomes: "Sequence[Outcome]", seconds: float) -> None:
        """Write the outcomes of a benchmark, and then its metrics, which say that it is finished."""
        from rlsparse.training.evaluate import benchmark_metrics

        answers, lines = (JsonLines(file, file.stat().st_size) for file in (self.folder.answers, self.folder.metrics))
        with closing(answers), closing(lines):
            for one in outcomes:
                answers.write(one.row(0, name))
            answers.flush()
            values = benchmark_metrics(outcomes, self.config.eval)
            lines.write(benchmark_row(0, name, values, seconds))
            lines.flush()
        log.info(
            "%s: %.1f%% greedy, %.1f%% sampled, %d questions",
            name,
            100 * values["accuracy_greedy"],
            100 * values["accuracy_sampled"],
            len(outcomes),
        )


def preflight(config: EvaluateConfig) -> Checked:
    """Check everything that can be found wrong before weights are loaded.

    Raises:
        ConfigError: all that is wrong, a line each: key, value and remedy.
    """
    import_all()
    from rlsparse.algorithm import build_parts
    from rlsparse.components.component import describe
    from rlsparse.model.loading import outline_of
    from rlsparse.model.quantization import OFF, is_quantized
    from rlsparse.model.source import adapter_on, model_source
    from rlsparse.rollout import RolloutEngine
    from rlsparse.runtime.devices import resolve_device
    from rlsparse.training.benchmarks import build_benchmarks, check_benchmark, describe_benchmarks, load_benchmark

    found, parts, tasks = problems(config), {}, {}
    try:
        parts = build_parts(config, {"rollout": RolloutEngine})
    except ConfigError as error:
        found.append(str(error))
    try:
        tasks = build_benchmarks(config.eval)
    except ConfigError as error:
        found.append(str(error))
    if found:
        raise ConfigError("\n".join(found))
    device, source = resolve_device(config.device).type, model_source(config.model)
    if config.adapter_path is not None:
        source = adapter_on(source, config.adapter_path)
    policy = outline_of(source, config.model)
    for name, task in tasks.items():
        try:
            check_benchmark(policy, name, task, load_benchmark(name, task), config.eval.max_new_tokens)
        except ConfigError as error:
            found.append(str(error))
    if found:
        raise ConfigError("\n".join(found))
    components = {
        "rollout": {**describe(parts["rollout"], files_digest), "max_new_tokens": None},  # benchmarks have their own
        "benchmarks": describe_benchmarks(tasks, files_digest),
    }
    parts["rollout"].check(config.model.quantization != OFF or is_quantized(policy.model))
    inputs = Inputs(components, source.digest(), device, unused=("adapter_path",))
    return Checked(source, parts["rollout"], tasks, identify(config, inputs))


def _run_of(config: EvaluateConfig) -> RunFolder | None:
    """Return the finished run that has exported the adapter, or the model if there is no adapter; None for others."""
    if config.adapter_path is not None:
        run = RunFolder(Path(config.adapter_path).absolute().parent)
    elif config.model.path is not None:
        folder = Path(config.model.path).absolute()
        run = RunFolder(folder.parent)
        if folder != run.model:
            return None
    else:
        return None
    summary = read_summary(run.path)
    return run if summary is not None and summary["status"] in DONE and "steps" in summary else None


def _differences(run: RunFolder, config: EvaluateConfig) -> list[str]:
    """Return the keys in which an evaluation differs from the run whose adapter or model it evaluates, a text each.

    The model that an adapter is on counts by its files, wherever they lie. An exported model is stored in the dtype of
    the run.
    """
    trained = read_yaml(run.config) or {}
    exported = config.adapter_path is None
    model = {**asdict(config.model), "quantization": "off", **trained.get("model", {})}
    found = [
        f"{key}={shown(here)} instead of {shown(there)}"
        for key, here, there in (
            ("dtype", config.dtype, trained.get("dtype")),
            ("model.quantization", config.model.quantization, model["quantization"]),
            ("model.chat_template", config.model.chat_template, model["chat_template"]),
            ("model.template_arguments", config.model.template_arguments, model["template_arguments"]),
        )
        if here != there and not (exported and (key, here) == ("dtype", "auto"))
    ]
    if exported or _same_model(config, model):
        return found
    return [f"another model than {model['path'] or model['name']}", *found]


def _same_model(config: EvaluateConfig, model: Mapping[str, Any]) -> bool:
    """Return whether an evaluation has the model of a run.

    Args:
        model: the keys of the model in the config of the run.
    """
    from rlsparse.model.source import model_source

    try:
        there = model_source(ModelConfig(**{one.name: model[one.name] for one in fields(ModelConfig)}))
        here = model_source(config.model)
        return (here.digest() or here.location) == (there.digest() or there.location)
    except ConfigError:  # its folder is somewhere else now
        return False


def _add_to_run(run: RunFolder, evaluated: RunFolder, config: EvaluateConfig) -> None:
    """Add the results to the files of a run, as those of its last step.

    What the run has found itself stays, and results of an earlier evaluation are replaced.
    """
    if different := _differences(run, config):
        log.warning(
            "warning: %s does not get the results, since the evaluation has %s; they are in %s",
            run.path,
            ", ".join(different),
            evaluated.path,
        )
        return
    with _waiting_for(run, config.sweep.lock):
        summary, found = read_summary(run.path), read_summary(evaluated.path)
        if summary is None or found is None:
            return
        benchmarks, origins = summary.setdefault("benchmarks", {}), summary.setdefault("evaluations", {})
        own = [name for name in found["benchmarks"] if name in benchmarks and name not in origins]
        if own:
            log.info("%s has its own results of %s, which stay", run.path, ", ".join(own))
        added = {name: ends for name, ends in found["benchmarks"].items() if name not in own}
        if not added:
            return
        _replace_rows(run, evaluated, summary["steps"], list(added))
        for name, ends in added.items():
            benchmarks[name] = {"base": None, "final": {**ends["final"], "step": summary["steps"]}}
        summary["evaluations"] |= dict.fromkeys(added, found["id"])  # which evaluation the results are from
        write_summary(run.path, summary)
        log.info("added to %s: %s", run.path, ", ".join(added))


def _replace_rows(run: RunFolder, evaluated: RunFolder, step: int, names: Sequence[str]) -> None:
    """Write the rows of some benchmarks into the files of a run, in the place of those of an earlier evaluation."""

    def of_these(row: Mapping[str, Any]) -> bool:
        return row.get("benchmark") in names or any(key.startswith(prefixes) for key in row)

    prefixes = tuple(f"benchmark/{name}/" for name in names)
    for file, new in ((run.answers, evaluated.answers), (run.metrics, evaluated.metrics)):
        kept = [row for row in read_rows(file) if row["step"] != step or not of_these(row)]
        write_rows(file, [*kept, *({**row, "step": step} for row in read_rows(new) if of_these(row))])


@contextmanager
def _waiting_for(run: RunFolder, lock: str) -> Iterator[None]:
    """Lock a run; another evaluation may be adding its results.

    Raises:
        ConfigError: another process has worked on it for a minute.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        with claimed(run.path, lock) as ours:
            if ours:
                yield
                return
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{run.path}: another process works on it; start the same command again after it has ended"
            )
        time.sleep(0.2)


register_schemas()


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="evaluate")
def _main(config: DictConfig) -> None:
    from rlsparse.batch import NonFiniteError
    from rlsparse.components.component import ComponentError
    from rlsparse.components.reward import VerifierError
    from rlsparse.rollout.vllm.client import ServerError

    context = HydraConfig.get()
    try:
        evaluate(run_config(config), list(context.overrides.task))
    except (ConfigError, NonFiniteError, ComponentError, VerifierError, ServerError) as error:
        if context.mode == RunMode.MULTIRUN:
            raise ConfigError(str(error)) from error  # the other points are evaluated all the same
        sys.exit(f"error: {error}")


def main() -> None:
    """Do one evaluation, or with -m several."""
    prepare_streams()
    try:
        # adapter is a config group of the other commands, for which Hydra would take this word
        arguments = [f"adapter_path={one[8:]}" if one.startswith("adapter=") else one for one in sys.argv[1:]]
        sys.argv[1:] = read_words(arguments)
        check_group_options(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    with one_line_errors():
        _main()

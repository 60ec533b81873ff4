"""``python -m rlsparse.dashboard``: build and check the W&B workspace for the runs, and save it with ``--save``."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from rlsparse.config.schema import Config
from rlsparse.storage.streams import command
from rlsparse.tracking.metrics import METRICS, SAMPLE_TABLE, STEP, is_documented
from rlsparse.tracking.sync import wandb_defaults
from rlsparse.tracking.wandb_environment import prepare_environment
from rlsparse.tracking.wandb_names import DEFAULT_PROJECT, group_name, project_name, project_problem

# section -> metrics, one panel each; a name that ends in / or _ is a family, whose members share a panel
SECTIONS: dict[str, tuple[str, ...]] = {
    "Learning curves": (
        "eval/accuracy_sampled",
        "eval/accuracy_greedy",
        "task/accuracy",
        "eval/pass_at_",
        "eval/maj_at_",
        "task/reward_mean",
        "task/reward_std",
        "reward/",
    ),
    "Benchmarks": ("benchmark/",),
    "Tokens": (
        "tokens/frac_updated",
        "tokens/depth_mean",
        "tokens/depth_p90",
        "tokens/frac_forward",
        "tokens/generated",
        "tokens/replayed",
        "tokens/selected",
    ),
    "Objective": (
        "objective/loss",
        "objective/kl",
        "objective/entropy",
        "objective/frac_clipped",
        "train/grad_norm",
        "advantage/abs_mean",
    ),
    "Completions": (
        "rollout/entropy",
        "rollout/frac_degenerate_groups",
        "rollout/kept_groups",
        "rollout/rounds",
        "rollout/length_mean",
        "eval/mean_length",
        "task/frac_answered",
        "eval/frac_answered",
        "rollout/frac_truncated",
        "eval/frac_truncated",
    ),
    "Rank": (
        "adapter/rank_total",
        "adapter/parameters",
        "adapter/gate_mean",
        "adapter/gate_min",
        "adapter/pruned",
        "adapter/reassigned",
        "adapter/rank/",
    ),
    "Throughput": (
        "rollout/tokens_per_second",
        "time/rollout",
        "time/train",
        "time/reward",
        "time/eval",
        "time/benchmarks",
        "rollout/layers_skipped",
    ),
    "Off-policy": (
        "off_policy/kl",
        "rollout/policy_age",
        "off_policy/effective_sample_size",
        "off_policy/weight_mean",
        "off_policy/weight_max",
        "off_policy/frac_truncated",
    ),
}
CLOSED = ("Benchmarks", "Rank", "Off-policy")  # most runs log nothing there
LEFT_OUT = {
    "task/verifier_timeouts": "0 unless something is wrong",
    "rollout/replayed_groups": "tokens/replayed shows it",
    "train/lr": "is in the config",
    "train/updates": "is in the config, except for steps without an update",
    "supervised/loss": "metric of a warm start, which is not shown on W&B",
    "eval/loss": "metric of a warm start, which is not shown on W&B",
}
AGGREGATE, BAND = "mean", "stddev"
LINES = 100  # maximum number of runs or groups in a panel; the default of W&B is 10, without a note about the rest
COLUMNS = 3


def workspace(project: str, entity: str = "", experiment: str | None = None, by: Sequence[str] = ("algorithm",)) -> Any:
    """Return the ``wandb_workspaces`` object, without an account or a network connection.

    The panels use the grouping of the table of runs: a new grouping there, in the web app, changes all panels.

    Args:
        project: W&B project.
        entity: W&B user or team; empty for the default of the user.
        experiment: show only the runs of this experiment; None shows all experiments, in separate groups.
        by: config keys; runs with equal values of all these keys are drawn as one line with a band.
    """
    import wandb_workspaces.workspaces as ws

    groups = [ws.Config(key) for key in by]
    filters = [] if experiment is None else [ws.Metric("Group") == group_name(experiment)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"rlsparse {experiment}" if experiment else "rlsparse",
        sections=[*(_section(name, metrics) for name, metrics in SECTIONS.items()), _samples()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=LINES),
        runset_settings=ws.RunsetSettings(
            groupby=groups if experiment else [ws.Metric("Group"), *groups], filters=filters
        ),
    )


def _section(name: str, metrics: Sequence[str]) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Section(
        name=name,
        panels=[_curve(metric) for metric in metrics],
        is_open=name not in CLOSED,
        layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(metrics) // COLUMNS)),
        panel_settings=ws.SectionPanelSettings(x_axis=STEP),
    )


def _curve(metric: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    source = {"metric_regex": f"^{metric}.*"} if metric[-1] in "/_" else {"y": [metric]}
    return wr.LinePlot(
        title=metric,
        x=STEP,
        title_x=STEP,
        title_y=METRICS.get(metric, (None, ""))[0],
        groupby_aggfunc=AGGREGATE,
        groupby_rangefunc=BAND,
        max_runs_to_show=LINES,
        **source,
    )


def _samples() -> Any:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    return ws.Section(
        name="Samples",
        panels=[wr.WeavePanelSummaryTable(table_name=SAMPLE_TABLE)],
        is_open=True,
        layout_settings=ws.SectionLayoutSettings(columns=1, rows=1),
    )


def specification(made: Any) -> str:
    """Return the JSON that is sent when the workspace is saved."""
    text: str = made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return text


def shown(spec: str) -> Iterator[tuple[str, str]]:
    """Yield section and metric of each panel in a specification; for the table of samples, the name of the table."""
    for section in json.loads(spec)["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            config = panel["config"]
            if "panel2Config" in config:
                yield section["name"], config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
            else:
                family = config.get("metricRegex", "").removeprefix("^").removesuffix(".*")
                yield from ((section["name"], name) for name in config["metrics"] + [family] * bool(family))


def undocumented(spec: str) -> list[str]:
    """Return the metrics in the panels of a specification that no run logs."""
    return [name for _, name in shown(spec) if name != SAMPLE_TABLE and not is_documented(name)]


def overview(spec: str) -> str:
    """Return the sections and panels of a specification as text."""
    runs = json.loads(spec)["section"]["runSets"][0]
    groups = [key["name"].replace(".value", "") for key in runs["grouping"]]
    only = [f"; only {one['key']['name']} {one['op']} {one['value']}" for one in runs["filters"]["filters"]]
    lines = [f"one line for each {', '.join(groups)}: {AGGREGATE}, band: {BAND}; x axis: {STEP}{''.join(only)}"]
    last = None
    for section, name in shown(spec):
        if section != last:
            lines += ["", section]
        unit, meaning = METRICS.get(name, ("table", "some completions of each run, with their rewards"))
        lines.append(f"  {name:33} {unit:9} {meaning}")
        last = section
    lines += ["", "Left out", *(f"  {name:33} {why}" for name, why in LEFT_OUT.items())]
    return "\n".join(lines)


def save(made: Any) -> str:
    """Save a workspace as a new view of its project and return its address.

    Raises:
        PermissionError: there is no W&B login.
        ValueError: the workspace has no entity, and the user has no default entity.
        Exception: any error of W&B.
    """
    import wandb

    from rlsparse.tracking.wandb_view import has_key

    if not has_key():
        raise PermissionError("no W&B login here: run wandb login, or set WANDB_API_KEY; only --save needs it")
    entity = made.entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("this login has no default user or team; give one with --entity NAME")
    made.entity = entity
    address: str = made.save().url
    return address


@command()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rlsparse.dashboard", description=__doc__)
    parser.add_argument("--entity", help="W&B user or team; by default WANDB_ENTITY, else your own")
    parser.add_argument("--project", help=f"W&B project; by default WANDB_PROJECT, else {DEFAULT_PROJECT}")
    parser.add_argument("--experiment", help="show only the runs of this experiment")
    parser.add_argument("--by", default="algorithm", help="config keys; one line for each value (%(default)s)")
    parser.add_argument("--save", action="store_true", help="save the workspace to W&B; without it, nothing is sent")
    options = parser.parse_args()
    prepare_environment()
    keys = options.by.split(",")
    defaults = wandb_defaults()
    given = options.project if options.project is not None else defaults["project"]
    if problem := _problem(options.experiment, keys) or project_problem(given, "--project"):
        sys.exit(f"error: {problem}")
    project = project_name(given)
    entity = options.entity or defaults["entity"] or os.environ.get("WANDB_ENTITY") or ""
    made = workspace(project, entity, options.experiment, keys)
    spec = specification(made)
    if unknown := undocumented(spec):
        names = ", ".join(unknown)
        sys.exit(f"error: panels show metrics that no run logs (see python -m rlsparse.tracking.metrics): {names}")
    print(f"{made.name}: project {project}, entity {entity or '(default)'}\n{overview(spec)}\n")
    if not options.save:
        print("checked: every metric is one that runs log; --save saves the workspace to W&B")
        return
    try:
        print(f"saved: {save(made)}")
    except Exception as error:
        sys.exit(f"error: --save: {' '.join(str(error).split()) or type(error).__name__}")


def _problem(experiment: str | None, keys: Sequence[str]) -> str | None:
    if find_spec("wandb_workspaces") is None:
        return 'wandb-workspaces is not installed; pip install "rlsparse[dashboard]"'
    if experiment is not None and not re.fullmatch(r"\w[\w.-]*", experiment):
        return f"--experiment {experiment}: no experiment can have this name; use letters, digits, '_', '-' and '.'"
    known = [field.name for field in fields(Config)]
    for key in keys:
        if key.split(".")[0] not in known:
            return f"--by {key}: the config of a run has no such key; its keys begin with one of {', '.join(known)}"
    return None


if __name__ == "__main__":
    main()

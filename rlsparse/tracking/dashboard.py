"""``python -m rlsparse.dashboard``: the W&B workspace for the runs, built, checked, and with ``--save`` saved."""

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
from rlsparse.tracking.metrics import METRICS, SAMPLE_TABLE, STEP, is_documented
from rlsparse.tracking.sync import wandb_defaults

# section -> metrics, a panel each; a name that ends in / or _ is a family, whose members share a panel
SECTIONS: dict[str, tuple[str, ...]] = {
    "Learning curves": (
        "eval/accuracy_sampled",
        "eval/accuracy_greedy",
        "task/accuracy",
        "eval/pass_at_",
        "task/reward_mean",
        "task/reward_std",
    ),
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
        "objective/frac_clipped",
        "train/grad_norm",
        "advantage/abs_mean",
    ),
    "Completions": (
        "rollout/entropy",
        "rollout/frac_degenerate_groups",
        "rollout/length_mean",
        "eval/mean_length",
        "task/frac_answered",
        "eval/frac_answered",
        "rollout/frac_truncated",
        "eval/frac_truncated",
    ),
    "Rank": (
        "adapter/rank_total",
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
        "rollout/layers_skipped",
    ),
    "Off-policy": (
        "off_policy/kl",
        "off_policy/effective_sample_size",
        "off_policy/weight_mean",
        "off_policy/weight_max",
        "off_policy/frac_truncated",
    ),
}
CLOSED = ("Rank", "Off-policy")  # most runs log nothing there
LEFT_OUT = {
    "task/verifier_timeouts": "0 unless something is wrong",
    "rollout/replayed_groups": "tokens/replayed shows it",
    "train/lr": "stands in the config",
    "train/updates": "stands in the config, but for steps that teach nothing",
    "supervised/loss": "of a warm start, which is not shown on W&B",
    "eval/loss": "of a warm start, which is not shown on W&B",
}
AGGREGATE, BAND = "mean", "stddev"
LINES = 100  # most runs or groups a panel draws; W&B's own default is 10, and it leaves out the rest in silence
COLUMNS = 3


def workspace(project: str, entity: str = "", experiment: str | None = None, by: Sequence[str] = ("algorithm",)) -> Any:
    """The ``wandb_workspaces`` object. Needs neither account nor network.

    The panels follow the grouping of the runs' table: regrouping it in the app regroups them all.

    Args:
        experiment: show its runs only; None shows all, each experiment's apart.
        by: config keys; the runs that agree in them are one line, with a band.
    """
    import wandb_workspaces.workspaces as ws

    groups = [ws.Config(key) for key in by]
    filters = [] if experiment is None else [ws.Metric("Group") == experiment]
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

    what = {"metric_regex": f"^{metric}.*"} if metric[-1] in "/_" else {"y": [metric]}
    return wr.LinePlot(
        title=metric,
        x=STEP,
        title_x=STEP,
        title_y=METRICS.get(metric, (None, ""))[0],
        groupby_aggfunc=AGGREGATE,
        groupby_rangefunc=BAND,
        max_runs_to_show=LINES,
        **what,
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
    """The JSON that saving the workspace sends."""
    text: str = made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return text


def shown(spec: str) -> Iterator[tuple[str, str]]:
    """Section and metric of each panel, as the specification has them; the table of samples by its name."""
    for section in json.loads(spec)["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            config = panel["config"]
            if "panel2Config" in config:
                yield section["name"], config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
            else:
                family = config.get("metricRegex", "").removeprefix("^").removesuffix(".*")
                yield from ((section["name"], name) for name in config["metrics"] + [family] * bool(family))


def undocumented(spec: str) -> list[str]:
    """What its panels name and no run logs."""
    return [name for _, name in shown(spec) if name != SAMPLE_TABLE and not is_documented(name)]


def overview(spec: str) -> str:
    """Sections and panels, for a person."""
    runs = json.loads(spec)["section"]["runSets"][0]
    groups = [key["name"].replace(".value", "") for key in runs["grouping"]]
    only = [f"; only {one['key']['name']} {one['op']} {one['value']}" for one in runs["filters"]["filters"]]
    lines = [f"a line for each {', '.join(groups)}: {AGGREGATE}, band: {BAND}; x: {STEP}{''.join(only)}"]
    last = None
    for section, name in shown(spec):
        if section != last:
            lines += ["", section]
        unit, meaning = METRICS.get(name, ("table", "some completions of each run with their rewards"))
        lines.append(f"  {name:33} {unit:9} {meaning}")
        last = section
    lines += ["", "Left out", *(f"  {name:33} {why}" for name, why in LEFT_OUT.items())]
    return "\n".join(lines)


def save(made: Any) -> str:
    """Save it as a new view of its project; the address.

    Raises:
        PermissionError: there is no login. ValueError: it has no entity, and none is given.
        Exception: whatever W&B raises.
    """
    import wandb

    from rlsparse.tracking.wandb_view import has_key

    if not has_key():
        raise PermissionError("no W&B login here: wandb login, or WANDB_API_KEY, gives one; nothing else needs it")
    entity = made.entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("this login has no user or team of its own; give one, --entity NAME")
    made.entity = entity
    address: str = made.save().url
    return address


def main() -> None:
    """The command line."""
    defaults = wandb_defaults()
    parser = argparse.ArgumentParser(prog="python -m rlsparse.dashboard", description=__doc__)
    parser.add_argument(
        "--entity", default=defaults["entity"] or "", help="W&B user or team; your default if not given"
    )
    parser.add_argument("--project", default=defaults["project"], help="W&B project (%(default)s)")
    parser.add_argument("--experiment", help="only its runs")
    parser.add_argument("--by", default="algorithm", help="config keys, a line for each of their values (%(default)s)")
    parser.add_argument("--save", action="store_true", help="save it to W&B; without, nothing is sent")
    options = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    keys = options.by.split(",")
    if problem := _problem(options.experiment, keys):
        sys.exit(f"error: {problem}")
    made = workspace(options.project, options.entity, options.experiment, keys)
    spec = specification(made)
    if unknown := undocumented(spec):
        sys.exit(f"error: panels show what no run logs (python -m rlsparse.tracking.metrics): {', '.join(unknown)}")
    print(f"{made.name}: project {options.project}, entity {options.entity or '(your default)'}\n{overview(spec)}\n")
    if not options.save:
        print("checked, every metric is one that runs log; --save saves it to W&B")
        return
    try:
        print(f"saved: {save(made)}")
    except Exception as error:
        sys.exit(f"error: --save: {' '.join(str(error).split()) or type(error).__name__}")


def _problem(experiment: str | None, keys: Sequence[str]) -> str | None:
    if find_spec("wandb_workspaces") is None:
        return 'wandb-workspaces is not installed; pip install "rlsparse[dashboard]"'
    if experiment is not None and not re.fullmatch(r"\w[\w.-]*", experiment):
        return f"--experiment {experiment}: no experiment has such a name; use letters, digits, '_', '-' and '.'"
    known = [field.name for field in fields(Config)]
    for key in keys:
        if key.split(".")[0] not in known:
            return f"--by {key}: a run's config has no such key; its keys begin with one of {', '.join(known)}"
    return None


if __name__ == "__main__":
    main()

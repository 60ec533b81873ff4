"""Tasks from the hub, or from a local folder of jsonl files with the same columns."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlsparse.batch import Problem
from rlsparse.config.schema import ConfigError, HubTaskConfig

Row = dict[str, Any]
SPLITS = ("train", "test")


def svamp(config: HubTaskConfig) -> tuple[list[Problem], list[Problem]]:
    """SVAMP (Patel et al. 2021, 2103.07191): ``question_concat``, ``Equation``, ``Answer``.

    The solution is the row's equation without its decimal points, ``= answer``, and the answer after ``####``.
    """

    def problem(row: Row) -> Problem:
        answer = str(row["Answer"]).removesuffix(".0")
        equation = re.sub(r"\.0\b", "", str(row["Equation"]))
        return Problem(
            question=str(row["question_concat"]),
            answer=answer,
            solution=f"{equation} = {answer}\n#### {answer}",
        )

    return _problems(config, ("question_concat", "Equation", "Answer"), problem)


def gsm8k(config: HubTaskConfig) -> tuple[list[Problem], list[Problem]]:
    """GSM8K (Cobbe et al. 2021, 2110.14168): ``question``, ``answer``; the final answer stands after ``####``."""

    def problem(row: Row) -> Problem:
        solution = str(row["answer"])
        return Problem(question=str(row["question"]), answer=solution.rsplit("####", 1)[-1].strip(), solution=solution)

    return _problems(config, ("question", "answer"), problem)


def _problems(
    config: HubTaskConfig, columns: tuple[str, ...], problem: Callable[[Row], Problem]
) -> tuple[list[Problem], list[Problem]]:
    where = f"task.path={config.path}" if config.path is not None else f"task.hub={config.hub}"
    splits = []
    for split in SPLITS:
        rows = _local_rows(config.path, split) if config.path is not None else _hub_rows(config, split)
        if not rows:
            raise ConfigError(f"{where}: {split} has no rows; give at least one")
        for number, row in enumerate(rows, start=1):
            missing = [column for column in columns if row.get(column) is None]
            if missing:
                raise ConfigError(
                    f"{where}: {split} row {number} lacks {', '.join(missing)}; "
                    f"task={config.name} needs the columns {', '.join(columns)}"
                )
        splits.append([problem(row) for row in rows])
    return splits[0], splits[1]


def _local_rows(path: str, split: str) -> list[Row]:
    file = Path(path) / f"{split}.jsonl"
    if not file.is_file():
        raise ConfigError(f"task.path={path}: there is no {file.name}; give a folder with train.jsonl and test.jsonl")
    rows = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON strings may hold other separators
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"task.path={path}: {file.name} cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"task.path={path}: {file.name} line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ConfigError(f"task.path={path}: {file.name} line {number} is not a JSON object")
        rows.append(row)
    return rows


def _hub_rows(config: HubTaskConfig, split: str) -> list[Row]:
    from datasets import load_dataset  # only here: a local folder must not need it

    try:
        return list(load_dataset(config.hub, config.hub_config, split=split, revision=config.revision))
    except Exception as error:  # the hub's client raises a dozen kinds for "no such set" and "no network"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"task.hub={config.hub}: cannot be loaded: {reason}. Give a local folder with train.jsonl and "
            "test.jsonl as task.path=DIR"
        ) from error

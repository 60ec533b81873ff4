"""Check this machine, GPU or CPU, and write one file that can be sent: ``python -m rlsparse.selfcheck``.

Each fast path is compared with its plain reference. Short runs are interrupted and resumed, run out of memory, and are
shared by several processes. The rollout engines are timed, and a training step is timed against TRL. docs/gpu.md
explains each part and its bounds. The exit code is 1 if a part has failed.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlsparse.config.schema import ConfigError
from rlsparse.execution.self_check.findings import EMBEDDED, FAILED, Finding, Part, PartResult, Setting, one_line
from rlsparse.execution.self_check.report import Report
from rlsparse.runtime.logs import log_to_terminal
from rlsparse.storage.atomic import write_whole
from rlsparse.storage.run_folder import path_argument
from rlsparse.storage.streams import command

# of all parts in their order; engines are last, since a vLLM server that starts there lives until this command ends
NAMES = ("environment", "paths", "resume", "memory", "ranks", "speed", "engines")
log = logging.getLogger(__name__)

# torch is imported inside functions, so that --help and a misspelt argument answer at once


def check(setting: Setting, parts: Mapping[str, Part], out: Path) -> Report:
    """Run the parts and return the report, which is written after each of them. A part that raises has failed.

    Args:
        parts: by name.
        out: the file of the report.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    from rlsparse.storage.summary import code
    from rlsparse.tracking.profiling import free_memory

    report = Report(setting, [], code())
    for name, part in parts.items():
        log.info("%s", name)
        report = replace(report, parts=[*report.parts, run_part(name, part, setting)])
        write_whole(out, report.text())
        free_memory(torch.device(setting.device))  # for the processes that the next part may start
    return report


def run_part(name: str, part: Part, setting: Setting) -> PartResult:
    """Return the findings of a part, and its error if it raises one."""
    start, findings, error = time.perf_counter(), list[Finding](), ""
    try:
        findings.extend(part(setting))
    except Exception as raised:
        error = one_line(raised)
    return PartResult(name, time.perf_counter() - start, findings, error)


@command()
def main() -> None:
    """Run the command line."""
    options = _arguments()
    log_to_terminal()
    from rlsparse.execution.self_check.parts import PARTS
    from rlsparse.runtime.devices import resolve_device
    from rlsparse.runtime.preload import quieten

    quieten()
    try:
        device = resolve_device(options.device).type
    except ConfigError as error:
        sys.exit(f"error: {error}")
    model = options.model if options.model in EMBEDDED else str(path_argument(options.model))
    with tempfile.TemporaryDirectory(prefix="rlsparse-selfcheck-") as scratch:
        setting = Setting(device, model, options.quick, Path(scratch))
        report = check(setting, {name: PARTS[name] for name in NAMES if name in options.only}, options.out)
    print(report.table())
    print(f"report: {options.out}")
    sys.exit(report.verdict == FAILED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rlsparse.selfcheck", description=__doc__)
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one"
    )
    parser.add_argument("--model", default=EMBEDDED[0], help="folder or hub id (default: the embedded model)")
    parser.add_argument(
        "--out", type=path_argument, default=Path("selfcheck.json"), help="the report (default: selfcheck.json)"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="PART", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="fewer cases and fewer repetitions")
    options = parser.parse_args()
    if not options.out.absolute().parent.is_dir():
        sys.exit(f"error: --out {options.out}: there is no folder {options.out.parent}")
    return options

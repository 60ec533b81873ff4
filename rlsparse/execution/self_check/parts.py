"""The parts of a self-check by name."""

from collections.abc import Mapping

from rlsparse.execution.self_check.engines import engines
from rlsparse.execution.self_check.environment import environment
from rlsparse.execution.self_check.findings import Part
from rlsparse.execution.self_check.memory import memory
from rlsparse.execution.self_check.paths import paths
from rlsparse.execution.self_check.ranks import ranks
from rlsparse.execution.self_check.resume import resume
from rlsparse.execution.self_check.speed import speed

PARTS: Mapping[str, Part] = {
    "environment": environment,
    "paths": paths,
    "resume": resume,
    "memory": memory,
    "ranks": ranks,
    "speed": speed,
    "engines": engines,
}

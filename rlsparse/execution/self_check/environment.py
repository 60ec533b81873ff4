"""The versions of the software, and the hardware."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from rlsparse.execution.self_check.findings import Figure, Finding, Setting
from rlsparse.runtime.machine import usable_cpus

OPTIONAL = ("trl", "vllm", "bitsandbytes", "triton")
GIB = 2**30


def environment(setting: Setting) -> Iterator[Finding]:
    """Yield what the other parts run on. The versions of the other packages are at the top of the report."""
    yield Finding.of("software", *_software())
    yield Finding.of("CPU", *_cpu())
    if setting.device == "cuda":
        yield from _gpus()
    else:
        yield Finding.skipped("GPU", f"device={setting.device}")


def _software() -> Iterator[Figure]:
    yield Figure("system", f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".strip(", "))
    yield Figure("build of torch", torch.__version__)
    yield Figure("CUDA of torch", torch.version.cuda or "none")
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    yield Figure("cuDNN", str(cudnn or "none"))
    yield Figure("driver", _driver() or "none")
    yield Figure("float32 matrix products", torch.get_float32_matmul_precision())
    for package in OPTIONAL:
        yield Figure(package, _version(package) or "none")


def _cpu() -> Iterator[Figure]:
    yield Figure("model", cpu_model())
    yield Figure("CPUs that this process may use", usable_cpus())
    yield Figure("threads of torch", torch.get_num_threads())
    with suppress(ValueError, OSError, AttributeError):
        yield Figure("memory", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, "GiB")


def _gpus() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, _ = torch.cuda.mem_get_info(number)
        yield Finding.of(
            f"GPU {number}",
            Figure("name", about.name),
            Figure("compute capability", f"{about.major}.{about.minor}"),
            Figure("memory", about.total_memory / GIB, "GiB"),
            Figure("free memory", free / GIB, "GiB"),
        )


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(told.split()), None)


def cpu_model() -> str:
    """Return the name of the processor, on x86 with its family and model (a virtual machine may shorten the name)."""
    with suppress(OSError):
        if name := name_in_cpuinfo(Path("/proc/cpuinfo").read_text()):
            return name
    return platform.processor() or platform.machine()


def name_in_cpuinfo(text: str) -> str | None:
    """Return the name of the first processor in this text of /proc/cpuinfo; None where it has none (64-bit ARM)."""
    about = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    name = about.get("model name")
    return f"{name} (family {about['cpu family']}, model {about['model']})" if "cpu family" in about else name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""What a result depends on beside its options: versions, and the processor."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import rltemp

PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


def versions() -> dict[str, str]:
    """The versions that a result depends on: those of Python, of rltemp and of the packages that are installed."""
    found = {"python": platform.python_version(), "rltemp": rltemp.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Name of the processor, as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

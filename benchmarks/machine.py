"""Processor, date and versions of a measurement."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def circumstances() -> dict[str, str]:
    """Date and hardware of a record."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{processor()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "numba", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

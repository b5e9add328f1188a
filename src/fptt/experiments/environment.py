"""Where a run took place: device, versions, commit, memory."""

import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the figures of a run depend on besides its config, and the memory it took."""
    return {
        "peak_memory_bytes": peak_memory(device),
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fptt": version("fptt"),
        "commit": commit(),
    }


def prepare_process(threads: int | None) -> None:
    """Set the CPU threads, and flush denormal numbers, which are slow: for training and evaluation alike."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def peak_memory(device: torch.device) -> int:
    """Return the largest memory so far: allocated on the device, or resident in this process, Python included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor()})"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of the source, with `-dirty` if it was changed since; None outside a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

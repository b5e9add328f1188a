"""This machine: device, versions, commit, threads, time and memory."""

import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fptt.experiments.process.errors import UserError

if sys.platform != "win32":
    import resource


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the metrics of a run depend on besides its config; to be called when the run starts."""
    return {
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),  # which is a class of its own, that no checkpoint may hold
        "fptt": version("fptt"),
        "commit": commit(),
    }


def prepare_process(threads: int | None, *, deterministic: bool = False) -> None:
    """Set the CPU threads, and flush denormal numbers, which are slow: for training and evaluation alike.

    Args:
        threads: CPU threads; all cores if None.
        deterministic: Allow only operations that give the same bits every time.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.backends.cudnn.benchmark = False  # it would choose kernels by their time
    torch.use_deterministic_algorithms(deterministic)


def check_devices(accelerator: str, devices: int) -> None:
    """Raise UserError if more processes are asked for than can have a core of their own; Fabric counts the GPUs."""
    cores = os.cpu_count() or 1
    if accelerator == "cpu" and devices > max(cores, 2):  # two are for trying it out on one core
        raise UserError(f"devices must be at most the {cores} cores of this machine, got {devices}.")


class Clock:
    """Seconds of training: CPU time with one thread, which other programs do not disturb; wall time otherwise."""

    def __init__(self, device: torch.device, *, is_alone: bool = True) -> None:
        # CPU time adds up over threads, and leaves out the waiting for a device or another process
        is_one = is_alone and device.type == "cpu" and torch.get_num_threads() == 1
        self.kind = "cpu" if is_one else "wall"
        self.device = device

    def now(self) -> float:
        """Return the time, once the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.kind == "cpu" else time.perf_counter()


class MemoryMeter:
    """Memory of training: the peak while it runs, and how far that is above the memory before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self.before = self._current()

    def start(self) -> None:
        """Start measuring: earlier peaks do not count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # not there, or not to be written, as in a sandbox: the peak is that of the process
                RESET_PEAK.write_text("5", encoding="utf-8")

    def stop(self) -> None:
        """Note the peak so far."""
        self.peak = max(self.peak, self._peak())

    def sizes(self) -> dict[str, int]:
        """Return the peak of the process (or device), and that of training alone, in bytes."""
        return {"peak_memory_bytes": self.peak, "training_memory_bytes": max(self.peak - self.before, 0)}

    def _current(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _status_bytes("VmRSS") or self._peak()

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status_bytes("VmHWM") or _largest_size()


RESET_PEAK = Path("/proc/self/clear_refs")  # writing 5 resets VmHWM, Linux ≥ 4.0


def _status_bytes(name: str) -> int:
    """Return a size of this process from /proc, in bytes; 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


def _largest_size() -> int:
    """Return the largest size that this process ever had, in bytes; 0 where the system does not say, as on Windows."""
    if sys.platform == "win32":
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes on macOS, else kibibytes


def describe(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor()})"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of the source, with `-dirty` if it was changed since; None outside a checkout."""
    root = Path(__file__).parents[4]
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
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CACHES = {
    "HF_HOME": "huggingface",
    "HF_DATASETS_CACHE": "huggingface/datasets",
    "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis",
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "",
}
"""Where libraries keep files of their own between programs; not TORCHINDUCTOR_CACHE_DIR, whose steps take minutes."""

# before any of these libraries is imported, and for all child processes; workers of xdist have those of their parent
if "PYTEST_XDIST_WORKER" not in os.environ:
    _caches = Path(tempfile.mkdtemp(prefix="fptt-tests-"))
    os.environ.update({name: str(_caches / folder) for name, folder in CACHES.items()})

import torch  # noqa: E402

from fptt._engine.compiled import compiler  # noqa: E402


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(_caches, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)  # which the command line sets for its process


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the traced graph of a step as it is, without the seconds that machine code takes to make."""
    monkeypatch.setattr(compiler, "_compile", lambda graph, _: graph)


@pytest.fixture(params=["traced", pytest.param("compiled", marks=[pytest.mark.slow, pytest.mark.machine_code])])
def both_ways(request: pytest.FixtureRequest) -> None:
    """Run a test with the traced graph and, among the slow tests, with machine code."""
    if request.param == "traced":
        request.getfixturevalue("interpreted")

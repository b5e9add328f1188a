import subprocess
from types import SimpleNamespace

import pytest

from fptt.experiments.studies import launcher
from tests.forks import Fork


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes of a study."""
    monkeypatch.setattr(launcher, "subprocess", SimpleNamespace(Popen=Fork, STDOUT=subprocess.STDOUT))

import pytest

from fptt.experiments.streams import stream
from tests.experiments.streams.stopped import STEPS_A_ROW


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STEPS_A_ROW", STEPS_A_ROW)

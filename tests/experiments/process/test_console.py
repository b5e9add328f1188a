"""What a terminal, and a file, show of a run: the epochs gone by stay, and the time left is told."""

import io

import pytest
from rich.console import Console

from fptt.experiments.process import console as consoles
from fptt.experiments.process.console import Bar, Lines


def test_the_epochs_gone_by_stay_on_a_terminal() -> None:
    written = io.StringIO()
    bar = Bar(Console(file=written, force_terminal=True, width=120))
    bar.epoch(0.25, "epoch 1  loss 2.000")
    bar.show(0.3, "epoch 1  loss 1.500")
    bar.epoch(0.5, "epoch 2  loss 1.000")
    bar.close()
    text = written.getvalue()
    assert any(" 25%  epoch 1  loss 2.000" in line for line in text.splitlines())
    assert any(" 50%  epoch 2  loss 1.000" in line for line in text.splitlines())
    assert "--:--" in text or "0:0" in text  # the time left, beside the bar


def test_lines_tell_the_time_left_from_where_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed at 40 % and is at 60 % after 100 s has 200 s left."""
    now = 1000.0
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now)
    written = io.StringIO()
    lines = Lines(Console(file=written, width=120))
    lines.show(0.4, "epoch 2")
    now = 1100.0
    lines.epoch(0.6, "epoch 3")
    now = 1300.0
    lines.epoch(1.0, "epoch 5")
    assert written.getvalue() == " 60%  epoch 3  3:20 left\n100%  epoch 5\n"

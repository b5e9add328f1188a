import os
import signal
from collections.abc import Iterator

import pytest

from fptt.experiments.process.signals import Interruption

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no hangup here")


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_hangup_ends_a_run_after_the_batch_however_often_it_is_told() -> None:
    signal.signal(signal.SIGHUP, lambda *_: pytest.fail("not handled"))
    try:
        with Interruption() as interruption:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)  # while the folder is completed
    except KeyboardInterrupt:
        pytest.fail("ended at once")
    assert interruption.is_asked


def test_an_ignored_hangup_stays_ignored() -> None:
    """As `nohup` asks."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not interruption.is_asked


def test_the_handler_before_is_restored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Interruption():
        pass
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL

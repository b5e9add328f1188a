import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import fptt


def wait_for(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fptt.prefetch"]


def counting(pulled: list[int], stop: int = 10**9) -> Iterator[int]:
    for number in range(stop):
        pulled.append(number)
        yield number


@pytest.mark.parametrize("size", [1, 2, 7])
def test_items_come_in_order_and_no_more_than_asked_are_pulled_ahead(size: int) -> None:
    pulled: list[int] = []
    ahead = fptt.prefetch(counting(pulled), size)
    for number in range(4):
        assert wait_for(lambda count=number + size: len(pulled) == count)
        time.sleep(0.01)
        assert len(pulled) == number + size
        assert next(ahead) == number
    ahead.close()
    assert wait_for(lambda: not threads())


def test_the_thread_ends_with_its_source() -> None:
    ahead = fptt.prefetch(counting([], 5))
    assert list(ahead) == list(range(5))
    assert wait_for(lambda: not threads())
    assert next(ahead, "over") == "over"


def test_the_thread_ends_when_the_consumer_closes_or_forgets() -> None:
    ahead = fptt.prefetch(counting([]))
    next(ahead)
    ahead.close()
    assert wait_for(lambda: not threads())
    assert next(ahead, "over") == "over"
    for number in fptt.prefetch(counting([])):
        if number == 3:
            break
    gc.collect()
    assert wait_for(lambda: not threads())


def test_a_stream_that_is_left_ends_the_thread() -> None:
    model = nn.GRU(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = fptt.TBPTT(model, optimizer, fptt.SequenceLoss(functional.mse_loss), num_chunks=1)
    chunks = ((torch.zeros(3, 1, 2), torch.zeros(3, 1, 3)) for _ in counting([]))
    for _ in method.train_stream(fptt.prefetch(chunks)):
        if method.updates == 3:
            break
    gc.collect()
    assert wait_for(lambda: not threads())


LEFT_OPEN = """
import torch, fptt
def products():
    while True:
        yield torch.randn(300, 300) @ torch.randn(300, 300)
ahead = fptt.prefetch(products(), size=1000)
next(ahead)
"""


def test_a_process_ends_beside_a_thread_that_pulls() -> None:
    """Python stops threads anywhere; in the middle of an operation of torch the whole process would abort."""
    ended = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_consumer_that_waits_is_let_go_by_close() -> None:
    gate = threading.Event()
    ahead = fptt.prefetch(iter(gate.wait, True))
    waiting = threading.Thread(target=lambda: next(ahead, None))
    waiting.start()
    ahead.close()
    waiting.join(10)
    assert not waiting.is_alive()
    gate.set()
    assert wait_for(lambda: not threads())


def test_an_error_comes_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("disk gone")

    ahead = fptt.prefetch(source(), size=5)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone") as caught:
        next(ahead)
    assert "source" in [entry.name for entry in caught.traceback]
    assert next(ahead, "over") == "over"
    assert wait_for(lambda: not threads())


class Counted:
    """A source with a position, that fails at 4."""

    def __init__(self, fails_in: str = "") -> None:
        self.position, self.fails_in = 0, fails_in

    def __iter__(self) -> Iterator[int]:
        while self.position < 6:
            if self.fails_in == "iter" and self.position == 4:
                raise OSError("unreadable")
            self.position += 1
            yield self.position - 1

    def state_dict(self) -> dict[str, int]:
        if self.fails_in == "state" and self.position == 4:
            raise OSError("no position")
        return {"position": self.position}


def test_the_position_is_that_of_the_items_taken() -> None:
    source = Counted()
    ahead = fptt.prefetch(source, size=3)
    for taken in range(7):
        assert ahead.state_dict() == {"position": min(taken, 6)}
        pulled = min(taken + 3, 6)
        assert wait_for(lambda count=pulled: source.position == count)
        next(ahead, None)
    with pytest.raises(TypeError, match=r"source must have a state_dict\(\)"):
        fptt.prefetch(range(3)).state_dict()


def test_what_is_pulled_ahead_may_be_pulled_ahead_again() -> None:
    assert list(fptt.prefetch(fptt.prefetch(range(5)))) == list(range(5))
    twice = fptt.prefetch(fptt.prefetch(Counted(), size=1), size=1)
    assert [next(twice), next(twice)] == [0, 1]
    assert twice.state_dict() == {"position": 2}


class Careless(Counted):
    """Returns its own dict, which goes on changing."""

    def __init__(self) -> None:
        super().__init__()
        self.own: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        self.own["position"] = self.position
        return self.own


def test_a_position_does_not_move_on_with_its_source() -> None:
    source = Careless()
    ahead = fptt.prefetch(source, size=3)
    assert wait_for(lambda: source.position == 3)
    assert ahead.state_dict() == {"position": 0}
    next(ahead)
    assert wait_for(lambda: source.position == 4)
    assert ahead.state_dict() == {"position": 1}
    ahead.close()


@pytest.mark.parametrize(("fails_in", "taken"), [("iter", 4), ("state", 3)])
def test_the_position_before_an_error_is_kept(fails_in: str, taken: int) -> None:
    ahead = fptt.prefetch(Counted(fails_in))
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    with pytest.raises(OSError, match=r"unreadable|no position"):
        next(ahead)
    assert ahead.state_dict() == {"position": taken}


def test_slips_are_named() -> None:
    slips: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((7,), TypeError, "source must be iterable, got a int"),
        (([], 0), ValueError, "size must be a positive integer, got 0"),
    ]
    for arguments, error, message in slips:
        with pytest.raises(error, match=message):
            fptt.prefetch(*arguments)
    assert not threads()

import io
import random
from typing import Any

import numpy as np
import pytest
import torch

from fptt._random_state import RandomState


def draw() -> tuple[Any, ...]:
    return torch.rand(()).item(), random.random(), np.random.rand()


def saved_and_loaded(state: RandomState) -> RandomState:
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return RandomState.from_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("way", [lambda state: state, saved_and_loaded])
def test_restored_generators_draw_the_same_numbers(way: Any) -> None:
    random.gauss(0, 1)  # leaves a number for the next call: part of the state
    state = way(RandomState.capture("cpu", include_others=True))
    first = (*draw(), random.gauss(0, 1))
    state.restore()
    assert (*draw(), random.gauss(0, 1)) == first


def test_only_torch_is_captured_unless_others_are_asked_for() -> None:
    state = RandomState.capture()
    assert (state.python, state.numpy) == (None, None)
    first = draw()
    state.restore()
    second = draw()
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert second[2] != first[2]


def test_restoring_twice_draws_the_same_numbers_again() -> None:
    state = RandomState.capture(include_others=True)
    first = draw()
    for _ in range(2):
        state.restore()
        assert draw() == first


@pytest.mark.parametrize("fails", [False, True])
def test_a_replay_leaves_no_trace(fails: bool) -> None:
    state = RandomState.capture(include_others=True)
    first, _ = draw(), draw()  # two, so that the replay of one does not end where it began
    now = RandomState.capture(include_others=True)
    following = draw()
    now.restore()
    try:
        with state.replay():
            assert draw() == first
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert draw() == following


@pytest.mark.parametrize("number", [0, 1, 2])
def test_states_are_equal_until_one_generator_is_drawn_from(number: int) -> None:
    state = RandomState.capture(include_others=True)
    assert state.equals(RandomState.capture(include_others=True))
    (lambda: torch.rand(()), random.random, np.random.rand)[number]()
    assert not state.equals(RandomState.capture(include_others=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_restored_as_well() -> None:
    state = RandomState.capture("cuda:0")
    first = torch.rand(3, device="cuda:0").tolist()
    loaded = RandomState.from_state_dict(state.state_dict(), "cuda:0")
    assert not state.equals(RandomState.capture("cuda:0"))
    for way in (state, loaded):
        way.restore()
        assert torch.rand(3, device="cuda:0").tolist() == first


def test_devices_without_a_saved_state_keep_their_generator() -> None:
    assert RandomState.from_state_dict(RandomState.capture("cpu").state_dict(), "cuda:0").devices == {}

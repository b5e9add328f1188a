import re
from collections import OrderedDict, UserDict, defaultdict, deque
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fptt
from fptt._sequence import (
    check_layout,
    copied_nest,
    flatten_state,
    initial_state,
    map_state,
    refill_state,
    state_batch_dim,
)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 784, 1000])
def test_chunks_cover_the_sequence_and_none_is_tiny(length: int) -> None:
    for num_chunks in {1, 2, 3, 10, 28, length} & set(range(1, length + 1)):
        lengths = fptt.chunk_lengths(length, num_chunks=num_chunks)
        assert len(lengths) == num_chunks
        assert sum(lengths) == length
        assert max(lengths) - min(lengths) <= 1
    for longest in (1, 3, 10, length, length + 5):
        lengths = fptt.chunk_lengths(length, chunk_length=longest)
        assert sum(lengths) == length
        assert max(lengths) <= longest
        assert max(lengths) - min(lengths) <= 1


def test_the_remainder_of_mnist_is_spread() -> None:
    assert fptt.chunk_lengths(784, num_chunks=10) == [79] * 4 + [78] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of num_chunks and chunk_length"),
        ({"num_chunks": 2, "chunk_length": 3}, "exactly one of num_chunks and chunk_length"),
        ({"num_chunks": 11}, "num_chunks must be at most the sequence length 10, got 11"),
        ({"num_chunks": 0}, "num_chunks must be a positive integer, got 0"),
        ({"chunk_length": -1}, "chunk_length must be a positive integer, got -1"),
        ({"num_chunks": 2.5}, "num_chunks must be a positive integer, got 2.5"),
        ({"num_chunks": True}, "num_chunks must be a positive integer"),
    ],
)
def test_bad_chunking_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fptt.chunk_lengths(10, **arguments)
    with pytest.raises(ValueError, match="length"):
        fptt.chunk_lengths(0, num_chunks=1)


def test_split_yields_views_of_all_tensors_in_order() -> None:
    inputs, targets = torch.arange(10.0).reshape(10, 1), torch.arange(10).reshape(10, 1)
    chunks = list(fptt.split_sequence(inputs, targets, num_chunks=3))
    assert [x[:, 0].tolist() for x, _ in chunks] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert torch.equal(torch.cat([y for _, y in chunks]), targets)
    assert chunks[0][0].data_ptr() == inputs.data_ptr()
    batch_first = list(fptt.split_sequence(inputs.T, chunk_length=4, dim=1))
    assert [x.shape[1] for (x,) in batch_first] == [4, 3, 3]
    with pytest.raises(ValueError, match=r"\[10, 9\]"):
        fptt.split_sequence(inputs, targets[:9], num_chunks=2)
    with pytest.raises(ValueError, match="tensors"):
        fptt.split_sequence(num_chunks=2)


@pytest.mark.parametrize(
    ("other", "dim", "kind", "message"),
    [
        ([1, 2, 3], 0, TypeError, r"tensors\[1\] must be a tensor, got a list"),
        (np.zeros((4, 3)), 0, TypeError, r"tensors\[1\] must be a tensor, got a ndarray"),
        (torch.zeros(4, 3), 2, ValueError, r"tensors\[1\] must have dim 2, the time, got shape \(4, 3\)"),
        (torch.zeros(4, 3), -3, ValueError, r"tensors\[1\] must have dim -3, the time, got shape \(4, 3\)"),
        (torch.tensor(1.0), 0, ValueError, r"tensors\[1\] must have dim 0, the time, got shape \(\)"),
    ],
)
def test_what_has_no_time_to_split_is_named(other: Any, dim: int, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fptt.split_sequence(torch.zeros(4, 3, 4), other, num_chunks=2, dim=dim)


class Nested(NamedTuple):
    h: Tensor
    rest: dict[str, list[Tensor]]


def nested(value: Tensor) -> Nested:
    return Nested(value, {"a": [value * 2, value * 3]})


def test_detach_keeps_the_nest_and_cuts_every_tensor() -> None:
    state = nested(torch.ones(2, 3, requires_grad=True))
    cut = fptt.detach_state(state)
    assert isinstance(cut, Nested)
    assert isinstance(cut.rest["a"], list)
    assert not cut.h.requires_grad
    assert not cut.rest["a"][1].requires_grad
    assert torch.equal(cut.rest["a"][1], torch.full((2, 3), 3.0))
    assert fptt.detach_state(None) is None
    with pytest.raises(TypeError, match="state must be a nest of tensors"):
        fptt.detach_state((torch.ones(1), "h"))


class Turned(nn.Module):
    batch_first, state_batch_dim = True, 0

    def initial_state(self, inputs: Tensor) -> Tensor:
        return inputs[:, 0]


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, lambda model: torch.compile(nn.DataParallel(model))])
def test_what_a_model_says_of_itself_is_found_within_the_wrappers_of_torch(wrap: Any) -> None:
    model, inputs = wrap(Turned()), torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="batch_first must be that of the model, True, got False"):
        check_layout(model, batch_first=False)
    assert state_batch_dim(model) == 0
    assert torch.equal(initial_state(model, inputs), inputs[:, 0])
    assert state_batch_dim(wrap(nn.Linear(1, 1))) == -2


def test_what_is_said_of_a_wrapper_comes_before_what_the_model_in_it_says() -> None:
    model = nn.DataParallel(Turned())
    vars(model)["state_batch_dim"] = 1
    assert state_batch_dim(model) == 1


def test_reset_starts_single_samples_again() -> None:
    state = fptt.nn.LSTMState(torch.ones(2, 3, 4), 2 * torch.ones(2, 3, 4))
    mask = torch.tensor([False, True, False])
    fresh = fptt.reset_state(state, mask)
    assert isinstance(fresh, fptt.nn.LSTMState)
    assert fresh.c[:, :, 0].tolist() == [[2, 0, 2]] * 2
    assert state.c.min() == 2
    initial = fptt.nn.LSTMState(torch.full((2, 1, 4), 7.0), torch.full((2, 1, 4), 8.0))
    assert fptt.reset_state(state, mask, initial).c[0, :, 0].tolist() == [2, 8, 2]
    assert fptt.reset_state(torch.ones(3, 4), mask, torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(ValueError, match="initial must have 2 tensors"):
        fptt.reset_state(state, mask, torch.zeros(2, 1, 4))
    assert fptt.reset_state(torch.ones(3, 4, 5, 5), mask, batch_dim=0).sum() == 200
    with pytest.raises(ValueError, match=r"3 samples in dim -2 .*got 2"):
        fptt.reset_state(state, mask[:2])
    with pytest.raises(ValueError, match="is_first must be a boolean"):
        fptt.reset_state(state, mask.float())
    for shape in ((5, 7), (4, 3, 2)):  # neither the state's shape, nor may the state take that of what it starts from
        with pytest.raises(
            ValueError, match=re.escape(f"initial must have shape (3, 2) or one that expands to it, got {shape}")
        ):
            fptt.reset_state(torch.ones(3, 2), mask, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"state must have dim -2, the batch, got a tensor of shape \(3,\)"):
        fptt.reset_state(torch.ones(3), mask)
    with pytest.raises(TypeError, match="is_first must be a tensor, got a list"):
        fptt.reset_state(torch.ones(3, 2), [True, False, True])  # pyright: ignore[reportArgumentType]


def test_the_last_output_is_that_at_the_last_real_step() -> None:
    outputs = torch.arange(24.0).reshape(4, 3, 2)
    mask = fptt.length_mask([4, 1, 2], num_steps=4)
    expected = torch.stack([outputs[3, 0], outputs[0, 1], outputs[1, 2]])
    assert torch.equal(fptt.last_output(outputs, mask), expected)
    turned = fptt.last_output(outputs.transpose(0, 1), mask.T, batch_first=True)
    assert torch.equal(turned, expected)
    assert torch.equal(fptt.last_output(outputs), outputs[3])
    mask[0, 2] = False  # a gap in front does not matter
    assert torch.equal(fptt.last_output(outputs, mask), expected)
    loss = fptt.TerminalLoss(torch.nn.functional.mse_loss)
    (part,) = loss.split(torch.zeros(3, 2), mask, [4], 3)
    torch.testing.assert_close(loss(outputs, part), expected.square().mean())
    for bad, message in (
        (mask[:, :2], r"mask must be boolean with T, B = \(4, 3\), got torch.bool of \(4, 2\)"),
        (mask.float(), "mask must be boolean"),
        (torch.zeros_like(mask), "at least one real step for every sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            fptt.last_output(outputs, bad)
    with pytest.raises(ValueError, match=r"outputs must have shape \(T, B, …\), got \(4,\)"):
        fptt.last_output(torch.zeros(4))
    with pytest.raises(TypeError, match="outputs must be a tensor, got a list"):
        fptt.last_output([outputs])  # pyright: ignore[reportArgumentType]


ONE, TWO = torch.ones(1), torch.full((2,), 2.0)


@pytest.mark.parametrize(
    "state",
    [
        None,
        ONE,
        (ONE, TWO),
        (),
        [ONE, [TWO, None]],
        fptt.nn.LSTMState(ONE, TWO),
        Nested(ONE, {"b": [TWO], "a": [ONE]}),
        OrderedDict(z=ONE, a=(TWO, None)),
        defaultdict(list, z=TWO, a=[ONE]),
        deque([ONE, TWO]),
    ],
    ids=lambda state: type(state).__name__,
)
def test_nests_keep_their_types_and_their_order(state: Any) -> None:
    doubled = map_state(lambda tensor: 2 * tensor, state)
    assert type(doubled) is type(state)
    tensors = flatten_state(state)
    assert [tensor.tolist() for tensor in flatten_state(doubled)] == [(2 * tensor).tolist() for tensor in tensors]
    refilled = refill_state(state, [tensor.double() for tensor in tensors])
    assert str(refilled) == str(state)
    assert {tensor.dtype for tensor in flatten_state(refilled)} <= {torch.float32}


def test_a_dict_is_in_the_order_of_its_keys_as_they_were_put_in() -> None:
    assert [len(tensor) for tensor in flatten_state({"z": TWO, "a": ONE})] == [2, 1]


@pytest.mark.parametrize(
    "state",
    [3, "h", (ONE, 2.0), UserDict(a=ONE), {"a": [ONE, object()]}],
    ids=["int", "str", "float", "UserDict", "object"],
)
def test_what_is_no_nest_of_tensors_is_named(state: Any) -> None:
    with pytest.raises(
        TypeError, match=r"state must be a nest of tensors .* got a (int|str|float|UserDict|object) in it"
    ):
        flatten_state(state)
    with pytest.raises(TypeError, match="state must be a nest of tensors"):
        fptt.detach_state(state)


def test_a_copied_nest_is_one_that_can_be_written_into() -> None:
    inner = [ONE]
    copied = copied_nest((TWO, inner))
    assert copied[0] is TWO
    copied[1][0] = TWO
    assert inner[0] is ONE

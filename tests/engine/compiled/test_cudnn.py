"""The operator by which a compiled step calls cuDNN, here with plain cells in the place of cuDNN."""

# ruff: noqa: PLR0917  # as the operator has it

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt.nn import cells, cudnn, models
from tests.engine.compiled.agreement import CELLS, assert_equal_memory, batch, make_model, make_pair, train_both

CALLS: list[int] = []
"""Time steps of each call of the operator."""

LAYERS = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}


def plain(
    inputs: Tensor, flat: Tensor, hidden: Tensor, memory: Tensor | None, num_gates: int
) -> tuple[Tensor, Tensor, Tensor]:
    kind: Any = LAYERS[num_gates]
    layer = kind(inputs.shape[-1], hidden.shape[-1], dtype=inputs.dtype)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    for name, weight in zip(names, cudnn._split(flat, inputs.shape[-1], hidden.shape[-1], num_gates), strict=True):
        delattr(layer, name)
        setattr(layer, name, weight)
    states = [hidden] if memory is None else [hidden, memory]
    outputs, final = cells.run_layers(layer, inputs, states, cells.run_steps)
    return outputs, final[0], inputs.new_empty(0) if memory is None else final[1]


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    CALLS.append(len(arguments[0]))
    return *plain(*arguments[:-1]), torch.zeros(7, dtype=torch.uint8)


def backward(
    inputs: Tensor,
    flat: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    outputs: Tensor,
    reserve: Tensor,
    to_outputs: Tensor,
    to_hidden: Tensor,
    to_memory: Tensor | None,
    num_gates: int,
) -> tuple[Tensor, ...]:
    """Run in a thread of its own: an operator's insides are out of autograd's sight."""
    assert len(reserve) == 7
    tensors, towards = (inputs, flat, hidden, memory), (to_outputs, to_hidden, to_memory)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(differentiated, tensors, outputs, towards, num_gates).result()


def differentiated(
    tensors: tuple[Tensor | None, ...], outputs: Tensor, towards: tuple[Tensor | None, ...], num_gates: int
) -> tuple[Tensor, ...]:
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    given = [leaf for leaf in leaves if leaf is not None]
    arguments: list[Any] = [*leaves, num_gates]
    results = plain(*arguments)[: len(given) - 1]
    torch.testing.assert_close(results[0].detach(), outputs.detach(), rtol=1e-12, atol=1e-12)
    from_inputs, from_flat, from_hidden, *rest = torch.autograd.grad(results, given, towards[: len(results)])
    return from_inputs, from_flat, from_hidden, *(rest or [from_inputs.new_empty(0)])


# on processors the operator has no kernels of its own
cudnn._layer.register_kernel("cpu")(forward)
cudnn._backward.register_kernel("cpu")(backward)


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setattr(cells, "suits_cudnn", lambda inputs: len(inputs) > 1)


@pytest.mark.usefixtures("both_ways", "float64", "_stand_in")
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_with_whole_layers_is_the_eager_one(cell: str) -> None:
    methods = make_pair(make_model(cell, num_layers=2), "adam", max_norm=0.5, alpha=0.3)
    for size in (3, 2, 3):
        train_both(methods, *batch(size=size))
    assert_equal_memory(list(methods), 1e-10)
    assert set(CALLS) == {2}


@pytest.mark.parametrize(("cell", "num_gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_gradients_of_a_layer(cell: str, num_gates: int) -> None:
    layer = CELLS[cell].layer(2, 3, dtype=torch.float64)
    weights = [weight.detach().requires_grad_() for weight in layer.parameters()]
    inputs = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(1 + (cell == "lstm")))

    def run(inputs: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        outputs, final = cudnn.run_cudnn(inputs, list(rest[:4]), rest[4:], num_gates)
        return outputs, *final

    assert torch.autograd.gradcheck(run, (inputs, *weights, *state))


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(("kernel", "calls"), [("fused", [4]), ("plain", [])])
def test_a_layer_written_out_stays_so(kernel: Any, calls: list[int]) -> None:
    with models.plain_cells():
        CELLS["lstm"](2, 3, kernel=kernel)(torch.zeros(4, 1, 2))
    assert calls == CALLS


def test_layers_on_the_processor_are_none_for_cudnn() -> None:
    assert not cudnn.suits_cudnn(torch.zeros(4, 1, 2))

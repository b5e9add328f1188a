"""Staggered lanes in the compiled engine: equal to the eager one, by one compiled step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from tests.engine.compiled.agreement import assert_equal_memory, assert_equal_results, make_pair

D, H, C = 2, 5, 4


class Learned(nn.Module):
    """An LSTM cell that begins at a state that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = fptt.nn.Unroll(nn.LSTMCell(D, H))
        self.readout = nn.Linear(H, C)
        self.first = nn.Parameter(torch.randn(2, H))

    def initial_state(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        h, c = (row.expand(inputs.shape[1], -1) for row in self.first)
        return h, c

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.cell(inputs, self.initial_state(inputs) if state is None else state)
        return self.readout(outputs), state


def batches(lengths: list[int], num_batches: int, *, per_step: bool) -> list[fptt.Batch]:
    shape = (max(lengths), len(lengths))
    mask = fptt.length_mask(lengths, max(lengths))
    return [
        fptt.Batch(torch.randn(*shape, D), torch.randint(C, shape if per_step else shape[1:]), mask)
        for _ in range(num_batches)
    ]


def number_of_steps(method: fptt.Method) -> int:
    return len(method._engine._entries)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("kind", ["label", "running", "steps"])
@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [9, 4, 6, 1]])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.usefixtures("float64", "interpreted")
def test_traced_step_equals_eager(kind: str, lengths: list[int], learned: bool) -> None:
    function = functional.cross_entropy
    terminal = fptt.TerminalLoss(function, "uniform" if kind == "label" else fptt.RunningPrior(C, 0.8))
    loss = fptt.SequenceLoss(function) if kind == "steps" else terminal.double()
    model = Learned() if learned else fptt.nn.LSTM(D, H, C)
    methods = make_pair(model, "adam", loss, num_chunks=3, alpha=0.3)
    given = batches(lengths, 4, per_step=kind == "steps")
    runs = [method.train_stream(fptt.stagger(given, num_chunks=3, per_step=kind == "steps")) for method in methods]
    for results in zip(*runs, strict=True):
        assert_equal_results(list(results), 1e-10)
    assert_equal_memory(methods, 1e-10)
    # with a mask where sequences are ragged, and in the last batch perhaps without; a model that has to be asked for
    # its first state gets None at the very beginning, which is another step
    assert number_of_steps(methods[1]) == 1 + learned


@pytest.mark.machine_code
@pytest.mark.usefixtures("float64")
def test_compiled_step_equals_eager_at_every_step() -> None:
    methods = make_pair(fptt.nn.LSTM(D, H, C, last_only=True), "adam", num_chunks=6, alpha=0.3)
    given = batches([6] * 3, 3, per_step=False)
    runs = [method.train_stream(fptt.stagger(given, num_chunks=6)) for method in methods]
    for results in zip(*runs, strict=True):
        assert_equal_results(list(results), 1e-10)
    assert_equal_memory(methods, 1e-10)
    assert number_of_steps(methods[1]) == 1


@pytest.mark.usefixtures("float64", "interpreted")
def test_flags_at_first_steps_of_chunks_are_followed() -> None:
    """Also those of a stream of one's own, where all lanes begin, or none does."""
    methods = make_pair(fptt.nn.GRU(D, H, C), "sgd", fptt.SequenceLoss(functional.cross_entropy), num_chunks=4)
    is_first = torch.zeros(8, 3, dtype=torch.bool)
    is_first[2], is_first[6, 1] = True, True
    chunk = fptt.Batch(torch.randn(8, 3, D), torch.randint(C, (8, 3)), None, is_first)
    for results in zip(*(method.train_stream([chunk, chunk]) for method in methods), strict=True):
        assert_equal_results(list(results), 1e-10)
    assert_equal_memory(methods, 1e-10)
    assert number_of_steps(methods[1]) == 1
    is_first[3, 0] = True
    with pytest.raises(ValueError, match="is_first must be True at first steps of chunks alone with engine='compiled'"):
        next(methods[1].train_stream([chunk]))

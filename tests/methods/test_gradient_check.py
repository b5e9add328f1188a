from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt


def check(model: nn.Module, **options: Any) -> fptt.GradientReport:
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    return fptt.check_gradient(model, torch.randn(9, 4, 3), torch.tensor([0, 1, 2, 0]), loss, num_chunks=3, **options)


@pytest.mark.parametrize("kind", [fptt.nn.LSTM, fptt.nn.GRU, fptt.nn.RNN])
def test_right_models_pass_and_are_left_as_they_were(kind: Any) -> None:
    model = kind(3, 5, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = check(model)
    assert report.passed
    assert len(report.chunks) == 3
    assert 0 < report.angle < 90
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert "correct" in str(report)


def test_one_chunk_is_bptt() -> None:
    model = fptt.nn.LSTM(3, 5, 3)
    loss = fptt.TerminalLoss(functional.cross_entropy)
    report = fptt.check_gradient(model, torch.randn(6, 2, 3), torch.tensor([0, 1]), loss, num_chunks=1)
    assert report.angle == pytest.approx(0, abs=1e-4)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (1 - x.tanh())  # the square is missing


class WrongCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor, state: Tensor | None) -> Tensor:
        state = x.new_zeros(len(x), 5) if state is None else state
        result = WrongBackward.apply(self.linear(torch.cat([x, state], dim=-1)))
        assert isinstance(result, Tensor)
        return result


def test_a_wrong_backward_is_found_and_named() -> None:
    report = check(fptt.nn.Recurrent(fptt.nn.Unroll(WrongCell()), nn.Linear(5, 3)))
    assert not report.passed
    assert report.chunks[0].worst_parameter.startswith("rnn.cell.linear")
    assert "WRONG" in str(report)


class LeakyState(nn.Module):
    """Keeps its state inside and never cuts it: the graph leaks from chunk to chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fptt.nn.GRU(3, 5, 3)
        self.hidden: Tensor | None = None

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        output, self.hidden = self.inner(inputs, self.hidden)
        return output, state


def test_a_hidden_state_that_leaks_is_found() -> None:
    report = check(LeakyState())
    assert not report.passed


class NoParameters(nn.Module):
    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        return inputs, state


def test_a_model_without_parameters_is_named() -> None:
    with pytest.raises(ValueError, match="trainable"):
        check(NoParameters())


def test_a_model_that_takes_no_state_is_named() -> None:
    with pytest.raises(TypeError, match=r"model must be called as model\(inputs, state\)"):
        check(nn.Linear(3, 3))


class Scaled(nn.Module):
    """A layer whose outputs are multiplied by a number; its state goes by, or not."""

    def __init__(self, factor: float = 1.0, *, forgets: bool = False) -> None:
        super().__init__()
        self.inner, self.factor, self.forgets = fptt.nn.GRU(3, 5, 3), factor, forgets

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs, state = self.inner(inputs, None if self.forgets else state)
        return outputs * self.factor, state


def test_a_gradient_of_zero_is_no_correct_one() -> None:
    report = check(Scaled(0.0))
    assert report.is_zero
    assert not report.passed
    assert "NO GRADIENT" in str(report)
    assert "correct" not in str(report)


@pytest.mark.parametrize("forgets", [True, False])
def test_an_unused_state_is_reported(forgets: bool) -> None:
    report = check(Scaled(forgets=forgets))
    assert report.state_is_unused == forgets
    assert ("UNUSED STATE" in str(report)) == forgets
    assert [chunk.uses_state for chunk in report.chunks] == [None, not forgets, not forgets]


class OfItsOwnType(nn.Module):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.inner, self.place = fptt.nn.GRU(3, 5, 3), place

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.place == "state" and state is None:
            state = torch.zeros(1, inputs.shape[1], 5)
        outputs, state = self.inner(inputs, state)
        return outputs.float() if self.place == "outputs" else outputs, state


@pytest.mark.parametrize("place", ["state", "outputs"])
def test_a_model_with_a_type_of_its_own_is_named(place: str) -> None:
    with pytest.raises(TypeError, match="model must run in float64"):
        check(OfItsOwnType(place))


def test_a_bidirectional_layer_is_refused() -> None:
    model = fptt.nn.Recurrent(nn.LSTM(3, 5, bidirectional=True), nn.Linear(10, 3))
    with pytest.raises(ValueError, match="forward in time, got the bidirectional LSTM 'rnn'"):
        check(model)

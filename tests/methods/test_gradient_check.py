import math
from functools import partial
from typing import Any

import numpy as np
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
    assert str(report.chunks[0].worst_parameter).startswith("rnn.cell.linear")
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


class WritesIntoItsState(nn.Module):
    """Puts the next state into the list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fptt.nn.GRU(3, 5, 3)

    def forward(self, inputs: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        state = [inputs.new_zeros(1, inputs.shape[1], 5)] if state is None else state
        outputs, state[0] = self.inner(inputs, state[0])
        return outputs, state


def test_a_state_that_is_written_into_is_used() -> None:
    report = check(WritesIntoItsState())
    assert report.passed
    assert not report.state_is_unused


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


def test_a_loss_with_a_type_of_its_own_is_named() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    arguments = fptt.nn.GRU(3, 5, 3), torch.randn(9, 3, 3), torch.arange(3)
    loss = fptt.TerminalLoss(partial(functional.cross_entropy, weight=weight))
    with pytest.raises(TypeError, match=r"loss must run in float64.* as in nn\.CrossEntropyLoss\(weight=…\), or"):
        fptt.check_gradient(*arguments, loss, num_chunks=3)
    assert fptt.check_gradient(*arguments, loss, num_chunks=3, dtype=torch.float32).passed
    loss = fptt.TerminalLoss(nn.CrossEntropyLoss(weight=weight))
    assert fptt.check_gradient(*arguments, loss, num_chunks=3).passed


def test_sparse_gradients_are_compared() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(10, 3, sparse=True), nn.GRU(3, 5)

        def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
            return self.layer(self.embedding(inputs), state)

    loss = fptt.TerminalLoss(functional.cross_entropy)
    assert fptt.check_gradient(Embedded(), torch.randint(10, (9, 4)), torch.arange(4), loss, num_chunks=3).passed


def test_a_bidirectional_layer_is_refused() -> None:
    model = fptt.nn.Recurrent(nn.LSTM(3, 5, bidirectional=True), nn.Linear(10, 3))
    with pytest.raises(ValueError, match="forward in time, got the bidirectional LSTM 'rnn'"):
        check(model)


# -- spikes ----------------------------------------------------------------------------------------------------------


class ForeignSpike(torch.autograd.Function):
    """A spike that `smooth_spikes` does not know."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return gradients[0] / (1 + u.square())


class ForeignNet(nn.Module):
    """Leaky integrate-and-fire neurons of another library; their graph leaks if `keeps`."""

    def __init__(self, threshold: float = 0.3, *, keeps: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 3)
        self.threshold, self.keeps, self.potential = threshold, keeps, None

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = self.potential if self.keeps else state
        potential = inputs.new_zeros(inputs.shape[1], 5) if state is None else state
        spikes: list[Tensor] = []
        for drive in self.first(inputs):
            potential = 0.8 * potential + drive
            spike = ForeignSpike.apply(potential - self.threshold)
            assert isinstance(spike, Tensor)
            potential = potential - self.threshold * spike
            spikes.append(spike)
        self.potential = potential if self.keeps else None
        return self.second(torch.stack(spikes)), potential


def test_differences_do_not_apply_to_spikes_of_another_origin() -> None:
    report = check(ForeignNet())
    assert report.passed
    assert report.not_applicable == "the loss jumps, as with spikes and a surrogate gradient"
    assert [chunk.difference_error for chunk in report.chunks] == [None] * 3
    assert report.spike_rate is None
    text = str(report)
    assert "correct to 1e-05 against autograd; differences not applicable: the loss jumps" in text
    assert text.splitlines()[1].count("—") == 2
    forced = check(ForeignNet(), differences=True)
    assert not forced.passed
    assert "WRONG" in str(forced)


def test_a_leak_is_found_where_differences_do_not_apply() -> None:
    report = check(ForeignNet(keeps=True))
    assert report.not_applicable
    assert not report.passed
    assert "WRONG to 1e-05 against autograd" in str(report)


class Silent(nn.Module):
    """A surrogate gradient, and a loss that does not hear the units."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ForeignNet(1e3)
        nn.init.constant_(self.inner.second.bias, 0).requires_grad_(False)
        self.inner.second.weight.requires_grad_(False)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.inner(inputs, state)


def test_a_loss_that_does_not_move_along_a_gradient_is_no_wrong_backward() -> None:
    report = check(Silent())
    assert report.not_applicable.startswith("the loss does not change along a gradient that is not zero")
    assert report.passed


def test_a_dead_net_is_reported() -> None:
    report = check(fptt.nn.spiking.LIF(3, 5, 3, threshold=1e3))
    assert report.is_dead
    assert report.spike_rate == 0
    assert "NO SPIKES: no unit spiked" in str(report)
    alive = check(fptt.nn.spiking.LIF(3, 5, 3))
    assert not alive.is_dead
    assert "NO SPIKES" not in str(alive)


def test_the_rate_is_that_of_all_units_and_steps() -> None:
    model = fptt.nn.spiking.LIF(3, 5, 3, num_layers=2).double()
    inputs = torch.randn(9, 4, 3, dtype=torch.float64)
    loss = fptt.TerminalLoss(functional.cross_entropy)
    report = fptt.check_gradient(model, inputs, torch.tensor([0, 1, 2, 0]), loss, num_chunks=3)
    expected = fptt.nn.spiking.firing_rate(model(inputs)[1]).mean().item()
    assert report.spike_rate == pytest.approx(expected)


class SlightlyWrong(fptt.nn.spiking.ArcTan):
    def derivative(self, u: Tensor) -> Tensor:
        return 1.01 * super().derivative(u)


def test_an_error_of_one_percent_in_a_surrogate_is_found() -> None:
    report = check(fptt.nn.spiking.LIF(3, 5, 3, surrogate=SlightlyWrong()))
    assert not report.passed
    assert not report.not_applicable
    assert max(chunk.difference_error or 0.0 for chunk in report.chunks) > 1e-4
    assert max(chunk.autograd_error for chunk in report.chunks) == 0
    assert check(fptt.nn.spiking.LIF(3, 5, 3, surrogate=fptt.nn.spiking.ArcTan())).passed


def test_the_angle_is_that_of_hard_spikes() -> None:
    torch.manual_seed(3)
    model = fptt.nn.spiking.ALIF(3, 5, 3)
    torch.manual_seed(4)
    angle = check(model).angle
    torch.manual_seed(4)
    assert check(model, differences=False).angle == angle
    torch.manual_seed(4)
    with fptt.nn.spiking.smooth_spikes():
        assert check(model).angle != pytest.approx(angle)


@pytest.mark.parametrize("place", ["state", "outputs"])
def test_float32_only_models_are_held_against_autograd(place: str) -> None:
    report = check(OfItsOwnType(place), dtype=torch.float32)
    assert report.passed
    assert report.not_applicable == "in torch.float32 they say nothing"
    with pytest.raises(TypeError, match=r"leave the differences out by dtype=torch\.float32"):
        check(OfItsOwnType(place))


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="dtype must be a floating-point type of torch"):
        check(fptt.nn.GRU(3, 5, 3), dtype=torch.int64)
    with pytest.raises(ValueError, match="differences must be True, False or 'auto', got 'no'"):
        check(fptt.nn.GRU(3, 5, 3), differences="no")
    for horizon in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"horizon must be a positive integer, got {horizon}"):
            check(fptt.nn.GRU(3, 5, 3), horizon=horizon)
    loss: Any = functional.cross_entropy
    with pytest.raises(TypeError, match="loss must be a TerminalLoss or a SequenceLoss, got a function"):
        fptt.check_gradient(fptt.nn.GRU(3, 5, 3), torch.randn(4, 2, 3), torch.arange(2), loss, num_chunks=2)
    inputs: Any = np.zeros((4, 2, 3))
    with pytest.raises(TypeError, match="inputs must be a tensor, got a ndarray"):
        fptt.check_gradient(fptt.nn.GRU(3, 5, 3), inputs, torch.arange(2), fptt.TerminalLoss(loss), num_chunks=2)
    with pytest.raises(ValueError, match=r"differences=True needs dtype=torch\.float64"):
        check(fptt.nn.GRU(3, 5, 3), dtype=torch.float32, differences=True)
    assert check(fptt.nn.GRU(3, 5, 3), differences=False).not_applicable == "they were not asked for"


def test_whole_numbers_of_a_state_stay_whole() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(10, 3), nn.Linear(3, 3)

        def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            count = torch.zeros(inputs.shape[1], dtype=torch.int64) if state is None else state
            return self.layer(inputs + self.embedding(count)), count + 1

    assert check(Counting(), state=torch.zeros(4, dtype=torch.int64), differences=False).passed


class RootOfZero(nn.Module):
    """Has a parameter whose gradient alone is no number, 0 · ∞ or ∞, where the loss is one."""

    def __init__(self, *, is_used: bool) -> None:
        super().__init__()
        # in the middle: Python's max keeps a NaN that comes first
        self.scale, self.root, self.layer = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3)), nn.GRU(3, 3)
        self.is_used = is_used

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.layer(inputs, state)
        root = self.root.sqrt() if self.is_used else torch.where(self.root > 0, self.root.sqrt(), 0 * self.root)
        return self.scale * outputs + root, state


@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("options", [{}, {"differences": True}, {"dtype": torch.float32}], ids=str)
def test_a_gradient_that_is_no_number_is_wrong(options: dict[str, Any], is_used: bool) -> None:
    report = check(RootOfZero(is_used=is_used), **options)
    assert all(math.isnan(chunk.autograd_error) for chunk in report.chunks)
    assert report.not_applicable or {chunk.worst_parameter for chunk in report.chunks} == {"root"}
    assert not report.passed
    assert "WRONG" in str(report)


@pytest.mark.parametrize("name", ["autograd_error", "difference_error"])
def test_an_error_of_nan_beside_a_small_one_does_not_pass(name: str) -> None:
    report = check(fptt.nn.GRU(3, 5, 3))
    assert report.passed
    chunks = [report.chunks[0], report.chunks[1]._replace(**{name: math.nan})]
    assert not report._replace(chunks=chunks).passed


class Rotating(nn.Module):
    """h = a h + x with complex a, and the real part of the sum as output."""

    def __init__(self) -> None:
        super().__init__()
        self.rotation = nn.Parameter(torch.tensor([0.5 + 0.5j, 0.25 - 0.5j]))

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = torch.zeros(inputs.shape[1], 2, dtype=self.rotation.dtype) if state is None else state
        outputs = []
        for step in inputs:
            state = self.rotation * state + step
            outputs.append(state.real.sum(-1, keepdim=True))
        return torch.stack(outputs), state


def check_rotating(model: nn.Module, **options: Any) -> fptt.GradientReport:
    loss = fptt.SequenceLoss(functional.mse_loss)
    return fptt.check_gradient(model, torch.ones(4, 1, 1), torch.zeros(4, 1, 1), loss, num_chunks=2, **options)


@pytest.mark.filterwarnings("error")
def test_complex_weights_are_checked_whole() -> None:
    """By hand: h = 1, 1 + a, 1 + a + a², …; the outputs are 2, 2.75, 2.5625 and 2.140625."""
    report = check_rotating(Rotating())
    assert report.passed
    assert [chunk.loss for chunk in report.chunks] == [(2**2 + 2.75**2) / 2, (2.5625**2 + 2.140625**2) / 2]
    assert report.chunks[1].uses_state
    assert check_rotating(Rotating(), dtype=torch.float32).passed


class WrongRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rotation: Tensor) -> Tensor:  # noqa: ARG004
        return rotation.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return gradients[0].conj()  # wrong in the imaginary part alone


def test_a_wrong_imaginary_part_of_a_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Rotating.forward

    def wrong(self: Rotating, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        given = Rotating()
        del given.rotation
        given.rotation = WrongRotation.apply(self.rotation)  # pyright: ignore
        return forward(given, inputs, state)

    monkeypatch.setattr(Rotating, "forward", wrong)
    report = check_rotating(Rotating())
    assert not report.passed
    assert report.chunks[0].worst_parameter == "rotation"


def test_a_check_without_gradients_is_named() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"needs gradients: leave torch\.no_grad\(\) or torch\.inf"):
        check(fptt.nn.LSTM(3, 5, 3))

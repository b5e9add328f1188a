"""A horizon: an update after every chunk, with a gradient that goes back through chunks before it."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt

T, B, D, H, C, K = 12, 3, 2, 4, 3, 4
pytestmark = pytest.mark.usefixtures("float64")


def make_model(seed: int = 0) -> fptt.nn.LSTM:
    torch.manual_seed(seed)
    return fptt.nn.LSTM(D, H, C)


def data(seed: int = 0, length: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, B, D, generator=generator), torch.randint(C, (B,), generator=generator)


def terminal() -> fptt.TerminalLoss:
    return fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")


def tbptt(model: nn.Module, lr: float, **options: Any) -> fptt.TBPTT:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    settings: dict[str, Any] = {"num_chunks": K, **options}
    return fptt.TBPTT(model, optimizer, terminal(), **settings)


@pytest.mark.parametrize("horizon", range(1, K + 1))
def test_the_gradient_goes_through_as_many_chunks_as_the_horizon(horizon: int) -> None:
    """At a rate of 0 what is left in `grad` is that of the last chunk; with K chunks it is that of BPTT."""
    model, (inputs, labels) = make_model(), data()
    tbptt(model, lr=0.0, horizon=horizon).train_batch(inputs, labels)
    other = make_model()
    cut = T - 3 * horizon
    state = None if cut == 0 else fptt.detach_state(other(inputs[:cut])[1])
    outputs, _ = other(inputs[cut:], state)
    terminal_loss = terminal()
    terminal_loss(outputs, terminal_loss.split(labels, None, [3] * K, B)[-1]).backward()
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, same.grad, rtol=1e-12, atol=1e-14)


def by_hand(model: nn.Module, inputs: Tensor, parts: Sequence[Any], optimizer: Any, horizon: int) -> list[float]:
    """Train with a list of all chunks so far, and of the state before each as it was last computed."""
    chunks = inputs.split([len(inputs) // K + (k < len(inputs) % K) for k in range(K)])
    before: list[Any] = [None]
    losses = []
    for k in range(K):
        first = max(0, k - horizon + 1)
        state = before[first]
        for now in range(first, k + 1):
            outputs, state = model(chunks[now], state)
            before[now + 1 :] = [fptt.detach_state(state)]
        loss = terminal()(outputs, parts[k])  # pyright: ignore[reportPossiblyUnboundVariable]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("horizon", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [12, 14])
def test_training_is_that_of_a_loop_by_hand(horizon: int, length: int) -> None:
    """The states on the way are those of the last run, with the weights as they are then."""
    models = make_model(), make_model()
    method = tbptt(models[0], lr=0.5, horizon=horizon)
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.5, momentum=0.5)
    for seed in range(3):
        inputs, labels = data(seed, length)
        result = method.train_batch(inputs, labels)
        parts = terminal().split(labels, None, fptt.chunk_lengths(length, K), B)
        losses = by_hand(models[1], inputs, parts, optimizer, horizon)
        assert result.chunk_losses.tolist() == pytest.approx(losses, rel=1e-12)
        assert result.updates == K
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_one_is_what_it_was_and_others_are_not() -> None:
    ends = {}
    for horizon in (None, 1, 2):
        model = make_model()
        method = tbptt(model, lr=0.5, **({} if horizon is None else {"horizon": horizon}))
        method.train_batch(*data())
        ends[horizon] = torch.cat([param.detach().flatten() for param in model.parameters()])
    assert torch.equal(ends[None], ends[1])
    assert not torch.allclose(ends[1], ends[2], rtol=1e-4)


def test_the_angle_to_bptt_falls_with_the_horizon() -> None:
    """The states of a chunk are those of all chunks before it, so that the last horizon leaves no angle at all."""
    model = make_model(seed=1)
    with torch.no_grad():
        model.rnn.get_parameter("bias_ih_l0")[H : 2 * H] += 3.0  # a memory that lasts
    inputs, labels = data()
    angles = []
    for horizon in range(1, K + 1):
        report = fptt.check_gradient(model, inputs, labels, terminal(), num_chunks=K, horizon=horizon)
        assert report.passed
        assert report.chunks[horizon - 1].uses_state is None
        angles.append(report.angle)
    assert angles[0] > 5.0
    assert all(later < earlier for earlier, later in itertools.pairwise(angles))
    assert angles[-1] < 1e-4


def test_a_recomputed_gradient_goes_through_the_same_chunks() -> None:
    """By hand: dual and average advance with the gradient at the new weights, through the window."""
    models = make_model(), make_model()
    settings: dict[str, Any] = {"coupling": "coupled", "previous_gradient": "recomputed"}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.3) for model in models]
    method = fptt.FPTT(models[0], optimizers[0], terminal(), num_chunks=2, horizon=2, alpha=0.4, **settings)
    inputs, labels = data()
    for _ in range(2):  # the last dual of the first batch is seen in the second
        method.train_batch(inputs, labels)
    params = list(models[1].parameters())
    regularizer = fptt.DynamicRegularizer(params, 0.4, form="paper", **settings)
    parts = terminal().split(labels, None, [6, 6], B)
    for part, window in zip(parts * 2, [inputs[:6], inputs] * 2, strict=True):

        def gradient(part: Any = part, window: Tensor = window) -> None:
            optimizers[1].zero_grad()
            terminal()(models[1](window)[0], part).backward()

        gradient()
        regularizer.add_penalty_grad_()
        optimizers[1].step()
        gradient()
        regularizer.update()
    for one, other in zip(models[0].parameters(), params, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.usefixtures("interpreted")
def test_a_chunk_that_is_skipped_is_in_no_window(engine: Any) -> None:
    """Chunk 1 of 4 has NaN in it: the others are learned as a sequence of three chunks."""
    models, (inputs, _) = (make_model(), make_model()), data()
    spoiled = inputs.clone()
    spoiled[4, 1] = float("nan")
    methods = [
        fptt.TBPTT(
            model,
            torch.optim.SGD(model.parameters(), lr=0.5),
            fptt.SequenceLoss(functional.mse_loss),
            chunk_length=3,
            horizon=2,
            engine=engine,
            on_bad_number="skip",
        )
        for model in models
    ]
    assert methods[0].train_batch(spoiled, torch.zeros(T, B, C)).skipped == 1
    # ℓ_k = (K/N) Σ: with three chunks of four the same weight for every step
    methods[1].train_batch(torch.cat([inputs[:3], inputs[6:]]), torch.zeros(9, B, C))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_staggered_lanes_go_back_to_the_beginning_of_their_own_sequence() -> None:
    """A single lane, whose sequences follow on each other, is the same as the sequences one by one."""
    models = make_model(), make_model()
    staggered, together = (tbptt(model, lr=0.5, horizon=3) for model in models)
    batches = [(inputs[:, :1], labels[:1]) for inputs, labels in map(data, range(3))]
    list(staggered.train_stream(fptt.stagger(batches, num_chunks=K)))
    for batch in batches:
        together.train_batch(*batch)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_slips_are_named() -> None:
    model, (inputs, labels) = make_model(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slips: list[tuple[Any, dict[str, Any], str]] = [
        (fptt.TBPTT, {"num_chunks": 4, "horizon": 5}, "horizon must be at most the number of chunks .* 4, got 5"),
        (fptt.FPTT, {"num_chunks": 4, "horizon": 0}, "horizon must be a positive integer, got 0"),
        (fptt.BPTT, {"num_chunks": 4, "horizon": 2}, "horizon must be 1 with BPTT, .* got 2"),
    ]
    for kind, options, message in slips:
        with pytest.raises(ValueError, match=message):
            kind(model, optimizer, terminal(), **options)
    method = tbptt(model, lr=0.1, num_chunks=None, chunk_length=6, horizon=3)
    with pytest.raises(ValueError, match="horizon must be at most the number of chunks of a sequence, 2, got 3"):
        method.train_batch(inputs, labels)
    method.close()
    with pytest.raises(ValueError, match="horizon must be at most the number of chunks"):
        fptt.check_gradient(model, inputs, labels, terminal(), num_chunks=2, horizon=3)
    loss = fptt.SequenceLoss(functional.cross_entropy)
    own = copy.deepcopy(model)
    stream = fptt.TBPTT(own, torch.optim.SGD(own.parameters(), lr=0.1), loss, chunk_length=2, horizon=2)
    with pytest.raises(ValueError, match="horizon must be 1 on a stream that is learned chunk by chunk, got 2"):
        fptt.OnlineLearner(stream, classes=range(C))


class WritesIntoItsState(nn.Module):
    """A cell that writes its next state into the list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.readout = nn.GRUCell(D, H), nn.Linear(H, C)

    def forward(self, inputs: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        state = [inputs.new_zeros(inputs.shape[1], H)] if state is None else state
        outputs = []
        for step in inputs:
            state[0] = self.cell(step, state[0])
            outputs.append(self.readout(state[0]))
        return torch.stack(outputs), state


class ReturnsAnother(WritesIntoItsState):
    def forward(self, inputs: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        return super().forward(inputs, None if state is None else list(state))


@pytest.mark.parametrize("previous_gradient", ["dual", "recomputed"])
def test_a_model_may_write_into_the_state_that_it_is_given(previous_gradient: Any) -> None:
    ends = []
    for kind in (WritesIntoItsState, ReturnsAnother):
        torch.manual_seed(0)
        model = kind()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        settings: dict[str, Any] = {"coupling": "coupled", "previous_gradient": previous_gradient}
        method = fptt.FPTT(model, optimizer, terminal(), num_chunks=K, horizon=2, alpha=0.4, **settings)
        for seed in range(2):
            method.train_batch(*data(seed), state=[torch.ones(B, H)])
        ends.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(*ends)

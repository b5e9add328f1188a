"""Sequences that begin in the middle of a chunk, against every sequence run alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt

T, B, D, H, C = 12, 3, 2, 4, 5
METHODS: dict[str, Callable[..., fptt.Method]] = {"bptt": fptt.BPTT, "tbptt": fptt.TBPTT, "fptt": fptt.FPTT}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: fptt.nn.LSTM(D, H, C),
    "torch": lambda: nn.LSTM(D, C, num_layers=2),
    "cell": lambda: fptt.nn.Recurrent(fptt.nn.Unroll(nn.LSTMCell(D, H)), nn.Linear(H, C)),
    "learned": lambda: Learned(),  # noqa: PLW0108  # stands below
}
pytestmark = pytest.mark.usefixtures("float64")


class Learned(nn.Module):
    """A recurrent network that learns where its sequences begin."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.begin = nn.GRU(D, C), nn.Parameter(torch.randn(1, 1, C))

    def initial_state(self, inputs: Tensor) -> Tensor:
        return self.begin.expand(1, inputs.shape[1], C).contiguous()

    def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.rnn(inputs, self.initial_state(inputs) if state is None else state)


def sequence() -> fptt.SequenceLoss:
    return fptt.SequenceLoss(functional.cross_entropy)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, targets, mask, and flags: at a beginning, inside, at a cut, twice in a lane, in two lanes at once."""
    inputs, targets = torch.randn(T, B, D), torch.randint(C, (T, B))
    is_first = torch.zeros(T, B, dtype=torch.bool)
    for step, lane in [(0, 0), (2, 1), (4, 0), (5, 1), (5, 0), (5, 2), (8, 2), (11, 1), (11, 2)]:
        is_first[step, lane] = True
    mask = torch.rand(T, B) < 0.8
    return inputs, targets, mask, is_first


def learn_alone(
    model: nn.Module, optimizer: Any, data: tuple[Tensor, Tensor, Tensor, Tensor], lengths: list[int], detached: bool
) -> None:
    """Step by step and lane by lane, each of them a model call of its own."""
    inputs, targets, mask, is_first = data
    states: list[Any] = [None] * B
    step, total = 0, torch.zeros(())
    for length in lengths:
        for now in range(step, step + length):
            for lane in range(B):
                before = None if is_first[now, lane] else states[lane]
                output, states[lane] = model(inputs[now : now + 1, lane : lane + 1], before)
                loss = functional.cross_entropy(output[0], targets[now, lane][None])
                total = total + mask[now, lane] * loss
        step += length
        if detached or step == T:
            optimizer.zero_grad()
            (total * (len(lengths) if detached else 1) / mask.sum()).backward()
            optimizer.step()
            total = torch.zeros(())
            states = [fptt.detach_state(state) for state in states]


@pytest.mark.parametrize("chunk_length", [1, 4, 5, 12])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_flags_are_sequences_run_alone(kind: str, name: str, chunk_length: int) -> None:
    model, other = MODELS[kind](), MODELS[kind]()
    other.load_state_dict(model.state_dict())
    optimizers = [torch.optim.SGD(own.parameters(), lr=0.5) for own in (model, other)]
    method = METHODS[name](model, optimizers[0], sequence(), chunk_length=chunk_length)
    if method.regularizer is not None:
        fptt.DynamicRegularizer(other.parameters()).attach(optimizers[1])
    inputs, targets, mask, is_first = data = batch()
    method.train_batch(inputs, targets, mask=mask, is_first=is_first)
    learn_alone(other, optimizers[1], data, fptt.chunk_lengths(T, chunk_length=chunk_length), name != "bptt")
    for one, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-12)


def test_the_gradients_of_other_lanes_go_through_the_cut() -> None:
    """∂ loss after the flag / ∂ input before it: zero in the lane that begins anew, not in the others."""
    model = fptt.nn.LSTM(D, H, C)
    inputs = torch.randn(T, B, D, requires_grad=True)
    mask = torch.zeros(T, B, dtype=torch.bool)
    mask[-1] = True
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[7, 1] = True
    method = fptt.BPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), sequence())
    method.train_batch(inputs, torch.randint(C, (T, B)), mask=mask, is_first=is_first)
    assert inputs.grad is not None
    reached = inputs.grad.abs().amax(-1) > 0
    assert reached[:, [0, 2]].all()
    assert not reached[:7, 1].any()
    assert reached[7:, 1].all()


def test_a_given_state_goes_on_in_the_lanes_that_do_not_begin() -> None:
    model = fptt.nn.LSTM(D, H, C)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.0), sequence(), num_chunks=1)
    inputs, targets, _, _ = batch()
    before = model(torch.randn(3, B, D))[1]
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0, 1] = True
    found = method.train_batch(inputs, targets, before, is_first=is_first).state
    torch.testing.assert_close(found.h[:, 0], model(inputs, before)[1].h[:, 0])
    torch.testing.assert_close(found.h[:, 1], model(inputs)[1].h[:, 1])


def test_batch_first_flags_are_the_same_transposed() -> None:
    models = [fptt.nn.LSTM(D, H, C), fptt.nn.LSTM(D, H, C, batch_first=True)]
    models[1].load_state_dict(models[0].state_dict())
    data = batch()
    for model, first in zip(models, (False, True), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        method = fptt.FPTT(model, optimizer, sequence(), num_chunks=3, batch_first=first)
        inputs, targets, mask, is_first = (x.transpose(0, 1) for x in data) if first else data
        method.train_batch(inputs, targets, mask=mask, is_first=is_first)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_flags_without_a_beginning_change_nothing() -> None:
    losses = []
    for is_first in (None, torch.zeros(T, B, dtype=torch.bool)):
        torch.manual_seed(0)
        model = fptt.nn.LSTM(D, H, C)
        method = fptt.FPTT(model, torch.optim.Adam(model.parameters()), sequence(), num_chunks=3)
        losses.append(method.train_batch(*batch()[:2], is_first=is_first).chunk_losses)
    assert torch.equal(*losses)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.usefixtures("interpreted")
def test_a_lane_begins_alike_alone_and_with_all_others(engine: Any) -> None:
    """At zeros in a model without `initial_state`, whatever it takes None for: as the documentation has it."""

    class Hidden(Learned):
        initial_state = None  # pyright: ignore[reportAssignmentType]

        def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            return self.rnn(inputs, self.begin.expand(1, inputs.shape[1], C).contiguous() if state is None else state)

    model, (inputs, targets, _, _) = Hidden(), batch()
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.0), sequence(), num_chunks=3, engine=engine)
    alone, together = torch.zeros(T, B, dtype=torch.bool), torch.zeros(T, B, dtype=torch.bool)
    alone[8, 1], together[8] = True, True
    expected = model(inputs[8:], torch.zeros(1, B, C))[1]
    torch.testing.assert_close(method.train_batch(inputs, targets, is_first=together).state, expected)
    torch.testing.assert_close(method.train_batch(inputs, targets, is_first=alone).state[:, 1], expected[:, 1])


class Planes(nn.Module):
    """A state of (B, C, 2, 2), which no `batch_dim=-2` fits."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        outputs = []
        state = inputs.new_zeros(inputs.shape[1], C, 2, 2) if state is None else state
        for step in inputs:
            state = state + self.weight * step.sum(-1)[:, None, None, None]
            outputs.append(state[:, :, 0, 0])
        return torch.stack(outputs), state


def test_the_batch_of_a_state_may_be_elsewhere() -> None:
    data = batch()
    for model in (Planes(), Planes(state_batch_dim=0)):
        method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.0), sequence(), num_chunks=2)
        if hasattr(model, "state_batch_dim"):
            state = method.train_batch(data[0], data[1], is_first=data[3]).state
            expected = [data[0][begin:, lane].sum() for lane, begin in enumerate((5, 11, 11))]
            torch.testing.assert_close(state[:, 0, 0, 0], torch.stack(expected))
        else:
            with pytest.raises(ValueError, match=r"is_first needs a state with the batch in dim -2 .*\(3, 5, 2, 2\)"):
                method.train_batch(data[0], data[1], is_first=data[3])


def method_of(model: nn.Module, loss: fptt.ChunkLoss, **options: Any) -> fptt.Method:
    return fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, num_chunks=2, **options)


def test_slips_are_named() -> None:
    inputs, targets, _, is_first = batch()
    model = fptt.nn.LSTM(D, H, C)
    method = method_of(model, sequence())
    slips: list[tuple[Any, type[Exception], str]] = [
        (is_first.float(), ValueError, r"is_first must be boolean with T, B = \(12, 3\), got torch.float32"),
        (is_first[1:], ValueError, r"is_first must be boolean .* of \(11, 3\)"),
        (is_first[:, 0], ValueError, "is_first must be boolean"),
        ([0, 3], TypeError, "is_first must be a tensor, got a list"),
    ]
    for flags, error, message in slips:
        with pytest.raises(error, match=message):
            method.train_batch(inputs, targets, is_first=flags)
    assert method.updates == 0
    method.close()
    method = method_of(model, fptt.TerminalLoss(functional.cross_entropy))
    with pytest.raises(ValueError, match="is_first needs a loss of every step, a SequenceLoss"):
        method.train_batch(inputs, targets[0], is_first=is_first)
    method.close()
    with pytest.raises(ValueError, match="is_first must be True at first steps of chunks alone"):
        method_of(model, sequence(), engine="compiled").train_batch(inputs, targets, is_first=is_first)
    planes = Planes(initial_state=torch.zeros(1))
    with pytest.raises(TypeError, match="initial_state must be a method"):
        method_of(planes, sequence()).train_batch(inputs, targets, is_first=is_first)


def test_adapters_pass_on_where_sequences_begin() -> None:
    rnn, inputs = Learned(), torch.randn(3, B, D)
    assert torch.equal(fptt.nn.Recurrent(rnn).initial_state(inputs), rnn.initial_state(inputs))
    assert fptt.nn.Recurrent(fptt.nn.Unroll(nn.GRUCell(D, H))).initial_state(inputs) is None


def test_adapters_pass_on_which_dim_of_the_state_is_the_batch() -> None:
    """Of two lanes, as many as dim -2 of the state has entries, which would begin again in their place."""
    inputs, targets, is_first = torch.randn(T, 2, D), torch.randint(C, (T, 2)), torch.zeros(T, 2, dtype=torch.bool)
    is_first[3, 0] = True
    said_outside = fptt.nn.Recurrent(Planes())
    said_outside.state_batch_dim = 0
    for model in (fptt.nn.Recurrent(Planes(state_batch_dim=0)), said_outside):
        state = method_of(model, sequence()).train_batch(inputs, targets, is_first=is_first).state
        assert (state == state[:, :1, :1, :1]).all()


def test_what_is_said_of_an_adapter_is_said_of_the_cell_in_it() -> None:
    cell = nn.GRUCell(D, H)
    model = fptt.nn.Recurrent(fptt.nn.Unroll(cell))
    assert model.state_batch_dim == -2
    model.state_batch_dim = 0
    assert (cell.state_batch_dim, model.state_batch_dim) == (0, 0)

"""The update of SpikingJelly's `fptt_online_training`, written from its documentation, and how it differs from FPTT.

For each step t, with g = 0 at the beginning of a sequence: a step of the optimizer on

    ℓ_t(W) + α/2 Σ_W mean((W − W̄ − g/(2α))²)

and then, but not after the last step of a sequence, g = ∇ℓ_t(W⁺) from the state *after* the step, and
W̄⁺ = ½ (W̄ + W⁺) − g/(2α). W̄ goes on to the next sequence, g does not.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt.integrations.stateful import Explicit
from fptt.nn import spiking

T, B, D, H, C = 20, 16, 3, 12, 4
ALPHA, LR = 0.5, 0.1


def train(model: nn.Module, *, is_mean: bool, is_advanced: bool, skips_last: bool) -> None:
    """Train on the sequences, a step at a time, by the formulas above, or in each of the three points as printed."""
    params = list(model.parameters())
    averages = [param.detach().clone() for param in params]
    gradients = [torch.zeros_like(param) for param in params]
    optimizer = torch.optim.SGD(params, lr=LR)
    state = None
    for number, (x, y) in enumerate(step for batch in data() for step in zip(*batch, strict=True)):
        if number == T:
            state = None
            gradients = [torch.zeros_like(param) for param in params] if skips_last else gradients
        outputs, after = model(x[None], state)
        penalty = torch.zeros(())
        for param, average, gradient in zip(params, averages, gradients, strict=True):
            square = (param - average - gradient / (2 * ALPHA)).square()
            penalty = penalty + ALPHA / 2 * (square.mean() if is_mean else square.sum())
        optimizer.zero_grad()
        (functional.cross_entropy(outputs[0], y) + penalty).backward()
        optimizer.step()
        after = fptt.detach_state(after)
        if not (skips_last and number % T == T - 1):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[None], after if is_advanced else state)[0][0], y).backward()
            gradients = [param.grad.clone() for param in params if param.grad is not None]
            for param, average, gradient in zip(params, averages, gradients, strict=True):
                average.copy_((average + param.detach()) / 2 - gradient / (2 * ALPHA))
        state = after


class Memoryless(nn.Module):
    """A layer without a state: its advanced state is that before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, C))

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.layers(inputs), state


def make_model(*, is_spiking: bool) -> nn.Module:
    torch.manual_seed(0)
    if not is_spiking:
        return Memoryless().double()
    neurons = spiking.LIF(D, H, recurrent=False, threshold=0.3, reset="zero", surrogate=spiking.Sigmoid())
    return fptt.nn.Recurrent(neurons, nn.Linear(H, C)).double()


def data() -> list[tuple[Tensor, Tensor]]:
    """Return two batches of sequences."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, T, B, D, dtype=torch.float64, generator=generator)
    return list(zip(inputs, torch.randint(C, (2, T, B), generator=generator), strict=True))


def learned(model: nn.Module, *flags: bool) -> nn.Module:
    own = copy.deepcopy(model)
    is_mean, is_advanced, skips_last = flags
    train(own, is_mean=is_mean, is_advanced=is_advanced, skips_last=skips_last)
    return own


def by_method(model: nn.Module, kind: Any, **options: Any) -> nn.Module:
    own = copy.deepcopy(model)
    optimizer = torch.optim.SGD(own.parameters(), lr=LR)
    method = kind(own, optimizer, fptt.SequenceLoss(functional.cross_entropy), num_chunks=T, **options)
    for batch in data():
        method.train_batch(*batch)
    return own


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.stack([(a - b).detach().norm() for a, b in pairs]).norm().item()


NUMBERS = [(False, 0.143, 0.035), (True, 0.166, 0.041)]
RECOMPUTED: dict[str, Any] = {"alpha": ALPHA, "previous_gradient": "recomputed", "coupling": "coupled"}


@pytest.mark.parametrize("is_spiking", [False, True])
def test_without_the_three_points_it_is_fptt(*, is_spiking: bool) -> None:
    model = make_model(is_spiking=is_spiking)
    fptt_model = by_method(model, fptt.FPTT, **RECOMPUTED)
    assert distance(learned(model, False, False, False), fptt_model) < 1e-12
    assert distance(model, fptt_model) > 0.1


@pytest.mark.parametrize(("is_spiking", "to_fptt", "to_tbptt"), NUMBERS)
def test_it_is_closer_to_tbptt_than_to_fptt(*, is_spiking: bool, to_fptt: float, to_tbptt: float) -> None:
    """The numbers of docs/method.md: distances after 40 updates, in parts of the way that FPTT has gone."""
    model = make_model(is_spiking=is_spiking)
    theirs = learned(model, True, True, True)
    fptt_model, tbptt_model = by_method(model, fptt.FPTT, **RECOMPUTED), by_method(model, fptt.TBPTT)
    way = distance(model, fptt_model)
    assert distance(theirs, fptt_model) / way == pytest.approx(to_fptt, rel=0.05)
    assert distance(theirs, tbptt_model) / way == pytest.approx(to_tbptt, rel=0.05)


def test_each_of_the_three_points_makes_a_difference() -> None:
    model = make_model(is_spiking=True)
    fptt_model = by_method(model, fptt.FPTT, **RECOMPUTED)
    way = distance(model, fptt_model)
    for flags in ((True, False, False), (False, True, False), (False, False, True)):
        assert distance(learned(model, *flags), fptt_model) / way > 0.01


def test_spikingjellys_own_function_makes_this_update() -> None:
    online = pytest.importorskip("spikingjelly.activation_based.learning.online_learning")
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    states = pytest.importorskip("spikingjelly.activation_based.functional")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, H), neuron.LIFNode(v_threshold=0.3), nn.Linear(H, C)).double()
    own, before = learned(Explicit(copy.deepcopy(net)), True, True, True), copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    averages = online.fptt_online_training_init_w_ra(optimizer)
    for batch in data():
        states.reset_net(net)
        online.fptt_online_training(net, optimizer, *batch, functional.cross_entropy, ALPHA, averages)
    assert distance(own, net) < 1e-12
    assert distance(before, net) > 0.1

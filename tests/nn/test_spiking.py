"""Spiking neurons against hand-worked numbers, identities, and each other."""

import copy
import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt._sequence import flatten_state, map_state
from fptt.nn import spiking
from fptt.nn.spiking import ALIF, LIF, LiquidLIF
from fptt.nn.spiking.models import LIFOptions
from fptt.nn.spiking.neurons import LIFLayer

MODELS = [LIF, ALIF, LiquidLIF]
SURROGATES = [
    spiking.MultiGaussian(),
    spiking.MultiGaussian(gamma=1.5, height=0.3, width=0.7, flank=3.0),
    spiking.FastSigmoid(),
    spiking.FastSigmoid(slope=2.0),
    spiking.ArcTan(),
    spiking.ArcTan(slope=3.0),
    spiking.Sigmoid(),
    spiking.Sigmoid(slope=1.5),
]
HALF = 1 / math.log(2)  # the time constant whose α is ½


def driven(drive: float, num_steps: int, **options: Any) -> list[int]:
    """Return the steps, from 1, at which one neuron without recurrence spikes under a constant drive."""
    model = LIF(1, 1, recurrent=False, **options).double()
    with torch.no_grad():
        layer(model).input.weight.fill_(1)
    spikes, _ = model(torch.full((num_steps, 1, 1), drive, dtype=torch.float64))
    return (spikes.flatten().nonzero().flatten() + 1).tolist()


def layer(model: LIF, number: int = 0) -> LIFLayer:
    found = model.layers[number]
    assert isinstance(found, LIFLayer)
    return found


# -- neurons ---------------------------------------------------------------------------------------------------------


def test_a_constant_drive_makes_it_spike_with_the_period_of_the_equation() -> None:
    # α = ½, I = 1.5, θ = 1: v = 0.75, then 1.125 > 1; then again from zero
    assert driven(1.5, 8, tau=HALF, threshold=1.0, reset="zero") == [2, 4, 6, 8]
    for tau, drive in ((3.0, 1.2), (5.0, 4.0), (8.0, 1.05)):
        alpha = 1 - math.exp(-1 / tau)
        period = math.ceil(math.log(1 - 1 / drive) / math.log(1 - alpha))
        found = driven(drive, 5 * period, tau=tau, threshold=1.0, reset="zero")
        assert found == [period * number for number in range(1, 6)]


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_it_spikes_only_if_the_drive_is_above_the_threshold(reset: str) -> None:
    assert driven(0.99, 200, tau=5.0, threshold=1.0, reset=reset) == []
    assert driven(1.01, 200, tau=5.0, threshold=1.0, reset=reset) != []


def test_subtraction_leaves_what_is_above_the_threshold() -> None:
    # α = ½, I = 3, θ = 1: 1.5 -> ½; 1.75 -> 0.75; 1.875 -> 0.875: a spike a step, and v = 1 − 2^−n
    model = LIF(1, 1, recurrent=False, tau=HALF, threshold=1.0, reset="subtract").double()
    with torch.no_grad():
        layer(model).input.weight.fill_(1)
    for num_steps, expected in ((1, 0.5), (2, 0.75), (3, 0.875)):
        spikes, state = model(torch.full((num_steps, 1, 1), 3.0, dtype=torch.float64))
        assert spikes.sum().item() == num_steps
        assert state.neurons.v.item() == pytest.approx(expected, abs=1e-12)


def test_without_a_leak_it_counts_the_charge() -> None:
    # τ → ∞ with a drive I/α: v grows by I a step, and ⌊n I / θ⌋ spikes have gone out after n of them
    tau, drive = 1e9, 0.3
    alpha = -math.expm1(-1 / tau)
    for num_steps in (1, 10, 100):
        count = len(driven(drive / alpha, num_steps, tau=tau, threshold=1.0))
        assert count == math.floor(num_steps * drive * (1 - 1e-6))


def test_adaptation_goes_to_the_firing_rate() -> None:
    model = ALIF(1, 1, recurrent=False, adaptation=0.0, tau_adaptation=20.0, tau=HALF, threshold=1.0, reset="zero")
    with torch.no_grad():
        layer(model).input.weight.fill_(1)
    _, state = model(torch.full((400, 1, 1), 1.5))
    assert isinstance(state.neurons, spiking.ALIFState)
    # every second step spikes: a swings around ½ by less than (1 − ρ)/2
    assert state.neurons.a.item() == pytest.approx(0.5, abs=(1 - math.exp(-1 / 20)) / 2)
    assert spiking.firing_rate(state).item() == 0.5


def test_the_threshold_rises_with_each_spike() -> None:
    # α = ½, ρ = ½, θ₀ = 1, κ = 2, I = 3: v⁻ = 1.5 > 1; then a = ½ and θ = 2: v⁻ = (½ + 3)/2 = 1.75 < 2;
    # then a = ¼, θ = 1.5: v⁻ = 2.375 > 1.5
    rho = 1 / math.log(2)
    model = ALIF(1, 1, recurrent=False, adaptation=2.0, tau_adaptation=rho, tau=HALF, threshold=1.0).double()
    with torch.no_grad():
        layer(model).input.weight.fill_(1)
    spikes, state = model(torch.full((3, 1, 1), 3.0, dtype=torch.float64))
    assert spikes.flatten().tolist() == [1, 0, 1]
    assert isinstance(state.neurons, spiking.ALIFState)
    assert state.neurons.v.item() == pytest.approx(2.375 - 1.5, abs=1e-12)
    assert state.neurons.a.item() == pytest.approx(0.25, abs=1e-12)


def with_weights_of(model: LIF, other: LIF) -> LIF:
    own = model.state_dict()
    model.load_state_dict({**own, **{name: value for name, value in other.state_dict().items() if name in own}})
    return model


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_no_adaptation_is_lif_bit_for_bit(reset: Any) -> None:
    alif = ALIF(3, 16, 4, adaptation=0.0, num_layers=2, reset=reset)
    lif = with_weights_of(LIF(3, 16, 4, num_layers=2, reset=reset), alif)
    inputs = torch.randn(20, 8, 3)
    (outputs, state), (expected, expected_state) = alif(inputs), lif(inputs)
    assert 0.02 < spiking.firing_rate(state).mean().item() < 0.9
    assert torch.equal(outputs, expected)
    assert torch.equal(state.neurons.v, expected_state.neurons.v)


def test_rates_that_follow_nothing_are_those_of_alif() -> None:
    liquid = LiquidLIF(3, 16, num_layers=2).double()
    with torch.no_grad():
        for name, param in liquid.named_parameters():
            if name.endswith(("rate_weight", "keep_weight")):
                param.zero_()
    alif = with_weights_of(ALIF(3, 16, num_layers=2).double(), liquid)
    inputs = torch.randn(20, 8, 3, dtype=torch.float64)
    (outputs, state), (expected, expected_state) = liquid(inputs), alif(inputs)
    assert spiking.firing_rate(state).mean().item() > 0.02
    assert torch.equal(outputs, expected)
    for one, other in zip(state.neurons, expected_state.neurons, strict=True):
        # not the same bits: torch.lerp rounds otherwise for a weight that is broadcast
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_liquid_neurons_against_their_equations() -> None:
    model = LiquidLIF(2, 4, 3).double()
    own, read = layer(model), model.readout
    assert read is not None
    inputs = torch.randn(9, 3, 2, dtype=torch.float64)
    s, v, a, o = (torch.zeros(3, width, dtype=torch.float64) for width in (4, 4, 4, 3))
    for x, output in zip(inputs, model(inputs)[0], strict=True):
        d = own.input(x) + s @ own.recurrent.T  # pyright: ignore
        alpha = (torch.cat([d, v], -1) @ own.rate_weight.T + own.rate_logit).sigmoid()  # pyright: ignore
        rho = (torch.cat([d, a], -1) @ own.keep_weight.T + own.keep_logit).sigmoid()  # pyright: ignore
        v = v + alpha * (d - v)
        a = rho * a + (1 - rho) * s
        theta = 0.1 + 1.8 * a
        s = (v > theta).double()
        v = v - theta * s
        u = read.linear(s)
        o = o + (torch.cat([u, o], -1) @ read.rate_weight.T + read.rate_logit).sigmoid() * (u - o)  # pyright: ignore
        torch.testing.assert_close(output, o, rtol=1e-12, atol=1e-12)


def test_without_memory_the_mean_gradient_is_that_of_bptt() -> None:
    model = LIF(3, 6, 4, recurrent=False, reset="zero", detach_reset=True)
    assert model.readout is not None
    with torch.no_grad():
        layer(model).rate_logit.fill_(50)  # α and β are 1: nothing is left of the step before
        model.readout.rate_logit.fill_(50)
    loss = fptt.SequenceLoss(functional.cross_entropy)
    inputs, targets = torch.randn(6, 4, 3), torch.randint(4, (6, 4))
    report = fptt.check_gradient(model, inputs, targets, loss, num_chunks=6)
    assert report.angle == pytest.approx(0, abs=1e-4)
    assert report.state_is_unused
    with torch.no_grad():
        layer(model).rate_logit.fill_(0)
    assert not fptt.check_gradient(model, inputs, targets, loss, num_chunks=6).state_is_unused


def test_time_constants_are_drawn_between_their_bounds() -> None:
    own = layer(ALIF(2, 500, tau=(2.0, 8.0), tau_adaptation=30.0))
    taus = -1 / torch.log1p(-own.rate_logit.sigmoid())
    assert 2 <= taus.min() < 2.1
    assert 7.7 < taus.max() <= 8.001
    keep = own.get_parameter("keep_logit").sigmoid()
    torch.testing.assert_close(keep, torch.full_like(keep, math.exp(-1 / 30)))


# -- spikes and surrogates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
def test_the_primitive_has_the_derivative(surrogate: spiking.Surrogate) -> None:
    u = torch.linspace(-3, 3, 601, dtype=torch.float64)[1::2].requires_grad_()  # not 0, where |u| has a kink
    (expected,) = torch.autograd.grad(surrogate.primitive(u).sum(), u)
    torch.testing.assert_close(surrogate.derivative(u.detach()), expected, rtol=1e-10, atol=1e-12)


def test_surrogates_by_hand() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    assert spiking.FastSigmoid(slope=10.0).derivative(zero + 0.1).item() == pytest.approx(1 / 4)
    assert spiking.ArcTan(slope=1 / math.pi).derivative(zero + 2).item() == pytest.approx(1 / 5)
    assert spiking.Sigmoid(slope=4.0).derivative(zero).item() == pytest.approx(1)
    # γ (1 + h) / (σ √2π) − 2 γ h exp(−1/72) / (6 σ √2π)
    root = 0.5 * math.sqrt(2 * math.pi)
    expected = 0.5 * 1.15 / root - 0.5 * 0.15 * 2 * math.exp(-1 / 72) / (6 * root)
    assert spiking.MultiGaussian().derivative(zero).item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_spikes_are_of_the_type_of_the_potential(dtype: torch.dtype) -> None:
    u = torch.tensor([-1.0, 0.0, 1e-3, 2.0], dtype=dtype, requires_grad=True)
    spikes = spiking.spike(u, spiking.ArcTan())
    assert spikes.dtype == dtype
    assert spikes.tolist() == [0, 0, 1, 1]
    (gradient,) = torch.autograd.grad(spikes.sum(), u)
    assert torch.equal(gradient, spiking.ArcTan().derivative(u.detach()))


@pytest.mark.parametrize("smooth", [False, True], ids=["hard", "smooth"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_mean_of_the_gradients_of_single_sequences_is_that_of_the_batch(kind: Any, smooth: bool) -> None:
    """By the transforms of `torch.func`, forward too, with the same spikes."""
    model, inputs = kind(3, 5, 2, num_layers=2).double(), 3 * torch.randn(7, 4, 3, dtype=torch.float64)
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], sequence: Tensor) -> tuple[Tensor, Tensor]:
        outputs = torch.func.functional_call(model, weights, (sequence[:, None],))[0]
        return outputs.square().mean(), outputs[:, 0]

    with spiking.smooth_spikes() if smooth else nullcontext():
        single = torch.func.grad(loss, has_aux=True)
        gradients, outputs = torch.func.vmap(single, (None, 1), (0, 1))(weights, inputs)
        expected = model(inputs)[0]
        expected.square().mean().backward()
        direction = {name: torch.randn_like(weight) for name, weight in weights.items()}
        whole = partial(torch.func.functional_call, model, args=(inputs,))
        slope = torch.func.jvp(lambda weights: whole(weights)[0].square().mean(), (weights,), (direction,))[1]
    torch.testing.assert_close(outputs, expected)
    for name, weight in weights.items():
        torch.testing.assert_close(gradients[name].mean(0), weight.grad)
    torch.testing.assert_close(slope, sum((direction[name] * weight.grad).sum() for name, weight in weights.items()))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
def test_smooth_spikes_have_the_gradient_of_hard_ones(surrogate: spiking.Surrogate) -> None:
    u = torch.randn(50, dtype=torch.float64, requires_grad=True)
    with spiking.smooth_spikes():
        smooth = spiking.spike(u, surrogate)
    hard = spiking.spike(u, surrogate)
    assert torch.equal(smooth, surrogate.primitive(u))
    assert torch.equal(torch.autograd.grad(smooth.sum(), u)[0], torch.autograd.grad(hard.sum(), u)[0])


# -- read-out --------------------------------------------------------------------------------------------------------


def test_a_leaky_readout_by_hand() -> None:
    readout = spiking.LeakyReadout(1, 1, tau=HALF).double()
    with torch.no_grad():
        readout.linear.weight.fill_(1)
    spikes = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    expected = {"last": [0.5, 0.25, 0.625], "mean": [0.5, 0.375, 1.375 / 3], "max": [0.5, 0.5, 0.625]}
    for pool, values in expected.items():
        readout.pool = pool  # pyright: ignore
        torch.testing.assert_close(readout(spikes)[0].flatten(), torch.tensor(values, dtype=torch.float64))


def test_a_maximum_may_be_below_zero() -> None:
    readout = spiking.LeakyReadout(1, 1, pool="max", tau=HALF).double()
    with torch.no_grad():
        readout.linear.weight.fill_(-1)
    outputs, state = readout(torch.ones(2, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(outputs.flatten(), torch.tensor([-0.5, -0.5], dtype=torch.float64))
    assert readout(torch.ones(1, 1, 1, dtype=torch.float64), state)[0].item() == pytest.approx(-0.5)


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("num_chunks", [1, 5, 12])
def test_outputs_do_not_depend_on_the_cut(kind: Any, pool: str, num_chunks: int) -> None:
    model = kind(3, 5, 4, num_layers=2, pool=pool).double()
    inputs = torch.randn(12, 3, 3, dtype=torch.float64)
    expected, whole = model(inputs)
    outputs, state = [], None
    for (chunk,) in fptt.split_sequence(inputs, num_chunks=num_chunks):
        output, state = model(chunk, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(flatten_state(state), flatten_state(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert state is not None
    assert state.neurons.num_steps.flatten().tolist() == [12] * 3


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("width", [1, 3])
def test_a_single_step_is_the_first_of_several(kind: Any, width: int) -> None:
    model, inputs = kind(width, 8).double(), torch.randn(2, 4, width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 8, dtype=torch.float64)
    results = []
    for steps in (inputs[:1], inputs):
        spikes, state = model(steps)
        assert torch.equal(state.neurons.num_spikes[0], spikes.detach().sum(0).to(state.neurons.num_spikes))
        tensors = [inputs, *(param for param in model.parameters() if param.requires_grad)]
        gradients = torch.autograd.grad((spikes[0] * weights).sum(), tensors, allow_unused=True)
        results.append([spikes[0], *(gradient for gradient in gradients if gradient is not None)])
    assert len(results[0]) > 2
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_firing_rates_count_the_spikes() -> None:
    model = LIF(3, 6, num_layers=2)
    spikes, state = model(torch.randn(10, 4, 3))
    torch.testing.assert_close(spiking.firing_rate(state)[1], spikes.mean(0))
    assert torch.equal(state.neurons.s[1], spikes[-1])
    assert flatten_state(state)[0] is state.neurons.s
    for other in (None, state.neurons, (spikes, state)):
        with pytest.raises(TypeError, match=f"state must be the SpikingState .*, got a {type(other).__name__}"):
            spiking.firing_rate(other)  # pyright: ignore[reportArgumentType]


# -- interface -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_layouts_and_last_only(kind: Any) -> None:
    model = kind(3, 5, 4)
    inputs = torch.randn(6, 2, 3)
    outputs, state = model(inputs)
    model.batch_first = True
    turned, other = model(inputs.transpose(0, 1))
    assert torch.equal(turned, outputs.transpose(0, 1))
    assert torch.equal(other.neurons.v, state.neurons.v)
    begun = model.initial_state(inputs.transpose(0, 1))
    assert torch.equal(model(inputs.transpose(0, 1), begun)[0], turned)
    model.batch_first, model.last_only = False, True
    assert torch.equal(model(inputs)[0], outputs[-1:])


def test_dropout_is_between_layers_and_in_training_only() -> None:
    inputs = torch.randn(6, 2, 3)
    single, double = LIF(3, 8, dropout=0.5), LIF(3, 8, num_layers=2, dropout=0.5)
    assert torch.equal(single(inputs)[0], single(inputs)[0])
    assert not torch.equal(double(inputs)[1].neurons.v, double(inputs)[1].neurons.v)
    double.eval()
    assert torch.equal(double(inputs)[1].neurons.v, double(inputs)[1].neurons.v)


@pytest.mark.parametrize("kind", MODELS)
def test_potentials_stay_long_under_autocast(kind: Any) -> None:
    model = kind(3, 5, 4, pool="mean")
    with torch.autocast("cpu", torch.bfloat16):
        outputs, state = model(torch.randn(6, 2, 3))
    assert {tensor.dtype for tensor in (outputs, *flatten_state(state))} == {torch.float32}
    outputs.sum().backward()


def test_short_numbers_count_far() -> None:
    model = LIF(1, 1, 1, recurrent=False, pool="mean").bfloat16()
    with torch.no_grad():
        layer(model).input.weight.fill_(1)
    outputs, state = model(torch.ones(600, 1, 1, dtype=torch.bfloat16))
    assert outputs.dtype == state.neurons.v.dtype == torch.bfloat16
    assert state.neurons.num_steps.item() == 600
    assert state.readout is not None
    assert state.readout.num_steps is not None
    assert state.readout.num_steps.item() == 600
    # 1 is far above the threshold of 0.1
    assert state.neurons.num_spikes.item() >= 599
    for _ in range(3):
        _, state = model(torch.ones(1, 1, 1, dtype=torch.bfloat16), state)
    assert state.neurons.num_steps.item() == 603


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"threshold": 0}, "threshold must be a positive number, got 0"),
        ({"threshold": -1.0}, "threshold must be a positive number, got -1.0"),
        ({"reset": "none"}, "reset must be one of 'zero', 'subtract', got 'none'"),
        ({"pool": "sum"}, "pool must be one of 'last', 'mean', 'max', got 'sum'"),
        ({"tau": 0.0}, "tau must be a time constant above 0"),
        ({"tau": True}, "tau must be a time constant above 0 or a tuple of two of them, got True"),
        ({"tau": [1.0, 10.0]}, r"tau must be a time constant above 0 or a tuple of two of them, got \[1.0, 10.0\]"),
        ({"tau_adaptation": (True, 2.0)}, "tau_adaptation must be a time constant above 0"),
        ({"tau": (5.0, 2.0)}, "tau must have the shorter time constant first"),
        ({"tau_adaptation": -1.0}, "tau_adaptation must be a time constant above 0"),
        ({"tau_readout": 0.0}, "tau_readout must be a positive number, got 0.0"),
        ({"adaptation": -1.0}, "adaptation must be a number of at least 0"),
        ({"num_layers": 0}, "num_layers must be a positive integer"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ALIF(3, 5, 4, **options)


def test_a_bad_surrogate_is_named() -> None:
    with pytest.raises(TypeError, match="surrogate must be a Surrogate such as MultiGaussian"):
        LIF(3, 5, surrogate="arctan")  # pyright: ignore
    with pytest.raises(ValueError, match=r"slope must be a positive number, got 0\.0"):
        spiking.ArcTan(slope=0.0)


def test_bad_inputs_and_states_are_named() -> None:
    model = LIF(3, 5, 4)
    with pytest.raises(ValueError, match=r"inputs must have shape \(T, B, D\) with D = 3, got \(6, 2, 4\)"):
        model(torch.randn(6, 2, 4))
    inputs = torch.randn(6, 2, 3)
    _, state = model(inputs)
    for wrong in (LIF(3, 6, 4)(inputs)[1], ALIF(3, 5, 4)(inputs)[1], LIF(3, 5)(inputs)[1], state.neurons, state[0][0]):
        with pytest.raises(ValueError, match="state must be a SpikingState of shapes"):
            model(inputs, wrong)
    assert isinstance(model(inputs, tuple(state))[1], spiking.SpikingState)
    readout = spiking.LeakyReadout(5, 4)
    with pytest.raises(ValueError, match=r"state must be a ReadoutState of shapes \(\(2, 4\), None, None\)"):
        readout(torch.zeros(6, 2, 5), spiking.LeakyReadout(5, 4, pool="max")(torch.zeros(6, 2, 5))[1])
    for shape in ((6, 5), (6, 2, 4), (5,)):
        with pytest.raises(ValueError, match=rf"inputs must have shape \(T, B, H\) with H = 5, got \({shape[0]},"):
            readout(torch.zeros(shape))
    for part, width in ((model, 3), (readout, 5)):
        short = torch.zeros(6, 2, width)
        with pytest.raises(ValueError, match=rf"inputs must have at least one time step, got shape \(0, 2, {width}\)"):
            part(short[:0])
        with pytest.raises(TypeError, match="inputs must be a tensor, got a PackedSequence"):
            part(nn.utils.rnn.pack_sequence([short[:, 0]]))
        other = map_state(Tensor.double, part(short)[1])
        with pytest.raises(ValueError, match=r"state must have the dtype of the weights, torch.float32, got torch.fl"):
            part(short, other)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("cell", MODELS)
def test_inputs_of_another_dtype_are_named(cell: Any, width: int) -> None:
    inputs = torch.randn(6, 2, width)
    model, readout = cell(width, 5, 4), spiking.LeakyReadout(width, 4)
    for other in (inputs.double(), inputs.bfloat16(), inputs > 0):
        for part in (model, readout):
            with pytest.raises(ValueError, match=f"dtype of the weights, torch.float32, got {other.dtype}"):
                part(other)
    with pytest.raises(ValueError, match=r"the weights, torch.float64, got torch.float32"):
        model.double()(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert cell(width, 5, 4)(inputs.bfloat16())[1].neurons.v.dtype == torch.float32


# -- training --------------------------------------------------------------------------------------------------------


def method(kind: str, model: nn.Module, **options: Any) -> fptt.Method:
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if kind == "bptt":
        return fptt.BPTT(model, optimizer, loss, **options)
    return (fptt.FPTT if kind == "fptt" else fptt.TBPTT)(model, optimizer, loss, num_chunks=6, **options)


@pytest.mark.parametrize("kind", ["bptt", "tbptt", "fptt"])
@pytest.mark.parametrize("cell", MODELS)
def test_every_method_learns_a_batch(kind: str, cell: Any) -> None:
    training = method(kind, cell(3, 16, 4, pool="mean", last_only=True))
    inputs, labels = torch.randn(6, 8, 3), torch.randint(4, (8,))
    losses = [training.train_batch(inputs, labels).chunk_losses[-1].item() for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("cell", MODELS)
def test_a_sequence_that_begins_in_mid_chunk_is_a_fresh_one(cell: Any, pool: str) -> None:
    model = cell(3, 5, 4, num_layers=2, pool=pool).double()
    loss = fptt.SequenceLoss(functional.cross_entropy)
    training = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.0), loss, num_chunks=2)
    inputs, targets = torch.randn(8, 2, 3, dtype=torch.float64), torch.randint(4, (8, 2))
    is_first = torch.zeros(8, 2, dtype=torch.bool)
    is_first[3, 1] = True
    state = training.train_batch(inputs, targets, is_first=is_first).state
    _, fresh = model(inputs[3:, 1:])
    _, whole = model(inputs[:, :1])
    for tensor, one, other in zip(*map(flatten_state, (state, whole, fresh)), strict=True):
        torch.testing.assert_close(tensor, torch.cat([one, other], dim=-2).detach(), rtol=1e-12, atol=1e-12)


def test_a_learner_on_a_stream_carries_the_state() -> None:
    model = LIF(2, 6, 3, pool="mean")
    training = fptt.FPTT(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        fptt.SequenceLoss(functional.cross_entropy),
        chunk_length=1,
    )
    learner = fptt.OnlineLearner(training, classes=[0, 1, 2])
    inputs = torch.randn(7, 2)
    expected, _ = model(inputs[:, None])
    for step, x in enumerate(inputs):
        torch.testing.assert_close(learner.predict_many(x[None]), expected[step].detach())
        learner.learn_one(x, step % 3)


# -- check_gradient --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES[::2], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_surrogate_gradients_are_right(kind: Any, surrogate: spiking.Surrogate) -> None:
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    model = kind(3, 5, 3, num_layers=2, surrogate=surrogate, detach_reset=kind is ALIF, pool="mean")
    report = fptt.check_gradient(model, torch.randn(9, 4, 3), torch.tensor([0, 1, 2, 0]), loss, num_chunks=3)
    assert report.passed
    assert report.spike_rate
    assert max(chunk.difference_error or 1.0 for chunk in report.chunks) < 1e-6
    assert "not applicable" not in str(report)


class OwnCell(nn.Module):
    """A cell of one's own on `spike`: its state is spikes and potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        s, v = (x.new_zeros(len(x), 5), x.new_zeros(len(x), 5)) if state is None else state
        v = 0.7 * v + self.linear(torch.cat([x, s], dim=-1)) - 0.3 * s
        return spiking.spike(v - 0.3, spiking.ArcTan(slope=2.0)), v


def test_a_cell_of_ones_own_is_checked_by_its_smooth_twin() -> None:
    model = fptt.nn.Recurrent(fptt.nn.Unroll(OwnCell()), nn.Linear(5, 3))
    loss = fptt.TerminalLoss(functional.cross_entropy)
    report = fptt.check_gradient(model, torch.randn(6, 4, 3), torch.tensor([0, 1, 2, 0]), loss, num_chunks=3)
    assert report.passed
    assert not report.not_applicable


# -- codes -----------------------------------------------------------------------------------------------------------


def test_poisson_spikes_have_the_rates_and_no_memory() -> None:
    rates = torch.tensor([[0.0, 0.2, 0.7, 1.0]], dtype=torch.float64)
    spikes = spiking.poisson_spikes(rates, 20_000, generator=torch.Generator().manual_seed(3))
    assert spikes.shape == (20_000, 1, 4)
    assert spikes.dtype == torch.float64
    assert set(spikes.unique().tolist()) == {0, 1}
    # 5 standard errors
    torch.testing.assert_close(spikes.mean(0), rates, rtol=0, atol=5 * 0.5 / math.sqrt(20_000))
    train = spikes[:, 0, 2]
    assert (train[1:] * train[:-1]).mean().item() == pytest.approx(0.49, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_in_half_precision_are_those_of_single(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.3, 0.001953125, 1.0]]).to(dtype)
    assert torch.equal(spiking.latency_spikes(values, 1000), spiking.latency_spikes(values.float(), 1000).to(dtype))
    drawn = [
        spiking.poisson_spikes(rates, 5000, generator=torch.Generator().manual_seed(0))
        for rates in (values, values.float())
    ]
    assert drawn[0].dtype == dtype
    assert torch.equal(drawn[0].float(), drawn[1])


def test_latency_is_one_spike_and_zero_none() -> None:
    values = torch.tensor([[1.0, 0.75, 0.25, 0.01, 0.0]])
    spikes = spiking.latency_spikes(values, 9)
    assert spikes.sum(0).tolist() == [[1, 1, 1, 1, 0]]
    assert spikes.argmax(0)[0, :4].tolist() == [0, 2, 6, 8]


def test_delta_spikes_follow_the_signal() -> None:
    steps = torch.arange(200, dtype=torch.float64)
    signal = torch.stack([torch.sin(steps / 20), torch.cos(steps / 15)], -1).view(200, 1, 2)
    spikes = spiking.delta_spikes(signal, 0.1)
    up, down = spikes.chunk(2, -1)
    followed = signal[0] + 0.1 * (up - down).cumsum(0)
    # it moves by less than a step at a time, so the reference is never a step behind
    assert (followed - signal).abs().max().item() < 0.1 + 1e-12
    assert up.sum() > 10
    assert down.sum() > 10
    assert (up * down).sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_delta_spikes_of_half_precision_are_those_of_its_values(dtype: torch.dtype) -> None:
    """A reference of bfloat16 would stand still at 256, for 256 + 0.5 is 256, and spike at every step from there."""
    signal = torch.linspace(200, 300, 401).to(dtype).view(-1, 1, 1)
    spikes = spiking.delta_spikes(signal, 0.5)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), spiking.delta_spikes(signal.float(), 0.5))
    assert spikes.float().sum().item() == 200


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: spiking.poisson_spikes(torch.tensor([1.5]), 3), r"rates must be .* in \[0, 1\]"),
        (lambda: spiking.poisson_spikes(torch.tensor([1]), 3), r"rates must be floating-point"),
        (lambda: spiking.latency_spikes(torch.tensor([math.nan]), 3), "values must be"),
        (lambda: spiking.latency_spikes(torch.tensor([0.5]), 0), "num_steps must be a positive integer"),
        (lambda: spiking.delta_spikes(torch.zeros(3, 1), 0.0), "step must be a positive number"),
        (lambda: spiking.delta_spikes(torch.zeros(3, 1).int(), 1.0), "signal must be floating-point"),
    ],
)
def test_bad_codes_are_named(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()


# -- other libraries' neurons ----------------------------------------------------------------------------------------


def one_layer(reset: Any) -> tuple[LIF, Tensor, Tensor]:
    """Return neurons without recurrence that share an α, that α, and the drives of 40 steps."""
    model = LIF(4, 8, recurrent=False, tau=3.0, threshold=1.0, reset=reset).double()
    inputs = 3 * torch.randn(40, 5, 4, dtype=torch.float64)
    return model, layer(model).rate_logit[0].sigmoid().detach(), inputs


def assert_same_trajectory(model: LIF, inputs: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Compare the spikes of all steps with those of `step(drive)`; return the last potentials."""
    spikes, state = model(inputs)
    assert 0.02 < spikes.mean().item() < 0.9
    for x, own in zip(inputs, spikes, strict=True):
        assert torch.equal(step(layer(model).input(x)).to(own), own)
    return state.neurons.v[0]


RESETS = pytest.mark.parametrize("reset", ["zero", "subtract"])
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


@RESETS
def test_the_trajectory_is_that_of_snntorch(reset: str) -> None:
    snntorch = pytest.importorskip("snntorch")
    model, alpha, inputs = one_layer(reset)
    # potentials below 2 θ: above, it takes the threshold off a second time in the next step
    with torch.no_grad():
        layer(model).input.weight.abs_()
        inputs = torch.rand_like(inputs) + 0.5
        inputs *= 2 / layer(model).input(inputs).max()
    # v⁻ = β v + d with β = 1 − α, so it gets α d; reset in the step of the spike, not in the next one
    other = snntorch.Leaky(beta=1 - alpha, threshold=1.0, reset_mechanism=reset, reset_delay=False)
    memory = [torch.zeros(5, 8, dtype=torch.float64)]

    def step(drive: Tensor) -> Tensor:
        spikes, memory[0] = other(alpha * drive, memory[0])
        return spikes

    own = assert_same_trajectory(model, inputs, step)
    torch.testing.assert_close(memory[0], own, **CLOSE)


@RESETS
def test_the_trajectory_is_that_of_spikingjelly(reset: str) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    model, alpha, inputs = one_layer(reset)
    # its τ is 1/α: v⁻ = v + (d − v)/τ
    other = neuron.LIFNode(tau=1 / alpha.item(), v_threshold=1.0, v_reset=0.0 if reset == "zero" else None)
    own = assert_same_trajectory(model, inputs, other)
    torch.testing.assert_close(other.v, own, **CLOSE)


def test_the_trajectory_is_that_of_norse() -> None:
    box = pytest.importorskip("norse.torch.functional.lif_box")
    model, alpha, inputs = one_layer("zero")
    zero, one = (torch.tensor(value, dtype=torch.float64) for value in (0.0, 1.0))
    parameters = box.LIFBoxParameters(tau_mem_inv=alpha, v_leak=zero, v_th=one, v_reset=zero)
    memory = [box.LIFBoxFeedForwardState(v=torch.zeros(5, 8, dtype=torch.float64))]

    def step(drive: Tensor) -> Tensor:
        spikes, memory[0] = box.lif_box_feed_forward_step(drive, memory[0], parameters, dt=1.0)
        return spikes

    own = assert_same_trajectory(model, inputs, step)
    torch.testing.assert_close(memory[0].v, own, **CLOSE)


def test_a_copy_runs_alike() -> None:
    model = LiquidLIF(3, 5, 4)
    inputs = torch.randn(6, 2, 3)
    assert torch.equal(copy.deepcopy(model)(inputs)[0], model(inputs)[0])


def test_options_of_subclasses_are_those_of_lif() -> None:
    parameters = inspect.signature(LIF, eval_str=True).parameters.values()
    own = {parameter.name: parameter.annotation for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert get_type_hints(LIFOptions) == own
    with pytest.raises(TypeError, match="unexpected keyword argument 'taus'"):
        LiquidLIF(1, 1, taus=1.0)  # pyright: ignore[reportCallIssue]

"""Networks of spiking neurons with a leaky read-out: LIF, ALIF and LiquidLIF."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt._checks import (
    check_choice,
    check_count,
    check_dtype,
    check_positive,
    check_sequences,
    check_type,
    check_unit_interval,
)
from fptt.nn.spiking.neurons import ALIFLayer, ALIFState, LIFLayer, LIFState, LiquidLIFLayer, Reset
from fptt.nn.spiking.readout import LeakyReadout, Pool, ReadoutState, check_shapes, counter_dtype
from fptt.nn.spiking.surrogates import MultiGaussian, Surrogate


class SpikingState(NamedTuple):
    """The state of the neurons, and that of the read-out; None without a read-out."""

    neurons: LIFState | ALIFState
    readout: ReadoutState | None


torch.serialization.add_safe_globals([SpikingState])  # torch.load reads a checkpoint that holds one


def firing_rate(state: SpikingState) -> Tensor:
    """Return how often each unit has spiked, in spikes a step since its sequence began, (num_layers, B, H).

    Steps of padding count as well, with the spikes that zeros bring: of ragged sequences take the rates of each alone,
    `model(sequence)[1]` without its padding, or of a batch in which all are of one length.

    Raises:
        TypeError: If this is not the state of a spiking network, as a `BatchResult` has it in its `state`.

    Examples:
        >>> _, state = fptt.nn.spiking.LIF(3, 8)(torch.ones(5, 2, 3))
        >>> tuple(fptt.nn.spiking.firing_rate(state).shape)
        (1, 2, 8)
    """
    check_type("state", state, SpikingState, "the SpikingState of a spiking network")
    return state.neurons.num_spikes / state.neurons.num_steps.clamp(min=1)


class LIFOptions(TypedDict, total=False):
    """Options of `LIF` that the networks derived from it have as well; see there for their meanings and defaults."""

    num_layers: int
    recurrent: bool
    threshold: float
    reset: Reset
    detach_reset: bool
    surrogate: Surrogate
    tau: float | tuple[float, float]
    learn_tau: bool
    pool: Pool
    tau_readout: float
    last_only: bool
    dropout: float
    batch_first: bool


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with a leaky read-out, `(inputs, state) -> (outputs, state)`.

    For each layer, with H the step function:

        d = W x + V s + b
        v⁻ = v + α (d − v)          α = 1 − exp(−1/τ), one for each unit
        s⁺ = H(v⁻ − θ)
        v⁺ = v⁻ − θ s⁺  (reset="subtract")  or  (1 − s⁺) v⁻  (reset="zero")

    The exact solution of the leaky membrane for a constant drive within a step (Gerstner et al., *Neuronal Dynamics*,
    2014, section 1.3). The backward pass has a surrogate in place of the derivative of H.

    Args:
        input_size: D, width of the inputs.
        hidden_size: H, number of neurons of a layer.
        output_size: C, width of the outputs of a `LeakyReadout`; None for the spikes of the last layer.
        num_layers: Layers of neurons.
        recurrent: Whether neurons of a layer hear each other's spikes of the step before, by V.
        threshold: θ > 0.
        reset: What a spike does to the potential.
        detach_reset: Whether no gradient goes through the reset.
        surrogate: Stands for the derivative of the step function.
        tau: Time constant in steps to begin with, > 0; a pair draws one for each unit between the two, log-uniformly.
        learn_tau: Whether α is learned, through its logit.
        pool: What the read-out gives at a step; see `LeakyReadout`.
        tau_readout: Time constant of the read-out in steps to begin with, > 0.
        last_only: Return the outputs of the last step of each call only, as a terminal loss needs: (1, B, C).
        dropout: On the spikes between layers, in [0, 1).
        batch_first: Whether inputs and outputs are (B, T, …) instead of (T, B, …). The state never is.

    Raises:
        ValueError: If an argument is out of range; on a call, if inputs or state do not fit, or do not have the dtype
            of the weights, outside of autocast.
        TypeError: If the surrogate is none; on a call, if the inputs are no tensor.

    Examples:
        >>> model = fptt.nn.spiking.LIF(3, 16, 10, pool="mean")
        >>> outputs, state = model(torch.randn(7, 4, 3))
        >>> tuple(outputs.shape), tuple(state.neurons.s.shape)
        ((7, 4, 10), (1, 4, 16))
    """

    layer: ClassVar[type[LIFLayer]] = LIFLayer
    has_liquid_readout: ClassVar[bool] = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        num_layers: int = 1,
        recurrent: bool = True,
        threshold: float = 0.1,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: Surrogate = MultiGaussian(),  # noqa: B008  # frozen
        tau: float | tuple[float, float] = (1.0, 10.0),
        learn_tau: bool = True,
        pool: Pool = "last",
        tau_readout: float = 2.0,
        last_only: bool = False,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_count(name, value)
        check_positive("threshold", threshold)
        check_choice("reset", reset, get_args(Reset))
        check_choice("pool", pool, get_args(Pool))
        check_unit_interval("dropout", dropout, closed=False)
        tau_bounds = _tau_bounds("tau", tau)
        check_positive("tau_readout", tau_readout)
        if not isinstance(surrogate, Surrogate):
            raise TypeError(f"surrogate must be a Surrogate such as MultiGaussian(), got {surrogate!r}.")
        widths = [input_size, *[hidden_size] * (num_layers - 1)]
        self.layers = nn.ModuleList(
            self.layer(
                width,
                hidden_size,
                recurrent=recurrent,
                threshold=float(threshold),
                reset=reset,
                detach_reset=detach_reset,
                surrogate=surrogate,
                tau=tau_bounds,
                learn_tau=learn_tau,
                **self._layer_options(),
            )
            for width in widths
        )
        self.readout = None
        if output_size is not None:
            self.readout = LeakyReadout(
                hidden_size, output_size, pool=pool, tau=tau_readout, liquid=self.has_liquid_readout
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.last_only, self.dropout, self.batch_first = last_only, dropout, batch_first

    def _layer_options(self) -> dict[str, Any]:
        """Return what the layers of a subclass are made with besides."""
        return {}

    def initial_state(self, inputs: Tensor) -> SpikingState:
        """Return the state that None stands for, zeros, for a batch of inputs."""
        return self._zeros(inputs.transpose(0, 1) if self.batch_first else inputs)

    def _zeros(self, inputs: Tensor) -> SpikingState:
        shape = (self.num_layers, inputs.shape[1], self.hidden_size)
        # in the dtype of the weights, which autocast does not shorten
        moving = self._like().dtype
        zeros = [inputs.new_zeros(shape, dtype=moving) for _ in range(self.layer.num_moving)]
        dtype = counter_dtype(inputs)
        zeros.append(inputs.new_zeros(shape, dtype=dtype))
        neurons = self.layer.state(*zeros, num_steps=inputs.new_zeros(inputs.shape[1], 1, dtype=dtype))
        return SpikingState(neurons, None if self.readout is None else self.readout.initial_state(inputs))

    def _like(self) -> Tensor:
        """Return a weight, whose dtype is that of all."""
        layer = self.layers[0]
        assert isinstance(layer, LIFLayer)
        return layer.rate_logit

    def forward(self, inputs: Tensor, state: SpikingState | None = None) -> tuple[Tensor, SpikingState]:
        """Return outputs, (T, B, C), and state for inputs (T, B, D); state None is zeros."""
        check_sequences(inputs, self.input_size, batch_first=self.batch_first)
        check_dtype("inputs", inputs, self._like())
        inputs = inputs.transpose(0, 1) if self.batch_first else inputs
        state = self._zeros(inputs) if state is None else self._checked(inputs, state)
        *moving, num_spikes, num_steps = state.neurons
        spikes, finals, counts = inputs, [], []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, LIFLayer)
            if number:
                spikes = functional.dropout(spikes, self.dropout, self.training)
            spikes, final = layer.run(spikes, tuple(tensor[number] for tensor in moving))
            finals.append(final)
            counts.append(_total(spikes, num_spikes.dtype))
        after = [_stacked(tensors) for tensors in zip(*finals, strict=True)]
        neurons = self.layer.state(*after, num_spikes=num_spikes + _stacked(counts), num_steps=num_steps + len(inputs))
        if self.readout is None:
            outputs, after_readout = spikes, None
        else:
            outputs, after_readout = self.readout(spikes, state.readout)
        outputs = outputs[-1:] if self.last_only else outputs
        return outputs.transpose(0, 1) if self.batch_first else outputs, SpikingState(neurons, after_readout)

    def _checked(self, inputs: Tensor, state: SpikingState) -> SpikingState:
        """Return a state that fits, in its own types.

        Raises:
            ValueError: If it does not fit.
        """
        shape, batch_size = (self.num_layers, inputs.shape[1], self.hidden_size), inputs.shape[1]
        of_readout = None if self.readout is None else self.readout.state_shapes(batch_size)
        of_neurons = (*[shape] * (self.layer.num_moving + 1), (batch_size, 1))
        check_shapes("a SpikingState", state, (of_neurons, of_readout))
        neurons, readout = state
        for moving in neurons[: self.layer.num_moving]:
            check_dtype("state", moving, self._like())
        return SpikingState(self.layer.state(*neurons), None if readout is None else ReadoutState(*readout))


class ALIF(LIF):
    """Neurons whose thresholds rise with each of their spikes (Bellec et al., NeurIPS 2018), else as `LIF`.

        a⁺ = ρ a + (1 − ρ) s        ρ = exp(−1/τ_a), one for each unit
        θ = θ₀ + κ a⁺               in place of LIF's θ

    θ₀ = 0.1 and κ = 1.8 are those of Yin, Corradi & Bohté (Nature Machine Intelligence 2021).

    Args:
        input_size: D, width of the inputs.
        hidden_size: H, number of neurons of a layer.
        output_size: C, width of the outputs of a `LeakyReadout`; None for the spikes of the last layer.
        adaptation: κ ≥ 0; with 0 these are LIF neurons.
        tau_adaptation: Time constant in steps of the adaptation to begin with, > 0; a pair draws one for each unit.
        **options: See `LIF`.

    Raises:
        ValueError: If an argument is out of range; on a call, if inputs or state do not fit, or do not have the dtype
            of the weights, outside of autocast.
        TypeError: If the surrogate is none; on a call, if the inputs are no tensor.

    Examples:
        >>> outputs, state = fptt.nn.spiking.ALIF(3, 16, 10)(torch.randn(7, 4, 3))
        >>> tuple(outputs.shape), tuple(state.neurons.a.shape)
        ((7, 4, 10), (1, 4, 16))
    """

    layer = ALIFLayer

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        adaptation: float = 1.8,
        tau_adaptation: float | tuple[float, float] = (5.0, 50.0),
        **options: Unpack[LIFOptions],
    ) -> None:
        if isinstance(adaptation, bool) or not isinstance(adaptation, int | float) or not 0 <= adaptation < math.inf:
            raise ValueError(f"adaptation must be a number of at least 0, got {adaptation!r}.")
        # before the layers are made
        self._adaptation, self._tau_adaptation = float(adaptation), _tau_bounds("tau_adaptation", tau_adaptation)
        super().__init__(input_size, hidden_size, output_size, **options)

    def _layer_options(self) -> dict[str, Any]:
        return {"adaptation": self._adaptation, "tau_adaptation": self._tau_adaptation}


class LiquidLIF(ALIF):
    """Adaptive neurons whose time constants follow the input and their own state, else as `ALIF`.

        α = σ(W_α [d; v] + b_α)        ρ = σ(W_ρ [d; a] + b_ρ)

    The "liquid time constant" neuron of sFPTT (Yin, Corradi & Bohté, Nature Machine Intelligence 2023); not the cell of
    an ordinary differential equation that Hasani et al. (AAAI 2021) call so. Its read-out is liquid, too.
    `learn_tau=False` keeps b_α and b_ρ, which `tau` and `tau_adaptation` set, and W_α, W_ρ are learned all the same.

    Args:
        input_size: D, width of the inputs.
        hidden_size: H, number of neurons of a layer.
        output_size: C, width of the outputs of a `LeakyReadout`; None for the spikes of the last layer.
        **options: See `ALIF` and `LIF`.

    Raises:
        ValueError: If an argument is out of range; on a call, if inputs or state do not fit, or do not have the dtype
            of the weights, outside of autocast.
        TypeError: If the surrogate is none; on a call, if the inputs are no tensor.

    Examples:
        >>> outputs, state = fptt.nn.spiking.LiquidLIF(3, 16, 10, num_layers=2)(torch.randn(7, 4, 3))
        >>> tuple(outputs.shape), tuple(state.neurons.v.shape)
        ((7, 4, 10), (2, 4, 16))
    """

    layer = LiquidLIFLayer
    has_liquid_readout = True


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors (B, H) of all layers as one, (num_layers, B, H); a view of a single one."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _total(spikes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the spikes of each unit in all steps, (B, H)."""
    if len(spikes) == 1:
        return spikes.squeeze(0).to(dtype)  # a sum would go over it for nothing
    return spikes.sum(0, dtype=dtype)


def _tau_bounds(name: str, tau: float | tuple[float, float]) -> tuple[float, float]:
    """Return the shortest and the longest time constant.

    Raises:
        ValueError: If this is neither a time constant above 0 nor two of them, the shorter first.
    """
    bounds = tau if isinstance(tau, tuple) else (tau, tau)
    are_numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds)
    if len(bounds) != 2 or not are_numbers or not all(0 < bound < math.inf for bound in bounds):
        raise ValueError(f"{name} must be a time constant above 0 or a tuple of two of them, got {tau!r}.")
    if bounds[0] > bounds[1]:
        raise ValueError(f"{name} must have the shorter time constant first, got {tau!r}.")
    return bounds

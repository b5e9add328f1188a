"""LSTM, GRU and RNN with a read-out, on the fast kernels of `torch.nn` or as plain cells with the same weights."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt._checks import check_choice, check_count, check_dtype, check_iterable, check_sequences, check_unit_interval
from fptt._sequence import flatten_state
from fptt.nn.cells import KERNELS, KERNELS_IN_STEP, kernel_in_step, run_layers, transforms_are_active
from fptt.nn.native import is_usual, suits_native

FORWARDS = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
"""Of the layers that the cells stand for."""

Kernel = Literal["fused", "torch", "plain"]

RunningKernel = Literal["plain", "torch", "cudnn", "native"]
"""What may run a layer; see `LSTM.kernel_for`."""

# The compiled engine has to set this for models anywhere inside a user's own module, so it cannot be an argument.
_plain_everywhere = ContextVar("plain_everywhere", default=False)


@contextmanager
def plain_cells() -> Iterator[None]:
    """Run every model of `fptt.nn` as a compiler needs it, by its plain cell or an operator, whatever kernel it has."""
    token = _plain_everywhere.set(True)
    try:
        yield
    finally:
        _plain_everywhere.reset(token)


def plain_is_wanted() -> bool:
    """Return whether this runs inside `plain_cells`."""
    return _plain_everywhere.get()


class LSTMState(NamedTuple):
    """Output and memory of an LSTM, each (num_layers, B, H)."""

    h: Tensor
    c: Tensor


torch.serialization.add_safe_globals([LSTMState])  # torch.load reads a checkpoint that holds one


class _Model(nn.Module):
    """A recurrent layer and a read-out; see `LSTM`."""

    layer: ClassVar[Callable[..., nn.RNNBase]]
    num_state_tensors: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        num_layers: int = 1,
        readout_sizes: Sequence[int] = (),
        readout_activation: Callable[[], nn.Module] = nn.Identity,
        last_only: bool = False,
        dropout: float = 0.0,
        batch_first: bool = False,
        kernel: Kernel = "fused",
        forget_bias: float = 0.0,
        chrono_init: int | None = None,
        fan_in_init: bool = False,
    ) -> None:
        super().__init__()
        check_choice("kernel", kernel, ("fused", "torch", "plain"))
        check_iterable("readout_sizes", readout_sizes)
        hidden_widths = list(readout_sizes)
        if output_size is None and hidden_widths:
            raise ValueError(f"readout_sizes={tuple(hidden_widths)} needs output_size, got None.")
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        if output_size is not None:
            sizes["output_size"] = output_size
        sizes |= {f"readout_sizes[{number}]": width for number, width in enumerate(hidden_widths)}
        for name, size in sizes.items():
            check_count(name, size, Integral)
        check_unit_interval("dropout", dropout, closed=False)
        self.rnn = self.layer(input_size, hidden_size, num_layers, dropout=dropout)
        if not isinstance(forget_bias, Real) or not math.isfinite(forget_bias):
            raise ValueError(f"forget_bias must be a finite number, got {forget_bias!r}.")
        if forget_bias and chrono_init is not None:
            raise ValueError(f"forget_bias must be 0 with chrono_init={chrono_init}, got {forget_bias}.")
        _add_forget_bias(self.rnn, forget_bias)
        if chrono_init is not None:
            _init_chrono(self.rnn, chrono_init)
        if fan_in_init:
            nn.init.uniform_(self.rnn.get_parameter("weight_ih_l0"), -(input_size**-0.5), input_size**-0.5)
        self.readout = _readout([hidden_size, *hidden_widths], output_size, readout_activation)
        self.last_only, self.batch_first, self.kernel = last_only, batch_first, kernel

    def _run(self, inputs: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Return outputs and state tensors for inputs of either layout."""
        check_sequences(inputs, self.rnn.input_size, batch_first=self.batch_first)
        self._check_dtype("inputs", inputs)
        # time-major from here on, as the kernels want it
        inputs = inputs.transpose(0, 1) if self.batch_first else inputs
        states = self._checked_states(inputs, states)
        for state in states:
            self._check_dtype("state", state)
        kernel = self._kernel_for(inputs)
        hidden, states = self._run_kernel(kernel, inputs, states)
        if self.last_only:
            # the state is the same number, and its gradient not an output's with zeros for all other steps
            hidden = states[0][-1:] if kernel == "native" else hidden[-1:]
        outputs = self.readout(hidden)
        return outputs.transpose(0, 1) if self.batch_first else outputs, states

    def _check_dtype(self, name: str, tensor: Tensor) -> None:
        weight = next(iter(self.rnn._parameters.values()), None)  # at every call: `parameters()` takes 10 µs
        if weight is None or tensor.dtype == weight.dtype:
            return
        if self._is_as_made():  # hooks, or a forward pass of somebody's own, may convert
            check_dtype(name, tensor, weight)

    def _is_as_made(self) -> bool:
        """Return whether the recurrent layer computes what the cells do: one of `torch.nn`, perhaps parametrized."""
        rnn = self.rnn
        if not isinstance(rnn, nn.RNNBase) or type(rnn).forward not in FORWARDS or "forward" in vars(rnn):
            return False  # with a `forward` of its own it may compute anything
        return is_usual(rnn) and not _has_hooks(rnn)

    def _zero_states(self, inputs: Tensor) -> list[Tensor]:
        """Return the state tensors from which sequences of inputs (T, B, D) begin."""
        shape = (self.rnn.num_layers, inputs.shape[1], self.rnn.hidden_size)
        return [inputs.new_zeros(shape) for _ in range(self.num_state_tensors)]

    def _checked_states(self, inputs: Tensor, states: Sequence[Tensor] | None) -> list[Tensor]:
        if states is None:
            return self._zero_states(inputs)
        shape = (self.rnn.num_layers, inputs.shape[1], self.rnn.hidden_size)
        found = [tuple(state.shape) for state in states]
        if found != [shape] * self.num_state_tensors:
            raise ValueError(
                f"state must have {self.num_state_tensors} tensor(s) of shape (num_layers, B, H) = {shape}, "
                f"got {found}."
            )
        return list(states)

    def kernel_for(self, inputs: Tensor) -> RunningKernel:
        """Return what runs the recurrent layers on inputs of this shape, here and now: autocast and threads count.

        A layer that others have put into `rnn`, with a `forward` of its own, and one with hooks is always called
        itself, in a compiled step as well; one with parametrized weights (`torch.nn.utils.parametrize`) need not be.

        Args:
            inputs: (T, B, D), or (B, T, D) with batch_first.

        Returns:
            `plain`, the cell written out, also where transforms of `torch.func` look into it; `torch`, the layer of
            `torch.nn`; `native`, machine code of the library's own that takes all steps at once, on processors, with
            products in bfloat16 under autocast and all else in float32; `cudnn`, cuDNN's as an operator, inside
            compiled steps only.

        Examples:
            >>> fptt.nn.LSTM(3, 16, kernel="plain").kernel_for(torch.randn(7, 4, 3))
            'plain'
        """
        return self._kernel_for(inputs.transpose(0, 1) if self.batch_first else inputs)

    def _kernel_for(self, inputs: Tensor) -> RunningKernel:
        if not self._is_as_made():
            return "torch"
        if self.kernel != "fused":
            return "plain" if self.kernel == "plain" or plain_is_wanted() else "torch"
        if plain_is_wanted():
            return kernel_in_step(self.rnn, inputs)
        if transforms_are_active():
            return "plain"
        return "native" if suits_native(self.rnn, inputs) else "torch"

    def _run_kernel(self, kernel: RunningKernel, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if kernel != "torch":
            kernels = KERNELS_IN_STEP if plain_is_wanted() else KERNELS
            return run_layers(self.rnn, inputs, states, kernels[kernel])
        # torch.nn takes and returns a pair for an LSTM, else one tensor
        outputs, state = self.rnn(inputs, tuple(states) if len(states) > 1 else states[0])
        return outputs, list(state) if len(states) > 1 else [state]


class LSTM(_Model):
    """An LSTM with a read-out that speaks `(inputs, state) -> (outputs, state)`.

    Args:
        input_size: D, width of the inputs.
        hidden_size: H, width of the state.
        output_size: C, width of the outputs; None for the state itself, without a read-out.
        num_layers: Recurrent layers.
        readout_sizes: Widths of hidden read-out layers. The paper's models have one of 256.
        readout_activation: Makes the module after each hidden read-out layer: linear as in the paper by default, or
            `torch.nn.ReLU`.
        last_only: Read out the last step of each call only, as a terminal loss needs: outputs are (1, B, C).
        dropout: Between recurrent layers, in [0, 1).
        batch_first: Whether inputs and outputs are (B, T, …) instead of (T, B, …). The state never is.
        kernel: `fused`, the fastest there is, see `kernel_for`; `torch`, the layer of `torch.nn`; or `plain`, the cell
            written out: same weights, same numbers, readable, and differentiable more than once and by all transforms
            of `torch.func`, of which the kernels of `torch.nn` lack some: within those `fused` is it.
        forget_bias: Added to the forget gate's initial bias (Gers et al. 2000): 0 forgets half of the memory a step,
            b keeps σ(b) of it.
        chrono_init: Longest dependency in time steps, for chrono initialization (Tallec & Ollivier 2018): the units'
            memories then span 2 to that many steps from the beginning. For LSTM and GRU; not with a forget bias.
        fan_in_init: Draw the first layer's input weights from ±1/√D, as `torch.nn.Linear` does, instead of ±1/√H: with
            few inputs and a wide state, those of `torch.nn` are so small that the state hardly hears the inputs.

    Raises:
        ValueError: If an argument is out of range; on a call, if inputs or state do not fit, or do not have the dtype
            of the weights, outside of autocast.
        TypeError: If `readout_sizes` is no list, or `readout_activation` makes no module; on a call, if the inputs are
            no tensor: `fptt.predict` and the methods take packed sequences.

    Examples:
        >>> model = fptt.nn.LSTM(3, 16, 10, readout_sizes=[32])
        >>> outputs, state = model(torch.randn(7, 4, 3))
        >>> tuple(outputs.shape), tuple(state.h.shape)
        ((7, 4, 10), (1, 4, 16))
    """

    layer = nn.LSTM
    num_state_tensors = 2

    def forward(
        self, inputs: Tensor, state: LSTMState | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Return outputs, (T, B, C), and state for inputs (T, B, D); state None is zeros."""
        outputs, states = self._run(inputs, None if state is None else flatten_state(state))
        return outputs, LSTMState(*states)

    def initial_state(self, inputs: Tensor) -> LSTMState:
        """Return the state that None stands for, zeros, for a batch of inputs."""
        return LSTMState(*self._zero_states(inputs.transpose(0, 1) if self.batch_first else inputs))


class GRU(_Model):
    """A GRU with a read-out; arguments as for `LSTM`. Its state is one tensor, (num_layers, B, H).

    Examples:
        >>> outputs, state = fptt.nn.GRU(3, 16, 10, last_only=True)(torch.randn(7, 4, 3))
        >>> tuple(outputs.shape), tuple(state.shape)
        ((1, 4, 10), (1, 4, 16))
    """

    layer = nn.GRU

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs, (T, B, C), and state for inputs (T, B, D); state None is zeros."""
        outputs, (final,) = self._run(inputs, None if state is None else flatten_state(state))
        return outputs, final

    def initial_state(self, inputs: Tensor) -> Tensor:
        """Return the state that None stands for, zeros, for a batch of inputs."""
        return self._zero_states(inputs.transpose(0, 1) if self.batch_first else inputs)[0]


class RNN(GRU):
    """An Elman network with tanh and a read-out; arguments as for `LSTM`. Its state is one tensor, (num_layers, B, H).

    Examples:
        >>> outputs, state = fptt.nn.RNN(3, 16, kernel="plain")(torch.randn(7, 4, 3))
        >>> tuple(outputs.shape)
        (7, 4, 16)
    """

    layer = nn.RNN


CELLS: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
"""The models by the names of their cells; `RNN` is a `GRU` of another cell."""


def _has_hooks(module: nn.Module) -> bool:
    """Return whether somebody wants to see the calls of a module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _readout(sizes: list[int], output_size: int | None, activation: Callable[[], nn.Module]) -> nn.Module:
    if output_size is None:
        return nn.Identity()
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(sizes):
        layers += [nn.Linear(width, next_width), _made_by(activation)]
    layers.append(nn.Linear(sizes[-1], output_size))
    is_linear = all(isinstance(layer, nn.Linear | nn.Identity) for layer in layers)
    return _LinearLayers(*layers) if is_linear and len(layers) > 1 else nn.Sequential(*layers)


def _made_by(activation: Callable[[], nn.Module]) -> nn.Module:
    """Return a new module.

    Raises:
        TypeError: If a module or a function was given in the place of what makes one.
    """
    expected = f"readout_activation must make a module when it is called, as torch.nn.ReLU does, got {activation!r}"
    try:
        module = activation()
    except TypeError as error:
        raise TypeError(f"{expected}: {error}") from error
    if not isinstance(module, nn.Module):
        raise TypeError(f"{expected}, which makes a {type(module).__name__}.")
    return module


class _LinearLayers(nn.Sequential):
    """Linear layers with nothing in between: one linear map, whose weights are multiplied first where that is cheaper.

    Few outputs and many samples, as usual, make it several times cheaper than to multiply every sample by every layer.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that torch.nn gives it
        # exactly these: who puts another module in a layer's place, or a hook on one, wants it called
        if not all(type(layer) in {nn.Linear, nn.Identity} and not _has_hooks(layer) for layer in self):
            return super().forward(input)
        linear = [layer for layer in self if isinstance(layer, nn.Linear)]
        if len(linear) < 2 or linear[0].bias is None:  # somebody has taken a layer, or the bias that goes through all
            return super().forward(input)
        first, *others = linear
        num_samples = input.numel() // input.shape[-1]
        # multiply-adds: samples through every layer; or the layers among themselves, then samples through their product
        apart = num_samples * (first.weight.numel() + sum(layer.weight.numel() for layer in others))
        together = first.in_features * (
            num_samples * others[-1].out_features + sum(layer.weight.numel() for layer in others)
        )
        if together >= apart:
            return super().forward(input)
        weight, bias = first.weight, first.bias
        for layer in others:
            weight, bias = layer.weight @ weight, functional.linear(bias, layer.weight, layer.bias)
        return functional.linear(input, weight, bias)


def _add_forget_bias(rnn: nn.RNNBase, forget_bias: float) -> None:
    """Add to the forget gates' biases of all layers (Gers, Schmidhuber & Cummins 2000)."""
    if forget_bias and not isinstance(rnn, nn.LSTM):
        raise ValueError(f"forget_bias belongs to the LSTM, got {forget_bias} for a {type(rnn).__name__}.")
    for layer in range(rnn.num_layers if forget_bias else 0):
        # torch.nn has two biases a gate, which add up
        _gate(rnn, f"bias_ih_l{layer}", 1).add_(forget_bias)


def _init_chrono(rnn: nn.RNNBase, longest: int) -> None:
    """Let the units of all layers remember for up to `longest` steps (Tallec & Ollivier 2018).

    LSTM: b_f ~ log U(1, T − 1), b_i = −b_f. GRU: b_z ~ log U(1, T − 1), for z here is what is kept.
    """
    if not isinstance(rnn, nn.LSTM | nn.GRU):
        raise ValueError(f"chrono_init belongs to LSTM and GRU, got {longest} for a {type(rnn).__name__}.")
    check_count("chrono_init", longest, Integral)
    if longest < 2:
        raise ValueError(f"chrono_init must be at least 2, got {longest}.")
    for layer in range(rnn.num_layers):
        # a gate σ(b) keeps its memory for about 1 + exp(b) steps: here uniform over 2 … T
        keeps = torch.empty(rnn.hidden_size).uniform_(1, longest - 1).log_()
        _set_bias(rnn, layer, 1, keeps)
        if isinstance(rnn, nn.LSTM):
            _set_bias(rnn, layer, 0, -keeps)


def _set_bias(rnn: nn.RNNBase, layer: int, gate: int, value: Tensor) -> None:
    """Set what the two biases of a gate add up to."""
    _gate(rnn, f"bias_ih_l{layer}", gate).copy_(value)
    _gate(rnn, f"bias_hh_l{layer}", gate).zero_()


def _gate(rnn: nn.RNNBase, name: str, number: int) -> Tensor:
    return rnn.get_parameter(name).detach().split(rnn.hidden_size)[number]

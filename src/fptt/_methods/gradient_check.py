"""Check of the gradient of each chunk, for cells of one's own."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fptt._batches.batch import Batch
from fptt._batches.cut import Chunk, Chunking, check_horizon, check_model, cut_batch
from fptt._engine.engine import Window
from fptt._losses.chunk_loss import ChunkLoss
from fptt._sequence import State, detach_state, flatten_state, map_state

Gradient = dict[str, Tensor]


class ChunkGradient(NamedTuple):
    """The comparison of one chunk's gradient with other ways to take it.

    Attributes:
        number: The chunk, from 0.
        loss: Its loss.
        autograd_error: Largest relative error of a parameter against autograd on an isolated copy of the model, from a
            copy of the incoming state: above rounding, the graph or the state leaks between chunks.
        difference_error: Largest relative error of a parameter against central finite differences: above about 1e-6,
            a backward pass is wrong.
        worst_parameter: The parameter of the largest difference_error.
        angle: Degrees between this gradient and that of BPTT for the same losses; 90 is unrelated, 180 opposed.
        is_zero: Whether the gradient is zero in every parameter.
        uses_state: Whether the loss depends on the incoming state; None for a first chunk, which may have none.
    """

    number: int
    loss: float
    autograd_error: float
    difference_error: float
    worst_parameter: str
    angle: float
    is_zero: bool
    uses_state: bool | None


class GradientReport(NamedTuple):
    """The chunks of `check_gradient`, and the angle in degrees between the mean of their gradients and BPTT's."""

    chunks: list[ChunkGradient]
    angle: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance, and there is a gradient at all."""
        is_right = all(max(chunk.autograd_error, chunk.difference_error) <= self.tolerance for chunk in self.chunks)
        return is_right and not self.is_zero

    @property
    def is_zero(self) -> bool:
        """Whether the gradient is zero in every parameter and chunk: it agrees with anything that is zero as well."""
        return all(chunk.is_zero for chunk in self.chunks)

    @property
    def state_is_unused(self) -> bool:
        """Whether no chunk's loss depends on the state that comes in: nothing is remembered over a cut."""
        found = [chunk.uses_state for chunk in self.chunks if chunk.uses_state is not None]
        return bool(found) and not any(found)

    def __str__(self) -> str:
        lines = ["chunk        loss   vs autograd  vs differences   angle to BPTT   worst parameter"]
        lines += [
            f"{c.number:5d}  {c.loss:10.4g}  {c.autograd_error:12.1e}  {c.difference_error:14.1e}  {c.angle:13.1f}°"
            f"   {c.worst_parameter}"
            for c in self.chunks
        ]
        if self.is_zero:
            return "\n".join([*lines, "NO GRADIENT: it is zero in every parameter and chunk"])
        verdict = "correct" if self.passed else "WRONG"
        lines.append(f"{verdict} to {self.tolerance:g}; mean gradient {self.angle:.1f}° from BPTT's")
        if self.state_is_unused:
            lines.append("UNUSED STATE: no chunk's loss depends on the state that comes in")
        return "\n".join(lines)


def check_gradient(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: ChunkLoss,
    *,
    num_chunks: int | None = None,
    chunk_length: int | None = None,
    horizon: int = 1,
    state: State = None,
    mask: Tensor | None = None,
    batch_first: bool = False,
    tolerance: float = 1e-5,
) -> GradientReport:
    """Compare the gradient of each chunk, at fixed weights, with autograd, finite differences and BPTT, in float64.

    The gradient under test is taken in one walk over the chunks, with the state detached at each cut, as the training
    methods do. Finite differences go along one random direction a parameter. The model is copied, turned to float64
    and to evaluation mode (no dropout); it is left as it was.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`.
        inputs: (T, B, …); keep the sequence short.
        targets: (B, …) or (T, B, …), as the loss wants them.
        loss: A `TerminalLoss` or a `SequenceLoss`.
        num_chunks: K, the number of chunks.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        horizon: Chunks that each gradient goes through, its own and those before it; see `TBPTT`. With K of them the
            mean gradient is that of BPTT.
        state: State to begin with, None for the model's own.
        mask: Boolean, (T, B), True at real steps.
        batch_first: Whether inputs, outputs, targets of steps and mask are (B, T, …).
        tolerance: Largest relative error that passes.

    Returns:
        A `GradientReport`: print it to read it, `passed` for the verdict.

    Raises:
        ValueError: If the arguments do not fit together, or the model has no trainable parameter or is bidirectional.
        TypeError: If the model does not take a state, or does not run in float64.

    Examples:
        >>> model = nn.LSTM(3, 5)
        >>> loss = fptt.TerminalLoss(nn.functional.cross_entropy)
        >>> fptt.check_gradient(model, torch.randn(12, 4, 3), torch.arange(4), loss, num_chunks=3).passed
        True
    """
    check_model(model, None, batch_first)
    model, loss = copy.deepcopy(model).double().eval(), copy.deepcopy(loss).double().eval()
    if not _trainable(model):
        raise ValueError("model must have at least one trainable parameter, got none.")
    inputs, targets = (tensor.double() if tensor.is_floating_point() else tensor for tensor in (inputs, targets))
    state = detach_state(map_state(Tensor.double, state))
    chunking = Chunking(num_chunks, chunk_length, batch_first)
    chunks = cut_batch(Batch(inputs, targets, mask), loss, chunking)
    check_horizon(horizon, len(chunks))
    checker = _Checker(model, loss, chunking)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no backward pass in evaluation mode
        gradients, windows, losses = checker.walk(chunks, state, horizon)
        full = checker.full_gradient(chunks, state)
        reports = [
            checker.compare(windows[chunk.number], chunk, gradients[chunk.number], losses[chunk.number], full)
            for chunk in chunks
        ]
    mean = {name: sum(gradient[name] for gradient in gradients) / len(gradients) for name in full}
    return GradientReport(reports, _angle(mean, full), tolerance)  # pyright: ignore


class _Checker:
    """A model and a loss in float64, and the ways to take their gradient.

    Only `walk` runs the model itself; everything else runs copies of it from before, which no walk has touched.
    """

    def __init__(self, model: nn.Module, loss: ChunkLoss, chunking: Chunking) -> None:
        self.model, self.loss, self.chunking = model, loss, chunking
        self.untouched = copy.deepcopy(model)

    def chunk_loss(self, model: nn.Module, chunk: Chunk, state: State) -> tuple[Tensor, State]:
        """Return the loss of a chunk and the next state."""
        try:
            output, state = model(chunk.inputs, state)
        except RuntimeError as error:
            if any(word in str(error) for word in ("dtype", "scalar type", "Float", "Double", "Half")):
                raise _not_in_float64(str(error)) from error
            raise
        if output.dtype != torch.float64:
            # differences in a lower precision would say nothing about the gradient
            raise _not_in_float64(f"its outputs are {output.dtype}")
        return self.loss(self.chunking.time_major(output), chunk.part), state

    def window_loss(self, model: nn.Module, window: Window, chunk: Chunk) -> tuple[Tensor, State]:
        """Return the loss of a chunk, through its window, and the state after the first chunk that was run."""
        state, states = window.state, []
        for earlier in window.chunks:
            _, state = self.chunk_loss(model, earlier, state)
            states.append(state)
        loss, state = self.chunk_loss(model, chunk, state)
        return loss, [*states, state][0]

    def walk(self, chunks: list[Chunk], state: State, horizon: int) -> tuple[list[Gradient], list[Window], list[float]]:
        """Walk over the chunks as training does, at fixed weights; return gradients, windows and losses."""
        gradients, windows, losses = [], [], []
        window = Window((), detach_state(state))
        for chunk in chunks:
            windows.append(window._replace(state=map_state(Tensor.clone, window.state)))
            loss, after_first = self.window_loss(self.model, window, chunk)
            self.model.zero_grad()
            loss.backward(retain_graph=True)
            gradients.append(_gradient(self.model))
            losses.append(loss.item())
            window = window.moved_on(chunk, after_first, horizon)
        return gradients, windows, losses

    def full_gradient(self, chunks: list[Chunk], state: State) -> Gradient:
        """Return the gradient of the mean chunk loss with the graph uncut: that of BPTT."""
        model = copy.deepcopy(self.untouched)
        losses = []
        for chunk in chunks:
            loss, state = self.chunk_loss(model, chunk, state)
            losses.append(loss)
        model.zero_grad()
        torch.stack(losses).mean().backward()
        return _gradient(model)

    def compare(self, window: Window, chunk: Chunk, gradient: Gradient, loss: float, full: Gradient) -> ChunkGradient:
        """Hold the gradient of one chunk against the other ways to get it."""
        isolated = copy.deepcopy(self.untouched)
        isolated.zero_grad()
        given = map_state(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()), window.state)
        self.window_loss(isolated, window._replace(state=given), chunk)[0].backward()
        expected = _gradient(isolated)
        uses_state = any(t.grad is not None and bool(t.grad.any()) for t in flatten_state(given))
        scale = math.sqrt(sum(value.square().sum().item() for value in expected.values()))
        autograd_error = max(_relative((gradient[name] - expected[name]).norm().item(), scale) for name in expected)
        errors = {name: self._difference_error(name, window, chunk, gradient[name], scale) for name in gradient}
        worst = max(errors, key=errors.__getitem__)
        return ChunkGradient(
            chunk.number,
            loss,
            autograd_error,
            errors[worst],
            worst,
            _angle(gradient, full),
            is_zero=not any(value.any() for value in gradient.values()),
            uses_state=uses_state if chunk.number > len(window.chunks) else None,  # before it there is no cut
        )

    def _difference_error(self, name: str, window: Window, chunk: Chunk, gradient: Tensor, scale: float) -> float:
        direction = torch.randn(gradient.shape, dtype=gradient.dtype, generator=torch.Generator().manual_seed(0))
        direction = direction.to(gradient.device) / direction.norm()
        step = 1e-6
        ahead, behind = (self._loss_at(name, direction * sign * step, window, chunk) for sign in (1, -1))
        return _relative(abs((ahead - behind) / (2 * step) - (gradient * direction).sum().item()), scale)

    @torch.no_grad()
    def _loss_at(self, name: str, offset: Tensor, window: Window, chunk: Chunk) -> float:
        shifted = copy.deepcopy(self.untouched)
        shifted.get_parameter(name).add_(offset)
        cloned = window._replace(state=map_state(Tensor.clone, window.state))
        return self.window_loss(shifted, cloned, chunk)[0].item()


def _not_in_float64(reason: str) -> TypeError:
    return TypeError(
        f"model must run in float64, in which gradients are compared, but {reason}: make tensors in the type of the "
        "inputs, for example by inputs.new_zeros(…)."
    )


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def _gradient(model: nn.Module) -> Gradient:
    return {
        name: torch.zeros_like(param) if param.grad is None else param.grad.clone()
        for name, param in _trainable(model).items()
    }


def _relative(error: float, scale: float) -> float:
    return error / scale if scale > 0 else error


def _angle(one: Gradient, other: Gradient) -> float:
    flat = [torch.cat([gradient[name].flatten() for name in other]) for gradient in (one, other)]
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=0).clamp(-1, 1)
    return math.degrees(math.acos(cosine.item()))

"""Check of the gradient of each chunk, for cells of one's own."""

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fptt._batches.batch import Batch
from fptt._batches.cut import Chunk, Chunking, Window, check_horizon, cut_batch
from fptt._checks import check_count, check_grad_enabled, check_result, check_tensors
from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.model_check import check_model
from fptt._sequence import State, detach_state, flatten_state, map_state
from fptt.nn.spiking.surrogates import count_spikes, smooth_spikes

Gradient = dict[str, Tensor]

STEP = 1e-6
"""Of central differences in float64: truncation and rounding are both about 1e-10 for losses about 1."""


class ChunkGradient(NamedTuple):
    """The comparison of one chunk's gradient with other ways to take it.

    Attributes:
        number: The chunk, from 0.
        loss: Its loss.
        autograd_error: Largest relative error of a parameter against autograd on an isolated copy of the model, from a
            copy of the incoming state: above rounding, the graph or the state leaks between chunks.
        difference_error: Largest relative error of a parameter against central finite differences: above about 1e-6,
            a backward pass is wrong. With spikes of `fptt.nn.spiking`, that of the smooth twin (`smooth_spikes`). None
            where differences do not apply.
        worst_parameter: The parameter of the largest difference_error; None without one.
        angle: Degrees between this gradient and that of BPTT for the same losses; 90 is unrelated, 180 opposed.
        is_zero: Whether the gradient is zero in every parameter.
        uses_state: Whether the loss depends on the incoming state; None for a first chunk, which may have none.
    """

    number: int
    loss: float
    autograd_error: float
    difference_error: float | None
    worst_parameter: str | None
    angle: float
    is_zero: bool
    uses_state: bool | None


class GradientReport(NamedTuple):
    """The comparison of all chunks by `check_gradient`.

    Attributes:
        chunks: The comparison of each chunk.
        angle: Degrees between the mean of their gradients and BPTT's.
        tolerance: Largest error that passes.
        not_applicable: Why finite differences do not apply, empty where they do.
        spike_rate: Spikes of `fptt.nn.spiking` for each unit and step; None for a model without them.
    """

    chunks: list[ChunkGradient]
    angle: float
    tolerance: float
    not_applicable: str = ""
    spike_rate: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance, which NaN is not, and there is a gradient at all."""
        # each by itself: Python's max may drop a NaN, which is within no tolerance
        errors = [error for chunk in self.chunks for error in (chunk.autograd_error, chunk.difference_error)]
        is_right = all(error is None or error <= self.tolerance for error in errors)
        return is_right and not self.is_zero

    @property
    def is_zero(self) -> bool:
        """Whether the gradient is zero in every parameter and chunk: it agrees with anything that is zero as well."""
        return all(chunk.is_zero for chunk in self.chunks)

    @property
    def is_dead(self) -> bool:
        """Whether the model has units of `fptt.nn.spiking` and none of them spiked: its outputs say nothing."""
        return self.spike_rate == 0

    @property
    def state_is_unused(self) -> bool:
        """Whether no chunk's loss depends on the state that comes in: nothing is remembered over a cut."""
        found = [chunk.uses_state for chunk in self.chunks if chunk.uses_state is not None]
        return bool(found) and not any(found)

    def __str__(self) -> str:
        lines = ["chunk        loss   vs autograd  vs differences   angle to BPTT   worst parameter"]
        for c in self.chunks:
            difference = "—" if c.difference_error is None else f"{c.difference_error:.1e}"
            lines.append(
                f"{c.number:5d}  {c.loss:10.4g}  {c.autograd_error:12.1e}  {difference:>14}  {c.angle:13.1f}°"
                f"   {c.worst_parameter or '—'}"
            )
        if self.is_dead:
            lines.append("NO SPIKES: no unit spiked; raise the inputs or the weights, or lower the threshold")
        if self.is_zero:
            return "\n".join([*lines, "NO GRADIENT: it is zero in every parameter and chunk"])
        verdict = "correct" if self.passed else "WRONG"
        against = f" against autograd; differences not applicable: {self.not_applicable}" if self.not_applicable else ""
        lines.append(f"{verdict} to {self.tolerance:g}{against}; mean gradient {self.angle:.1f}° from BPTT's")
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
    dtype: torch.dtype = torch.float64,
    differences: bool | Literal["auto"] = "auto",
) -> GradientReport:
    """Compare the gradient of each chunk, at fixed weights, with autograd, finite differences and BPTT, in float64.

    The gradient under test is taken in one walk over the chunks, with the state detached at each cut, as the training
    methods do. Finite differences go along one random direction a parameter. The model is copied, turned to float64
    (complex128 where it is complex) and to evaluation mode (no dropout); it is left as it was.

    The gradient of a spiking network is a surrogate, which no difference of its loss can confirm. Where the spikes are
    those of `fptt.nn.spiking`, differences are taken of its smooth twin (`fptt.nn.spiking.smooth_spikes`), which has
    the same backward pass. Spikes of another origin are recognised by a loss that jumps where gradient and differences
    disagree; differences then do not apply, and the report says so.

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
        dtype: In which model, loss and data are compared. Another one than float64 leaves the differences out, for
            modules that run in float32 only.
        differences: Whether to compare with finite differences: `auto` as above, True whatever the loss does, or False.

    Returns:
        A `GradientReport`: print it to read it, `passed` for the verdict.

    Raises:
        ValueError: If the arguments do not fit together, or the model has no trainable parameter or is bidirectional.
        TypeError: If the model does not take a state, or model or loss does not run in `dtype`.
        RuntimeError: If gradients are off.

    Examples:
        >>> model = nn.LSTM(3, 5)
        >>> loss = fptt.TerminalLoss(nn.functional.cross_entropy)
        >>> fptt.check_gradient(model, torch.randn(12, 4, 3), torch.arange(4), loss, num_chunks=3).passed
        True
    """
    check_model(model, loss, None, batch_first=batch_first, stacklevel=3)
    check_tensors(inputs=inputs, targets=targets)
    check_count("horizon", horizon)
    check_grad_enabled("the check")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type of torch, got {dtype!r}.")
    if differences not in (True, False, "auto"):
        raise ValueError(f"differences must be True, False or 'auto', got {differences!r}.")
    if differences is True and dtype != torch.float64:
        raise ValueError(f"differences=True needs dtype=torch.float64, got {dtype}.")

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    # not by `Module.to`, which takes the imaginary part off complex weights
    model, loss = copy.deepcopy(model)._apply(converted).eval(), copy.deepcopy(loss)._apply(converted).eval()
    if not _trainable(model):
        raise ValueError("model must have at least one trainable parameter, got none.")

    inputs, targets = converted(inputs), converted(targets)
    state = detach_state(map_state(converted, state))
    chunking = Chunking(num_chunks, chunk_length, batch_first)
    chunks = cut_batch(Batch(inputs, targets, mask), loss, chunking)
    check_horizon(horizon, len(chunks))
    checker = _Checker(model, loss, chunking, dtype)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no backward pass in evaluation mode
        with count_spikes() as spikes:
            walked = checker.walk(chunks, state, horizon)
        gradients, full = [own.gradient for own in walked], checker.full_gradient(chunks, state)
        reports = [checker.compare(own, full) for own in walked]
        not_applicable = "they were not asked for" if differences is False else ""
        if dtype != torch.float64:
            not_applicable = f"in {dtype} they say nothing"
        if not not_applicable:
            threshold = tolerance if differences == "auto" else math.inf
            with smooth_spikes() if spikes.possible else nullcontext():
                if spikes.possible:
                    # the twin has the same backward pass, and its gradient is the derivative of its loss
                    checker.model = copy.deepcopy(checker.untouched)
                    walked = checker.walk(chunks, state, horizon)
                found = checker.compare_differences(walked, threshold)
            if isinstance(found, str):
                not_applicable = found
            else:
                reports = [
                    report._replace(difference_error=error, worst_parameter=name)
                    for report, (name, error) in zip(reports, found, strict=True)
                ]
    mean = {name: sum(gradient[name] for gradient in gradients) / len(gradients) for name in full}
    rate = spikes.spikes / spikes.possible if spikes.possible else None
    return GradientReport(reports, _angle(mean, full), tolerance, not_applicable, rate)  # pyright: ignore


class _Walked(NamedTuple):
    """A chunk and what a walk leaves of it: the window before it, its loss and its gradient."""

    chunk: Chunk
    window: Window
    loss: float
    gradient: Gradient


class _Checker:
    """A model and a loss in one floating-point type, and the ways to take their gradient.

    Only `walk` runs the model itself; everything else runs copies of it from before, which no walk has touched.
    """

    def __init__(self, model: nn.Module, loss: ChunkLoss, chunking: Chunking, dtype: torch.dtype) -> None:
        self.model, self.loss, self.chunking, self.dtype = model, loss, chunking, dtype
        self.untouched = copy.deepcopy(model)

    def chunk_loss(self, model: nn.Module, chunk: Chunk, state: State) -> tuple[Tensor, State]:
        """Return the loss of a chunk and the next state."""
        advice = "make tensors in the type of the inputs, for example by inputs.new_zeros(…)"
        with self._in_dtype("model", advice):
            result = model(chunk.inputs.clone(), state)  # every chunk runs several times
        check_result(result)
        output, state = result
        if output.dtype not in (self.dtype, self.dtype.to_complex()):
            # differences in a lower precision would say nothing about the gradient
            raise self._not_in_dtype("model", f"its outputs are {output.dtype}", advice)
        with self._in_dtype("loss", "give class weights to a module, as in nn.CrossEntropyLoss(weight=…)"):
            return self.loss(self.chunking.time_major(output), chunk.part), state

    def window_loss(self, model: nn.Module, window: Window, chunk: Chunk) -> tuple[Tensor, State]:
        """Return the loss of a chunk, through its window, and the state after the first chunk that was run."""
        # copies: norse writes its new state into the list that it is given, others into its tensors
        state = map_state(Tensor.clone, window.state)
        states: list[State] = []
        for earlier in window.chunks:
            _, state = self.chunk_loss(model, earlier, state)
            states.append(state)
            state = map_state(Tensor.clone, state)
        loss, state = self.chunk_loss(model, chunk, state)
        return loss, [*states, state][0]

    def walk(self, chunks: list[Chunk], state: State, horizon: int) -> list[_Walked]:
        """Walk over the chunks as training does, at fixed weights."""
        walked: list[_Walked] = []
        window = Window((), detach_state(state))
        for chunk in chunks:
            before = window._replace(state=map_state(Tensor.clone, window.state))
            loss, after_first = self.window_loss(self.model, window, chunk)
            self.model.zero_grad()
            loss.backward(retain_graph=True)
            walked.append(_Walked(chunk, before, loss.item(), _gradient(self.model)))
            window = window.moved_on(chunk, detach_state(after_first), horizon)
        return walked

    def full_gradient(self, chunks: list[Chunk], state: State) -> Gradient:
        """Return the gradient of the mean chunk loss with the graph uncut: that of BPTT."""
        model = copy.deepcopy(self.untouched)
        losses = []
        for chunk in chunks:
            loss, state = self.chunk_loss(model, chunk, map_state(Tensor.clone, state))
            losses.append(loss)
        model.zero_grad()
        torch.stack(losses).mean().backward()
        return _gradient(model)

    def isolated_gradient(self, window: Window, chunk: Chunk) -> tuple[Gradient, bool]:
        """Return the gradient by autograd on a copy of model and incoming state, and whether that state is used."""
        isolated = copy.deepcopy(self.untouched)
        isolated.zero_grad()
        given = map_state(
            lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point() or tensor.is_complex()),
            window.state,
        )
        self.window_loss(isolated, window._replace(state=given), chunk)[0].backward()
        return _gradient(isolated), any(t.grad is not None and bool(t.grad.any()) for t in flatten_state(given))

    def compare(self, walked: _Walked, full: Gradient) -> ChunkGradient:
        """Hold the gradient of one chunk against autograd on an isolated copy, and against BPTT."""
        chunk, window, loss, gradient = walked
        expected, uses_state = self.isolated_gradient(window, chunk)
        scale = _norm(expected)
        errors = {name: _relative((gradient[name] - expected[name]).norm().item(), scale) for name in expected}
        return ChunkGradient(
            chunk.number,
            loss,
            errors[_worst(errors)],
            None,
            None,
            _angle(gradient, full),
            is_zero=not any(value.any() for value in gradient.values()),
            uses_state=uses_state if chunk.number > len(window.chunks) else None,  # before it there is no cut
        )

    def compare_differences(self, walked: list[_Walked], may_not_apply_above: float) -> list[tuple[str, float]] | str:
        """Return the worst parameter of each chunk and its error against differences, or why they do not apply.

        Whether they do is asked where an error is above the given one.
        """
        worst: list[tuple[str, float]] = []
        for chunk, window, _, gradient in walked:
            scale = _norm(self.isolated_gradient(window, chunk)[0])
            errors: dict[str, float] = {}
            for name, value in gradient.items():
                direction = _direction(value)
                ahead, behind = (self._loss_at(name, direction * at, window, chunk) for at in (STEP, -STEP))
                errors[name] = _relative(abs((ahead - behind) / (2 * STEP) - (value * direction).sum().item()), scale)
            name = _worst(errors)
            if errors[name] > may_not_apply_above:
                reason = self._why_not_applicable(gradient, window, chunk)
                if reason:
                    return reason
            worst.append((name, errors[name]))
        return worst

    def _why_not_applicable(self, gradient: Gradient, window: Window, chunk: Chunk) -> str:
        """Return in which way the loss is no function with this gradient; empty where it might be one."""
        is_flat = False
        for name, value in gradient.items():
            jump, is_constant = self._largest_jump(name, window, chunk)
            if jump:
                return "the loss jumps, as with spikes and a surrogate gradient"
            is_flat |= is_constant and bool(value.any())
        return "the loss does not change along a gradient that is not zero, as where no unit spikes" if is_flat else ""

    def _largest_jump(self, name: str, window: Window, chunk: Chunk) -> tuple[float, bool]:
        """Return the jump of the loss along a parameter's direction, 0 if there is none, and whether it is constant.

        The steepest of many intervals is halved again and again: over a continuous loss its rise goes to zero with its
        length (2^−30 of it is left), over a jump it stays.
        """
        param = _real(self.untouched.get_parameter(name))
        direction = _direction(param) * max(param.norm().item(), 1.0)
        places = [number / 16 - 1 for number in range(33)]
        losses = [self._loss_at(name, direction * place, window, chunk) for place in places]
        rises = [abs(after - before) for before, after in itertools.pairwise(losses)]
        steepest = max(range(len(rises)), key=rises.__getitem__)
        (left, right), (low, high) = places[steepest : steepest + 2], losses[steepest : steepest + 2]
        for _ in range(30):
            middle = (left + right) / 2
            between = self._loss_at(name, direction * middle, window, chunk)
            if abs(between - low) > abs(high - between):
                right, high = middle, between
            else:
                left, low = middle, between
        jump, rounding = abs(high - low), 1e-10 * max(map(abs, losses))
        return jump if jump > max(1e-4 * rises[steepest], rounding) else 0.0, rises[steepest] == 0

    @torch.no_grad()
    def _loss_at(self, name: str, offset: Tensor, window: Window, chunk: Chunk) -> float:
        shifted = copy.deepcopy(self.untouched)
        _real(shifted.get_parameter(name)).add_(offset)
        cloned = window._replace(state=map_state(Tensor.clone, window.state))
        return self.window_loss(shifted, cloned, chunk)[0].item()

    @contextmanager
    def _in_dtype(self, name: str, advice: str) -> Iterator[None]:
        """Raise TypeError, with advice, where model or loss does not run in the type of the check."""
        try:
            yield
        except (RuntimeError, ValueError) as error:  # of torch, or of the layers of `fptt.nn`
            if any(word in str(error) for word in ("dtype", "Float", "Double", "Half")):
                raise self._not_in_dtype(name, str(error), advice) from error
            raise

    def _not_in_dtype(self, name: str, reason: str, advice: str) -> TypeError:
        hint = ", or leave the differences out by dtype=torch.float32" if self.dtype == torch.float64 else ""
        return TypeError(
            f"{name} must run in {str(self.dtype).removeprefix('torch.')}, in which gradients are compared, but "
            f"{reason}: {advice}{hint}."
        )


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def _gradient(model: nn.Module) -> Gradient:
    return {
        # dense also where it is sparse, as that of nn.Embedding(sparse=True): it is compared, and not learned from
        name: _real(torch.zeros_like(param) if param.grad is None else param.grad.to_dense().clone())
        for name, param in _trainable(model).items()
    }


def _real(tensor: Tensor) -> Tensor:
    """Return a view of a tensor in which a complex number is two real ones, as it is in a gradient of autograd."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _norm(gradient: Gradient) -> float:
    return math.sqrt(sum(value.square().sum().item() for value in gradient.values()))


def _direction(like: Tensor) -> Tensor:
    """Return a random direction of length 1, the same one for the same shape."""
    direction = torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(0))
    return direction.to(like.device) / direction.norm()


def _relative(error: float, scale: float) -> float:
    return error / scale if scale > 0 else error


def _worst(errors: dict[str, float]) -> str:
    """Return the name of the largest error; NaN is larger than all."""
    return max(errors, key=lambda name: (math.isnan(errors[name]), errors[name]))


def _angle(one: Gradient, other: Gradient) -> float:
    flat = [torch.cat([gradient[name].flatten() for name in other]) for gradient in (one, other)]
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=0).clamp(-1, 1)
    return math.degrees(math.acos(cosine.item()))

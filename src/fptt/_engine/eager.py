"""The eager engine: PyTorch's own operations one after another, the reference of the compiled one."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk, Chunking, Window, check_no_graph
from fptt._checks import all_finite, are_finite, check_result, first_weight
from fptt._engine.bad_numbers import BadNumber, bad_loss
from fptt._engine.engine import Engine, Skipped, Walked, trained_tensors
from fptt._losses.chunk_loss import ChunkLoss
from fptt._random_state import RandomState
from fptt._regularizer.step_hooks import BadWeightsError
from fptt._sequence import (
    State,
    copied_nest,
    describe_state,
    detach_state,
    flatten_state,
    initial_state,
    map_state,
    reset_state,
    state_batch_dim,
)


class Learned(NamedTuple):
    """The outcome of one update.

    Attributes:
        losses: Of each chunk.
        norm: Of the gradient, if the optimizer stepped.
        after_first: The state after the first chunk that was run.
        state: The state after the last.
    """

    losses: list[Tensor]
    norm: Tensor | None
    after_first: State
    state: State


@dataclass(kw_only=True, eq=False, repr=False)
class EagerEngine(Engine):
    """Learns the chunks of a batch with PyTorch's own operations.

    Attributes:
        updates_each_chunk: Whether to cut the graph and update after every chunk; otherwise (BPTT) the graph runs
            through all chunks, and one update follows the mean of their losses.
        backward: Called with each loss to take its gradient.
        step: Called with the optimizer to make a step.
    """

    updates_each_chunk: bool
    backward: Callable[[Tensor], Any]
    step: Callable[[Optimizer], Any]

    def walk(self, chunks: Sequence[Chunk], state: State) -> Walked:
        """Learn all chunks in order, beginning at a detached state; see `Engine`."""
        # a model may write into the tensors of a state: not into the caller's
        walked, window = Walked(state), Window((), state if self._runs_again else map_state(Tensor.clone, state))
        for span in [[chunk] for chunk in chunks] if self.updates_each_chunk else [chunks]:
            # a copy of everything, in time and memory: only who skips pays for it
            before = self.snapshot() if self.skips else None
            learned = self._learn(window, span)
            if isinstance(learned, Learned):
                walked.losses += learned.losses
                walked.norms += [] if learned.norm is None else [learned.norm]
                walked.state = detach_state(learned.state)  # the cut: no gradient flows into earlier chunks
                # after a single chunk both are the same state, and are cut once
                is_last = learned.after_first is learned.state
                after_first = walked.state if is_last else detach_state(learned.after_first)
                window = window.moved_on(span[-1], after_first, self.horizon)
            elif before is None:
                walked.bad = learned
                return walked
            else:
                before.restore()
                window = skip_chunks(walked, window, learned, self.model, span)
            if self.replicas.count_update():
                self.replicas.sync(trained_tensors(self.optimizer, self.regularizer, self.loss))
        return walked

    def _learn(self, window: Window, span: Sequence[Chunk]) -> Learned | BadNumber:  # noqa: PLR0911  # one per bad number
        """Learn the chunks between two cuts with one update, or return where NaN or Inf has come up.

        The update: the gradient of the mean chunk loss, then `optimizer.step()`, in which the hooks add the penalty,
        clip, and advance dual and average. Where inputs, loss or gradient are bad, no step is made.
        """
        last = span[-1]
        random = RandomState.capture(last.inputs.device) if self._recomputes else None
        states = run_window(self.model, self.chunking, window)
        state, outputs, losses = self._own(states[-1]), [], []
        for chunk in span:
            if chunk.bad_inputs is not None:
                return BadNumber(chunk.number, chunk.bad_inputs)
            output, loss, state = forward_chunk(self.model, self.loss, self.chunking, self._own_chunk(chunk), state)
            if not self.replicas.shares_updates and self._is_bad(loss):
                return BadNumber(chunk.number, "loss", loss.item())
            states.append(state)
            outputs.append(output.detach())
            losses.append(loss)
        norm = None
        if any(chunk.has_steps for chunk in span):
            mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            total = self._take_gradient(mean, last, self.backward)
            # replicas that share updates stop at the same one: all judge the loss of all, none its own
            if self.replicas.shares_updates and self._is_bad(total):
                return BadNumber(last.number, "loss", total.item())
            if self.regularizer is not None:
                # λ of this chunk of the sequence, if each has its own, as every device has in FedDyn
                self.regularizer.turn = last.number % self.regularizer.num_duals
                if self._recomputes:
                    self.regularizer.recover()
            try:
                self.step(self.optimizer)
            except BadWeightsError:
                return BadNumber(last.number, "weights")
            except FloatingPointError:  # raised by the hooks before the optimizer's own work
                return BadNumber(last.number, "gradient")
            norm = self.hooks.pop_gradient_norm()
            if random is not None and norm is not None and not self._recompute_gradient(window, last, random):
                return BadNumber(last.number, "recomputed gradient")
        # after the update: ℓ_k of this chunk was to see the running estimate of those before
        for output, chunk in zip(outputs, span, strict=True):
            self.loss.observe(output, chunk.part, self.replicas.reduce)
        return Learned([loss.detach() for loss in losses], norm, states[1], state)

    @property
    def _recomputes(self) -> bool:
        return self.regularizer is not None and self.regularizer.previous_gradient == "recomputed"

    @property
    def _runs_again(self) -> bool:
        """Whether chunks run from a state that is kept: in a horizon, for a recomputed gradient, after a skip."""
        return self.skips or self.horizon > 1 or self._recomputes

    def _own(self, state: State) -> State:
        """Return a state that a model may write into: what is kept stays, as does what autograd has saved of it."""
        return map_state(Tensor.clone, state) if self._runs_again else copied_nest(state)

    def _own_chunk(self, chunk: Chunk) -> Chunk:
        """Return a chunk into whose inputs a model may write: what runs again is then the same."""
        return chunk._replace(inputs=chunk.inputs.clone()) if self._runs_again else chunk

    def _is_bad(self, number: Tensor) -> bool:
        return self.check_finite and not all_finite(number)

    def _take_gradient(self, loss: Tensor, chunk: Chunk, backward: Callable[[Tensor], Any]) -> Tensor:
        """Leave the gradient in `param.grad`, and return the loss; both of all replicas where they share updates."""
        clear_gradients(self.optimizer)  # here and not after the step, so that the last gradient can be looked at
        try:
            backward(loss * chunk.weight if self.replicas.shares_updates else loss)
        except RuntimeError as error:
            if not loss.requires_grad:
                raise RuntimeError(
                    f"the loss of chunk {chunk.number} depends on no weight that requires a gradient: all parameters "
                    "of the model are frozen, or it ran under torch.no_grad() or on detached tensors."
                ) from error
            if "second time" not in str(error):
                raise
            holders = list(_modules_with_own_state(self.model))
            if holders:
                raise RuntimeError(
                    f"the model keeps a state of its own, with its graph, in {', '.join(holders)}: pass the state in "
                    "and return it, model(inputs, state) -> (outputs, state), so that it can be cut between chunks, or "
                    "let fptt.integrations.stateful.Explicit do so; see docs/spiking.md."
                ) from error
            check_no_graph(chunk.inputs, chunk.part)
            raise
        total = self.replicas.add_gradients_(loss.detach(), chunk.weight)
        if not has_gradient(self.optimizer):
            raise RuntimeError(
                f"the loss of chunk {chunk.number} reaches no weight of the optimizer: all are frozen, or the model "
                "got others after the optimizer was made, as by load_state_dict(assign=True). Make optimizer and "
                "method again."
            )
        return total

    def _recompute_gradient(self, window: Window, chunk: Chunk, random: RandomState) -> bool:
        """Advance dual and average with ∇ℓ_t(W_{t+1}), and return whether it is finite.

        The same chunks run again from the same incoming state and, for dropout, with the same random numbers. The loss
        is not scaled here, whatever `backward` does: λ is in the unit of the gradient.
        """
        assert self.regularizer is not None
        with random.replay():
            state = self._own(run_window(self.model, self.chunking, window)[-1])
            _, loss, _ = forward_chunk(self.model, self.loss, self.chunking, self._own_chunk(chunk), state)
            is_bad = not self.replicas.shares_updates and self._is_bad(loss)
            if not is_bad:
                total = self._take_gradient(loss, chunk, Tensor.backward)
                is_bad = (self.replicas.shares_updates and self._is_bad(total)) or self._has_bad_gradient()
        if not is_bad:
            self.regularizer.update()
        elif not self.skips:  # the update stays, and W̄ and λ do not fit it
            self.regularizer.reset()
        return not is_bad

    def _has_bad_gradient(self) -> bool:
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        return self.check_finite and not are_finite(param.grad for param in params if param.grad is not None)


def clear_gradients(optimizer: Optimizer) -> None:
    """Set every gradient to None, as `optimizer.zero_grad()` does."""
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:  # a subclass or a wrapper has its own
        optimizer.zero_grad()
        return
    # torch's own announces itself to profilers and to the compiler, which takes longer than this
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None


def has_gradient(optimizer: Optimizer) -> bool:
    """Return whether at least one parameter has a gradient."""
    return any(param.grad is not None for group in optimizer.param_groups for param in group["params"])


# -- running the model -------------------------------------------------------------------------------------------------


def forward_chunk(
    model: nn.Module, loss: ChunkLoss, chunking: Chunking, chunk: Chunk, state: State
) -> tuple[Tensor, Tensor, State]:
    """Return outputs, (T_k, B, …), loss and next state of a chunk, from the state of the chunk before.

    Raises:
        ValueError: If the state does not fit the model, or the outputs do not fit the loss.
        TypeError: If the model does not return outputs and state.
    """
    output, state = run_chunk(model, chunking, chunk, state)
    return output, loss(output, chunk.part), state


def run_window(model: nn.Module, chunking: Chunking, window: Window) -> list[State]:
    """Run the chunks of a window again; return the state before the first of them, and that after each.

    On copies: a model may write into inputs and state, and what is kept stays, as does what autograd has saved of it.
    """
    states = [window.state]
    for chunk in window.chunks:
        own = chunk._replace(inputs=chunk.inputs.clone())
        _, state = run_chunk(model, chunking, own, map_state(Tensor.clone, states[-1]))
        states.append(state)
    return states


def run_chunk(model: nn.Module, chunking: Chunking, chunk: Chunk, state: State) -> tuple[Tensor, State]:
    """Return outputs, (T_k, B, …), and next state of a chunk; see `forward_chunk`."""
    torch.clear_autocast_cache()  # it holds casts of the weights before the last update
    is_given = chunk.number == 0 and state is not None  # by the user, who may have slipped
    if chunk.starts:
        output, state = _run_segments(model, chunk, state, chunking.time_dim, is_given=is_given)
    else:
        output, state = _call_model(model, chunk.inputs, state, chunking.time_dim, is_given=is_given)
    return chunking.time_major(output), state


def _run_segments(
    model: nn.Module, chunk: Chunk, state: State, time_dim: int, *, is_given: bool
) -> tuple[Tensor, State]:
    """Run the model from one beginning of a sequence to the next; return outputs of the chunk and the last state."""
    # (T_k, B) flags as a few calls: cutting at every step would cost a call of the model each
    lanes = {start.step: start.lanes for start in chunk.starts or ()}
    edges = sorted({0, *lanes})
    lengths = [end - start for start, end in itertools.pairwise([*edges, chunk.inputs.shape[time_dim]])]
    outputs: list[Tensor] = []
    for edge, segment in zip(edges, chunk.inputs.split(lengths, time_dim), strict=True):
        if edge in lanes:
            state = restart(model, segment, state, lanes[edge])
        output, state = _call_model(model, segment, state, time_dim, is_given=is_given)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, time_dim), state


def restart(model: nn.Module, inputs: Tensor, state: State, lanes: Tensor | None) -> State:
    """Return the state with some lanes, (B,), or all at their initial state: the model's `initial_state`, else zeros.

    Raises:
        ValueError: If the state has the batch elsewhere than the model says.
    """
    if state is None:
        return None  # the model's own initial state, which may be learned, for all lanes
    initial = initial_state(model, inputs)
    if lanes is None:
        # not None without an `initial_state`: what a lane begins with must not depend on what the others do
        return map_state(torch.zeros_like, state) if initial is None else None
    batch_dim = state_batch_dim(model)
    try:
        return reset_state(state, lanes, initial, batch_dim=batch_dim)
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"is_first needs a state with the batch in dim {batch_dim} of every tensor (state_batch_dim of the model), "
            f"got {describe_state(state)}: {error}"
        ) from error


def skip_chunks(walked: Walked, window: Window, bad: BadNumber, model: nn.Module, chunks: Sequence[Chunk]) -> Window:
    """Enter chunks that were left out in what a batch has learned, and return the window before the next chunk.

    A sequence that begins in one of them begins after them: its lane would otherwise go on from the sequence before.
    """
    walked.skipped.append(Skipped(bad, len(walked.norms)))  # a norm for each update
    walked.losses += [bad_loss(model) for _ in chunks]
    for chunk in chunks:
        for start in chunk.starts or ():
            if start.lanes is None or start.lanes.any():
                walked.state = detach_state(restart(model, chunk.inputs, walked.state, start.lanes))
                window = Window((), walked.state)
    return window


def _call_model(
    model: nn.Module, inputs: Tensor, state: State, time_dim: int, *, is_given: bool
) -> tuple[Tensor, State]:
    """Return outputs and next state; say so if inputs have another dtype, or a state that the user gave does not fit.

    Raises:
        ValueError: If the model runs with inputs of the dtype of its weights, but not with these, or not with a given
            state.
        TypeError: If the model does not return outputs and state.
    """
    try:
        result = model(inputs, state)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if is_given and _runs(model, inputs, None):
            raise ValueError(f"state must fit the model, got {describe_state(state)}: {error}") from error
        dtype = first_weight(model).dtype
        if inputs.dtype != dtype and _runs(model, inputs.to(dtype), state):
            raise ValueError(f"inputs must have the dtype of the weights, {dtype}, got {inputs.dtype}.") from error
        raise
    check_result(result)
    if is_given and state is not None:
        batch_dim, num_steps, batch_size = state_batch_dim(model), inputs.shape[time_dim], inputs.shape[1 - time_dim]
        if _is_broadcast(state, result[1], batch_dim, batch_size, num_steps):
            raise ValueError(
                f"state must match the model's own, {describe_state(result[1])}, got {describe_state(state)}; dim "
                f"{batch_dim} of every tensor is the batch, of {batch_size}, unless the model has a state_batch_dim."
            )
    return result


@torch.no_grad()
def _runs(model: nn.Module, inputs: Tensor, state: State) -> bool:
    """Return whether a model that has failed runs with these inputs and this state: then what they replace is wrong."""
    try:
        model(inputs, state)
    except Exception:  # the same error, or that of a model that needs a state
        return False
    return True


def _is_broadcast(state: State, own: State, batch_dim: int, batch_size: int, num_steps: int) -> bool:
    """Return whether torch has broadcast a state to the batch of the inputs, or to the width of the model's own.

    Otherwise it may grow, as that of a model that keeps the steps it has seen: a width of 1 by the steps of the inputs.
    """
    batch, width = slice(batch_dim, batch_dim + 1 or None), slice(-1, None)  # slices: a tensor may lack them
    return any(
        (one.shape[batch] in ((), (1,)) and one.shape[batch] != other.shape[batch] == (batch_size,))
        or (one.shape[width] == (1,) and other.shape[width] not in ((1,), (1 + num_steps,)))
        for one, other in zip(flatten_state(state), flatten_state(own), strict=False)
    )


def _modules_with_own_state(model: nn.Module) -> Iterator[str]:
    """Yield the modules that hold a tensor with a graph, as an attribute or a buffer, from one call to the next."""
    for name, module in model.named_modules():
        for key, value in (*module.named_buffers(recurse=False), *vars(module).items()):
            tensors: list[Tensor] = []
            # entry by entry: a dict of a library may have numbers beside tensors
            for entry in value.values() if isinstance(value, dict) else (value,):
                with suppress(TypeError):  # not a nest of tensors
                    tensors += flatten_state(entry)
            if any(tensor.grad_fn is not None for tensor in tensors):
                yield f"{name or 'the model'} ({type(module).__name__}.{key})"
                break

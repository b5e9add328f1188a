"""The compiled executor: one graph from a chunk's inputs to its update, called once a chunk."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk, Chunking
from fptt._engine.compiled.arguments import Arguments
from fptt._engine.compiled.compiler import EAGER_INSTEAD, CompilationError, Compiled, compile_step
from fptt._engine.compiled.constants import constants
from fptt._engine.compiled.cuda_graph import CUDAGraph
from fptt._engine.compiled.denormals import flushed_denormals
from fptt._engine.compiled.flat import AVERAGE, DUAL, PARAM, FlatGroup
from fptt._engine.compiled.layout import Layout
from fptt._engine.compiled.probe import Probe, check_first, probe
from fptt._engine.compiled.replicated_step import Share, SplitStep
from fptt._engine.compiled.rules import check_hooks, check_rule
from fptt._engine.compiled.step import ChunkStep, Risk, Update
from fptt._engine.compiled.walk import Key, Nest, Walk
from fptt._losses.chunk_loss import ChunkLoss
from fptt._regularizer.regularizer import DynamicRegularizer
from fptt._sequence import State, map_state
from fptt.nn import GRU, LSTM, RNN
from fptt.nn.cells import plain_cells


class Walked(NamedTuple):
    """What a walk over the chunks of a batch has given.

    Attributes:
        losses: Of the chunks.
        norms: Of the loss gradient at each update.
        state: The last one.
        bad_chunk: The first chunk with NaN or Inf, from which on nothing was changed, or None.
        is_recomputation: Whether it is only the gradient recomputed after the update of that chunk.
        has_bad_weights: Whether the update of that chunk has made weights NaN or Inf.
    """

    losses: list[Tensor]
    norms: list[Tensor]
    state: State
    bad_chunk: int | None
    is_recomputation: bool
    has_bad_weights: bool = False


class _Entry(NamedTuple):
    """A compiled step, and the nest of its next state."""

    run: Compiled
    next_nest: Nest


class CompiledEngine:
    """Walks over the chunks of a batch with one compiled step for each shape of chunk.

    One call a chunk does everything: forward pass, gradient, penalty, clipping, optimizer rule, dual, average.
    Parameters, moments, averages and duals lie in one flat buffer each; what model, optimizer and regularizer hold are
    views of them, so that saving, loading, evaluation and eager steps in between work as ever. Chunks of another
    length and batches of another size have a step of their own.

    Args:
        model: See `TBPTT`.
        optimizer: One of those in `RULES`.
        loss: See `TBPTT`.
        chunking: How batches are cut.
        regularizer: None for TBPTT.
        max_norm: See `TBPTT`.
        check_finite: See `TBPTT`.
        after_chunk: Called after every chunk, with what returns the tensors that are trained.
        forward: The method's own forward pass of a chunk, which knows what to say about bad input.
        count: Told how many updates a batch has made, also when it ends with an error.
        share: Adds up the gradients of several processes at every update, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        chunking: Chunking,
        regularizer: DynamicRegularizer | None,
        *,
        max_norm: float | None,
        check_finite: bool,
        forward: Callable[[Chunk, State], tuple[Tensor, Tensor, State]],
        after_chunk: Callable[[Callable[[], Sequence[Tensor]]], None],
        count: Callable[[int], None],
        share: Share | None = None,
    ) -> None:
        check_rule(optimizer)
        if regularizer is not None and regularizer.num_duals > 1:
            raise ValueError(f"num_duals must be 1 with engine='compiled', got {regularizer.num_duals}.")
        self.risk = Risk(model, loss, chunking)
        self.optimizer, self.regularizer, self.forward, self.count = optimizer, regularizer, forward, count
        self.max_norm, self.check_finite = max_norm, check_finite
        self.after_chunk, self.share = after_chunk, share
        self.layout = Layout(self.risk, optimizer, regularizer)
        self._entries: dict[Key, _Entry] = {}
        self._alive = torch.ones((), dtype=torch.bool)

    def walk(self, chunks: Sequence[Chunk], state: State) -> Walked:
        """Learn all chunks of a batch, in order, from the incoming state.

        Raises:
            CompilationError: If the model cannot be compiled, or a hook would be passed over.
        """
        check_hooks(self.optimizer)
        if chunks[0].inputs.requires_grad:
            raise CompilationError(f"inputs must not require a gradient with engine='compiled'. {EAGER_INSTEAD}")
        if state is None and isinstance(self.risk.model, LSTM | GRU | RNN):
            state = self.risk.model.initial_state(chunks[0].inputs)
        self.optimizer.zero_grad()
        self._alive = torch.ones((), dtype=torch.bool, device=chunks[0].inputs.device)
        dtype = next(param.dtype for group in self.optimizer.param_groups for param in group["params"])
        walk = Walk(chunks, state, self._context(), self.max_norm, dtype)
        self._refresh()
        try:
            while not walk.is_over and not self._has_died(walk):
                entry = self._entry(walk)  # compiled here, where autocast and the like are the caller's
                rows = self.layout.numbers(walk.makes_update[walk.position :], walk.device)
                groups, module = self.layout.groups_of(walk.key()), self.layout.module_tensors(walk.key())
                lasting = [*_buffers(groups), *module.values(), self._alive]
                with _flushed_on(walk.device):
                    self._advance(walk, entry, groups, lasting, rows)
            return self._result(walk)
        except FloatingPointError:  # there is nothing to share with other processes
            if self._is_dead():
                return self._result(walk)
            raise
        finally:
            if self._is_dead():
                bad, is_recomputation = walk.first_bad()
                walk.undo_count(bad + is_recomputation)
            self.layout.publish()
            self.count(walk.num_updates)
            self.optimizer._opt_called = True  # pyright: ignore  # for torch's schedulers: there was a step

    def _is_dead(self) -> bool:
        """Tell whether a number was NaN or Inf: the one synchronization of a batch."""
        return self.check_finite and not self._alive

    def _has_died(self, walk: Walk) -> bool:
        """Tell whether to stop: with others at once, else before a step is compiled from bad numbers."""
        is_due = self.share is not None or walk.key() not in self._entries
        return walk.position > 0 and is_due and self._is_dead()

    @torch.no_grad()
    def _advance(
        self,
        walk: Walk,
        entry: _Entry,
        groups: list[FlatGroup],
        lasting: list[Tensor],
        rows: dict[int, list[Tensor]],
    ) -> None:
        """Go on until the end, or until a chunk needs a step that is not compiled or updates other groups."""
        start, numbers = walk.position, [rows[id(group)] for group in groups]
        while True:
            own = [row[walk.position - start] for row in numbers]
            walk.take(entry.run(*lasting, *own, *walk.arguments()), entry.next_nest, groups)
            self.after_chunk(self._trained)
            if not walk.goes_on_alike() or (self.share is not None and self._is_dead()):
                return

    def _trained(self) -> list[Tensor]:
        """Return weights, averages and duals, and the running estimates of the loss.

        Raises:
            FloatingPointError: If they are not to be shared: a chunk was bad.
        """
        if self._is_dead():
            raise FloatingPointError("a number is NaN or Inf.")
        names = (PARAM, AVERAGE, DUAL)
        flat = [group.buffers[name] for group in self.layout.groups for name in names if name in group.buffers]
        return [*flat, *(buffer for buffer in self.risk.loss.buffers() if buffer.is_floating_point())]

    def _result(self, walk: Walk) -> Walked:
        bad, is_recomputation = walk.first_bad() if self._is_dead() else (None, False)
        norms = [norm for norm, groups in zip(walk.norms, walk.stepped, strict=True) if groups]
        has_bad_weights = self.check_finite and not self.layout.has_finite_weights()
        if has_bad_weights:  # nothing was changed after the first bad chunk: the update before it has made them so
            bad, is_recomputation = max(walk.position - 1 if bad is None else bad - 1, 0), False
        return Walked(walk.losses, norms, walk.state(), bad, is_recomputation, has_bad_weights)

    # -- what the steps are compiled for -----------------------------------------------------------------------------

    def _update(self) -> Update:
        update = Update(clips=self.max_norm is not None, checks=self.check_finite)
        if self.regularizer is None:
            return update
        names = ("form", "coupling", "previous_gradient", "beta", "mu")
        return update._replace(**{name: getattr(self.regularizer, name) for name in names})

    def _context(self) -> Key:
        """Return everything but the shapes of a chunk that a compiled step takes as constant."""
        autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
        kernels = (torch.get_num_threads(), torch.backends.cudnn.enabled)
        return (constants(self.risk), *kernels, torch.get_default_dtype(), *autocast, self._update())

    def _refresh(self) -> None:
        if self.layout.refresh():
            self._entries.clear()

    def _entry(self, walk: Walk) -> _Entry:
        """Return the compiled step of the next chunk."""
        key = walk.key()
        if key not in self._entries:
            found = self._probe(walk)
            self.layout.publish()
            self.layout.usage[key] = found.used
            self._refresh()
            self._entries[key] = self._compile(key, walk, found)
        return self._entries[key]

    def _probe(self, walk: Walk) -> Probe:
        def loss_of_chunk() -> Tensor:
            chunk = walk.chunk._replace(inputs=walk.chunk.inputs.clone())
            output, loss, _ = self.forward(chunk, map_state(Tensor.clone, walk.state()))
            if self.share is None:  # which would else be a message to others
                self.risk.loss.observe(output.detach(), chunk.part)
            return loss

        trained = [param for group in self.optimizer.param_groups for param in group["params"]]
        with plain_cells():
            found = probe(loss_of_chunk, self.risk, trained)
        if found.is_random and self._update().previous_gradient == "recomputed":
            raise CompilationError(
                "previous_gradient='recomputed' draws the same random numbers twice, which engine='compiled' cannot: "
                "use engine='eager', or no dropout."
            )
        return found

    def _compile(self, key: Key, walk: Walk, found: Probe) -> _Entry:
        groups, module = self.layout.groups_of(key), self.layout.module_tensors(key)
        if not groups:
            raise CompilationError(
                f"engine='compiled' found no parameter of the optimizer in the loss. {EAGER_INSTEAD}"
            )
        moving = found.moving | {name for name, _ in self.risk.named_buffers()}
        step = ChunkStep(self.risk, groups, list(module), moving, self._update())
        rows = self.layout.numbers(walk.makes_update[walk.position :], walk.device)
        row, inputs, *rest = walk.arguments()
        num_part = len(rest) - len(walk.state_tensors)
        arguments = Arguments(
            [list(group.buffers.values()) for group in groups],
            list(module.values()),
            self._alive,
            [rows[id(group)][0] for group in groups],
            row,
            inputs,
            rest[:num_part],
            rest[num_part:],
        )
        part, state = walk.chunk.part, walk.state()
        if self.share is not None:
            split = SplitStep(step, arguments, part, state, self.share)
            check_first(split.take, arguments.flat(), found)
            return _Entry(split, Nest(step.next_state))
        run = compile_step(lambda *flat: step(arguments.filled(flat), part, state), arguments.flat(), self.risk)
        check_first(run, arguments.flat(), found)
        if walk.device.type == "cuda":
            run = CUDAGraph(run, arguments.flat(), num_lasting=len(_buffers(groups)) + len(module))
        return _Entry(run, Nest(step.next_state))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled and gathered: a copy makes its own."""
        layout = Layout(self.risk, self.optimizer, self.regularizer)
        return {**self.__dict__, "layout": layout, "_entries": {}}


def _buffers(groups: list[FlatGroup]) -> list[Tensor]:
    return [tensor for group in groups for tensor in group.buffers.values()]


def _flushed_on(device: torch.device) -> AbstractContextManager[None]:
    return flushed_denormals() if device.type == "cpu" else nullcontext()

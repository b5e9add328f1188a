"""The compiled engine: one graph from a chunk's inputs to its update, called once a chunk."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from fptt._batches.cut import Chunk, Start, Window
from fptt._engine.bad_numbers import BadNumber
from fptt._engine.compiled.buffers import AVERAGE, DUAL, PARAM, FlatGroup, Layout
from fptt._engine.compiled.compiler import EAGER_INSTEAD, CompilationError, compile_step
from fptt._engine.compiled.constants import Key, constants, flatten_part
from fptt._engine.compiled.cuda_graph import RECORDED_ON, CUDAGraphs, SeriesResult
from fptt._engine.compiled.denormals import flushed_denormals
from fptt._engine.compiled.probe import Probe, check_first, probe
from fptt._engine.compiled.replicated_step import ReplicatedStep
from fptt._engine.compiled.rules import check_hooks, check_rule
from fptt._engine.compiled.step import Arguments, ChunkStep, Risk, Update
from fptt._engine.eager import forward_chunk, run_chunk, run_window, skip_chunks
from fptt._engine.engine import Engine, Walked, trained_tensors
from fptt._parallel.replicas import DistributedReplicas
from fptt._sequence import State, detach_state, flatten_state, initial_state, map_state, model_attribute
from fptt.nn.models import plain_cells
from fptt.nn.spiking.surrogates import is_smooth

Item = TypeVar("Item")


@dataclass(kw_only=True, eq=False, repr=False)
class CompiledEngine(Engine):
    """Learns the chunks of a batch with one compiled step for each shape of chunk.

    One call a chunk does everything: forward pass, gradient, penalty, clipping, optimizer rule, dual, average.
    Parameters, moments, averages and duals lie in one flat buffer each; model, optimizer and regularizer hold views of
    them, so that saving, loading, evaluation and eager steps in between work as ever. Chunks of another length and
    batches of another size have a step of their own. Each chunk of a horizon is in the compiled step.

    Attributes:
        max_norm: Largest norm of the gradient; None for no clipping.

    Raises:
        ValueError: If optimizer or regularizer have settings that the compiled engine does not have.
    """

    max_norm: float | None

    def __post_init__(self) -> None:
        # what the compiled engine has no rule for is refused here, before anything is trained
        check_rule(self.optimizer)
        if self.regularizer is not None and self.regularizer.num_duals > 1:
            raise ValueError(f"num_duals must be 1 with engine='compiled', got {self.regularizer.num_duals}.")
        if self.regularizer is not None and self.regularizer.previous_gradient == "recomputed":
            raise ValueError("previous_gradient must be 'dual' with engine='compiled', got 'recomputed'.")
        self.risk = Risk(self.model, self.loss, self.chunking)
        self.layout = Layout(self.risk, self.optimizer, self.regularizer)
        self._entries: dict[Key, _Entry] = {}  # not in `__getstate__`: machine code does not travel
        # whether the first windows, of fewer chunks, are filled up with what stands for none, to have one step
        self._fills_windows = self.horizon > 1
        self._begins_alike: dict[Key, bool] = {}  # whether the model's `initial_state` may be in the place of None
        self._alive = torch.ones((), dtype=torch.bool)

    def walk(self, chunks: Sequence[Chunk], state: State) -> Walked:
        """Learn all chunks in order, beginning at a detached state; see `Engine`.

        Raises:
            CompilationError: If the model cannot be compiled, or a hook would be passed over.
            ValueError: If sequences begin in the middle of a chunk.
        """
        if any(start.step > 0 for chunk in chunks for start in chunk.starts or ()):
            raise ValueError(
                "is_first must be True at first steps of chunks alone with engine='compiled', whose chunks run whole: "
                "use engine='eager'."
            )
        window = Window((), state)
        if not self.skips:
            return self._run(chunks, window)[0]
        # local updates of several processes are averaged in between, which cannot be learned again
        are_shared = not isinstance(self.replicas, DistributedReplicas) or self.replicas.shares_updates
        if are_shared and all(chunk.bad_inputs is None for chunk in chunks):
            before = self.snapshot()
            walked, _ = self._run(chunks, window)
            if walked.bad is None:
                return walked
            before.restore()
        # which chunks are bad is known after the batch alone: it is learned again, one by one, to leave them out
        walked = Walked(state)
        for chunk in chunks:
            before = self.snapshot()
            bad = None if chunk.bad_inputs is None else BadNumber(chunk.number, chunk.bad_inputs)
            one, after = self._run([chunk], window) if bad is None else (Walked(walked.state, bad=bad), window)
            if one.bad is None:
                walked.state, window = one.state, after
                walked.losses += one.losses
                walked.norms += one.norms
            else:
                before.restore()
                window = skip_chunks(walked, window, one.bad, self.model, [chunk])
            if self.replicas.count_update():  # a skipped one counts, as the others have not skipped it
                # by parameter: a process that has skipped all chunks so far has no buffers
                self.replicas.sync(trained_tensors(self.optimizer, self.regularizer, self.loss))
        return walked

    def _begin(self, chunks: Sequence[Chunk], window: Window, context: Key) -> tuple[Sequence[Chunk], Window]:
        """Return chunks and window with the model's `initial_state` in the place of None, if None stands for it.

        The first chunk then has the step of all others and needs none of its own; with a horizon what stands for no
        chunk must leave a state as it is. Where that state is learned, the first chunk says that all sequences begin: a
        step then takes it from the model once more, so that the gradient reaches it.

        Raises:
            CompilationError: If a horizon needs such a state and the model has none.
        """
        if context not in self._begins_alike:
            self._begins_alike[context] = self._begins_as_from_none(chunks[0])
        state = initial_state(self.model, chunks[0].inputs) if self._begins_alike[context] else None
        if state is None and self.horizon > 1:
            raise CompilationError(
                "horizon above 1 with engine='compiled' needs a state to begin with: pass one, or define "
                "initial_state(inputs) in the model, which returns what the state None stands for in its forward pass. "
                f"{EAGER_INSTEAD}"
            )
        if any(tensor.requires_grad for tensor in flatten_state(state)):
            if self.horizon == 1:  # a step of its own, which takes the state from the model, needs nothing more
                self._begins_alike[context] = False
                return chunks, window
            chunks = [chunks[0]._replace(starts=(Start(0, None),)), *chunks[1:]]
        return chunks, window._replace(state=detach_state(state))

    def _begins_as_from_none(self, chunk: Chunk) -> bool:
        """Return whether the model does the same from None as from its `initial_state`, which may be inherited."""
        model = self.model
        if not callable(model_attribute(model, "initial_state", None)):
            return False

        def squares(*, begins_at_none: bool) -> Tensor:
            own = chunk._replace(inputs=chunk.inputs.clone(), starts=None)
            begin = None if begins_at_none else initial_state(model, own.inputs)
            output, state = run_chunk(model, self.chunking, own, begin)
            tensors = [tensor for tensor in (output, *flatten_state(state)) if tensor.is_floating_point()]
            return torch.stack([tensor.double().square().mean() for tensor in tensors]).sum()

        try:
            with plain_cells():
                from_none = probe(lambda: squares(begins_at_none=True), self.risk, [])
                from_state = probe(lambda: squares(begins_at_none=False), self.risk, [])
        except Exception:  # whatever a method of this name, which may be for something else, raises on inputs
            if self.horizon > 1:
                raise
            return False
        return from_none.equals(from_state)

    def _run(self, chunks: Sequence[Chunk], window: Window) -> tuple[Walked, Window]:
        """Learn chunks up to the first one with NaN or Inf, from which on nothing is changed."""
        check_hooks(self.optimizer)
        if self.regularizer is not None:
            self.regularizer.check_not_averaged()
        if chunks[0].inputs.requires_grad:
            raise CompilationError(f"inputs must not require a gradient with engine='compiled'. {EAGER_INSTEAD}")
        # the context once a batch: it looks at every attribute of the model, which is too much for every chunk
        context = self._context()
        if window.state is None:
            chunks, window = self._begin(chunks, window, context)
        self.optimizer.zero_grad()  # gradients stay inside the steps: old ones would only take memory
        device = chunks[0].inputs.device
        if self._alive.device != device:
            self._alive = self._alive.to(device)
        self._alive.fill_(True)  # in place: a recorded step knows it by its address
        walk = _Walk(
            chunks,
            window,
            context,
            fills_windows=self._fills_windows,
            horizon=self.horizon,
            batch_size=self.chunking.time_major(chunks[0].inputs).shape[1],
            max_norm=self.max_norm,
            dtype=next(param.dtype for group in self.optimizer.param_groups for param in group["params"]),
        )
        self._refresh()
        bad = None
        try:
            while not walk.is_over and bad is None:
                key = walk.key()
                if key not in self._entries:
                    if walk.position > 0 and self._is_dead():
                        break  # nothing is compiled from bad numbers
                    bad = self._compile(key, walk)  # here, where autocast and the like are the caller's
                    continue
                with flushed_denormals() if device.type == "cpu" else nullcontext():
                    if not self._advance(walk, key):
                        break
            return self._result(walk, bad), walk.window()
        finally:
            if self._is_dead():
                walk.undo_count(walk.first_bad())  # the updates from the first bad chunk on were not made
            self.layout.publish()
            torch.clear_autocast_cache()  # it may hold casts of the weights before these updates
            self.hooks.num_steps += walk.num_updates
            self.optimizer._opt_called = True  # pyright: ignore  # for torch's schedulers: there was a step

    def _is_dead(self) -> bool:
        """Return whether a number was NaN or Inf: the one synchronization of a batch."""
        return self.check_finite and not self._alive

    @torch.no_grad()
    def _advance(self, walk: "_Walk", key: Key) -> bool:
        """Run one compiled step as long as the chunks have it in common; return whether to go on."""
        entry, groups = self._entries[key], self.layout.groups_of(key)
        start, end = walk.position, walk.end_of_series(entry.next_nest)
        numbers = [group.numbers(walk.makes_update[start:], walk.device) for group in groups]
        # the arguments of every chunk begin with these; see `Arguments` for the order
        in_place = [*tree_leaves([[group.buffers for group in groups], self.layout.module_tensors(key)]), self._alive]
        weight = {"weight": walk.chunk.weight} if self.replicas.shares_updates else {}
        run = entry.run
        # all chunks at once where that is faster, and nothing has to be done between two of them
        at_once = isinstance(run, CUDAGraphs) and not isinstance(self.replicas, DistributedReplicas)
        while walk.position < end:
            # nothing here may wait for the device, or look at a number: that would be once a chunk
            series = [
                [*(row[number - start] for row in numbers), *walk.own_arguments(number)]
                for number in range(walk.position, end if at_once else walk.position + 1)
            ]
            if isinstance(run, CUDAGraphs):
                result = run.run(in_place, series, walk.state_tensors)
            else:
                loss, norm, *states = run(*in_place, *series[0], *walk.state_tensors, **weight)
                result = SeriesResult([loss], [norm], states)
            walk.take(result, entry.next_nest, groups)
            if not self.skips and self.replicas.count_update():  # otherwise `walk` counts what is left out as well
                if self._is_dead():
                    return False  # there is nothing to share
                self.replicas.sync(self._trained())
            if self.replicas.shares_updates and self._is_dead():
                return False  # as do all the others, at the same chunk
        return True

    def _trained(self) -> list[Tensor]:
        """Return weights, averages and duals as they lie in the buffers, and the running estimates of the loss."""
        names = (PARAM, AVERAGE, DUAL)
        flat = [group.buffers[name] for group in self.layout.groups for name in names if name in group.buffers]
        return [*flat, *(buffer for buffer in self.loss.buffers() if buffer.is_floating_point())]

    def _result(self, walk: "_Walk", bad: BadNumber | None) -> Walked:
        first_bad = walk.position
        if self._is_dead():
            first_bad = walk.first_bad()
            loss = walk.losses[first_bad].item()
            where = "gradient" if torch.isfinite(walk.losses[first_bad]) else "loss"
            bad = BadNumber(walk.chunks[first_bad].number, where, loss)
        if self.check_finite and not self.layout.has_finite_weights():
            # nothing was changed from the first bad chunk on: the update before it has made them so
            bad = BadNumber(walk.chunks[max(first_bad - 1, 0)].number, "weights")
        norms = [norm for norm, groups in zip(walk.norms, walk.stepped, strict=False) if groups]
        return Walked(walk.state(), walk.losses, norms, bad=bad)

    # -- compiling ---------------------------------------------------------------------------------------------------

    def _update(self) -> Update:
        update = Update(clips=self.max_norm is not None, checks=self.check_finite)
        if self.regularizer is None:
            return update
        names = ("form", "coupling", "beta", "mu")
        return update._replace(**{name: getattr(self.regularizer, name) for name in names})

    def _context(self) -> Key:
        """Return everything but the shapes of a chunk that a compiled step takes as constant."""
        autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
        settings = (torch.get_num_threads(), torch.backends.cudnn.enabled, is_smooth())
        return (constants(self.risk), *settings, torch.get_default_dtype(), *autocast, self._update())

    def _refresh(self) -> None:
        if self.layout.refresh():
            self._entries.clear()

    def _compile(self, key: Key, walk: "_Walk") -> BadNumber | None:
        """Add the compiled step of the next chunk; or return that its loss is NaN or Inf, from which nothing is."""
        found = self._probe(walk)
        if isinstance(found, BadNumber):
            return found
        has_effects = found.is_random or any(name.startswith("model.") for name in found.moving)
        if self._fills_windows and has_effects:
            # a chunk that stands for none would draw numbers and move statistics: each length of window has a step
            self._fills_windows = False
            walk.prepare(fills_windows=False)
            return None
        # what was learned so far goes back before parameters move to other buffers
        self.layout.publish()
        self.layout.add_step(key, found.used)
        self._refresh()
        groups, module = self.layout.groups_of(key), self.layout.module_tensors(key)
        if not groups:
            raise CompilationError(
                "engine='compiled' found no parameter of the optimizer in the loss: all are frozen, or the model got "
                "others after the optimizer was made. Make optimizer and method again."
            )
        # buffers of statistics that stand still in this chunk, as in evaluation mode, may move in another
        moving = found.moving | {name for name, _ in self.risk.named_buffers()}
        step = ChunkStep(
            self.risk,
            groups,
            [name for name in module if name in moving],
            self._update(),
            horizon=len(walk.inputs[walk.position]),
            has_effects=has_effects,
            copies_given=found.writes_given,
        )
        numbers = [group.numbers(walk.makes_update[walk.position :], walk.device)[0] for group in groups]
        buffers = [group.buffers for group in groups]
        arguments = Arguments(buffers, module, self._alive, numbers, *walk.arguments())
        part, state, flat = walk.chunk.part, walk.window().state, arguments.flat()
        if isinstance(self.replicas, DistributedReplicas) and self.replicas.shares_updates:
            run = ReplicatedStep(step, arguments, part, state, self.replicas)
            check_first(run.take, flat, found)
        else:
            run = compile_step(lambda *tensors: step(arguments.filled(tensors), part, state), flat, self.risk)
            check_first(run, flat, found)
            if walk.device.type in RECORDED_ON:
                own = [*numbers, *walk.own_arguments(walk.position)]
                run = CUDAGraphs(run, own, num_states=len(flatten_state(step.next_state)))
        self._entries[key] = _Entry(run, _Nest(step.next_state))
        return None

    def _probe(self, walk: "_Walk") -> Probe | BadNumber:
        bad: list[BadNumber] = []
        copies: list[Tensor] = []

        def loss_of_chunk() -> Tensor:
            # copies, since a model may change its inputs in place, and the chunk is still to be learned
            chunk = walk.chunk._replace(inputs=walk.chunk.inputs.clone())
            state = map_state(Tensor.clone, run_window(self.model, self.chunking, walk.window())[-1])
            copies.extend([chunk.inputs, *flatten_state(state)])
            output, loss, _ = forward_chunk(self.model, self.loss, self.chunking, chunk, state)
            if not self.replicas.shares_updates:  # otherwise it would communicate, and all judge the loss of all
                self.loss.observe(output.detach(), chunk.part)
                if self.check_finite and not torch.isfinite(loss):
                    bad.append(BadNumber(chunk.number, "loss", loss.item()))
            return loss

        trained = [param for group in self.optimizer.param_groups for param in group["params"]]
        with plain_cells():  # by the cells that will be compiled, so that rounding is the only difference
            found = probe(loss_of_chunk, self.risk, trained)
        # torch counts the writes into a tensor
        return bad[0] if bad else found._replace(writes_given=any(copy._version for copy in copies))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled and gathered: a copy makes its own."""
        layout = Layout(self.risk, self.optimizer, self.regularizer)
        return {**self.__dict__, "layout": layout, "_entries": {}, "_begins_alike": {}}


class _Entry(NamedTuple):
    """A compiled step, and the nest of its next state."""

    run: Callable[..., Sequence[Tensor]] | CUDAGraphs
    next_nest: "_Nest"


class _Nest:
    """The nest of a state.

    Attributes:
        state: Any state of this nest.
        size: How many tensors it has.
        key: Types, shapes and dtypes, to compare.
    """

    def __init__(self, state: State) -> None:
        tensors = flatten_state(state)
        self.state, self.size = state, len(tensors)
        self.key = (tree_flatten(state)[1], tuple((tensor.shape, tensor.dtype) for tensor in tensors))

    def filled(self, tensors: Sequence[Tensor]) -> State:
        """Return a state of this nest."""
        following = iter(tensors)  # those of `state` may be of a trace, and have no numbers
        return map_state(lambda _: next(following), self.state)


class _Walk:
    """A batch on its way through its chunks: the arguments of the steps to come, the results of those made.

    Attributes:
        position: The next chunk.
        losses, norms: Of the chunks so far.
        stepped: The groups that each chunk has updated.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        window: Window,
        context: Key,
        *,
        fills_windows: bool,
        horizon: int,
        batch_size: int,
        max_norm: float | None,
        dtype: torch.dtype,
    ) -> None:
        self.chunks, self.context, self.horizon, self.position = chunks, context, horizon, 0
        self.batch_size, self.max_norm, self.dtype = batch_size, max_norm, dtype
        self.device = chunks[0].inputs.device
        self.makes_update = torch.tensor([chunk.has_steps for chunk in chunks])
        self.spanned = [*window.chunks, *chunks]
        parts = [flatten_part(chunk.part) for chunk in chunks]
        self._leaves = [own for own, _ in parts]
        self.tensors = [[leaf.contiguous() for leaf in own if isinstance(leaf, Tensor)] for own in self._leaves]
        self.prepare(fills_windows=fills_windows)
        self._part_keys: list[Key] = []
        for _, key in parts:
            # the same object where it is the same key: `end_of_series` then need not look inside, chunk after chunk
            self._part_keys.append(self._part_keys[-1] if self._part_keys[-1:] == [key] else key)
        # before the window, from which the next step begins, and after the chunk before it
        self._nest = self._last_nest = _Nest(window.state)
        self.state_tensors = [tensor.contiguous() for tensor in flatten_state(window.state)]
        self.last_tensors = self.state_tensors
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.stepped: list[list[FlatGroup]] = []

    def prepare(self, *, fills_windows: bool) -> None:
        """Make the arguments of all steps: between two steps there is nothing but the call.

        Args:
            fills_windows: Whether the first chunk stands in where a window has fewer chunks than the horizon.
        """
        self._fills_windows = fills_windows
        self.inputs = self._windows([chunk.inputs.contiguous() for chunk in self.spanned])
        self.shapes = [[inputs.shape for inputs in own] for own in self.inputs]
        # none in a window in which sequences are not said to begin, where parameters of a first state have no gradient
        self.begins: list[list[Tensor]] = [[] for _ in self.chunks]
        if any(chunk.starts is not None for chunk in self.spanned):
            windows = zip(
                self._windows([self._beginning(chunk) for chunk in self.spanned]),
                self._windows([chunk.starts is not None for chunk in self.spanned]),
                strict=True,
            )
            self.begins = [own if any(are_told) else [] for own, are_told in windows]
        self.rows = self._make_rows()

    def _windows(self, items: list[Item]) -> list[list[Item]]:
        """Return for each chunk that is learned the items of its window and its own, from those of all chunks."""
        num_before = len(self.spanned) - len(self.chunks)
        windows = [range(end - self.horizon, end) for end in range(num_before + 1, len(items) + 1)]
        return [[items[max(now, 0)] for now in own if now >= 0 or self._fills_windows] for own in windows]

    def _beginning(self, chunk: Chunk) -> Tensor:
        """Return the lanes in which a sequence begins with a chunk, (B,): also where none does, to have one step."""
        lanes = chunk.starts[0].lanes if chunk.starts else torch.zeros(self.batch_size, dtype=torch.bool)
        lanes = torch.ones(self.batch_size, dtype=torch.bool) if lanes is None else lanes
        return lanes.to(self.device)

    def _make_rows(self) -> list[Tensor]:
        """Return the row of numbers of every chunk, see `Row`, copied to the device at once."""
        rows = []
        for num_before, (chunk, own, inputs) in enumerate(
            zip(self.chunks, self._leaves, self.inputs, strict=True), len(self.spanned) - len(self.chunks)
        ):
            are_there = [float(back <= num_before) for back in range(len(inputs) - 1, 0, -1)]
            floats = [leaf for leaf in own if isinstance(leaf, float)]
            rows.append([float(chunk.has_steps), self.max_norm or 0.0, *are_there, *floats])
        wide = torch.promote_types(self.dtype, torch.float32)
        flat = torch.tensor([value for row in rows for value in row], dtype=wide)
        return list(flat.to(self.device).split([len(row) for row in rows]))

    @property
    def chunk(self) -> Chunk:
        """The next chunk."""
        return self.chunks[self.position]

    @property
    def is_over(self) -> bool:
        """Whether all chunks are learned."""
        return self.position == len(self.chunks)

    def key(self) -> Key:
        """Return what decides about the compiled step of the next chunk."""
        inputs = self.inputs[self.position][-1]
        shapes, part = tuple(self.shapes[self.position]), self._part_keys[self.position]
        begins = len(self.begins[self.position])
        return (shapes, inputs.dtype, inputs.device, begins, part, self._nest.key, self.context)

    def end_of_series(self, next_nest: _Nest) -> int:
        """Return the first chunk from the next one on that has another step, given the nest after the next one."""
        now, end = self.position, self.position + 1
        if next_nest.key != self._nest.key:
            return end
        # cheaper than to compare keys
        while (
            end < len(self.chunks)
            and self.shapes[end] == self.shapes[now]
            and len(self.begins[end]) == len(self.begins[now])
            and self._part_keys[end] is self._part_keys[now]
        ):
            end += 1
        return end

    def arguments(self) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Return the next chunk's own among the `Arguments` of a step: row, inputs, begins, part and state."""
        now = self.position
        return self.rows[now], self.inputs[now], self.begins[now], self.tensors[now], self.state_tensors

    def own_arguments(self, number: int) -> list[Tensor]:
        """Return the arguments of a chunk but for the state, one after the other."""
        return [self.rows[number], *self.inputs[number], *self.begins[number], *self.tensors[number]]

    def state(self) -> State:
        """Return the state now, as a nest."""
        return self._last_nest.filled(self.last_tensors)

    def window(self) -> Window:
        """Return the chunks before the next one that its step runs again, and the state before them."""
        end = len(self.spanned) - len(self.chunks) + self.position
        chunks = tuple(self.spanned[max(end - self.horizon + 1, 0) : end])
        return Window(chunks, self._nest.filled(self.state_tensors))

    def take(self, result: SeriesResult, nest: _Nest, groups: list[FlatGroup]) -> None:
        """Take in what the steps of one or more chunks have returned, and go on to the chunk after them."""
        states = result.states
        self._last_nest, self.last_tensors = nest, states[-nest.size :] if nest.size else []
        if len(self.inputs[self.position]) == self.horizon:  # else the next window begins with the same chunk
            self._nest = nest
            self.state_tensors = states[: nest.size]  # the same, with a horizon of 1
        self.losses += result.losses
        self.norms += result.norms
        for _ in result.losses:
            updated = groups if self.chunk.has_steps else []  # the step itself has left the others as they were
            for group in updated:
                group.num_steps += 1
            self.stepped.append(updated)
            self.position += 1

    def first_bad(self) -> int:
        """Return the position of the first chunk with NaN or Inf."""
        # of a chunk without an update the gradient may be anything: nothing was done with it
        makes_no_update = ~self.makes_update[: self.position]
        finite = torch.isfinite(torch.stack(self.losses)).cpu()
        finite &= torch.isfinite(torch.stack(self.norms)).cpu() | makes_no_update
        return int((~finite).nonzero()[0])

    def undo_count(self, num_good: int) -> None:
        """Take back the count of the updates after so many chunks."""
        for groups in self.stepped[num_good:]:
            for group in groups:
                group.num_steps -= 1
        del self.stepped[num_good:]

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        return sum(bool(groups) for groups in self.stepped)

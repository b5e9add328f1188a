"""The chunk step as a pure function of tensors, for a compiler: from the forward pass to the average W̄.

The recurrences of FPTT are those of `fptt._regularizer.recurrences`, on flat tensors; the optimizers' are in `rules`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from fptt._batches.cut import Chunking
from fptt._engine.compiled.buffers import AVERAGE, DUAL, PARAM, FlatGroup
from fptt._engine.eager import restart
from fptt._losses.chunk_loss import ChunkLoss
from fptt._regularizer import recurrences
from fptt._sequence import State, flatten_state, map_state, refill_state

Named = dict[str, Tensor]


class Update(NamedTuple):
    """Options that are constants of a compiled step: others are another step."""

    clips: bool
    checks: bool
    form: str = "paper"
    coupling: str = "decoupled"
    beta: float = 0.5
    mu: float = 1.0


class Row(NamedTuple):
    """The numbers of a chunk, one tensor for all of them, since each input of a compiled step costs time.

    Attributes:
        makes_update: Above 0 if the chunk is updated.
        max_norm: Largest norm of the gradient; of no meaning without clipping.
        are_there: Above 0 for each chunk of the window before it that there is; at the beginning of a batch some of
            them, the first ones, stand for none.
        floats: The floats of the part.
    """

    makes_update: Tensor
    max_norm: Tensor
    are_there: tuple[Tensor, ...]
    floats: tuple[Tensor, ...]

    @classmethod
    def of(cls, row: Tensor, horizon: int) -> "Row":
        """Return the numbers of a row, (2 + horizon − 1 + floats of the part,)."""
        makes_update, max_norm, *others = row.unbind()
        return cls(makes_update, max_norm, tuple(others[: horizon - 1]), tuple(others[horizon - 1 :]))


class Arguments(NamedTuple):
    """The tensors that a compiled step takes, flattened in this order.

    Attributes:
        buffers: Of each flat group, by name; changed in place.
        module: Buffers and parameters of model and loss that no step trains, by name; buffers are changed in place.
        alive: Whether all numbers so far are finite, a boolean scalar; changed in place.
        numbers: For the optimizer's rule and the strength of the penalty, a row of each flat group.
        row: See `Row`.
        inputs: Of the chunks of the window, and of the chunk itself: as many as the horizon, or fewer at the beginning.
        begins: Of each of them one boolean tensor, (B,), the lanes in which a sequence begins with the chunk; none at
            all where sequences are not said to begin.
        part: The tensors of the part of the targets.
        state: The tensors of the state before the window.
    """

    buffers: list[Named]
    module: Named
    alive: Tensor
    numbers: list[Tensor]
    row: Tensor
    inputs: list[Tensor]
    begins: list[Tensor]
    part: list[Tensor]
    state: list[Tensor]

    def flat(self) -> list[Tensor]:
        """Return all tensors one after the other."""
        return tree_leaves(self)

    def filled(self, tensors: Sequence[Tensor]) -> "Arguments":
        """Return other tensors, in the order of `flat`, in the places of these."""
        return tree_unflatten(tensors, tree_flatten(self)[1])


def fill_part(part: Any, tensors: Iterator[Tensor], floats: Iterator[Tensor]) -> Any:
    """Return a part of the targets with other tensors in the place of its tensors and of its floats."""
    leaves, spec = tree_flatten(part)
    filled = [
        next(tensors) if isinstance(leaf, Tensor) else next(floats) if isinstance(leaf, float) else leaf
        for leaf in leaves
    ]
    return tree_unflatten(filled, spec)


class Flow(NamedTuple):
    """What the forward pass of a chunk begins with.

    Attributes:
        inputs: Of the chunks of the window, and of the chunk itself.
        begins: As in `Arguments`.
        are_there: As in `Row`.
        part: Of the targets.
        state: Before the window.
        copies_given: Whether every chunk gets copies of its inputs and state, since the forward pass writes into them.
    """

    inputs: list[Tensor]
    begins: list[Tensor]
    are_there: tuple[Tensor, ...]
    part: Any
    state: State
    copies_given: bool


class Risk(nn.Module):
    """Model and loss as one module, so that one call swaps in the weights of both."""

    def __init__(self, model: nn.Module, loss: ChunkLoss, chunking: Chunking) -> None:
        super().__init__()
        self.model, self.loss, self.chunking = model, loss, chunking

    def forward(self, flow: Flow) -> tuple[Tensor, Tensor, State, State, list[Tensor]]:
        """Return outputs, time-major, and loss of a chunk, the state after the first chunk run, and that after it.

        Beside them a number of the outputs of each chunk of the window, which nothing else depends on.
        """
        state, states, of_window = flow.state, [], []
        for number, inputs in enumerate(flow.inputs[:-1]):
            unused, after = self._run(flow, number, inputs, state)
            of_window.append(unused.detach().sum())
            # no branch in a compiled step: what stands for no chunk is run like one, and leaves the state as it was
            is_there = flow.are_there[number] > 0
            state = refill_state(
                after,
                [torch.where(is_there, *both) for both in zip(flatten_state(after), flatten_state(state), strict=True)],
            )
            states.append(state)
        output, state = self._run(flow, len(flow.inputs) - 1, flow.inputs[-1], state)
        states.append(state)
        output = self.chunking.time_major(output)
        return output, self.loss(output, flow.part), states[0], state, of_window

    def _run(self, flow: Flow, number: int, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        if flow.begins:
            # inside, so that the gradient reaches an initial state that is learned
            state = restart(self.model, inputs, state, flow.begins[number])
        # both are needed once more: they are the caller's, or of a window, or to go back to
        if flow.copies_given:
            inputs, state = inputs.clone(), map_state(Tensor.clone, state)
        return self.model(inputs, state)


class _Observation(nn.Module):
    """The update of a loss's running estimate as a module, so that its buffers can be swapped in."""

    def __init__(self, loss: ChunkLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, part: Any) -> None:
        """Let the loss observe the outputs of a chunk."""
        self.loss.observe(output, part)


class ChunkStep:
    """The step of chunks of one shape, to be traced.

    Args:
        risk: Model and loss.
        groups: The flat groups that the step updates.
        moving: Names of the parameters and buffers that the forward pass changes by itself.
        update: See `Update`.
        horizon: Chunks that the gradient goes through: that of the step, and those before it.
        has_effects: Whether the forward pass draws random numbers, or moves statistics.
        copies_given: Whether the forward pass writes into the inputs or the state that it is given.

    Attributes:
        next_state: The nest of the next state, known after the first call.
    """

    def __init__(
        self,
        risk: Risk,
        groups: Sequence[FlatGroup],
        moving: Sequence[str],
        update: Update,
        *,
        horizon: int,
        has_effects: bool,
        copies_given: bool,
    ) -> None:
        self.risk, self.groups, self.moving, self.update = risk, groups, moving, update
        self.horizon, self.has_effects, self.copies_given = horizon, has_effects, copies_given
        self.next_state: State = None

    def __call__(self, arguments: Arguments, part: Any, state: State) -> list[Tensor]:
        """Make the step.

        A number that is NaN or Inf must stop all updates from there on, but a compiled step cannot branch. So every
        tensor is written through `torch.where`, and `alive`, which stays False, is looked at once a batch: a look after
        every chunk would make an accelerator wait for the processor.

        Args:
            arguments: The tensors.
            part: The nest of the part, to be filled with tensors and floats.
            state: The nest of the incoming state.

        Returns:
            The loss, the norm of its gradient, and the tensors of the states that `keep_states` returns.
        """
        # copies: the forward pass may change buffers in place, and that must not count if it ends in NaN
        module = {name: tensor.clone() for name, tensor in arguments.module.items()}
        flow = self.flow_of(arguments, part, state)
        output, loss, gradients, *states = self.gradients(arguments.buffers, module, flow)
        norm = self.update_(arguments, loss, gradients)
        tensors = {name: tensor for name, tensor in module.items() if name.startswith("loss.")}
        functional_call(_Observation(self.risk.loss), tensors, (output, flow.part))
        for name in self.moving:
            tensor = arguments.module[name]
            tensor.copy_(torch.where(arguments.alive, module[name], tensor))
        return [loss, norm, *self.keep_states(*states)]

    def flow_of(self, arguments: Arguments, part: Any, state: State) -> Flow:
        """Return what `Risk` is called with."""
        row = Row.of(arguments.row, self.horizon)
        part = fill_part(part, iter(arguments.part), iter(row.floats))
        following = iter(arguments.state)
        state = map_state(lambda _: next(following), state)
        return Flow(arguments.inputs, arguments.begins, row.are_there, part, state, self.copies_given)

    def keep_states(self, after_first: State, after_last: State, of_window: list[Tensor]) -> list[Tensor]:
        """Return the tensors of the state after the first chunk run, then of that after the last if it is another.

        Their nest, which is the same, is remembered. Between them, where the forward pass has effects, stands what is
        left of the window: a compiler leaves out what nothing depends on, numbers drawn and statistics moved there too.
        """
        self.next_state = map_state(Tensor.detach, after_last)
        seen = of_window if self.has_effects else []
        kept = [after_last] if self.horizon == 1 else [after_first, seen, after_last]
        return [tensor.detach().contiguous() for state in kept for tensor in flatten_state(state)]

    def gradients(
        self, buffers: Sequence[Named], module: Named, flow: Flow
    ) -> tuple[Tensor, Tensor, list[Tensor], State, State, list[Tensor]]:
        """Return outputs, loss, its gradient with respect to each group, flat, and what else `Risk` returns."""
        leaves: Named = {}
        for group, own in zip(self.groups, buffers, strict=True):
            parts = zip(group.names, group.split(own[PARAM]), strict=True)
            # new leaves: the gradient is with respect to the buffer's parts, not to what the module holds
            leaves |= {name: part.detach().requires_grad_() for name, part in parts}
        with torch.enable_grad():
            output, loss, after_first, after_last, of_window = functional_call(self.risk, {**leaves, **module}, (flow,))
            gradients = iter(torch.autograd.grad(loss, list(leaves.values())))
        # one vector a group: norm, penalty, optimizer and average are then a few loops over it, however many
        # parameters the model has
        flat = [torch.cat([next(gradients).reshape(-1) for _ in group.names]) for group in self.groups]
        return output.detach(), loss.detach(), flat, after_first, after_last, of_window

    def update_(self, arguments: Arguments, loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """Make the update of the buffers, if the numbers are good and there is something to learn.

        Args:
            arguments: The tensors; buffers and `alive` are changed.
            loss: Of the chunk.
            gradients: Of the loss, of each group.

        Returns:
            The norm of the gradients.
        """
        row = Row.of(arguments.row, self.horizon)
        norm, updates = norm_of(gradients), row.makes_update > 0
        arguments.alive.copy_(self.still_alive(arguments.alive, loss, norm, updates))
        after = self.advance(arguments.buffers, gradients, norm, arguments.numbers, row.max_norm)
        write(arguments.buffers, after, arguments.alive & updates)
        return norm

    def still_alive(self, alive: Tensor, loss: Tensor, norm: Tensor, updates: Tensor) -> Tensor:
        """Return whether all numbers are finite, those of this chunk among them."""
        if not self.update.checks:
            return alive
        return alive & torch.isfinite(loss) & (torch.isfinite(norm) | ~updates)

    def advance(
        self,
        buffers: list[Named],
        gradients: list[Tensor],
        norm: Tensor,
        numbers: list[Tensor],
        max_norm: Tensor,
    ) -> list[Named]:
        """Return the buffers after the update: penalty, clipping, the optimizer's rule, dual and average.

        Args:
            buffers: Of each group, by name.
            gradients: Of the loss, of each group.
            norm: Of all these gradients together.
            numbers: A row of each group: those of the optimizer's rule, then α if the group has a penalty.
            max_norm: Largest norm, of what the optimizer gets.
        """
        rows = [list(row.unbind()) for row in numbers]
        penalties = [
            recurrences.penalty_gradient(
                own[PARAM], own[AVERAGE], own[DUAL], alpha=row[-1], form=self.update.form, mu=self.update.mu
            )
            if AVERAGE in own
            else None
            for own, row in zip(buffers, rows, strict=True)
        ]
        if self.update.coupling == "coupled":
            pairs = zip(gradients, penalties, strict=True)
            gradients = [gradient if penalty is None else gradient + penalty for gradient, penalty in pairs]
            norm = norm_of(gradients) if self.update.clips else norm  # of the sum, as the released code clips
        if self.update.clips:
            coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
            # a sum over one number is a call of its own: what leads to it is then worked out once, and not, as the
            # compiler would have it, for every 16 weights anew
            coefficient = coefficient.reshape(1).cumsum(0)[0]
            gradients = [gradient * coefficient.to(gradient) for gradient in gradients]
        return [
            self._advance_group(*group) for group in zip(self.groups, buffers, gradients, penalties, rows, strict=True)
        ]

    def _advance_group(
        self, group: FlatGroup, before: Named, gradient: Tensor, penalty: Tensor | None, row: list[Tensor]
    ) -> Named:
        moments = {name: before[name] for name in group.rule.moments}
        numbers = row if penalty is None else row[:-1]
        param, moments = group.rule.update(before[PARAM], gradient, moments, numbers)
        if penalty is None:
            return {PARAM: param, **moments}
        if self.update.coupling == "decoupled":
            param = param - penalty  # ∇R at the weights before the step, as the eager hooks take it
        alpha = row[-1]
        dual = recurrences.advance_dual(before[DUAL], param, before[AVERAGE], alpha=alpha)
        average = recurrences.advance_average(before[AVERAGE], param, dual, alpha=alpha, beta=self.update.beta)
        return {PARAM: param, **moments, DUAL: dual, AVERAGE: average}


def write(buffers: Sequence[Named], new: Sequence[Named], keep: Tensor) -> None:
    """Put new tensors into the buffers, where they are to be kept."""
    for own, after in zip(buffers, new, strict=True):
        for name, tensor in after.items():
            own[name].copy_(torch.where(keep, tensor, own[name]))


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, a scalar; half precision would overflow in the squares."""
    wide = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients]
    # squares of each group first: a cat of all groups would copy every gradient once more
    return torch.stack([gradient.square().sum().to(wide[0]) for gradient in wide]).sum().sqrt()

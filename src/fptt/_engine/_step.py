"""One whole chunk step as a pure function of tensors that a compiler can take in: from the forward pass to the average.

The equations are those of `_recurrences`, on flat tensors; the optimizer's are those of `_rules`.
"""

from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fptt import _recurrences
from fptt._batch import Chunking
from fptt._engine._flat import AVERAGE, DUAL, PARAM, FlatGroup
from fptt._losses import ChunkLoss
from fptt._sequence import State, flatten_state, map_state

Named = dict[str, Tensor]

HAS_STEPS, MAX_NORM = 0, 1
"""Where the row of a chunk tells whether it makes an update, and the norm to clip at; the floats of its part follow."""


class Update(NamedTuple):
    """What the update is; another one is another compiled step."""

    clips: bool
    checks: bool
    form: str = "paper"
    coupling: str = "decoupled"
    previous_gradient: str = "dual"
    beta: float = 0.5
    mu: float = 1.0


class Arguments(NamedTuple):
    """The tensors of a step.

    Attributes:
        buffers: Of each flat group; changed in place.
        module: Buffers, and parameters that no step trains, of model and loss; buffers are changed in place.
        alive: Whether all numbers so far are finite, a boolean scalar; changed in place.
        numbers: Of the optimizer's rule and the strength of the penalty, of each flat group.
        row: What `HAS_STEPS` and `MAX_NORM` say, and the floats of the part.
        inputs: Of the chunk.
        part: The tensors of the part.
        state: The tensors of the incoming state.
    """

    buffers: list[list[Tensor]]
    module: list[Tensor]
    alive: Tensor
    numbers: list[Tensor]
    row: Tensor
    inputs: Tensor
    part: list[Tensor]
    state: list[Tensor]

    def flat(self) -> list[Tensor]:
        """Return all tensors one after the other."""
        buffers = [tensor for own in self.buffers for tensor in own]
        return [*buffers, *self.module, self.alive, *self.numbers, self.row, self.inputs, *self.part, *self.state]

    def filled(self, tensors: Sequence[Tensor]) -> "Arguments":
        """Return other tensors, in the order of `flat`, in the places of these."""
        following = iter(tensors)

        def some(places: Sequence[Tensor]) -> list[Tensor]:
            return [next(following) for _ in places]

        buffers, module, alive = [some(own) for own in self.buffers], some(self.module), next(following)
        numbers, row, inputs = some(self.numbers), next(following), next(following)
        return Arguments(buffers, module, alive, numbers, row, inputs, some(self.part), some(self.state))


class Risk(nn.Module):
    """Model and loss as one module, so that one call swaps in the weights of both."""

    def __init__(self, model: nn.Module, loss: ChunkLoss, chunking: Chunking) -> None:
        super().__init__()
        self.model, self.loss, self.chunking = model, loss, chunking

    def forward(self, inputs: Tensor, part: Any, state: State) -> tuple[Tensor, Tensor, State]:
        """Return outputs, time-major, loss and next state of a chunk."""
        output, state = self.model(inputs, state)
        output = self.chunking.time_major(output)
        return output, self.loss(output, part), state


class Observation(nn.Module):
    """What a loss with a running estimate does after the update, as a module, to swap its buffers in."""

    def __init__(self, loss: ChunkLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, part: Any) -> None:
        """Let the loss learn from the outputs of a chunk."""
        self.loss.observe(output, part)


class ChunkStep:
    """The step of chunks of one shape, to be traced.

    Calling it with `Arguments` returns the loss, the norm of its gradient, with a recomputed gradient whether that is
    finite, and the tensors of the next state.

    Attributes:
        next_state: The nest of the next state, known after the first call.
    """

    def __init__(
        self,
        risk: Risk,
        groups: Sequence[FlatGroup],
        module_names: Sequence[str],
        moving: Container[str],
        update: Update,
    ) -> None:
        self.risk, self.groups, self.module_names, self.update = risk, groups, module_names, update
        self.moving = moving
        self.next_state: State = None

    def __call__(self, arguments: Arguments, part: Any, state: State) -> list[Tensor]:
        """Make the step; part and state are nests into which the tensors of the arguments are put."""
        floats = list(arguments.row.unbind())
        part = fill_part(part, iter(arguments.part), iter(floats[2:]))
        state = _fill_state(state, arguments.state)
        buffers = [
            dict(zip(g.buffers, own, strict=True)) for g, own in zip(self.groups, arguments.buffers, strict=True)
        ]
        numbers = [list(row.unbind()) for row in arguments.numbers]
        module = {name: tensor.clone() for name, tensor in zip(self.module_names, arguments.module, strict=True)}
        inputs = (arguments.inputs, part, state)

        output, loss, gradients, next_state = self._gradients([own[PARAM] for own in buffers], module, inputs)
        norm = _norm(gradients)
        updates = floats[HAS_STEPS] > 0
        alive = self._still_alive(arguments.alive, loss, norm, updates)
        after = self._advance(buffers, gradients, norm, numbers, floats[MAX_NORM])
        recomputed = self.update.previous_gradient == "recomputed"
        checks = [self._recompute(after, buffers, module, inputs, numbers) | ~updates] if recomputed else []
        self._observe(output, part, module)
        for own, new in zip(buffers, after, strict=True):
            for name, tensor in new.items():
                keep = alive & updates
                if recomputed and name in (AVERAGE, DUAL):
                    keep = keep & checks[0]
                own[name].copy_(torch.where(keep, tensor, own[name]))
        for name, tensor in zip(self.module_names, arguments.module, strict=True):
            if name in self.moving:
                tensor.copy_(torch.where(alive, module[name], tensor))
        arguments.alive.copy_(alive & checks[0] if recomputed else alive)
        self.next_state = map_state(Tensor.detach, next_state)
        return [loss, norm, *checks, *(tensor.detach().contiguous() for tensor in flatten_state(next_state))]

    def _observe(self, output: Tensor, part: Any, module: Named) -> None:
        tensors = {name: tensor for name, tensor in module.items() if name.startswith("loss.")}
        functional_call(Observation(self.risk.loss), tensors, (output, part))

    def _gradients(
        self, weights: list[Tensor], module: Named, inputs: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor, list[Tensor], State]:
        """Return outputs, loss, its gradient with respect to each group, flat, and the next state."""
        leaves: Named = {}
        for group, flat in zip(self.groups, weights, strict=True):
            parts = zip(group.names, group.split(flat), strict=True)
            leaves |= {name: part.detach().requires_grad_() for name, part in parts}
        with torch.enable_grad():
            output, loss, state = functional_call(self.risk, {**leaves, **module}, inputs)
            gradients = iter(torch.autograd.grad(loss, list(leaves.values())))
        flat = [torch.cat([next(gradients).reshape(-1) for _ in group.names]) for group in self.groups]
        return output.detach(), loss.detach(), flat, state

    def _still_alive(self, alive: Tensor, loss: Tensor, norm: Tensor, updates: Tensor) -> Tensor:
        if not self.update.checks:
            return alive.clone()
        return alive & torch.isfinite(loss) & (torch.isfinite(norm) | ~updates)

    def _advance(
        self,
        buffers: list[Named],
        gradients: list[Tensor],
        norm: Tensor,
        numbers: list[list[Tensor]],
        max_norm: Tensor,
    ) -> list[Named]:
        """Return the buffers after the update: penalty, clipping, the optimizer's rule, dual and average."""
        penalties = [
            self._penalty(own, row[-1]) if AVERAGE in own else None for own, row in zip(buffers, numbers, strict=True)
        ]
        if self.update.coupling == "coupled":
            pairs = zip(gradients, penalties, strict=True)
            gradients = [gradient if penalty is None else gradient + penalty for gradient, penalty in pairs]
            norm = _norm(gradients) if self.update.clips else norm
        if self.update.clips:
            coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
            # a sum over one number is a call of its own: what leads to it is then worked out once, and not, as the
            # compiler would have it, for every 16 weights anew
            coefficient = coefficient.reshape(1).cumsum(0)[0]
            gradients = [gradient * coefficient.to(gradient) for gradient in gradients]
        return [
            self._advance_group(*group)
            for group in zip(self.groups, buffers, gradients, penalties, numbers, strict=True)
        ]

    def _advance_group(
        self, group: FlatGroup, before: Named, gradient: Tensor, penalty: Tensor | None, numbers: list[Tensor]
    ) -> Named:
        moments = {name: before[name] for name in group.rule.moments}
        rule_numbers = numbers if penalty is None else numbers[:-1]
        param, moments = group.rule.update(before[PARAM], gradient, moments, rule_numbers)
        if penalty is None:
            return {PARAM: param, **moments}
        if self.update.coupling == "decoupled":
            param = param - penalty
        dual = _recurrences.advance_dual(before[DUAL], param, before[AVERAGE], alpha=numbers[-1])
        average = self._average(before, param, dual, numbers[-1])
        return {PARAM: param, **moments, DUAL: dual, AVERAGE: average}

    def _recompute(
        self,
        after: list[Named],
        before: list[Named],
        module: Named,
        inputs: tuple[Any, ...],
        numbers: list[list[Tensor]],
    ) -> Tensor:
        """Put ∇ℓ at the new weights in the place of the duals; return whether it is finite."""
        _, loss, gradients, _ = self._gradients([own[PARAM] for own in after], module, inputs)
        for new, old, gradient, row in zip(after, before, gradients, numbers, strict=True):
            if DUAL in new:
                new[DUAL] = gradient
                new[AVERAGE] = self._average(old, new[PARAM], gradient, row[-1])
        if not self.update.checks:
            return torch.ones_like(loss, dtype=torch.bool)
        return torch.isfinite(loss) & torch.isfinite(_norm(gradients))

    def _penalty(self, own: Named, alpha: Tensor) -> Tensor:
        form, mu = self.update.form, self.update.mu
        return _recurrences.penalty_gradient(own[PARAM], own[AVERAGE], own[DUAL], alpha=alpha, form=form, mu=mu)

    def _average(self, before: Named, param: Tensor, dual: Tensor, alpha: Tensor) -> Tensor:
        return _recurrences.advance_average(before[AVERAGE], param, dual, alpha=alpha, beta=self.update.beta)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, a scalar; half precision would overflow in the squares."""
    wide = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients]
    return torch.stack([gradient.square().sum().to(wide[0]) for gradient in wide]).sum().sqrt()


def _fill_state(nest: State, tensors: Sequence[Tensor]) -> State:
    """Return the nest of a state with other tensors."""
    following = iter(tensors)
    return map_state(lambda _: next(following), nest)


def fill_part(nest: Any, tensors: Iterator[Tensor], floats: Iterator[Tensor]) -> Any:
    """Return a part with other tensors in the place of its tensors and of its floats."""
    if isinstance(nest, Tensor):
        return next(tensors)
    if isinstance(nest, float):
        return next(floats)
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(fill_part(value, tensors, floats) for value in nest))
    if isinstance(nest, tuple | list):
        return type(nest)(fill_part(value, tensors, floats) for value in nest)
    if isinstance(nest, dict):
        return {key: fill_part(value, tensors, floats) for key, value in nest.items()}
    return nest


def part_leaves(nest: Any) -> list[Any]:
    """Return the leaves of a part in the order in which `fill_part` visits them."""
    if isinstance(nest, tuple | list):
        return [leaf for value in nest for leaf in part_leaves(value)]
    if isinstance(nest, dict):
        return [leaf for value in nest.values() for leaf in part_leaves(value)]
    return [nest]

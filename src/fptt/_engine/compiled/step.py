"""One whole chunk step as a pure function of tensors that a compiler can take in: from the forward pass to the average.

The equations are those of `_recurrences`, on flat tensors; the optimizer's are those of `_rules`.
"""

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fptt._batches.cut import Chunking
from fptt._engine.compiled.arguments import HAS_STEPS, MAX_NORM, Arguments, fill_part, fill_state
from fptt._engine.compiled.flat import AVERAGE, DUAL, PARAM, FlatGroup
from fptt._losses.chunk_loss import ChunkLoss
from fptt._regularizer import recurrences
from fptt._sequence import State, flatten_state, map_state

Named = dict[str, Tensor]


class Update(NamedTuple):
    """What the update is; another one is another compiled step."""

    clips: bool
    checks: bool
    form: str = "paper"
    coupling: str = "decoupled"
    previous_gradient: str = "dual"
    beta: float = 0.5
    mu: float = 1.0

    @property
    def recomputes(self) -> bool:
        """Whether the dual is the gradient at the new weights."""
        return self.previous_gradient == "recomputed"


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
        module, inputs = self.module_of(arguments), self.inputs_of(arguments, part, state)
        buffers, numbers, row = self.buffers_of(arguments), self.numbers_of(arguments), arguments.row.unbind()

        output, loss, gradients, next_state = self.gradients([own[PARAM] for own in buffers], module, inputs)
        norm = norm_of(gradients)
        updates = row[HAS_STEPS] > 0
        alive = self.still_alive(arguments.alive, loss, norm, updates)
        keep = alive & updates
        after = self.advance(buffers, gradients, norm, numbers, row[MAX_NORM])
        checks = []
        if self.update.recomputes:
            params = [own[PARAM] for own in after]
            _, again, recomputed, _ = self.gradients(params, module, inputs)
            checks = [self.is_finite(again, recomputed) | ~updates]
            write(buffers, self.recomputed(buffers, params, recomputed, numbers), keep & checks[0])
        write(buffers, after, keep)
        self._observe(output, inputs[1], module)
        for name, tensor in zip(self.module_names, arguments.module, strict=True):
            if name in self.moving:
                tensor.copy_(torch.where(alive, module[name], tensor))
        arguments.alive.copy_(alive & checks[0] if checks else alive)
        return [loss, norm, *checks, *self.keep_state(next_state)]

    # -- what the arguments hold -------------------------------------------------------------------------------------

    def buffers_of(self, arguments: Arguments) -> list[Named]:
        """Return the buffers of each group by name."""
        return [dict(zip(g.buffers, own, strict=True)) for g, own in zip(self.groups, arguments.buffers, strict=True)]

    def numbers_of(self, arguments: Arguments) -> list[list[Tensor]]:
        """Return the numbers of each group, one by one."""
        return [list(row.unbind()) for row in arguments.numbers]

    def module_of(self, arguments: Arguments) -> Named:
        """Return copies of what only lies in the module, for the forward pass to change."""
        return {name: tensor.clone() for name, tensor in zip(self.module_names, arguments.module, strict=True)}

    def inputs_of(self, arguments: Arguments, part: Any, state: State) -> tuple[Tensor, Any, State]:
        """Return what `Risk` is called with."""
        part = fill_part(part, iter(arguments.part), iter(arguments.row.unbind()[2:]))
        return arguments.inputs, part, fill_state(state, arguments.state)

    def keep_state(self, state: State) -> list[Tensor]:
        """Return the tensors of the next state, and remember its nest."""
        self.next_state = map_state(Tensor.detach, state)
        return [tensor.detach().contiguous() for tensor in flatten_state(state)]

    # -- what is worked out ------------------------------------------------------------------------------------------

    def _observe(self, output: Tensor, part: Any, module: Named) -> None:
        tensors = {name: tensor for name, tensor in module.items() if name.startswith("loss.")}
        functional_call(Observation(self.risk.loss), tensors, (output, part))

    def gradients(
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

    def still_alive(self, alive: Tensor, loss: Tensor, norm: Tensor, updates: Tensor) -> Tensor:
        """Return whether all numbers are finite, those of this chunk among them."""
        if not self.update.checks:
            return alive.clone()
        return alive & torch.isfinite(loss) & (torch.isfinite(norm) | ~updates)

    def advance(
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
            norm = norm_of(gradients) if self.update.clips else norm
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
        if self.update.recomputes:
            return {PARAM: param, **moments}
        dual = recurrences.advance_dual(before[DUAL], param, before[AVERAGE], alpha=numbers[-1])
        average = self._average(before, param, dual, numbers[-1])
        return {PARAM: param, **moments, DUAL: dual, AVERAGE: average}

    def is_finite(self, loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """Return whether a recomputed gradient is finite, if that is looked at."""
        if not self.update.checks:
            return torch.ones_like(loss, dtype=torch.bool)
        return torch.isfinite(loss) & torch.isfinite(norm_of(gradients))

    def recomputed(
        self, before: list[Named], params: list[Tensor], gradients: list[Tensor], numbers: list[list[Tensor]]
    ) -> list[Named]:
        """Return the duals that are ∇ℓ at the new parameters, and the averages that go with them."""
        found = zip(before, params, gradients, numbers, strict=True)
        return [
            {DUAL: gradient, AVERAGE: self._average(own, param, gradient, row[-1])} if AVERAGE in own else {}
            for own, param, gradient, row in found
        ]

    def _penalty(self, own: Named, alpha: Tensor) -> Tensor:
        form, mu = self.update.form, self.update.mu
        return recurrences.penalty_gradient(own[PARAM], own[AVERAGE], own[DUAL], alpha=alpha, form=form, mu=mu)

    def _average(self, before: Named, param: Tensor, dual: Tensor, alpha: Tensor) -> Tensor:
        return recurrences.advance_average(before[AVERAGE], param, dual, alpha=alpha, beta=self.update.beta)


def write(buffers: Sequence[Named], new: Sequence[Named], keep: Tensor) -> None:
    """Put new tensors into the buffers, where they are to be kept."""
    for own, after in zip(buffers, new, strict=True):
        for name, tensor in after.items():
            own[name].copy_(torch.where(keep, tensor, own[name]))


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, a scalar; half precision would overflow in the squares."""
    wide = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients]
    return torch.stack([gradient.square().sum().to(wide[0]) for gradient in wide]).sum().sqrt()

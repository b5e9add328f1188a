"""The rules of torch's optimizers as pure functions of flat tensors, with every number a tensor.

A number that changes while training, such as the learning rate, is then an input of the compiled step, not a constant
of it. The formulas are those of `torch.optim` (Kingma & Ba 2015; Loshchilov & Hutter 2019; Tieleman & Hinton 2012).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fptt._engine.compiled.compiler import CompilationError
from fptt._regularizer.step_hooks import StepHooks

Moments = dict[str, Tensor]
"""What an optimizer keeps of its parameters, by the names of `optimizer.state`."""


class Rule(ABC):
    """The update of one parameter group.

    Attributes:
        moments: Names of what is kept.
        has_step: Whether the optimizer counts steps in its state.
        flags: What changes the formula itself, and so needs another compiled step.
    """

    moments: tuple[str, ...] = ()
    has_step = True

    def __init__(self, group: dict[str, Any], **flags: bool) -> None:
        self.group = group
        self.flags = {"maximize": bool(group.get("maximize", False)), **flags}

    @abstractmethod
    def numbers(self, steps: Tensor) -> list[Tensor | float]:
        """Return the numbers of every update, (K,) or one for all, for the numbers of steps after them, (K,)."""

    # Every rule is written out and not taken from torch.optim: the functions there read their numbers as Python floats,
    # which a trace would bake in, and some call `.item()`, which it cannot follow.

    def update(
        self, param: Tensor, gradient: Tensor, moments: Moments, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, Moments]:
        """Return parameters and moments after an update."""
        return self._update(param, -gradient if self.flags["maximize"] else gradient, moments, numbers)

    @abstractmethod
    def _update(
        self, param: Tensor, gradient: Tensor, moments: Moments, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, Moments]: ...


class SGDRule(Rule):
    """b⁺ = μ b + (1 − τ) g,  w⁺ = w − η b⁺  (τ = 0 at the first step; Nesterov: w⁺ = w − η (g + μ b⁺))."""

    has_step = False

    def __init__(self, group: dict[str, Any]) -> None:
        super().__init__(group, momentum=group["momentum"] != 0, nesterov=group["nesterov"])
        self.moments = ("momentum_buffer",) if self.flags["momentum"] else ()

    def numbers(self, steps: Tensor) -> list[Tensor | float]:
        """Return η, weight decay, μ, 1 − τ."""
        group = self.group
        # the first buffer is the whole gradient, without dampening, as torch.optim has it
        weight = torch.where(steps == 1, 1.0, 1.0 - group["dampening"])
        return [float(group["lr"]), group["weight_decay"], group["momentum"], weight]

    def _update(
        self, param: Tensor, gradient: Tensor, moments: Moments, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, Moments]:
        lr, weight_decay, momentum, weight = numbers
        gradient = gradient + weight_decay * param
        if not self.flags["momentum"]:
            return param - lr * gradient, {}
        buffer = momentum * moments["momentum_buffer"] + weight * gradient
        direction = gradient + momentum * buffer if self.flags["nesterov"] else buffer
        return param - lr * direction, {"momentum_buffer": buffer}


class AdamRule(Rule):
    """m⁺ = m + (1 − β₁)(g − m),  v⁺ = β₂ v + (1 − β₂) g²,  w⁺ = w − η m̂ / (√v̂ + ε).

    AdamW takes the weight decay off the weights, not the gradient; AMSGrad divides by the largest v so far.
    """

    def __init__(self, group: dict[str, Any], *, decoupled: bool = False) -> None:
        decoupled = decoupled or bool(group.get("decoupled_weight_decay", False))
        super().__init__(group, decoupled=decoupled, amsgrad=group["amsgrad"])
        self.moments = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.flags["amsgrad"] else ()))

    def numbers(self, steps: Tensor) -> list[Tensor | float]:
        """Return the weight decay (decoupled: 1 − ηλ), 1 − β₁, β₂, 1 − β₂, η/(1 − β₁ᵗ), 1/√(1 − β₂ᵗ), ε."""
        group = self.group
        lr, (beta1, beta2) = float(group["lr"]), map(float, group["betas"])
        decay = 1 - lr * group["weight_decay"] if self.flags["decoupled"] else group["weight_decay"]
        # both bias corrections here, once a chunk on the processor, and not for every weight
        scale = (1 - beta2**steps).rsqrt()
        return [decay, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**steps), scale, group["eps"]]

    def _update(
        self, param: Tensor, gradient: Tensor, moments: Moments, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, Moments]:
        decay, mean_weight, beta2, square_weight, step_size, scale, eps = numbers
        if self.flags["decoupled"]:
            param = param * decay
        else:
            gradient = gradient + decay * param
        # in the order of torch's lerp, for the same rounding as the eager engine
        mean = moments["exp_avg"] + mean_weight * (gradient - moments["exp_avg"])
        square = beta2 * moments["exp_avg_sq"] + square_weight * gradient * gradient
        after = {"exp_avg": mean, "exp_avg_sq": square}
        if self.flags["amsgrad"]:
            after["max_exp_avg_sq"] = square = torch.maximum(moments["max_exp_avg_sq"], square)
        return param - step_size * (mean / (square.sqrt() * scale + eps)), after


class AdamWRule(AdamRule):
    """Adam with the weight decay taken off the weights."""

    def __init__(self, group: dict[str, Any]) -> None:
        super().__init__(group, decoupled=True)


class RMSpropRule(Rule):
    """v⁺ = ρ v + (1 − ρ) g²,  w⁺ = w − η g / (√v⁺ + ε); centered: v⁺ − (mean of g)²; with momentum as in SGD."""

    def __init__(self, group: dict[str, Any]) -> None:
        super().__init__(group, momentum=group["momentum"] > 0, centered=group["centered"])
        optional = {"momentum_buffer": self.flags["momentum"], "grad_avg": self.flags["centered"]}
        self.moments = ("square_avg", *(name for name, is_kept in optional.items() if is_kept))

    def numbers(self, steps: Tensor) -> list[Tensor | float]:  # noqa: ARG002
        """Return η, weight decay, ρ, 1 − ρ, μ, ε."""
        group = self.group
        rho = group["alpha"]
        return [float(group["lr"]), group["weight_decay"], rho, 1 - rho, group["momentum"], group["eps"]]

    def _update(
        self, param: Tensor, gradient: Tensor, moments: Moments, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, Moments]:
        lr, weight_decay, rho, weight, momentum, eps = numbers
        gradient = gradient + weight_decay * param
        square = rho * moments["square_avg"] + weight * gradient * gradient
        after = {"square_avg": square}
        if self.flags["centered"]:
            after["grad_avg"] = mean = moments["grad_avg"] + weight * (gradient - moments["grad_avg"])
            square = square - mean * mean
        direction = gradient / (square.sqrt() + eps)
        if self.flags["momentum"]:
            after["momentum_buffer"] = direction = momentum * moments["momentum_buffer"] + direction
        return param - lr * direction, after


# by the exact type: a subclass may override step() with anything
RULES: dict[type[optim.Optimizer], type[Rule]] = {
    optim.SGD: SGDRule,
    optim.Adam: AdamRule,
    optim.AdamW: AdamWRule,
    optim.RMSprop: RMSpropRule,
}


def check_rule(optimizer: optim.Optimizer) -> None:
    """Raise ValueError, with the list of those that have one, unless the optimizer has a rule."""
    if type(optimizer) not in RULES:
        names = ", ".join(kind.__name__ for kind in RULES)
        raise ValueError(
            f"optimizer must be one of {names} of torch.optim for engine='compiled', got "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}; engine='eager' takes any."
        )


def check_hooks(optimizer: optim.Optimizer) -> None:
    """The compiled step does not call `optimizer.step()`, nor `backward()`: what hangs on them would be passed over."""
    everywhere = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    steps = [hook for hooks in (*own, *everywhere) for hook in hooks.values()]
    if any(not isinstance(getattr(hook, "__self__", None), StepHooks) for hook in steps):
        raise CompilationError(
            "engine='compiled' does not run the optimizer's step hooks: remove them, or use engine='eager'."
        )
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None):
                raise CompilationError(
                    f"engine='compiled' does not run the gradient hooks of a parameter of shape {tuple(param.shape)}: "
                    "remove them, or use engine='eager'."
                )


def make_rule(optimizer: optim.Optimizer, group: dict[str, Any]) -> Rule:
    """Return the rule of one group of an optimizer."""
    return RULES[type(optimizer)](group)

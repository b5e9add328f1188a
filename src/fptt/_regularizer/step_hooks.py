"""Hooks inside `optimizer.step()`, before and after the optimizer's own work."""

import sys
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from fptt._checks import all_finite, are_finite, check_positive, check_type


class Regularizer(Protocol):
    """The side of a regularizer that the hooks call; the class itself imports this file."""

    coupling: str
    previous_gradient: str
    param_groups: list[dict[str, Any]]

    def penalize_(self) -> None: ...

    def update(self) -> None: ...


class _Call(NamedTuple):
    """The arguments of a call of `step()`; the first of `args` is the optimizer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class BadWeightsError(FloatingPointError):
    """Weights are NaN or Inf after a step."""


class StepHooks:
    """Measure and check the loss gradient, add the penalty, clip; after the step, advance dual and average.

    Everything runs inside `step()`, thus after GradScaler's unscaling, and not at all when a step is skipped. A closure
    is called first, so that its gradient is there.

    A copy, by `copy.deepcopy` or pickle, hooks into the copy of the optimizer.

    Attributes:
        num_steps: Steps that the optimizer has really made.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        regularizer: Regularizer | None = None,
        max_norm: float | None = None,
        check_finite: bool = False,
    ) -> None:
        check_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
        if max_norm is not None:
            check_positive("max_norm", max_norm)
        optimizer = _running_hooks(optimizer)
        # refused here, not at the first closure: without one, LBFGS raises an error of its own deep inside
        if any(isinstance(own, torch.optim.LBFGS) for own in (optimizer, getattr(optimizer, "optimizer", None))):
            raise TypeError(
                "optimizer must make an update of one gradient, got LBFGS, which needs several: use another."
            )
        _check_free(optimizer)
        if regularizer is not None:
            _check_fits(optimizer, regularizer)
        self.regularizer, self.max_norm, self.check_finite = regularizer, max_norm, check_finite
        self.num_steps = 0
        self._optimizer = optimizer
        self._gradient_norm: Tensor | None = None
        self._handles: list[Any] = []
        self._register()

    def _register(self) -> None:
        before = self._optimizer.register_step_pre_hook(self._before_step)
        after = self._optimizer.register_step_post_hook(self._after_step)
        # ahead of those that are there, such as one that averages weights: they see the weights of the whole step
        hooks: Any = self._optimizer._optimizer_step_post_hooks
        hooks.move_to_end(after.id, last=False)
        self._handles = [before, after]

    @property
    def are_attached(self) -> bool:
        """Whether the optimizer runs the hooks."""
        return bool(self._handles)

    def remove(self) -> None:
        """Remove the hooks from the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def pop_gradient_norm(self) -> Tensor | None:
        """Return the norm of the loss gradient at the last step, before penalty and clipping; None without a new step.

        `optimizer.step()` has nothing to return it with, and may not have called the hooks at all, as under GradScaler.
        """
        norm, self._gradient_norm = self._gradient_norm, None
        return norm

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": self.are_attached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handles = []
        if state["_handles"]:  # PyTorch drops the hooks of an optimizer that is copied
            self._register()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        if _is_of_parent(optimizer):
            return None
        _check_unscaled(optimizer)
        call = _closure_called(_Call(args, kwargs))
        params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        self._gradient_norm = norm = gradient_norm(params)
        if self.check_finite and not all_finite(norm):
            raise FloatingPointError(f"the gradient has norm {norm.item()}; no weight was changed.")
        if self.regularizer is not None:
            self.regularizer.penalize_()
            if self.max_norm is not None and self.regularizer.coupling == "coupled":
                norm = gradient_norm(params)  # of the sum of both gradients, which the released code clips
        if self.max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(params, self.max_norm, norm)
        return call

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if _is_of_parent(optimizer):
            return
        self.num_steps += 1
        torch.clear_autocast_cache()  # within one block of autocast it holds casts of the weights before the step
        if self.regularizer is not None and self.regularizer.previous_gradient == "dual":
            self.regularizer.update()
        if self.check_finite and not are_finite(p for group in optimizer.param_groups for p in group["params"]):
            raise BadWeightsError("a weight is NaN or Inf after the step.")


@torch.no_grad()
def gradient_norm(params: list[Tensor]) -> Tensor:
    """Return the norm of all gradients together, a scalar."""
    gradients = [param.grad for param in params if param.grad is not None]
    # coalesced: the rows of a token that occurs twice are one row of the gradient
    gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    if len({(gradient.device, gradient.dtype) for gradient in gradients}) == 1:
        # the operations of get_total_norm, without its sorting of tensors, which takes as long as they do
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return torch.nn.utils.get_total_norm(gradients)


def _running_hooks(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that runs step hooks: a wrapper without any, as Accelerate's, hands on to the one inside."""
    inner = getattr(optimizer, "optimizer", None)
    has_hooks = hasattr(optimizer, "_optimizer_step_pre_hooks")
    return optimizer if has_hooks or not isinstance(inner, Optimizer) else _running_hooks(inner)


def _check_free(optimizer: Optimizer) -> None:
    """Raise RuntimeError if there are hooks: a second set would add the penalty twice, or to a method without one."""
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), StepHooks) for hook in hooks):
        raise RuntimeError(
            "optimizer has the step hooks of another method or regularizer already: call its close() or detach() first."
        )


def _check_fits(optimizer: Optimizer, regularizer: Regularizer) -> None:
    held = {param for group in optimizer.param_groups for param in group["params"]}
    climbing = {param for group in optimizer.param_groups if group.get("maximize") for param in group["params"]}
    groups = [group for group in regularizer.param_groups if group["fptt_alpha"] is not None]
    for param in (param for group in groups for param in group["params"]):
        # a frozen one has no gradient, and so no penalty, until the optimizer gets it
        if param.requires_grad and param not in held:
            raise ValueError(
                f"optimizer must hold all regularized parameters; one of {tuple(param.shape)} is not: "
                "DynamicRegularizer.for_optimizer(optimizer) takes those that it has."
            )
        if param in climbing and regularizer.coupling == "coupled":
            # the optimizer would climb on ∇R too, away from the average
            raise ValueError(
                "maximize must be False in the optimizer with coupling='coupled', got True: minimize the negative of "
                "the loss."
            )


def _is_of_parent(optimizer: Optimizer) -> bool:
    """Return whether the step around a hook is `super().step()`, inside that of a subclass with hooks of its own.

    PyTorch wraps the `step` of every class that has made an optimizer. The stack tells which one it is: a count of the
    steps that have begun would be wrong for good after an exception inside of one.
    """
    parents = type(optimizer).__mro__[1:]
    if not any(hasattr(vars(parent).get("step"), "hooked") for parent in parents):
        return False  # nearly always: no need to look through the stack at every step
    wrapper = sys._getframe(2)
    frame = wrapper.f_back
    while frame is not None:
        if frame.f_code is wrapper.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _check_unscaled(optimizer: Optimizer) -> None:
    if getattr(optimizer, "found_inf", None) is not None:
        raise RuntimeError(
            "a fused optimizer under GradScaler unscales inside its kernel, after the penalty: use fused=False."
        )


class _Called:
    """A closure that was called already: returns its value, once, while weights and gradients are those of its call."""

    def __init__(self, value: Any, optimizer: Optimizer) -> None:
        self.value, self.is_used = value, False
        params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        self._versions = [(param, param._version) for param in params]

    def __call__(self) -> Any:
        has_moved = any(param.grad is None or param._version != version for param, version in self._versions)
        if self.is_used or has_moved:
            raise RuntimeError(
                "step(closure) takes one gradient an update; this optimizer calls the closure again, at other weights. "
                "If there is one inside it that makes the step, as base_optimizer of SAM, attach to that one."
            )
        self.is_used = True
        return self.value


def _closure_called(call: _Call) -> _Call:
    """Call the closure of `step(closure)`, if there is one, and let its value stand for it."""
    optimizer, *others = call.args
    closure = call.kwargs.get("closure", others[0] if others else None)
    if closure is None:
        return call
    with torch.enable_grad():
        called = _Called(closure(), optimizer)
    if "closure" in call.kwargs:
        return call._replace(kwargs={**call.kwargs, "closure": called})
    return call._replace(args=(optimizer, called, *others[1:]))

"""FPTT's dynamic regularizer: the verbs of one step, on what `_parameter_memory` keeps of every parameter."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from fptt._checks import check_choice, check_count, check_positive, check_unit_interval
from fptt._regularizer import foreach, recurrences
from fptt._regularizer.parameter_memory import ParameterMemory
from fptt._regularizer.step_hooks import StepHooks

Form = Literal["paper", "released"]
Coupling = Literal["coupled", "decoupled"]
PreviousGradient = Literal["dual", "recomputed"]


class DynamicRegularizer(ParameterMemory):
    """Keep weights on course with the dynamic penalty of FPTT (Kag & Saligrama, ICML 2021, Algorithm 1).

        R(W)  = (α/2) ‖W − W̄ − λ/(2α)‖²
        λ⁺    = λ − α (W⁺ − W̄)
        W̄⁺    = (1 − β) W̄ + β W⁺ − (β/α) λ⁺

    The state lies beside the optimizer, keyed by parameter, and never in it. It begins at the first step, with W̄ = W
    and λ = 0, so that the first step is exactly the optimizer's own. With β = ½ the average is W minus λ/(2α), about
    one recent step behind: it is not a long-run average.

    A *coupled* penalty adds ∇R to the gradient, as in the paper; an adaptive optimizer then rescales it, and on a
    plateau the penalty can outweigh the loss. A *decoupled* penalty is taken off the weights after the optimizer's own
    step, as AdamW does with weight decay, with γ = ηα in the place of α. For SGD without momentum both are the same.

    Args:
        params: Parameters, or groups `{"params": [...], "fptt_alpha": ...}` as for `torch.optim`; other keys are
            ignored, so `optimizer.param_groups` may be passed. A group with `"fptt_alpha": None` opts out.
        alpha: Strength, > 0. Coupled: the paper's α (1/η is strong). Decoupled: γ = ηα, a number; with β = ½
            the recurrences by themselves are stable for γ < 5/2 (`paper`) or γ < 5/3 (`released`).
        beta: Weight of the new parameters in the average, in (0, 1]; ½ in the paper.
        form: `paper`, the printed formula (∇R = α(W − W̄) − λ/2), or `released`, the authors' code
            (∇R = μα(W − W̄) − λ).
        coupling: `coupled` or `decoupled`.
        mu: Weight of the pull in the `released` form, > 0: 1 for the images of the paper, 2 for its language models.
        previous_gradient: `dual` keeps λ as the estimate of ∇ℓ at no cost. `recomputed` takes ∇ℓ at the new weights
            from `param.grad`, after a second backward pass; only for the coupled `paper` form.
        num_duals: Duals of each parameter, ≥ 1. With K of them chunk k of FPTT-K has a dual of its own, λ_k, as every
            device has in FedDyn (Acar et al., ICLR 2021), the method FPTT comes from; `turn` says whose step it is, and
            the average is corrected by the mean of all: W̄⁺ = (1 − β) W̄ + β W⁺ − (β/αK) Σ_k λ_k⁺.

    Attributes:
        turn: Number of the dual that the next step uses, in [0, num_duals); `fptt.FPTT` sets it to that of the chunk.

    Raises:
        ValueError: If an argument is out of range or a combination has no source.
        TypeError: If `params` holds something else than tensors.

    Examples:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> regularizer = fptt.DynamicRegularizer(model.parameters(), alpha=0.1).attach(optimizer)
        >>> for x in torch.randn(4, 8, 3):
        ...     optimizer.zero_grad()
        ...     model(x).square().mean().backward()
        ...     optimizer.step()
        >>> with regularizer.averaged():
        ...     tuple(model(x).shape)
        (8, 1)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        alpha: float = 0.1,
        *,
        beta: float = 0.5,
        form: Form = "paper",
        coupling: Coupling = "decoupled",
        mu: float = 1.0,
        previous_gradient: PreviousGradient = "dual",
        num_duals: int = 1,
    ) -> None:
        check_choice("form", form, ("paper", "released"))
        check_choice("coupling", coupling, ("coupled", "decoupled"))
        check_choice("previous_gradient", previous_gradient, ("dual", "recomputed"))
        check_positive("mu", mu)
        check_unit_interval("beta", beta, closed=True)
        if form == "paper" and mu != 1:
            raise ValueError(f"mu must be 1 in the form 'paper', got {mu}; it belongs to form='released'.")
        if previous_gradient == "recomputed" and (form, coupling) != ("paper", "coupled"):
            raise ValueError(
                "previous_gradient='recomputed' needs form='paper' and coupling='coupled', "
                f"got form={form!r} and coupling={coupling!r}."
            )
        check_count("num_duals", num_duals)
        if previous_gradient == "recomputed" and num_duals > 1:
            raise ValueError(f"num_duals must be 1 with previous_gradient='recomputed', got {num_duals}.")
        super().__init__(params, alpha)
        self.beta, self.mu, self.num_duals, self.turn = beta, mu, num_duals, 0
        self.form, self.coupling, self.previous_gradient = form, coupling, previous_gradient
        self._hooks: StepHooks | None = None
        self._pending: list[_Pending] | None = None

    # -- the verbs of one step ---------------------------------------------------------------------------------------

    def penalty(self) -> Tensor:
        """Return R(W) summed over all parameters: a scalar, differentiable in the weights, 0 before the first step.

        Readable rather than fast. `loss + regularizer.penalty()` has the gradient that a coupled `add_penalty_grad_`
        adds. A decoupled penalty is in units of an update: a figure to watch, not to add to a loss.
        """
        terms = [
            recurrences.penalty(param, *self._entry(param), alpha=group["alpha"], form=self.form, mu=self.mu)
            for group in self.param_groups
            for param in group["params"]
            if param in self.state and group["alpha"] is not None
        ]
        return torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else torch.zeros(())

    @torch.no_grad()
    def add_penalty_grad_(self) -> None:
        """Compute ∇R of every parameter that has a gradient: the verb between `backward()` and `step()`.

        Coupled: adds ∇R to `param.grad` in place. Decoupled: keeps it, and `update()` takes it off the weights.
        Parameters without a gradient are left alone, as in `torch.optim`.

        Raises:
            RuntimeError: If the weights are swapped for the averages, or an `update()` with a recomputed gradient is
                missing since the last step.
            ValueError: If a gradient is sparse.
        """
        if self._evaluating:
            raise RuntimeError("a step inside averaged() would be lost: leave the context before training on.")
        if self._pending is not None and self.previous_gradient == "recomputed":
            raise RuntimeError("previous_gradient='recomputed' needs update() after every step; it was not called.")
        self._pending = [self._prepare(group) for group in self.param_groups if group["alpha"] is not None]
        if self.coupling == "coupled":
            for pending in self._pending:
                foreach.add_(_gradients(pending.group.params), pending.penalty_gradients)

    def _prepare(self, group: dict[str, Any]) -> "_Pending":
        check_positive("alpha", group["alpha"])
        params = [param for param in group["params"] if param.requires_grad and param.grad is not None]
        if any(gradient.is_sparse for gradient in _gradients(params)):
            raise ValueError("params must have dense gradients, got a sparse one: use nn.Embedding(sparse=False).")
        self.begin(params)
        averages, duals = ([entry[field] for entry in map(self._entry, params)] for field in (0, 1))
        parameters = foreach.Parameters(params, averages, duals, group["alpha"])
        gradients = foreach.penalty_gradients(parameters, form=self.form, mu=self.mu) if params else []
        return _Pending(parameters, gradients)

    @torch.no_grad()
    def update(self) -> None:
        """Advance dual and average: the verb after `step()`, and before `zero_grad()` if the gradient is recomputed.

        Decoupled: first takes the penalty off the weights, W⁺ ← W⁺ − ∇R.

        Raises:
            RuntimeError: If no `add_penalty_grad_()` came before, or a recomputed gradient is missing.
        """
        if self._pending is None:
            raise RuntimeError("update() needs add_penalty_grad_() before the optimizer's step; it was not called.")
        for group, penalty_gradients in self._pending:
            if group.params:
                self._advance(group, penalty_gradients)
        self._pending = None

    def _advance(self, group: foreach.Parameters, penalty_gradients: list[Tensor]) -> None:
        if self.coupling == "decoupled":
            foreach.add_(group.params, penalty_gradients, sign=-1)
        if self.previous_gradient == "recomputed":
            torch._foreach_copy_(group.duals, _gradients(group.params))
        else:
            foreach.advance_duals_(group)
        if self.num_duals > 1:
            group = group._replace(duals=[self.state[param].dual.mean(0) for param in group.params])
        foreach.advance_averages_(group, beta=self.beta)

    # -- around an optimizer -----------------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer, max_norm: float | None = None) -> Self:
        """Make every `optimizer.step()` an FPTT step, by PyTorch's step hooks; the optimizer stays what it is.

        The penalty is added inside `step()`: after GradScaler's unscaling, and not at all if it skips the step.
        A closure, `step(closure)`, is called once, before the penalty is added. Hooks do not travel with
        `copy.deepcopy` or pickle (PyTorch drops them): attach the copy again.

        Args:
            optimizer: Any `torch.optim` optimizer that holds all regularized parameters, but LBFGS, which needs several
                gradients an update; also in the wrapper of Fabric, Lightning or Accelerate. Gains two hooks.
            max_norm: Clip the norm of loss gradient plus penalty gradient (the released code's order), > 0. Whoever
                clips before `step()` clips the loss gradient alone. A decoupled penalty is never clipped.

        Returns:
            The regularizer itself.

        Raises:
            ValueError: If the optimizer lacks a regularized parameter, or max_norm is not positive.
            RuntimeError: If the regularizer is attached already, or the optimizer has hooks of another one or a method.
        """
        if self._hooks is not None:
            raise RuntimeError("the regularizer is attached to an optimizer already: call detach() first.")
        self._hooks = StepHooks(optimizer, regularizer=self, max_norm=max_norm)
        return self

    def detach(self) -> None:
        """Take the hooks off the optimizer again; nothing happens if there are none."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None

    # -- restarts and copies -----------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget averages and duals: the next step starts again with W̄ = W and λ = 0."""
        super().reset()
        self._pending = None

    def restore(self, entries: dict[Tensor, dict[str, Tensor]]) -> None:
        """Put copies of averages and duals back; those of other parameters have not begun."""
        for param in list(self.state):
            if param not in entries:
                del self.state[param]
        self.begin(entries)
        for param, copies in entries.items():
            for name, tensor in self.state[param]._asdict().items():
                tensor.copy_(copies[name])
        self._pending = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; see `ParameterMemory`."""
        super().load_state_dict(state_dict)
        self._pending = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": None, "_pending": None, "_evaluating": False}


class _Pending(NamedTuple):
    """Between `add_penalty_grad_()` and `update()`: the parameters with a gradient, and ∇R of each."""

    group: foreach.Parameters
    penalty_gradients: list[Tensor]


def _gradients(params: list[Tensor]) -> list[Tensor]:
    gradients = [param.grad for param in params if param.grad is not None]
    if len(gradients) < len(params):
        raise RuntimeError("update() needs the recomputed gradient in param.grad: call backward() once more before it.")
    return gradients

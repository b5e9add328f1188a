"""FPTT's dynamic regularizer: an average and a dual of each parameter, and the verbs of one step."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._checks import check_choice, check_count, check_positive, check_type, check_unit_interval
from fptt._regularizer import recurrences
from fptt._regularizer.step_hooks import StepHooks

Form = Literal["paper", "released"]
Coupling = Literal["coupled", "decoupled"]
PreviousGradient = Literal["dual", "recomputed"]


class ParameterState(NamedTuple):
    """Average and dual of one parameter, in its shape, dtype and device; several duals in a dim 0."""

    average: Tensor
    dual: Tensor


class DynamicRegularizer:
    """Keep weights on course with the dynamic penalty of FPTT (Kag & Saligrama, ICML 2021, Algorithm 1).

        R(W)  = (α/2) ‖W − W̄ − λ/(2α)‖²
        λ⁺    = λ − α (W⁺ − W̄)
        W̄⁺    = (1 − β) W̄ + β W⁺ − (β/α) λ⁺

    The state lies beside the optimizer, keyed by parameter, and never in it. It begins at the first step, with W̄ = W
    and λ = 0, so that the first step is exactly the optimizer's own. With β = ½ the average is W minus λ/(2α), about
    one recent step ahead: it is not a long-run average.

    A *coupled* penalty adds ∇R to the gradient, as in the paper; an adaptive optimizer then rescales it, and on a
    plateau the penalty can outweigh the loss; the optimizer must minimize. A *decoupled* penalty is taken off the
    weights after the optimizer's own step, as AdamW does with weight decay, with γ = ηα in the place of α. For SGD
    without momentum both are the same.

    Args:
        params: Parameters, or groups `{"params": [...], "fptt_alpha": ...}` as for `torch.optim`; other keys are
            ignored, so `optimizer.param_groups` may be passed. A group with `"fptt_alpha": None` opts out.
        alpha: Strength, > 0. Coupled: the paper's α (½/η is strong). Decoupled: γ = ηα, a number; with β = ½
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
        param_groups: `{"params": [...], "fptt_alpha": ...}` each; fptt_alpha may be changed while training, None opts
            out, and forgets averages and duals.
        state: The `ParameterState` of every parameter that has taken a step.
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
        check_positive("alpha", alpha)
        self._alpha, self.beta, self.mu = alpha, beta, mu
        self.form, self.coupling, self.previous_gradient = form, coupling, previous_gradient
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, ParameterState] = {}
        self._num_duals, self._turn = num_duals, 0
        self._hooks: StepHooks | None = None
        self._pending: list[_Pending] | None = None
        self._machine_code: dict[int, recurrences.MachineCode | None] = {}  # of each group, from step to step
        self._evaluating = False
        for group in _groups(params):
            self.add_param_group(group)

    @property
    def alpha(self) -> float:
        """Strength of groups that come without a `"fptt_alpha"`; that of those that are here is in `param_groups`."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        raise AttributeError(
            f"alpha cannot be set, got {value!r}: set group['fptt_alpha'] of the groups in param_groups, one by one."
        )

    @property
    def num_duals(self) -> int:
        """Duals of each parameter."""
        return self._num_duals

    @property
    def turn(self) -> int:
        """Number of the dual that the next step uses."""
        return self._turn

    @turn.setter
    def turn(self, number: int) -> None:
        if number not in range(self.num_duals):
            raise ValueError(f"turn must be 0 to {self.num_duals - 1}, one of num_duals, got {number!r}.")
        self._turn = number

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add parameters later, for example of a layer that is thawed; their average starts at the next step.

        Args:
            group: `{"params": tensors}`, with a `"fptt_alpha"` of its own if wanted (None opts out).

        Raises:
            ValueError: If a parameter is in a group already, or alpha is not positive or β/α too large for its dtype.
            TypeError: If a parameter is no tensor.
        """
        params = group["params"]
        unique = list(dict.fromkeys([params] if isinstance(params, Tensor) else params))  # tied weights come once
        for param in unique:
            if not isinstance(param, Tensor):
                raise TypeError(f"params must hold tensors, got a {type(param).__name__}.")
        known = {param for existing in self.param_groups for param in existing["params"]}
        if known.intersection(unique):
            raise ValueError("params must not repeat a parameter in more than one group.")
        # not "alpha", which RMSprop and ASGD have in their own groups, with another meaning
        alpha = group.get("fptt_alpha", self.alpha)
        if alpha is not None:
            self.check_strength("fptt_alpha" if "fptt_alpha" in group else "alpha", alpha, unique)
        self.param_groups.append({"params": unique, "fptt_alpha": alpha})

    def check_strength(self, name: str, alpha: float, params: Iterable[Tensor]) -> None:
        """Raise ValueError unless alpha is positive, and β/α a number in the dtype of the parameters."""
        check_positive(name, alpha)
        ratio = self.beta / alpha
        if ratio <= torch.finfo(torch.float16).max:  # as nearly always: the dtypes need no look at every step
            return
        for dtype in {param.dtype for param in params if param.is_floating_point() or param.is_complex()}:
            largest = torch.finfo(dtype).max
            if ratio > largest:
                raise ValueError(
                    f"{name} must be at least about {self.beta / largest:.2g} with weights of {dtype}, in which "
                    f"beta/alpha would overflow, got {alpha}."
                )

    def penalty(self) -> Tensor:
        """Return R(W) summed over all parameters: a scalar, differentiable in the weights, 0 before the first step.

        Readable rather than fast. `loss + regularizer.penalty()` has the gradient that a coupled `add_penalty_grad_`
        adds. A decoupled penalty is in units of an update: a figure to watch, not to add to a loss.
        """
        terms = []
        for group in self.param_groups:
            alpha = group["fptt_alpha"]
            if alpha is None:
                continue
            for param in (param for param in group["params"] if param in self.state):
                average, duals = self.state[param]
                dual = self._current(duals)
                terms.append(recurrences.penalty(param, average, dual, alpha=alpha, form=self.form, mu=self.mu))
        return torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else torch.zeros(())

    def add_penalty_grad_(self) -> None:
        """Compute ∇R of every parameter that has a gradient: the verb between `backward()` and `step()`.

        Coupled: adds ∇R to `param.grad` in place. Decoupled: keeps it, and `update()` takes it off the weights.
        Parameters without a gradient are left alone, as in `torch.optim`.

        Raises:
            RuntimeError: If the regularizer is attached, or the weights are swapped for the averages, or an `update()`
                with a recomputed gradient is missing since the last step.
            ValueError: If a gradient is sparse, or a parameter has another dtype than its average.
        """
        if self._hooks is not None:
            raise RuntimeError(
                "add_penalty_grad_() must not be called on an attached regularizer, whose hooks add the penalty inside "
                "step(): leave it out, or call detach() first."
            )
        self.penalize_()

    def penalize_(self) -> None:
        """Do what `add_penalty_grad_` says, for whoever calls it: the user, or the hooks inside `step()`."""
        self.check_not_averaged()
        # with a dual, an update() that is missing is a step that was skipped, as GradScaler skips them: begin again
        if self._pending is not None and self.previous_gradient == "recomputed":
            raise RuntimeError("previous_gradient='recomputed' needs update() after every step; it was not called.")
        self.forget_opted_out()
        pending: list[_Pending] = []
        for number, group in enumerate(self.param_groups):
            alpha = group["fptt_alpha"]
            if alpha is None:
                continue
            self.check_strength("fptt_alpha", alpha, group["params"])  # a schedule may have changed it
            params = [param for param in group["params"] if param.grad is not None and param.requires_grad]
            if not params:
                continue
            if any(gradient.is_sparse for gradient in _gradients(params)):
                raise ValueError("params must have dense gradients, got a sparse one: use nn.Embedding(sparse=False).")
            own = recurrences.Parameters(params, *self._state_of(params), alpha)
            code = self._machine_code[number] = recurrences.MachineCode.of(own, self._machine_code.get(number))
            penalties = None if code is None else code.penalize(form=self.form, mu=self.mu)
            if penalties is None:
                _check_dtypes(own)  # those of machine code are checked where it looks for them
                with torch.no_grad():
                    code, penalties = None, recurrences.penalty_gradients(own, form=self.form, mu=self.mu)
            pending.append(_Pending(own, penalties, code))
        if self.coupling == "coupled":
            with torch.no_grad():
                for step in pending:
                    torch._foreach_add_(_gradients(step.group.params), step.penalty_gradients())
        self._pending = pending

    def update(self) -> None:
        """Advance dual and average: the verb after `step()`, and before `zero_grad()` if the gradient is recomputed.

        Decoupled: first takes the penalty off the weights, W⁺ ← W⁺ − ∇R.

        Raises:
            RuntimeError: If no `add_penalty_grad_()` came before, or a recomputed gradient is missing.
        """
        if self._pending is None:
            raise RuntimeError("update() needs add_penalty_grad_() before the optimizer's step; it was not called.")
        is_decoupled, is_usual = self.coupling == "decoupled", self.previous_gradient == "dual" and self.num_duals == 1
        for step in self._pending:
            if not is_usual or not step.advance_by_code_(is_decoupled=is_decoupled, beta=self.beta):
                self._advance_(step.group, step.penalty_gradients() if is_decoupled else None)
        self._pending = None

    @torch.no_grad()
    def _advance_(self, group: recurrences.Parameters, penalty_gradients: list[Tensor] | None) -> None:
        """Make the update of a group by torch; ∇R is taken off if it is given."""
        if penalty_gradients is not None:
            torch._foreach_sub_(group.params, penalty_gradients)  # ∇R at the weights before the step, as in AdamW
        if self.previous_gradient == "recomputed":
            torch._foreach_copy_(group.duals, _gradients(group.params))  # λ is ∇ℓ(W⁺) itself
        else:
            recurrences.advance_duals_(group)
        duals = group.duals  # one of a parameter is the mean of all
        if self.num_duals > 1:
            duals = [self.state[param].dual.mean(0) for param in group.params]
        recurrences.advance_averages_(group._replace(duals=duals), beta=self.beta)

    def attach(self, optimizer: Optimizer, max_norm: float | None = None) -> Self:
        """Make every `optimizer.step()` an FPTT step, by PyTorch's step hooks; the optimizer stays what it is.

        The penalty is added inside `step()`: after GradScaler's unscaling, and not at all if it skips the step.
        A closure, `step(closure)`, is called once, before the penalty is added. Hooks do not travel with
        `copy.deepcopy` or pickle (PyTorch drops them): attach the copy again.

        Args:
            optimizer: Any `torch.optim` optimizer that holds all regularized parameters that are not frozen, but LBFGS,
                which needs several gradients an update; also in the wrapper of Fabric, Lightning or Accelerate. Gains
                two hooks.
            max_norm: Clip the norm of loss gradient plus penalty gradient (the released code's order), > 0. Whoever
                clips before `step()` clips the loss gradient alone. A decoupled penalty is never clipped.

        Returns:
            The regularizer itself.

        Raises:
            ValueError: If the optimizer lacks a regularized parameter, or maximizes while the penalty is coupled, or
                max_norm is not positive.
            TypeError: If it is no optimizer, or LBFGS.
            RuntimeError: If the regularizer is attached already, or the optimizer has hooks of another one or a method.
        """
        if self._hooks is not None:
            raise RuntimeError("the regularizer is attached to an optimizer already: call detach() first.")
        self._hooks = StepHooks(optimizer, regularizer=self, max_norm=max_norm)
        return self

    @classmethod
    def for_optimizer(
        cls,
        optimizer: Optimizer,
        alpha: float = 0.1,
        *,
        max_norm: float | None = None,
        beta: float = 0.5,
        form: Form = "paper",
        coupling: Coupling = "decoupled",
        mu: float = 1.0,
        previous_gradient: PreviousGradient = "dual",
        num_duals: int = 1,
    ) -> Self:
        """Return a regularizer of what an optimizer trains, in its groups, attached to it.

        Weights that are frozen (`requires_grad=False`) are skipped, until they are thawed. Those that come later by
        `optimizer.add_param_group` need `regularizer.add_param_group(optimizer.param_groups[-1])`. The regularizer is
        not told of those that are taken out of the optimizer: the penalty moves them until their `requires_grad` is
        False, or the `"fptt_alpha"` of their group in `regularizer.param_groups` None.

        Args:
            optimizer: As for `attach`. A `"fptt_alpha"` in one of its groups takes the place of `alpha` there.
            alpha: See the class, and so the others.
            max_norm: See `attach`.
            beta: Weight of the new parameters in the average.
            form: `paper` or `released`.
            coupling: `coupled` or `decoupled`.
            mu: Weight of the pull in the `released` form.
            previous_gradient: `dual` or `recomputed`.
            num_duals: Duals of each parameter.

        Raises:
            ValueError: As the class and `attach`.
            TypeError: If `optimizer` is no optimizer, or LBFGS.
            RuntimeError: As `attach`.

        Examples:
            >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
            >>> for param in model[0].parameters():
            ...     param.requires_grad = False
            >>> optimizer = torch.optim.Adam(param for param in model.parameters() if param.requires_grad)
            >>> regularizer = fptt.DynamicRegularizer.for_optimizer(optimizer, alpha=0.1, max_norm=1.0)
            >>> model(torch.randn(8, 3)).square().mean().backward()
            >>> optimizer.step()
            >>> [tuple(param.shape) for param in regularizer.state]
            [(1, 4), (1,)]
        """
        check_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
        regularizer = cls(
            optimizer.param_groups,
            alpha,
            beta=beta,
            form=form,
            coupling=coupling,
            mu=mu,
            previous_gradient=previous_gradient,
            num_duals=num_duals,
        )
        return regularizer.attach(optimizer, max_norm)

    def detach(self) -> None:
        """Take the hooks off the optimizer again; nothing happens if there are none."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Swap the averages W̄ into the model, in place, and always restore the weights W, also after an exception."""
        self.forget_opted_out()
        params = list(self.state)
        outer = self._evaluating  # contexts may be nested
        with torch.no_grad():
            weights = [param.detach().clone() for param in params]
            for param, (average, _) in self.state.items():
                param.copy_(average)
        torch.clear_autocast_cache()  # it may hold casts of W, and afterwards of W̄
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = outer
            with torch.no_grad():
                for param, weight in zip(params, weights, strict=True):
                    param.copy_(weight)
            torch.clear_autocast_cache()

    def check_not_averaged(self) -> None:
        """Raise RuntimeError inside `averaged()`, which would put the weights back after a step."""
        if self._evaluating:
            raise RuntimeError("a step inside averaged() would be lost: leave the context before training on.")

    def reset(self) -> None:
        """Forget averages and duals: the next step starts again with W̄ = W and λ = 0."""
        self.state.clear()
        self._pending = None
        self._machine_code.clear()

    def forget_step(self) -> None:
        """Forget a step that waits for its `update()`: it was undone."""
        self._pending = None

    def recover(self) -> None:
        """Start again if an exception came between a step and its `update()`: W̄ and λ do not fit the weights."""
        if self._pending is not None:
            self.reset()

    def forget_opted_out(self) -> None:
        """Forget averages and duals of groups that opt out: should they opt in again, W̄ = W and λ = 0."""
        for group in self.param_groups:
            if group["fptt_alpha"] is None:
                for param in group["params"]:
                    self.state.pop(param, None)

    def begin(self, params: Iterable[Tensor]) -> None:
        """Let averages and duals begin, W̄ = W and λ = 0, for those parameters that have none yet."""
        for param in params:
            if param not in self.state:
                # of a single one the layout, too, is that of its parameter
                is_single = self.num_duals == 1
                duals = torch.zeros_like(param) if is_single else param.new_zeros(self.num_duals, *param.shape)
                self.state[param] = ParameterState(param.detach().clone(), duals)

    def _state_of(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return averages and duals of parameters, which begin now if there are none yet."""
        try:
            entries = [self.state[param] for param in params]
        except KeyError:
            self.begin(params)
            entries = [self.state[param] for param in params]
        return [entry.average for entry in entries], [self._current(entry.dual) for entry in entries]

    def _current(self, duals: Tensor) -> Tensor:
        """Return the dual of the next step, a view."""
        return duals if self.num_duals == 1 else duals[self.turn]

    def state_dict(self) -> dict[str, Any]:
        """Return averages, duals and settings, with parameters numbered in order; loads with `weights_only=True`."""
        numbers = {param: number for number, param in enumerate(self._params())}
        groups = [{**group, "params": [numbers[param] for param in group["params"]]} for group in self.param_groups]
        state = {numbers[param]: entry._asdict() for param, entry in self.state.items()}
        return {**self._settings(), "param_groups": groups, "state": state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; nothing changes if it does not fit.

        Args:
            state_dict: Of a regularizer with the same groups, parameter shapes, form, coupling and previous gradient.
                Its beta, its mu and the alpha of each group replace those of this one.

        Raises:
            ValueError: If a key is missing, or groups, shapes or settings differ.
        """
        params = self._params()
        several = () if self.num_duals == 1 else (self.num_duals,)
        shapes = [{"average": tuple(p.shape), "dual": (*several, *p.shape)} for p in params]
        _check_state_dict(state_dict, self.state_dict(), shapes)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group["fptt_alpha"] = saved["fptt_alpha"]
        self.beta, self.mu = state_dict["beta"], state_dict["mu"]
        self.state = {params[number]: _copy_of(entry, params[number]) for number, entry in state_dict["state"].items()}
        self._pending = None

    def named_tensors(self) -> dict[str, Tensor]:
        """Return averages and duals, named by the number of their parameter."""
        numbers = {param: number for number, param in enumerate(self._params())}
        found = sorted((numbers[param], entry) for param, entry in self.state.items())
        return {f"{name} {number}": tensor for number, entry in found for name, tensor in entry._asdict().items()}

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _settings(self) -> dict[str, Any]:
        names = ("form", "coupling", "previous_gradient", "beta", "mu", "num_duals")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        alphas = list(dict.fromkeys(group["fptt_alpha"] for group in self.param_groups))
        settings = {"alpha": alphas[0] if len(alphas) == 1 else alphas, **self._settings()}
        shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return f"DynamicRegularizer({shown}, {len(self._params())} parameters)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": None, "_pending": None, "_machine_code": {}, "_evaluating": False}


class _Pending(NamedTuple):
    """Between `add_penalty_grad_()` and `update()`: parameters with a gradient, and their ∇R, in one tensor or many."""

    group: recurrences.Parameters
    penalties: list[Tensor] | Tensor
    machine_code: recurrences.MachineCode | None

    def penalty_gradients(self) -> list[Tensor]:
        """Return ∇R of every parameter."""
        if self.machine_code is None or not isinstance(self.penalties, Tensor):
            return list(self.penalties)
        return self.machine_code.split(self.penalties)

    def advance_by_code_(self, *, is_decoupled: bool, beta: float) -> bool:
        """Make the usual update by machine code; return False, and do nothing, if the tensors do not suit."""
        if self.machine_code is None or not isinstance(self.penalties, Tensor):
            return False
        return self.machine_code.advance_(self.penalties, is_decoupled=is_decoupled, beta=beta)


def _groups(params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups of what was passed as `params`.

    Raises:
        TypeError: If it is no iterable of tensors or groups.
        ValueError: If it is empty.
    """
    if isinstance(params, Tensor):
        raise TypeError("params must be an iterable of tensors or groups, got a single tensor.")
    if isinstance(params, nn.Module) or not isinstance(params, Iterable):
        hint = ": use model.parameters()" if isinstance(params, nn.Module) else ""
        raise TypeError(f"params must be an iterable of tensors or groups, got a {type(params).__name__}{hint}.")
    entries: list[Any] = list(params)
    if not entries:
        raise ValueError("params must hold at least one parameter, got an empty list.")
    return entries if isinstance(entries[0], dict) else [{"params": entries}]


def _gradients(params: list[Tensor]) -> list[Tensor]:
    gradients = [param.grad for param in params if param.grad is not None]
    if len(gradients) < len(params):
        raise RuntimeError("update() needs the recomputed gradient in param.grad: call backward() once more before it.")
    return gradients


def _check_dtypes(group: recurrences.Parameters) -> None:
    """Raise ValueError, before the step, if the model was converted: torch would refuse after it."""
    for param, average in zip(group.params, group.averages, strict=True):
        if param.dtype is not average.dtype:
            raise ValueError(
                f"params must keep the dtype of their averages, {average.dtype}, got one of {tuple(param.shape)} of "
                f"{param.dtype}: load the regularizer's state_dict() into it again, which converts, or call reset()."
            )


def _copy_of(entry: dict[str, Tensor], param: Tensor) -> ParameterState:
    return ParameterState(*(entry[name].to(param, copy=True) for name in ParameterState._fields))


def _check_state_dict(saved: Any, own: dict[str, Any], shapes: list[dict[str, tuple[int, ...]]]) -> None:
    """Raise ValueError, naming the key, unless `saved` has the keys, settings, groups and shapes of `own`."""
    if not isinstance(saved, dict):
        raise ValueError(f"state_dict must be a dict, got a {type(saved).__name__}.")
    missing = sorted(own.keys() - saved.keys())
    if missing:
        raise ValueError(f"state_dict lacks the keys {missing}.")
    for name in ("form", "coupling", "previous_gradient", "num_duals"):
        if saved[name] != own[name]:
            raise ValueError(f"state_dict was saved with {name}={saved[name]!r}, the regularizer has {own[name]!r}.")
    for number, group in enumerate(saved["param_groups"]):
        if "fptt_alpha" not in group:
            raise ValueError(f"state_dict lacks the key 'fptt_alpha' of its parameter group {number}.")
    saved_groups, own_groups = ([group["params"] for group in groups["param_groups"]] for groups in (saved, own))
    if saved_groups != own_groups:
        raise ValueError(f"state_dict has parameter groups {saved_groups}, the regularizer has {own_groups}.")
    for number, entry in saved["state"].items():
        for name in ParameterState._fields:
            found = tuple(entry[name].shape) if name in entry else None
            expected = shapes[number][name] if 0 <= number < len(shapes) else "no such parameter"
            if found != expected:
                raise ValueError(f"state_dict has {name} {number} of shape {found}, expected {expected}.")

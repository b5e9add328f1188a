"""The contract of torch.optim, with a regularizer attached, over every optimizer."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fptt
from fptt._regularizer.step_hooks import StepHooks
from tests.problems import FORMS, OPTIMIZERS, assert_same_weights, attached, loss_of, run_steps, small_model, weights

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_saved_and_resumed_is_bitwise_the_same(name: str, settings: dict[str, Any]) -> None:
    model = small_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    regularizer = attached(model, optimizer, **settings)
    run_steps(model, optimizer, range(5))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), regularizer.state_dict()))
    run_steps(model, optimizer, range(5, 12))
    resumed = small_model()
    resumed.load_state_dict(saved[0])
    other_optimizer = OPTIMIZERS[name](resumed.parameters())
    other = attached(resumed, other_optimizer, **settings)
    other_optimizer.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    run_steps(resumed, other_optimizer, range(5, 12))
    assert_same_weights(model, resumed)


@every_optimizer
def test_optimizer_state_is_left_alone(name: str) -> None:
    model, twin = small_model(), small_model()
    optimizer, plain = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](twin.parameters())
    attached(model, optimizer)
    run_steps(model, optimizer, range(2))
    run_steps(twin, plain, range(2))
    found, expected = (o.state_dict()["state"][0].keys() for o in (optimizer, plain))
    assert found == expected


@every_optimizer
def test_schedulers_go_on_working(name: str) -> None:
    model = small_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    attached(model, optimizer)
    rate = optimizer.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    run_steps(model, optimizer, range(1))
    scheduler.step()
    run_steps(model, optimizer, range(1))
    assert optimizer.param_groups[0]["lr"] == rate / 2


@every_optimizer
def test_missing_gradients_are_a_no_op(name: str) -> None:
    model = small_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    regularizer = attached(model, optimizer)
    before = weights(model)
    optimizer.step()
    assert not regularizer.state
    for param, weight in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, weight)


@every_optimizer
@pytest.mark.parametrize("coupling", ["coupled", "decoupled"])
def test_grad_scaler_adds_the_penalty_after_unscaling(name: str, coupling: Any) -> None:
    scaled, plain = small_model().double(), small_model().double()
    scaled.load_state_dict(plain.state_dict())
    optimizer = OPTIMIZERS[name](scaled.parameters())
    attached(scaled, optimizer, alpha=0.3, coupling=coupling)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(5):
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    reference = OPTIMIZERS[name](plain.parameters())
    attached(plain, reference, alpha=0.3, coupling=coupling)
    run_steps(plain, reference, range(5))
    for one, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_step_that_grad_scaler_skips_leaves_everything_as_it_was() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(3))
    before, state = weights(model), copy.deepcopy(list(regularizer.state.values()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, 3) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    for param, weight, (average, dual) in zip(model.parameters(), before, state, strict=True):
        assert torch.equal(param, weight)
        assert torch.equal(regularizer.state[param].average, average)
        assert torch.equal(regularizer.state[param].dual, dual)


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_a_step_with_a_closure_is_the_step_after_its_backward_pass(settings: dict[str, Any], is_named: bool) -> None:
    models = [small_model()]
    models.append(copy.deepcopy(models[0]))
    optimizers: list[Any] = [OPTIMIZERS["Adam"](model.parameters()) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        fptt.DynamicRegularizer(model.parameters(), **settings).attach(optimizer, max_norm=0.5)
    run_steps(models[0], optimizers[0], range(5))
    for step in range(5):
        losses: list[Tensor] = []

        def closure(step: int = step, losses: list[Tensor] = losses) -> Tensor:
            optimizers[1].zero_grad()
            losses.append(loss_of(models[1], step))
            losses[-1].backward()
            return losses[-1]

        returned = optimizers[1].step(closure=closure) if is_named else optimizers[1].step(closure)
        assert [returned] == losses
    assert_same_weights(*models)


def test_optimizers_that_call_a_closure_again_are_refused() -> None:
    model = small_model()
    with pytest.raises(TypeError, match="optimizer must make an update of one gradient, got LBFGS"):
        attached(model, torch.optim.LBFGS(model.parameters()))
    net = fptt.nn.LSTM(3, 4, 2)
    with pytest.raises(TypeError, match="got LBFGS"):
        fptt.TBPTT(net, torch.optim.LBFGS(net.parameters()), fptt.SequenceLoss(nn.functional.mse_loss), num_chunks=1)

    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return closure() + closure()

    class Clears(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.zero_grad()
            return closure()

    for kind in (Twice, Clears):
        model = small_model()
        optimizer = kind(model.parameters(), lr=0.1)
        attached(model, optimizer)
        with pytest.raises(RuntimeError, match="calls the closure again"):
            optimizer.step(lambda model=model: loss_of(model, 0).backward() or 0.0)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization: a step with the gradient at weights nearby; the backward pass at these is made."""

    def __init__(self, params: Any, rho: float) -> None:
        super().__init__(params, {"rho": rho})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        params = self.param_groups[0]["params"]
        climb = [self.param_groups[0]["rho"] * param.grad for param in params]
        torch._foreach_add_(params, climb)
        self.zero_grad()
        torch.enable_grad()(closure)()
        torch._foreach_sub_(params, climb)
        self.base_optimizer.step()


def test_an_optimizer_that_calls_a_closure_after_a_step_of_its_own_takes_the_hooks_inside() -> None:
    """On the outer one, which clears the gradient of the first call, nothing would be trained."""
    models = [small_model()]
    models.append(copy.deepcopy(models[0]))
    rho = 0.05
    sam, plain = SAM(models[0].parameters(), rho), torch.optim.SGD(models[1].parameters(), lr=0.1)
    regularizer = attached(models[0], sam)
    closure = lambda: loss_of(models[0], 0).backward()  # noqa: E731
    closure()
    with pytest.raises(RuntimeError, match=r"calls the closure again.*base_optimizer of SAM, attach to that one"):
        sam.step(closure)
    regularizer.detach()
    models[0].load_state_dict(models[1].state_dict())
    attached(models[0], sam.base_optimizer)
    attached(models[1], plain)
    for _ in range(3):
        sam.zero_grad()
        closure()
        sam.step(closure)
        nearby = copy.deepcopy(models[1])
        params: list[Any] = list(nearby.parameters())
        loss_of(nearby, 0).backward()
        with torch.no_grad():
            torch._foreach_add_(params, [rho * param.grad for param in params])
        nearby.zero_grad()
        loss_of(nearby, 0).backward()
        for param, other in zip(models[1].parameters(), params, strict=True):
            param.grad = other.grad
        plain.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


class CallsParent(torch.optim.Adam):
    """An Adam whose step can fail in its middle."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.fails:
            raise OSError("in the middle of a step")
        return loss


@pytest.mark.parametrize("settings", [*FORMS, {"coupling": "coupled", "previous_gradient": "recomputed"}], ids=str)
def test_the_step_of_a_subclass_that_calls_its_parents_is_one_step(settings: dict[str, Any]) -> None:
    inputs, targets = torch.randn(6, 2, 3), torch.randn(6, 2, 4)
    model = fptt.nn.GRU(3, 5, 4)
    models, methods, results = [model, copy.deepcopy(model)], [], []
    for own, kind in zip(models, (torch.optim.Adam, CallsParent), strict=True):
        loss, optimizer = fptt.SequenceLoss(nn.functional.mse_loss), kind(own.parameters())
        methods.append(fptt.FPTT(own, optimizer, loss, num_chunks=3, max_norm=0.01, **settings))
        results.append(methods[-1].train_batch(inputs, targets))
    assert results[0].updates == results[1].updates == methods[1].updates == 3
    assert torch.equal(results[0].gradient_norm, results[1].gradient_norm)  # that before clipping
    assert_same_weights(*models)


def test_a_subclass_that_calls_its_parents_step_may_fail_in_it() -> None:
    model, twin = small_model(), small_model()
    twin.load_state_dict(model.state_dict())
    optimizer = CallsParent(model.parameters(), lr=0.01)
    attached(model, optimizer)
    attached(twin, plain := torch.optim.Adam(twin.parameters(), lr=0.01))
    run_steps(twin, plain, range(3))
    optimizer.fails = True
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(OSError, match="in the middle") as failure:
        run_steps(model, optimizer, range(1))
    assert failure.traceback  # which holds on to the frames of that step
    optimizer.fails = False
    model.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    run_steps(model, optimizer, range(3))
    assert_same_weights(model, twin)


def test_post_hooks_that_were_there_before_see_the_weights_of_the_whole_step() -> None:
    model, seen = small_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: seen.append(weights(model)))
    attached(model, optimizer)
    for step in range(3):
        run_steps(model, optimizer, range(step, step + 1))
        assert all(torch.equal(*pair) for pair in zip(seen[-1], model.parameters(), strict=True))


def test_fused_scaling_is_refused() -> None:
    model = small_model()
    fused = torch.optim.Adam(model.parameters(), fused=True)
    attached(model, fused)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match="fused"):
        scaler.step(fused)


def test_attach_checks_its_arguments() -> None:
    model = small_model()
    regularizer = fptt.DynamicRegularizer(model.parameters())
    partial = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer must hold all"):
        regularizer.attach(partial)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="max_norm"):
        regularizer.attach(optimizer, max_norm=0.0)
    regularizer.attach(optimizer)
    with pytest.raises(RuntimeError, match="attached"):
        regularizer.attach(optimizer)


def test_a_coupled_penalty_needs_an_optimizer_that_minimizes() -> None:
    """Who climbs on the sum of both gradients climbs on the penalty too: −(w − 2)²/2 ended at 36 instead of 2."""
    param = nn.Parameter(torch.ones(1))
    climbing = torch.optim.SGD([{"params": [param], "maximize": True}], lr=0.1)
    with pytest.raises(ValueError, match="maximize must be False in the optimizer with coupling='coupled', got True"):
        fptt.DynamicRegularizer.for_optimizer(climbing, 20.0, coupling="coupled")
    opted_out = {"params": [param], "fptt_alpha": None}
    fptt.DynamicRegularizer([opted_out], coupling="coupled").attach(climbing).detach()

    # decoupled it is the same as descending on the negative
    ends = []
    for sign in (1.0, -1.0):
        own = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([own], lr=0.1, maximize=sign < 0)
        fptt.DynamicRegularizer.for_optimizer(optimizer, 0.5)
        for _ in range(40):
            optimizer.zero_grad()
            (sign * 0.5 * (own - 2).square()).sum().backward()
            optimizer.step()
        ends.append(own.item())
    assert ends[0] == ends[1] == pytest.approx(2, abs=0.05)


def test_the_norm_of_a_sparse_gradient_is_that_of_the_dense_one() -> None:
    """Token 1 occurs twice: its two rows add up before the norm is taken."""
    norms = []
    for sparse in (False, True):
        embedding = nn.Embedding(4, 3, sparse=sparse)
        optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
        hooks = StepHooks(optimizer)
        (embedding(torch.tensor([1, 1, 2])) * torch.tensor([[1.0], [2.0], [5.0]])).sum().backward()
        optimizer.step()
        norms.append(hooks.pop_gradient_norm())
    assert [norm.item() for norm in norms if norm is not None] == pytest.approx([(3 * (3**2 + 5**2)) ** 0.5] * 2)


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.ASGD, torch.optim.Adam])
def test_an_optimizers_own_alpha_is_not_the_penaltys(kind: Any) -> None:
    model = fptt.nn.LSTM(3, 4, 2)
    loss = fptt.SequenceLoss(nn.functional.mse_loss)
    method = fptt.FPTT(model, kind(model.parameters()), loss, num_chunks=2, alpha=0.25)
    assert method.regularizer is not None
    assert [group["fptt_alpha"] for group in method.regularizer.param_groups] == [0.25]


def test_no_two_sets_of_hooks() -> None:
    """Else the penalty would come twice, or into the steps of a method that has none."""
    model = fptt.nn.GRU(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    loss = fptt.SequenceLoss(nn.functional.mse_loss)
    for make in (
        lambda: fptt.DynamicRegularizer(model.parameters()).attach(optimizer),
        lambda: fptt.BPTT(model, optimizer, loss),
    ):
        with pytest.raises(RuntimeError, match="optimizer has the step hooks of another"):
            make()
    regularizer.detach()
    fptt.BPTT(model, optimizer, loss).close()
    regularizer.attach(optimizer)


def test_a_parameter_shared_by_two_modules_is_penalized_once() -> None:
    embedding, readout = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
    readout.weight = embedding.weight
    model = nn.ModuleList([embedding, readout])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        readout(embedding(torch.arange(4))).square().mean().backward()
        optimizer.step()
    assert list(regularizer.state) == [embedding.weight]


def test_a_regularizer_for_an_optimizer_is_that_of_its_weights_and_groups() -> None:
    """Frozen weights have no average, whether the optimizer holds them or the regularizer alone."""
    models = [small_model() for _ in range(3)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
        model[0].requires_grad_(False)
    settings: dict[str, Any] = {"beta": 0.7, "form": "released", "coupling": "coupled", "mu": 2.0, "num_duals": 2}
    groups: Any = [{"params": models[0].parameters(), "fptt_alpha": 0.2}]
    optimizers = [torch.optim.SGD(groups, lr=0.1)]
    regularizers = [fptt.DynamicRegularizer.for_optimizer(optimizers[0], 0.5, max_norm=0.3, **settings)]
    optimizers.append(torch.optim.SGD(models[1][2].parameters(), lr=0.1))
    regularizers.append(fptt.DynamicRegularizer.for_optimizer(optimizers[1], 0.2, max_norm=0.3, **settings))
    optimizers.append(torch.optim.SGD(models[2][2].parameters(), lr=0.1))
    by_hand = fptt.DynamicRegularizer(models[2].parameters(), 0.2, **settings)  # of the frozen weights too
    regularizers.append(by_hand.attach(optimizers[2], max_norm=0.3))
    for model, optimizer, regularizer in zip(models, optimizers, regularizers, strict=True):
        run_steps(model, optimizer, range(4))
        assert set(regularizer.state) == set(model[2].parameters())
        assert_same_weights(models[0], model)
    duals = [[entry.dual for entry in regularizer.state.values()] for regularizer in regularizers]
    assert all(torch.equal(*pair) for pair in zip(duals[0], duals[2], strict=True))
    assert any(dual.abs().max() > 0 for dual in duals[0])
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got a Sequential"):
        fptt.DynamicRegularizer.for_optimizer(models[0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="step hooks of another"):
        fptt.DynamicRegularizer.for_optimizer(optimizers[0])
    with pytest.raises(
        ValueError, match=r"optimizer must hold all .* \(4, 3\) is not: DynamicRegularizer.for_optimizer"
    ):
        fptt.DynamicRegularizer(small_model().parameters()).attach(torch.optim.SGD(models[0].parameters(), lr=0.1))

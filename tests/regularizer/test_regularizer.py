import copy
import importlib
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fptt
from fptt._regularizer import recurrences
from tests.problems import FORMS, assert_same_weights, attached, loss_of, run_steps, small_model, weights


@pytest.fixture(params=["machine code", "torch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By machine code, which waits for Inductor, or by torch, which is there always."""
    importlib.import_module("torch._inductor.codecache")
    if request.param == "torch":
        monkeypatch.setattr(recurrences, "_library", lambda: None)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_first_step_is_bitwise_the_optimizers_own(settings: dict[str, Any]) -> None:
    plain, regularized = small_model(), small_model()
    regularized.load_state_dict(plain.state_dict())
    run_steps(plain, torch.optim.Adam(plain.parameters()), range(1))
    optimizer = torch.optim.Adam(regularized.parameters())
    attached(regularized, optimizer, **settings)
    run_steps(regularized, optimizer, range(1))
    assert_same_weights(plain, regularized)
    run_steps(regularized, optimizer, range(1, 4))
    run_steps(plain, torch.optim.Adam(plain.parameters()), range(1, 4))
    assert not torch.equal(plain.get_parameter("0.weight"), regularized.get_parameter("0.weight"))


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_hooks_equal_the_reference_functions(settings: dict[str, Any]) -> None:
    """Ten attached SGD steps against the pure functions, parameter by parameter."""
    settings = {"beta": 0.5, "mu": 1.0, **settings}
    alpha, beta, mu, form = (settings[name] for name in ("alpha", "beta", "mu", "form"))
    model = small_model().double()
    mirror = {name: param.detach().clone() for name, param in model.named_parameters()}
    memory = {name: (param.clone(), torch.zeros_like(param)) for name, param in mirror.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, **settings)
    for step in range(10):
        gradients = torch.autograd.grad(loss_of(model, step), list(model.parameters()))
        for (name, param), gradient in zip(mirror.items(), gradients, strict=True):
            average, dual = memory[name]
            penalty = recurrences.penalty_gradient(param, average, dual, alpha=alpha, form=form, mu=mu)
            rate = 0.1 if settings["coupling"] == "coupled" else 1.0
            param.sub_(0.1 * gradient + rate * penalty)
            dual = recurrences.advance_dual(dual, param, average, alpha=alpha)
            memory[name] = (recurrences.advance_average(average, param, dual, alpha=alpha, beta=beta), dual)
        run_steps(model, optimizer, range(step, step + 1))
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.detach(), mirror[name], rtol=1e-12, atol=1e-12)
        for found, expected in zip(regularizer.state[param], memory[name], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", FORMS[::2], ids=str)
def test_verbs_by_hand_equal_the_hooks_and_the_autograd_penalty(settings: dict[str, Any]) -> None:
    models = [small_model().double() for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in models]
    attached(models[0], optimizers[0], **settings)
    by_hand, by_autograd = (fptt.DynamicRegularizer(model.parameters(), **settings) for model in models[1:])
    run_steps(models[0], optimizers[0], range(6))
    for step in range(6):
        optimizers[1].zero_grad()
        loss_of(models[1], step).backward()
        by_hand.add_penalty_grad_()
        optimizers[1].step()
        by_hand.update()

        optimizers[2].zero_grad()
        (loss_of(models[2], step) + by_autograd.penalty()).backward()
        total = [param.grad.clone() for param in models[2].parameters() if param.grad is not None]
        optimizers[2].zero_grad()
        loss_of(models[2], step).backward()
        by_autograd.add_penalty_grad_()
        for param, expected in zip(models[2].parameters(), total, strict=True):
            assert param.grad is not None
            torch.testing.assert_close(param.grad, expected, rtol=1e-12, atol=1e-12)
        optimizers[2].step()
        by_autograd.update()
    for model in models[1:]:
        for one, other in zip(models[0].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_coupled_and_decoupled_are_one_for_plain_sgd_with_gamma_eta_alpha() -> None:
    lr, alpha = 0.125, 0.8
    models = [small_model().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, coupling, strength in zip(models, ("coupled", "decoupled"), (alpha, lr * alpha), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        attached(model, optimizer, alpha=strength, form="released", mu=1.5, coupling=coupling)
        run_steps(model, optimizer, range(30))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_recomputed_gradient_is_the_loss_gradient_at_the_new_weights() -> None:
    model = small_model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, alpha=0.4, coupling="coupled", previous_gradient="recomputed")
    for step in range(3):
        run_steps(model, optimizer, range(step, step + 1))
        expected = torch.autograd.grad(loss_of(model, step), list(model.parameters()))
        optimizer.zero_grad()
        loss_of(model, step).backward()
        regularizer.update()
        for param, gradient in zip(model.parameters(), expected, strict=True):
            assert torch.equal(regularizer.state[param].dual, gradient)


def test_recomputed_gradient_must_not_be_forgotten() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, coupling="coupled", previous_gradient="recomputed")
    run_steps(model, optimizer, range(1))
    with pytest.raises(RuntimeError, match="update"):
        run_steps(model, optimizer, range(1, 2))
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="backward"):
        regularizer.update()


def test_averaged_swaps_and_always_restores() -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    regularizer = attached(model, optimizer, alpha=0.5)
    with regularizer.averaged():
        pass  # before the first step there is nothing to swap
    run_steps(model, optimizer, range(5))
    before, pointers = weights(model), [param.data_ptr() for param in model.parameters()]
    with regularizer.averaged():
        for param in model.parameters():
            assert torch.equal(param, regularizer.state[param].average)
        assert not torch.equal(before[0], model.get_parameter("0.weight"))
    with pytest.raises(KeyError, match="stop"), regularizer.averaged():
        raise KeyError("stop")
    assert [param.data_ptr() for param in model.parameters()] == pointers
    for param, weight in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, weight)


def test_within_a_block_of_autocast_no_earlier_weights_are_used() -> None:
    """Neither after a step, nor inside `averaged()`, nor behind it, though autocast keeps its casts of them."""
    inputs, found = torch.randn(8, 4), []
    for keeps_casts in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        regularizer = attached(model, optimizer, alpha=0.5)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=keeps_casts):
            for _ in range(3):
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
            outputs = [model(inputs)]
            with regularizer.averaged():
                outputs.append(model(inputs))
            found.append(torch.stack([*outputs, model(inputs)]))
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1])


def test_no_step_while_averaged() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(1))
    with regularizer.averaged(), pytest.raises(RuntimeError, match="averaged"):
        run_steps(model, optimizer, range(1))
    run_steps(model, optimizer, range(1, 2))


def test_average_and_dual_are_not_the_weights_memory() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(2))
    pointers = {tensor.data_ptr() for param in model.parameters() for tensor in (param, *regularizer.state[param])}
    assert len(pointers) == 3 * len(list(model.parameters()))


def test_groups_have_an_alpha_of_their_own_and_may_opt_out() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "fptt_alpha": 0.7},
            {"params": [model.get_parameter("2.weight")], "fptt_alpha": None},
            {"params": [model.get_parameter("2.bias")]},
        ],
        lr=0.1,
    )
    regularizer = fptt.DynamicRegularizer(optimizer.param_groups, alpha=0.2).attach(optimizer)
    assert [group["fptt_alpha"] for group in regularizer.param_groups] == [0.7, None, 0.2]
    run_steps(model, optimizer, range(3))
    assert set(regularizer.state) == {
        model.get_parameter("0.weight"),
        model.get_parameter("0.bias"),
        model.get_parameter("2.bias"),
    }
    lag = (model.get_parameter("0.weight") - regularizer.state[model.get_parameter("0.weight")].average).abs().sum()
    assert lag > 0


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_a_group_that_opts_out_forgets_its_average(is_evaluated: bool) -> None:
    """Evaluating leaves its weights alone, and it begins anew should it opt in again."""
    model, other = small_model(), small_model()
    optimizer, other_optimizer = (torch.optim.SGD(own.parameters(), lr=0.1) for own in (model, other))
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(3))
    regularizer.param_groups[0]["fptt_alpha"] = None
    if is_evaluated:
        own = weights(model)
        with regularizer.averaged():
            for param, weight in zip(model.parameters(), own, strict=True):
                assert torch.equal(param, weight)
    run_steps(model, optimizer, range(3, 5))
    assert not regularizer.state
    regularizer.param_groups[0]["fptt_alpha"] = 0.3
    other.load_state_dict(model.state_dict())
    attached(other, other_optimizer, alpha=0.3)
    run_steps(model, optimizer, range(5, 8))
    run_steps(other, other_optimizer, range(5, 8))
    assert_same_weights(model, other)


def test_a_group_may_opt_out_later_and_a_bad_strength_changes_nothing() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(2))
    regularizer.param_groups[0]["fptt_alpha"] = 0.0
    before = weights(model)
    with pytest.raises(ValueError, match="alpha"):
        run_steps(model, optimizer, range(2, 3))
    for param, weight in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, weight)
    regularizer.param_groups[0]["fptt_alpha"] = None
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    run_steps(model, optimizer, range(2, 4))
    run_steps(twin, torch.optim.SGD(twin.parameters(), lr=0.1), range(2, 4))
    assert_same_weights(model, twin)
    assert regularizer.penalty() == 0


def model_of_averages(model: nn.Module, regularizer: fptt.DynamicRegularizer) -> nn.Module:
    copied = copy.deepcopy(model)
    for param, own in zip(copied.parameters(), model.parameters(), strict=True):
        param.data.copy_(regularizer.state[own].average)
    return copied


def test_a_copy_taken_inside_averaged_can_train() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(2))
    with regularizer.averaged():
        other_model, other_optimizer, other = copy.deepcopy((model, optimizer, regularizer))
    assert_same_weights(model_of_averages(model, regularizer), other_model)
    other.attach(other_optimizer)
    before = weights(other_model)
    run_steps(other_model, other_optimizer, range(1))
    assert not any(torch.equal(*pair) for pair in zip(other_model.parameters(), before, strict=True))


def test_tied_frozen_missing_and_late_parameters() -> None:
    tied, frozen, unused, late = (nn.Parameter(torch.randn(3)) for _ in range(4))
    frozen.requires_grad_(False)
    optimizer = torch.optim.SGD([tied, frozen, unused], lr=0.1)
    regularizer = fptt.DynamicRegularizer([tied, tied, frozen, unused], alpha=0.3).attach(optimizer)
    kept = frozen.clone(), unused.clone()
    for _ in range(3):
        optimizer.zero_grad()
        (tied * tied).sum().backward()
        optimizer.step()
    assert set(regularizer.state) == {tied}
    assert torch.equal(frozen, kept[0])
    assert torch.equal(unused, kept[1])
    optimizer.add_param_group({"params": [late]})
    regularizer.add_param_group({"params": [late], "fptt_alpha": 0.9})
    start = late.detach().clone()
    optimizer.zero_grad()
    (tied.sum() + late.square().sum()).backward()
    optimizer.step()
    torch.testing.assert_close(late.detach(), start * 0.8)  # its first step is plain SGD
    assert regularizer.state[late].average.shape == (3,)


def test_mixed_dtypes() -> None:
    params = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = torch.optim.SGD(params, lr=0.1)
    regularizer = fptt.DynamicRegularizer(params, alpha=0.5).attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([param.float().square().sum() for param in params]).sum().backward()
        optimizer.step()
    for param in params:
        assert {tensor.dtype for tensor in regularizer.state[param]} == {param.dtype}
    assert regularizer.penalty().isfinite()
    torch.testing.assert_close(params[0].double(), params[1], rtol=1e-6, atol=1e-6)


def test_reset_starts_again() -> None:
    model, twin = small_model(), small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, alpha=0.6)
    run_steps(model, optimizer, range(4))
    twin.load_state_dict(model.state_dict())
    regularizer.reset()
    assert regularizer.penalty().item() == 0
    run_steps(model, optimizer, range(4, 5))
    run_steps(twin, torch.optim.SGD(twin.parameters(), lr=0.1), range(4, 5))
    assert_same_weights(model, twin)


@pytest.mark.parametrize("restart", ["reset", "forget_step", "load_state_dict"])
def test_a_restart_forgets_a_step_that_waits_for_its_recomputed_gradient(restart: str) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, coupling="coupled", previous_gradient="recomputed")
    arguments = {"reset": (), "forget_step": (), "load_state_dict": (regularizer.state_dict(),)}[restart]
    run_steps(model, optimizer, range(1))
    getattr(regularizer, restart)(*arguments)
    with pytest.raises(RuntimeError, match="add_penalty_grad_"):
        regularizer.update()
    run_steps(model, optimizer, range(1, 2))
    assert len(regularizer.state) == 4


def test_detach_makes_the_optimizer_plain_again() -> None:
    model, twin = small_model(), small_model()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    regularizer.detach()
    regularizer.detach()
    run_steps(model, optimizer, range(3))
    run_steps(twin, torch.optim.SGD(twin.parameters(), lr=0.1), range(3))
    assert_same_weights(model, twin)
    regularizer.attach(optimizer)


def test_a_model_that_is_converted_is_refused_before_the_step() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(2))
    model.double()
    before = weights(model)
    optimizer.zero_grad()
    sum(param.sum() for param in model.parameters()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"averages, torch.float32, got one of \(\d+, \d+\) of torch.float64: load"):
        optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    regularizer.load_state_dict(regularizer.state_dict())
    optimizer.step()
    assert all(entry.average.dtype is torch.float64 for entry in regularizer.state.values())


def test_clipping_takes_the_sum_of_loss_and_penalty_gradient() -> None:
    param = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([param], lr=1.0)
    regularizer = fptt.DynamicRegularizer([param], alpha=0.5, form="released", coupling="coupled")
    regularizer.attach(optimizer, max_norm=2.0)
    gradients = torch.tensor([[10.0, 0.0], [0.0, 0.5]])
    for gradient in gradients:
        optimizer.zero_grad()
        (gradient * param).sum().backward()
        optimizer.step()
    # first step: 10 clipped to 2. Then λ = (1, 0) and W − W̄ = 0, so the sum (−1, 0.5) is shorter than 2.
    torch.testing.assert_close(param.detach(), torch.tensor([3.0 - 2.0 + 1.0, 4.0 - 0.5]), rtol=1e-5, atol=1e-5)
    optimizer.zero_grad()
    (torch.tensor([6.0, 8.0]) * param).sum().backward()
    before = param.detach().clone()
    average, dual = regularizer.state[param]
    total = torch.tensor([6.0, 8.0]) + 0.5 * (before - average) - dual
    optimizer.step()
    torch.testing.assert_close(param.detach(), before - 2 * total / total.norm(), rtol=1e-5, atol=1e-5)


def test_copies_and_pickles_go_on_alike() -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    regularizer = attached(model, optimizer, alpha=0.4)
    run_steps(model, optimizer, range(3))
    copies = [
        copy.deepcopy((model, optimizer, regularizer)),
        pickle.loads(pickle.dumps((model, optimizer, regularizer))),
    ]
    run_steps(model, optimizer, range(3, 8))
    for other_model, other_optimizer, other_regularizer in copies:
        other_regularizer.attach(other_optimizer)
        run_steps(other_model, other_optimizer, range(3, 8))
        assert_same_weights(model, other_model)


def test_state_dict_survives_a_weights_only_load() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, alpha=0.4, form="released", beta=0.6)
    run_steps(model, optimizer, range(2))
    file = io.BytesIO()
    torch.save(regularizer.state_dict(), file)
    file.seek(0)
    other = fptt.DynamicRegularizer(model.parameters(), alpha=0.1, form="released")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.param_groups[0]["fptt_alpha"], other.beta) == (0.4, 0.6)
    for param, state in regularizer.state.items():
        assert torch.equal(other.state[param].average, state.average)
    other.load_state_dict(regularizer.state_dict())
    for param, state in regularizer.state.items():
        assert other.state[param].average.data_ptr() != state.average.data_ptr()


def test_readable_repr() -> None:
    regularizer = fptt.DynamicRegularizer(small_model().parameters(), alpha=0.25)
    for piece in ("DynamicRegularizer", "form='paper'", "coupling=", "beta=0.5", "4 parameters", "alpha=0.25"):
        assert piece in repr(regularizer)
    param, *others = small_model().parameters()
    groups = [{"params": [param], "fptt_alpha": None}, {"params": others}]
    assert "alpha=[None, 0.1]" in repr(fptt.DynamicRegularizer(groups))


def test_the_repr_of_many_groups_is_one_short_line() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(100)]
    regularizer = fptt.DynamicRegularizer(groups, alpha=0.25)
    assert "alpha=0.25" in repr(regularizer)
    assert "100 parameters" in repr(regularizer)
    assert len(repr(regularizer)) < 200


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": -0.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"beta": 0.0}, "beta"),
        ({"beta": 1.5}, "beta"),
        ({"form": "printed"}, "form"),
        ({"coupling": "loose"}, "coupling"),
        ({"previous_gradient": "guessed"}, "previous_gradient"),
        ({"mu": 2.0}, "mu"),
        ({"mu": -1.0, "form": "released"}, "mu"),
        ({"previous_gradient": "recomputed", "coupling": "decoupled"}, "previous_gradient"),
        ({"previous_gradient": "recomputed", "coupling": "coupled", "form": "released"}, "previous_gradient"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        fptt.DynamicRegularizer(small_model().parameters(), **arguments)


@pytest.mark.parametrize("frozen_first", [False, True])
def test_a_strength_too_small_for_half_precision_changes_nothing(frozen_first: bool) -> None:
    """β/α = ½/10⁻⁶, by which the dual is multiplied after the step, is above 65504."""
    params = [nn.Parameter(torch.ones(2).half())]
    if frozen_first:
        params.insert(0, nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False))
    with pytest.raises(ValueError, match=r"^alpha must be at least about 7\.6e-06 .* torch\.float16, .* got 1e-06"):
        fptt.DynamicRegularizer(params, alpha=1e-6)
    with pytest.raises(ValueError, match=r"^fptt_alpha must be at least .* torch\.float16, .* got 1e-06"):
        fptt.DynamicRegularizer([{"params": params, "fptt_alpha": 1e-6}])
    assert fptt.DynamicRegularizer([nn.Parameter(torch.ones(2))], alpha=1e-6).alpha == 1e-6
    optimizer = torch.optim.SGD(params[-1:], lr=0.5)
    regularizer = fptt.DynamicRegularizer(params, alpha=8e-6).attach(optimizer)
    for is_small in (False, True):
        params[-1].grad = torch.ones(2).half()
        if is_small:  # by a schedule
            regularizer.param_groups[0]["fptt_alpha"] = 1e-6
            with pytest.raises(ValueError, match="fptt_alpha must be at least"):
                optimizer.step()
        else:
            optimizer.step()
        assert params[-1].tolist() == [0.5, 0.5]


def test_bad_parameters_are_named() -> None:
    param = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="params must hold at least one"):
        fptt.DynamicRegularizer([])
    with pytest.raises(TypeError, match="single tensor"):
        fptt.DynamicRegularizer(param)
    with pytest.raises(
        TypeError, match=r"params must be an iterable of tensors or groups, got a Linear: use model.par"
    ):
        fptt.DynamicRegularizer(nn.Linear(2, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="params must be an iterable of tensors or groups, got a Sequential: use model"):
        fptt.DynamicRegularizer(small_model())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="params must be an iterable of tensors or groups, got a int"):
        fptt.DynamicRegularizer(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="str"):
        fptt.DynamicRegularizer(["weight"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="more than one group"):
        fptt.DynamicRegularizer([{"params": [param]}, {"params": [param]}])
    with pytest.raises(ValueError, match="alpha"):
        fptt.DynamicRegularizer([{"params": [param], "fptt_alpha": 0}])
    with pytest.raises(RuntimeError, match="add_penalty_grad_"):
        fptt.DynamicRegularizer([param]).update()


def test_a_strength_is_set_in_the_groups() -> None:
    param = nn.Parameter(torch.ones(2))
    regularizer = fptt.DynamicRegularizer([param], alpha=0.2)
    with pytest.raises(AttributeError, match=r"alpha cannot be set, got 0.4: set group\['fptt_alpha'\]"):
        regularizer.alpha = 0.4
    assert regularizer.alpha == regularizer.param_groups[0]["fptt_alpha"] == 0.2


def test_an_attached_regularizer_does_not_add_its_penalty_twice() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, coupling="coupled")
    run_steps(model, optimizer, range(2))
    with pytest.raises(RuntimeError, match=r"add_penalty_grad_\(\) must not be called on an attached regularizer"):
        regularizer.add_penalty_grad_()
    regularizer.detach()
    regularizer.add_penalty_grad_()


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        fptt.DynamicRegularizer(embedding.parameters()).add_penalty_grad_()


def test_states_that_do_not_fit_are_refused_whole() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer)
    run_steps(model, optimizer, range(2))
    saved = regularizer.state_dict()
    for other, message in [
        (fptt.DynamicRegularizer(model.parameters(), form="released"), "form"),
        (fptt.DynamicRegularizer(list(model.parameters())[:2]), "groups"),
        (fptt.DynamicRegularizer(reversed(list(model.parameters()))), "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(saved)
        assert not other.state
    with pytest.raises(ValueError, match="lacks"):
        regularizer.load_state_dict({name: saved[name] for name in saved if name != "beta"})
    old = [{"alpha": group["fptt_alpha"], "params": group["params"]} for group in saved["param_groups"]]
    with pytest.raises(ValueError, match="lacks the key 'fptt_alpha' of its parameter group 0"):
        regularizer.load_state_dict({**saved, "param_groups": old})
    with pytest.raises(ValueError, match="dict"):
        regularizer.load_state_dict([])  # pyright: ignore[reportArgumentType]


def test_duals_of_their_own_by_hand() -> None:
    """W = 10, W̄ = 2, λ = (3, −5), α = ¼, β = ⅕, released, η = ½, no loss gradient, dual 1's turn.

    ∇R = ¼ · 8 + 5 = 7, W⁺ = 10 − 3.5 = 6.5, λ_1⁺ = −5 − ¼ · 4.5 = −6.125, mean (3 − 6.125)/2 = −1.5625,
    W̄⁺ = ⅘ · 2 + ⅕ · 6.5 + ⅘ · 1.5625 = 4.15.
    """
    param = nn.Parameter(torch.tensor([10.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([param], lr=0.5)
    regularizer = fptt.DynamicRegularizer(
        [param], alpha=0.25, beta=0.2, form="released", coupling="coupled", num_duals=2
    ).attach(optimizer)
    state = {"average": torch.tensor([2.0]), "dual": torch.tensor([[3.0], [-5.0]])}
    regularizer.load_state_dict({**regularizer.state_dict(), "state": {0: state}})
    with pytest.raises(ValueError, match="turn must be 0 to 1, one of num_duals, got 2"):
        regularizer.turn = 2
    regularizer.turn = 1
    assert regularizer.penalty().item() == pytest.approx(0.125 * 64 + 50)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    entry = regularizer.state[param]
    assert (param.item(), entry.average.item()) == pytest.approx((6.5, 4.15))
    assert entry.dual.flatten().tolist() == pytest.approx([3.0, -6.125])


@pytest.mark.parametrize("coupling", ["coupled", "decoupled"])
def test_a_dual_for_each_loss_finds_the_minimum_of_their_mean_and_one_for_all_circles(coupling: Any) -> None:
    """Losses a_k/2 (w − m_k)² in turn at a constant rate: the fixed point has λ_k = ∇ℓ_k and Σ_k λ_k = 0."""
    curvatures, minima = (0.5, 1.0, 1.5, 0.25), (1.0, -2.0, 0.5, 4.0)
    expected = sum(a * m for a, m in zip(curvatures, minima, strict=True)) / sum(curvatures)
    distances = {}
    for num_duals in (1, 4):
        param = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        optimizer = torch.optim.SGD([param], lr=0.1)
        regularizer = fptt.DynamicRegularizer(
            [param],
            alpha=1.0 if coupling == "coupled" else 0.1,
            form="released",
            coupling=coupling,
            num_duals=num_duals,
        ).attach(optimizer)
        for step in range(2000):
            regularizer.turn = step % num_duals
            param.grad = curvatures[step % 4] * (param.detach() - minima[step % 4])
            optimizer.step()
        distances[num_duals] = abs(param.item() - expected)
    assert distances[4] < 1e-12
    assert distances[1] > 0.01


def test_duals_are_checked_and_saved() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = attached(model, optimizer, num_duals=3)
    run_steps(model, optimizer, range(2))
    saved = regularizer.state_dict()
    other = fptt.DynamicRegularizer(model.parameters(), num_duals=3)
    other.load_state_dict(saved)
    for param in model.parameters():
        assert torch.equal(other.state[param].dual, regularizer.state[param].dual)
        assert other.state[param].dual.shape == (3, *param.shape)
    with pytest.raises(ValueError, match="num_duals"):
        fptt.DynamicRegularizer(model.parameters()).load_state_dict(saved)
    with pytest.raises(ValueError, match="num_duals"):
        fptt.DynamicRegularizer(model.parameters(), num_duals=2, previous_gradient="recomputed", coupling="coupled")
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match="num_duals"):
            fptt.DynamicRegularizer(model.parameters(), num_duals=bad)  # pyright: ignore

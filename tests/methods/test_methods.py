import copy
import pickle
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt._methods.method import Method
from tests.problems import FORMS, OPTIMIZERS, DecayingCell, assert_same_weights, weights

T, B, D, H, C = 13, 4, 3, 5, 6
METHODS: dict[str, Callable[..., fptt.Method]] = {
    "bptt": fptt.BPTT,
    "tbptt": lambda *a, **k: fptt.TBPTT(*a, num_chunks=4, **k),
    "fptt": lambda *a, **k: fptt.FPTT(*a, num_chunks=4, **k),
}
every_method = pytest.mark.parametrize("name", METHODS)


def terminal() -> fptt.TerminalLoss:
    return fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")


def sequence() -> fptt.SequenceLoss:
    return fptt.SequenceLoss(functional.cross_entropy)


def lstm(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    return fptt.nn.LSTM(D, H, C, **options)


def batch(number: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(T, B, D, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(C, (B,), generator=generator)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def train(method: fptt.Method, numbers: range, **options: Any) -> list[fptt.BatchResult]:
    return [method.train_batch(*batch(number), **options) for number in numbers]


def test_fptt_without_alpha_is_exactly_tbptt() -> None:
    models = [lstm(), lstm()]
    optimizers = [torch.optim.Adam(model.parameters()) for model in models]
    options: dict[str, Any] = {"num_chunks": 5, "max_norm": 0.1}
    train(fptt.FPTT(models[0], optimizers[0], terminal(), alpha=0, **options), range(5))
    train(fptt.TBPTT(models[1], optimizers[1], terminal(), **options), range(5))
    assert_same_weights(*models)


def test_fptt_of_one_chunk_without_alpha_is_exactly_bptt() -> None:
    models = [lstm(), lstm(), lstm()]
    methods = [
        fptt.FPTT(models[0], sgd(models[0]), terminal(), num_chunks=1, alpha=0),
        fptt.BPTT(models[1], sgd(models[1]), terminal()),
    ]
    for method in methods:
        train(method, range(4))
    optimizer = sgd(models[2])
    for number in range(4):
        inputs, targets = batch(number)
        optimizer.zero_grad()
        functional.cross_entropy(models[2](inputs)[0][-1], targets, reduction="none").mean().backward()
        optimizer.step()
    assert_same_weights(models[0], models[1])
    assert_same_weights(models[1], models[2])


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_fptt_is_the_loop_of_the_readme(settings: dict[str, Any]) -> None:
    models = [lstm(), lstm()]
    method = fptt.FPTT(models[0], sgd(models[0]), sequence(), num_chunks=4, **settings)
    optimizer = sgd(models[1])
    fptt.DynamicRegularizer(models[1].parameters(), **settings).attach(optimizer)
    for number in range(3):
        inputs, _ = batch(number)
        targets = torch.randint(C, (T, B))
        method.train_batch(inputs, targets)
        state = None
        for x, y in fptt.split_sequence(inputs, targets, num_chunks=4):
            output, state = models[1](x, fptt.detach_state(state))
            optimizer.zero_grad()
            loss = functional.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="sum")
            (loss * 4 / (T * B)).backward()
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_graph_is_cut_between_chunks() -> None:
    """An input of the first chunk has no gradient from the loss of the second."""
    model = lstm()
    seen: list[Any] = []
    model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    fptt.TBPTT(model, sgd(model), terminal(), num_chunks=3).train_batch(*batch())
    assert seen[0] is None
    for state in seen[1:]:
        assert not any(tensor.requires_grad or tensor.grad_fn for tensor in state)


def test_tbptt_makes_one_sgd_step_a_chunk_with_the_chunks_gradient() -> None:
    model, mirror = lstm().double(), lstm().double()
    inputs, targets = batch(dtype=torch.float64)
    method = fptt.TBPTT(model, sgd(model, 0.3), fptt.TerminalLoss(functional.cross_entropy), num_chunks=2)
    result = method.train_batch(inputs, targets)
    state = None
    for k, x in enumerate(inputs.split([7, 6])):
        output, state = mirror(x, fptt.detach_state(state))
        loss = (k + 1) / 2 * functional.cross_entropy(output[-1], targets)
        gradients = torch.autograd.grad(loss, list(mirror.parameters()))
        assert result.chunk_losses[k].item() == pytest.approx(loss.item(), rel=1e-12)
        with torch.no_grad():
            for param, gradient in zip(mirror.parameters(), gradients, strict=True):
                param.sub_(0.3 * gradient)
    for one, other in zip(model.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_bptt_with_chunk_losses_keeps_the_graph() -> None:
    model, mirror = lstm().double(), lstm().double()
    inputs, targets = batch(dtype=torch.float64)
    result = fptt.BPTT(model, sgd(model), terminal(), num_chunks=3).train_batch(inputs, targets)
    outputs = mirror(inputs)[0]
    parts = terminal().split(targets, None, [5, 4, 4], B)
    losses = [terminal()(chunk, part) for chunk, part in zip(outputs.split([5, 4, 4]), parts, strict=True)]
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(mirror.parameters()))
    assert result.updates == 1
    for param, start, gradient in zip(model.parameters(), mirror.parameters(), expected, strict=True):
        torch.testing.assert_close(param, start - 0.1 * gradient, rtol=1e-12, atol=1e-12)


@every_method
def test_result_and_counters(name: str) -> None:
    model = lstm()
    method = METHODS[name](model, sgd(model), terminal())
    results = train(method, range(3))
    updates = 1 if name == "bptt" else 4
    assert all(result.updates == updates for result in results)
    assert (method.batches, method.updates, method.timesteps) == (3, 3 * updates, 3 * T * B)
    for result in results:
        torch.testing.assert_close(result.loss, result.chunk_losses.mean())
        assert result.chunk_losses.shape == (updates,)
        assert result.gradient_norm > 0
        assert not result.state.h.requires_grad
        assert result.state.h.shape == (1, B, H)
    if method.regularizer is None:
        assert results[-1].penalty == 0
    else:
        torch.testing.assert_close(results[-1].penalty, method.regularizer.penalty().detach())
        assert results[-1].penalty != 0


@every_method
def test_batch_first_is_the_same_transposed(name: str) -> None:
    models = [lstm(), lstm(batch_first=True)]
    methods = [
        METHODS[name](m, sgd(m), sequence(), batch_first=first) for m, first in zip(models, (False, True), strict=True)
    ]
    inputs, targets = batch()[0], torch.randint(C, (T, B))
    mask = torch.arange(T)[:, None] < torch.tensor([13, 9, 2, 11])
    one = methods[0].train_batch(inputs, targets, mask=mask)
    other = methods[1].train_batch(inputs.transpose(0, 1), targets.T, mask=mask.T)
    torch.testing.assert_close(one.chunk_losses, other.chunk_losses)
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(first, second)


@every_method
def test_padding_does_not_matter(name: str) -> None:
    """What stands in padded steps changes neither loss nor weights."""
    models = [lstm(), lstm()]
    mask = torch.arange(T)[:, None] < torch.tensor([13, 9, 2, 11])
    for number, model in enumerate(models):
        method = METHODS[name](model, sgd(model), terminal())
        inputs, targets = batch()
        inputs[~mask] = float(number)
        method.train_batch(inputs, targets, mask=mask)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_chunk_without_a_real_step_makes_no_update() -> None:
    model = lstm()
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters()), sequence(), chunk_length=4)
    mask = (torch.arange(T) < 7)[:, None].expand(T, B)  # chunks of 4 + 3 + 3 + 3 steps
    result = method.train_batch(batch()[0], torch.randint(C, (T, B)), mask=mask)
    assert result.updates == 2
    assert result.chunk_losses.tolist()[2:] == [0, 0]


@every_method
def test_state_is_carried_when_asked(name: str) -> None:
    """Two halves with the state handed on give the same states as the whole; without it they do not."""
    model = lstm()
    method = METHODS[name](model, sgd(model, lr=1e-12), sequence())
    inputs, targets = torch.randn(16, B, D), torch.randint(C, (16, B))
    whole = model(inputs)[1]
    first = method.train_batch(inputs[:8], targets[:8])
    carried = method.train_batch(inputs[8:], targets[8:], state=first.state)
    torch.testing.assert_close(carried.state.h, whole.h)
    assert not torch.allclose(method.train_batch(inputs[8:], targets[8:]).state.h, whole.h, atol=1e-3)


@every_method
def test_a_saved_and_resumed_method_is_bitwise_the_same(name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, fptt.Method]:
        model = lstm()
        optimizer = OPTIMIZERS["Adam"](model.parameters())
        loss = fptt.TerminalLoss(functional.cross_entropy, fptt.RunningPrior(C, decay=0.5))
        return model, optimizer, METHODS[name](model, optimizer, loss, max_norm=0.5)

    model, optimizer, method = build()
    train(method, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), method.state_dict()))
    train(method, range(3, 6))
    others = build()
    for other, state in zip(others, saved, strict=True):
        other.load_state_dict(state)
    train(others[2], range(3, 6))
    assert_same_weights(model, others[0])
    assert others[2].updates == method.updates


@every_method
def test_copies_and_pickles_of_a_method_go_on_alike(name: str) -> None:
    model = lstm()
    method = METHODS[name](model, OPTIMIZERS["Adam"](model.parameters()), terminal())
    train(method, range(2))
    copies = [copy.deepcopy(method), pickle.loads(pickle.dumps(method))]
    train(method, range(2, 4))
    for other in copies:
        train(other, range(2, 4))
        assert_same_weights(model, other.model)


def test_recomputed_gradient_replays_dropout() -> None:
    """The second pass draws the same dropout, and the random stream goes on as if there were no second pass."""
    torch.manual_seed(3)
    model = fptt.nn.LSTM(D, H, C, num_layers=2, dropout=0.5)
    losses: list[float] = []
    method = fptt.FPTT(
        model, sgd(model, lr=1e-12), terminal(), num_chunks=2, coupling="coupled", previous_gradient="recomputed"
    )
    method.loss.register_forward_hook(lambda *arguments: losses.append(arguments[2].item()))
    torch.manual_seed(5)
    method.train_batch(*batch())
    after = torch.rand(1)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[2] == pytest.approx(losses[3], abs=1e-6)
    twin = fptt.TBPTT(model, sgd(model, lr=1e-12), terminal(), num_chunks=2)
    torch.manual_seed(5)
    twin.train_batch(*batch())
    assert torch.equal(after, torch.rand(1))


def test_a_closed_method_takes_its_hooks_along_and_trains_no_more() -> None:
    model = lstm()
    optimizer = sgd(model)
    method = fptt.FPTT(model, optimizer, terminal(), num_chunks=2)
    method.close()
    method.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for closed in (method, copy.deepcopy(method)):
        with pytest.raises(RuntimeError, match="closed"):
            closed.train_batch(*batch())


@pytest.mark.parametrize("coupling", ["coupled", "decoupled"])
def test_grad_scaler_scales_in_backward_and_unscales_in_step(coupling: Any) -> None:
    models = [lstm().double(), lstm().double()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def step(optimizer: torch.optim.Optimizer) -> None:
        try:
            scaler.step(optimizer)
        finally:
            scaler.update()

    scaled = fptt.FPTT(
        models[0],
        sgd(models[0]),
        terminal(),
        num_chunks=3,
        coupling=coupling,
        max_norm=0.1,
        backward=lambda loss: scaler.scale(loss).backward(),
        step=step,
    )
    plain = fptt.FPTT(models[1], sgd(models[1]), terminal(), num_chunks=3, coupling=coupling, max_norm=0.1)
    for number in range(3):
        results = [method.train_batch(*batch(number, torch.float64)) for method in (scaled, plain)]
        torch.testing.assert_close(results[0].gradient_norm, results[1].gradient_norm)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_recomputed_gradient_is_not_scaled() -> None:
    models = [lstm(), lstm()]
    duals = []
    for model, scale in zip(models, (1.0, 1024.0), strict=True):
        optimizer = torch.optim.Adam(model.parameters(), eps=0.0)
        method = fptt.FPTT(
            model,
            optimizer,
            terminal(),
            num_chunks=2,
            coupling="coupled",
            previous_gradient="recomputed",
            backward=lambda loss, scale=scale: (loss * scale).backward(),
        )
        method.train_batch(batch()[0][:6], batch()[1])
        assert method.regularizer is not None
        duals.append(max(dual.abs().max().item() for _, dual in method.regularizer.state.values()))
    assert duals[1] < 10 * duals[0]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_recomputed_gradient_is_told_and_training_can_go_on(kind: str) -> None:
    model = Explodes(kind, call=3)  # the second pass of the second chunk
    method = fptt.FPTT(model, sgd(model), terminal(), num_chunks=3, coupling="coupled", previous_gradient="recomputed")
    with pytest.raises(FloatingPointError, match=r"recomputed gradient .* chunk 1 of batch 0"):
        method.train_batch(*batch())
    model.calls_left = 1000
    assert method.train_batch(*batch()).loss.isfinite()


def test_targets_of_a_sequence_are_not_taken_for_those_of_steps() -> None:
    """B = T = D = 4, batch first: the targets (B, D) look like (B, T)."""
    model = fptt.nn.RNN(4, 5, 4, batch_first=True)
    loss = fptt.TerminalLoss(functional.mse_loss)
    inputs, targets = torch.randn(4, 4, 4), torch.randn(4, 4)
    expected = functional.mse_loss(model(inputs)[0][:, -1], targets)
    torch.testing.assert_close(
        fptt.BPTT(model, sgd(model), loss, batch_first=True).train_batch(inputs, targets).loss, expected
    )


def test_ignored_steps_are_as_good_as_masked_ones() -> None:
    models = [lstm(), lstm()]
    inputs, targets = batch()[0], torch.randint(C, (T, B))
    mask = (torch.arange(T) < 7)[:, None].expand(T, B)
    methods = [fptt.FPTT(model, torch.optim.Adam(model.parameters()), sequence(), chunk_length=4) for model in models]
    updates = [
        methods[0].train_batch(inputs, targets, mask=mask).updates,
        methods[1].train_batch(inputs, targets.masked_fill(~mask, -100)).updates,
    ]
    assert updates == [2, 2]
    assert_same_weights(*models)


def test_layouts_of_model_and_data_must_agree() -> None:
    for model in (lstm(), nn.LSTM(D, H), fptt.nn.Recurrent(fptt.nn.Unroll(nn.GRUCell(D, H)))):
        with pytest.raises(ValueError, match="batch_first must be that of the model, False, got True"):
            fptt.BPTT(model, sgd(model), terminal(), batch_first=True)


class _Flat(nn.Module):
    """One output a sequence, (B,), where (B, T, …) is due."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        return (inputs @ self.weight).sum(1), state


@pytest.mark.parametrize("batch_first", [False, True])
def test_outputs_of_one_dim_are_named_in_both_layouts(batch_first: bool) -> None:
    model = _Flat()
    method = fptt.TBPTT(
        model, sgd(model), fptt.SequenceLoss(functional.mse_loss), num_chunks=1, batch_first=batch_first
    )
    with pytest.raises(ValueError, match="the model must return one output per step"):
        method.train_batch(torch.zeros(B, T, D), torch.zeros(B, T))


def test_the_optimizer_must_train_the_model() -> None:
    with pytest.raises(ValueError, match="optimizer must hold parameters of the model"):
        fptt.BPTT(lstm(), sgd(lstm()), terminal())
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer"):
        fptt.DynamicRegularizer(lstm().parameters()).attach("sgd")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (fptt.BPTT, "engine", "compiled"),  # which updates at every chunk
        (fptt.BPTT, "regularizer", None),
        (fptt.TBPTT, "regularizer", None),
        (fptt.TBPTT, "updates_each_chunk", False),
        (fptt.FPTT, "gamma", 0.1),
    ],
)
def test_options_that_a_method_does_not_have_are_refused(kind: Any, name: str, value: Any) -> None:
    model = lstm()
    optimizer = sgd(model)
    if name == "regularizer":
        value = fptt.DynamicRegularizer(model.parameters(), 0.1)
    with pytest.raises(
        TypeError, match=rf"{kind.__name__} has no argument '{name}'; its options are backward, batch_f"
    ):
        kind(model, optimizer, terminal(), num_chunks=2, **{name: value})
    fptt.TBPTT(model, optimizer, terminal(), num_chunks=2)  # no hooks were left behind


def test_a_method_that_waits_for_the_end_has_no_engine_that_updates_each_chunk() -> None:
    class OneUpdate(Method):
        updates_each_chunk = False

    model = lstm()
    with pytest.raises(ValueError, match="engine must be 'eager' with BPTT, got 'compiled'"):
        OneUpdate(model, sgd(model), terminal(), num_chunks=2, engine="compiled")


class OutputsOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = lstm()

    def forward(self, inputs: Tensor, state: Any) -> Tensor:
        return self.inner(inputs, state)[0]


def test_slips_of_type_and_state_are_named() -> None:
    model = OutputsOnly()
    with pytest.raises(TypeError, match=r"model must return \(outputs, state\), got a Tensor"):
        fptt.BPTT(model, sgd(model), terminal()).train_batch(*batch())
    inputs, targets = batch()
    gru = nn.GRU(D, C)
    method = fptt.BPTT(gru, sgd(gru), terminal())
    with pytest.raises(TypeError, match="targets must be a tensor, got a list"):
        method.train_batch(inputs, targets.tolist())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"state must fit the model, got tensors of shapes \(1, 4, 7\)"):
        method.train_batch(inputs, targets, state=torch.zeros(1, B, 7))
    decaying = DecayingCell(D, C, in_place=False)
    method = fptt.TBPTT(decaying, sgd(decaying), terminal(), num_chunks=2)
    for shape in ((1, C), (C,), (B, 1)):  # all of which torch broadcasts
        with pytest.raises(ValueError, match=r"state must match the model's own, tensors .* has a state_batch_dim"):
            method.train_batch(inputs, targets, state=torch.zeros(shape))
    bad: list[tuple[Any, tuple[Any, Any], dict[str, Any], str]] = [
        (fptt.TBPTT, (gru, []), {"num_chunks": 2}, "optimizer must be a torch.optim.Optimizer, got a list"),
        (fptt.FPTT, (gru, []), {"num_chunks": 2}, "optimizer must be a torch.optim.Optimizer, got a list"),
        (fptt.BPTT, (sgd, sgd(gru)), {}, "model must be a torch.nn.Module, got a function"),
        (fptt.BPTT, (gru, sgd(gru)), {"parallel": True}, "parallel must be a DataParallel, got a bool"),
        (
            fptt.FPTT,
            (gru, sgd(gru)),
            {"num_chunks": 2, "regularizer": 0.1},
            "regularizer must be a DynamicReg.*a float",
        ),
    ]
    for kind, parts, options, message in bad:
        with pytest.raises(TypeError, match=message):
            kind(*parts, terminal(), **options)


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_a_graph_from_outside_of_the_model_is_refused_where_there_are_several_updates(name: str) -> None:
    encoder, model = nn.Linear(D, D), nn.GRU(D, C)
    tensors = {"inputs": torch.randn(T, B, D), "targets": torch.randn(T, B, C)}
    loss = fptt.SequenceLoss(functional.mse_loss)
    layer = encoder if name == "inputs" else nn.Linear(C, C)
    with_graph = {**tensors, name: layer(tensors[name]).tanh()}
    before = [param.clone() for param in model.parameters()]
    recomputes = {"coupling": "coupled", "previous_gradient": "recomputed"}
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (fptt.TBPTT, {"num_chunks": 2}),
        (fptt.FPTT, {"num_chunks": 1, **recomputes}),
    ]
    for kind, options in kinds:
        method = kind(model, sgd(model), loss, **options)
        message = rf"{name} must not have a graph, .* got TanhBackward0: put the module"
        with pytest.raises(ValueError, match=message):
            method.train_batch(**with_graph)
        with pytest.raises(ValueError, match=message):
            list(method.train_stream([tuple(with_graph.values())]))
        method.close()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    fptt.TBPTT(model, sgd(model), loss, num_chunks=2).train_batch(
        **{**tensors, name: tensors[name].clone().requires_grad_()}
    )
    fptt.BPTT(model, sgd(model), loss, num_chunks=2).train_batch(**with_graph)
    assert layer.weight.grad is not None


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_a_graph_that_chunks_of_a_stream_share_is_named(name: str) -> None:
    model, loss = nn.GRU(D, C), fptt.SequenceLoss(functional.mse_loss)
    tensors = {"inputs": torch.randn(T, B, D), "targets": torch.randn(T, B, C)}
    tensors[name] = tensors[name].requires_grad_().tanh()
    method = fptt.TBPTT(model, sgd(model), loss, num_chunks=1)
    chunks = zip(*(tensor.split(5) for tensor in tensors.values()), strict=True)
    with pytest.raises(ValueError, match=rf"{name} must not have a graph, .* or detach them") as caught:
        list(method.train_stream(chunks))
    assert (method.updates, caught.value.__notes__) == (1, ["This was chunk 1 of the stream."])


@pytest.mark.parametrize("options", [{"num_chunks": 3}, {"num_chunks": 3, "horizon": 2}])
def test_inputs_may_be_a_view_of_a_leaf_that_requires_a_gradient(options: dict[str, Any]) -> None:
    """The graph of a view keeps nothing: each update adds the gradient of its chunk to the leaf's."""
    inputs, labels = batch()[0], torch.zeros(T, B, dtype=torch.long)
    models = [nn.GRU(D, C), nn.GRU(D, C)]
    models[1].load_state_dict(models[0].state_dict())
    leaf = inputs.transpose(0, 1).contiguous().requires_grad_()
    for model, own in zip(models, (inputs, leaf.transpose(0, 1)), strict=True):
        assert fptt.TBPTT(model, sgd(model), sequence(), **options).train_batch(own, labels).updates == 3
    assert_same_weights(*models)
    assert leaf.grad is not None
    assert leaf.grad.abs().sum((0, 2)).all()


def test_an_error_of_the_model_is_not_put_down_to_a_state_that_fits() -> None:
    """That of the chunk before in a stream, or of the batch before."""
    gru = nn.GRU(D, C)
    method = fptt.TBPTT(gru, sgd(gru), sequence(), num_chunks=1)
    items = [(torch.randn(3, B, width), torch.zeros(3, B, dtype=torch.long)) for width in (D, D + 1)]
    with pytest.raises(RuntimeError, match=r"^input.size\(-1\) must be equal to input_size"):
        list(method.train_stream(items))

    def run_out(*_: Any) -> NoReturn:
        raise torch.OutOfMemoryError("no memory")

    state = method.train_batch(*items[0]).state
    gru.register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        method.train_batch(*items[0], state=state)


class Squashed(nn.Module):
    """A layer without a state, which takes inputs of the dtype of its weights alone, or of all."""

    def __init__(self, *, takes_all: bool = False) -> None:
        super().__init__()
        self.readout, self.takes_all = nn.Linear(D, C), takes_all

    def forward(self, inputs: Tensor, state: None) -> tuple[Tensor, None]:
        return self.readout(inputs.float() if self.takes_all else inputs).tanh(), state


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_inputs_of_another_dtype_are_named_where_the_model_does_not_take_them(dtype: torch.dtype) -> None:
    inputs, targets = torch.ones(4, B, D, dtype=dtype), torch.zeros(4, B, dtype=torch.long)
    for state in (None, torch.zeros(1, B, C)):
        model = Squashed()
        method = fptt.TBPTT(model, sgd(model), sequence(), num_chunks=2)
        with pytest.raises(ValueError, match=f"inputs must have the dtype of the weights, torch.float32, got {dtype}"):
            method.train_batch(inputs, targets, state=state)
    model = Squashed(takes_all=True)
    assert fptt.TBPTT(model, sgd(model), sequence(), num_chunks=2).train_batch(inputs, targets).updates == 2


class LastSteps(nn.Module):
    """Keeps the last steps that it has seen, (S, B, D), of which there are more and more."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(D, C)

    def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        outputs = []
        for step in inputs:
            state = step[None] if state is None else torch.cat([state, step[None]])[-6:]
            outputs.append(self.readout(state.mean(0)))
        return torch.stack(outputs), state  # pyright: ignore[reportReturnType]


class AllSteps(nn.Module):
    """Keeps the sum of the inputs of every step that it has seen, (B, S)."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(D, C)

    def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        before = inputs.new_zeros(inputs.shape[1], 0) if state is None else state
        seen = torch.cat([before, inputs.sum(-1).T], dim=1)
        return self.readout(inputs) * seen.mean(), seen


class Cache(nn.Module):
    """Keeps the inputs of every step that it has seen, (B, S, D), with S where other states have the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(D, C)

    def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        before = inputs.new_zeros(inputs.shape[1], 0, D) if state is None else state
        seen = torch.cat([before, inputs.transpose(0, 1)], dim=1)
        return self.readout(inputs) * seen.mean(), seen


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", [LastSteps, AllSteps, Cache])
def test_a_state_may_grow_from_batch_to_batch(kind: type[nn.Module], steps: int) -> None:
    """As it may from chunk to chunk: the stream in pieces is the whole batch."""
    inputs, labels = batch()[0].double(), torch.zeros(T, B, dtype=torch.long)
    models = [kind().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    whole, streamed = (fptt.TBPTT(model, sgd(model), sequence(), chunk_length=1) for model in models)
    whole.train_batch(inputs, labels)
    for _ in streamed.train_stream(zip(inputs.split(steps), labels.split(steps), strict=True)):
        pass
    assert streamed.updates == T
    assert_same_weights(*models)


def test_method_states_that_do_not_fit_are_refused_whole() -> None:
    model = lstm()
    method = fptt.FPTT(model, sgd(model), terminal(), num_chunks=2)
    train(method, range(2))
    saved = method.state_dict()
    other_model = lstm()
    prior = fptt.TerminalLoss(functional.cross_entropy, fptt.RunningPrior(C))
    other = fptt.FPTT(other_model, sgd(other_model), prior, num_chunks=2)
    for state in ({}, saved):
        with pytest.raises(ValueError, match="must have the keys"):
            other.load_state_dict(state)
    larger = fptt.TerminalLoss(functional.cross_entropy, fptt.RunningPrior(C + 1))
    state = {**saved, "loss": larger.state_dict()}
    with pytest.raises(ValueError, match=rf"state_dict\['loss'\]\['prior.*'\] must have shape \({C}, .*got .*{C + 1}"):
        other.load_state_dict(state)
    state["loss"] = dict.fromkeys(state["loss"])
    with pytest.raises(ValueError, match=r"must have shape .* got None"):
        other.load_state_dict(state)
    assert other.regularizer is not None
    assert not other.regularizer.state
    assert other.batches == 0
    other.load_state_dict({**saved, "loss": prior.state_dict()})
    assert other.batches == 2


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_inputs_name_batch_and_chunk_and_change_nothing(name: str, bad: float) -> None:
    model = lstm()
    method = METHODS[name](model, sgd(model), terminal())
    train(method, range(2))
    before = weights(model)
    inputs, targets = batch(2)
    inputs[11, 2, 0] = bad
    chunk = 0 if name == "bptt" else 3
    with pytest.raises(FloatingPointError, match=f"chunk {chunk} of batch 2"):
        method.train_batch(inputs, targets)
    for param, weight in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, weight)
    train(method, range(2, 3))


class Explodes(nn.Module):
    """Gives NaN, or an infinite gradient, from its n-th call on."""

    def __init__(self, kind: str, call: int) -> None:
        super().__init__()
        self.inner, self.kind, self.calls_left = lstm(), kind, call

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        output, state = self.inner(inputs, state)
        self.calls_left -= 1
        if self.calls_left < 0:
            factor = self.inner.get_parameter("readout.0.bias").sum()
            output = output + (
                factor * float("nan") if self.kind == "loss" else (factor - factor.detach()).abs().sqrt()
            )
        return output, state


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_bad_losses_and_gradients_name_batch_and_chunk_and_keep_the_weights(kind: str) -> None:
    model = Explodes(kind, call=2)
    method = fptt.FPTT(model, sgd(model), terminal(), num_chunks=4)
    snapshots: list[list[Tensor]] = []
    model.register_forward_pre_hook(lambda *_: snapshots.append(weights(model)))
    with pytest.raises(FloatingPointError, match=f"{kind} is .* in chunk 2 of batch 0"):
        method.train_batch(*batch())
    for param, weight in zip(model.parameters(), snapshots[2], strict=True):
        assert torch.equal(param, weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(B + 1, dtype=torch.long)}, "targets must have shape"),
        ({"inputs": torch.zeros(2, B, D)}, "num_chunks must be at most the sequence length 2, got 4"),
        ({"inputs": torch.zeros(T, 0, D)}, "inputs must be a non-empty"),
        ({"inputs": torch.zeros(T)}, "inputs must be a non-empty"),
        ({"inputs": torch.zeros(T, B, D + 1)}, "inputs must have shape"),
        ({"mask": torch.ones(T, B)}, "mask must be boolean"),
        ({"mask": torch.ones(T, B + 1, dtype=torch.bool)}, "mask must be boolean"),
        ({"mask": torch.zeros(T, B, dtype=torch.bool)}, "mask must have at least one real step"),
        ({"state": (torch.zeros(1, B, H + 1), torch.zeros(1, B, H))}, "state must have"),
        ({"state": torch.zeros(1, B, H)}, "state must have"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    model = lstm()
    method = fptt.FPTT(model, sgd(model), terminal(), num_chunks=4)
    inputs, targets = batch()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        method.train_batch(**{"inputs": inputs, "targets": targets, **change})
    assert (method.batches, method.updates) == (0, 0)
    for param, weight in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, weight)


def test_sequence_targets_of_the_wrong_length_are_named() -> None:
    model = lstm()
    method = fptt.TBPTT(model, sgd(model), sequence(), num_chunks=4)
    with pytest.raises(ValueError, match=r"targets must have shape \(T, B, …\)"):
        method.train_batch(batch()[0], torch.zeros(T - 1, B, dtype=torch.long))
    last_only = lstm(last_only=True)
    method = fptt.TBPTT(last_only, sgd(last_only), sequence(), num_chunks=4)
    with pytest.raises(ValueError, match="one output per step"):
        method.train_batch(batch()[0], torch.zeros(T, B, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_chunks": 2, "alpha": -0.1}, ValueError, "alpha"),
        ({"num_chunks": 2, "max_norm": -1.0}, ValueError, "max_norm"),
        ({"num_chunks": 2, "alpha": 0, "regularizer": object()}, ValueError, "alpha must be left out"),
        ({"num_chunks": 2, "chunk_length": 2}, ValueError, "exactly one"),
        ({}, ValueError, "exactly one"),
        ({"num_chunks": 2, "loss": functional.cross_entropy}, TypeError, "TerminalLoss or a SequenceLoss"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = lstm()
    arguments: dict[str, Any] = {"loss": terminal(), **options}
    with pytest.raises(error, match=message):
        fptt.FPTT(model, sgd(model), **arguments)


def test_learns_to_remember_the_first_step() -> None:
    """A problem with an exact answer: the class is the index of the first input's mark, after silence."""
    torch.manual_seed(0)
    model = fptt.nn.LSTM(4, 24, 4, last_only=True)
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters(), lr=5e-3), terminal(), num_chunks=4)
    for _ in range(150):
        labels = torch.randint(4, (16,))
        inputs = torch.zeros(12, 16, 4)
        inputs[0, torch.arange(16), labels] = 1.0
        method.train_batch(inputs, labels)
    labels = torch.arange(4)
    inputs = torch.zeros(12, 4, 4)
    inputs[0] = torch.eye(4)
    assert torch.equal(model(inputs)[0][-1].argmax(-1), labels)


def test_each_chunk_uses_its_own_dual_from_batch_to_batch() -> None:
    """The walk of FPTT-4 with four duals against a loop by hand that sets the turn."""
    models = [lstm().double(), lstm().double()]
    optimizers = [sgd(model) for model in models]
    method = fptt.FPTT(models[0], optimizers[0], terminal(), num_chunks=4, num_duals=4, alpha=0.3)
    regularizer = fptt.DynamicRegularizer(models[1].parameters(), 0.3, num_duals=4).attach(optimizers[1])
    loss = terminal()
    for number in range(3):
        inputs, targets = batch(number, torch.float64)
        method.train_batch(inputs, targets)
        state = None
        parts = loss.split(targets, None, fptt.chunk_lengths(T, num_chunks=4), B)
        for turn, (x,) in enumerate(fptt.split_sequence(inputs, num_chunks=4)):
            output, state = models[1](x, fptt.detach_state(state))
            optimizers[1].zero_grad()
            loss(output, parts[turn]).backward()
            regularizer.turn = turn
            optimizers[1].step()
    assert_same_weights(*models)
    model = lstm()
    with pytest.raises(ValueError, match="num_duals must be 1 with engine='compiled'"):
        fptt.FPTT(model, sgd(model), terminal(), num_chunks=4, num_duals=4, engine="compiled")


@pytest.mark.parametrize("count", [3, 5])
def test_duals_are_as_many_as_chunks(count: int) -> None:
    """A dual that two chunks share is neither's; one that no chunk has is a zero in the mean of all."""
    model = lstm()
    with pytest.raises(ValueError, match=f"num_duals must be 1 or num_chunks, 4, got {count}"):
        fptt.FPTT(model, sgd(model), terminal(), num_chunks=4, num_duals=count)
    optimizer = sgd(model)
    own = fptt.DynamicRegularizer(model.parameters(), num_duals=count)
    with pytest.raises(ValueError, match=f"num_duals must be 1 or num_chunks, 4, got {count}"):
        fptt.FPTT(model, optimizer, terminal(), num_chunks=4, regularizer=own)
    method = fptt.FPTT(model, optimizer, terminal(), chunk_length=2, num_duals=count)
    inputs, targets = batch()
    assert method.train_batch(inputs[: 2 * count], targets).updates == count
    with pytest.raises(ValueError, match=f"at least the number of chunks, {count + 1}, got {count}"):
        method.train_batch(inputs[: 2 * count + 1], targets)
    assert method.updates == count


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("alpha", 3.0), ("alpha", 0), ("beta", 1.0), ("form", "released"), ("coupling", "coupled"), ("mu", 2.0)),
        *(("previous_gradient", "recomputed"), ("num_duals", 4)),
    ],
)
def test_settings_beside_a_regularizer_of_ones_own_are_refused(name: str, value: Any) -> None:
    model = lstm()
    own = fptt.DynamicRegularizer(model.parameters(), alpha=1.0)
    with pytest.raises(ValueError, match=f"^{name} must be left out with a regularizer of your own, got {value!r}"):
        fptt.FPTT(model, sgd(model), terminal(), num_chunks=4, regularizer=own, **{name: value})


@pytest.mark.parametrize("alpha", [0, 0.1])
@pytest.mark.parametrize("setting", [{"beta": 2.0}, {"form": "papers"}, {"mu": 2.0}, {"num_duals": 3}], ids=str)
def test_settings_are_checked_without_a_penalty_too(setting: dict[str, Any], alpha: float) -> None:
    model = lstm()
    (name,) = setting
    with pytest.raises(ValueError, match=f"^{name} must be "):
        fptt.FPTT(model, sgd(model), terminal(), num_chunks=4, alpha=alpha, **setting)


SETTINGS = {"max_norm": 1.0, "horizon": 2, "check_finite": False, "model": nn.GRU(3, 4), "regularizer": None}


@pytest.mark.parametrize(("name", "value"), SETTINGS.items(), ids=list(SETTINGS))
def test_a_setting_of_a_method_is_fixed(name: str, value: Any) -> None:
    """Hooks and engine hold it too: another value would change nothing, or half of the method."""
    model = fptt.nn.GRU(3, 4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = fptt.FPTT(model, optimizer, fptt.SequenceLoss(nn.functional.mse_loss), num_chunks=2)
    with pytest.raises(AttributeError, match=f"{name} is fixed when a method is made: make another one with {name}="):
        setattr(method, name, value)
    assert copy.deepcopy(method).horizon == 1

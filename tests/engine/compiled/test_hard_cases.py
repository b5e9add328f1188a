"""Cases in which a compiled step could silently do something else than the eager one."""

import copy
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils._pytree import register_pytree_node
from torch.utils.checkpoint import checkpoint

import fptt
from fptt._engine.compiled.constants import constants
from fptt._methods.method import EngineName
from tests.engine.compiled.agreement import (
    RULES,
    B,
    C,
    D,
    H,
    T,
    assert_equal_memory,
    assert_equal_results,
    batch,
    make_method,
    make_model,
    make_pair,
    terminal_loss,
    train_both,
)
from tests.problems import DecayingCell

pytestmark = pytest.mark.usefixtures("float64", "interpreted")


def test_a_loaded_group_or_a_new_flag_counts() -> None:
    methods = make_pair(make_model("lstm"), "sgd")
    train_both(methods, *batch())
    for method in methods:
        state = method.optimizer.state_dict()
        state["param_groups"][0]["lr"] = 0.7
        method.optimizer.load_state_dict(state)
    train_both(methods, *batch())
    for changes in ({"momentum": 0.9}, {"nesterov": True}, {"maximize": True}, {"lr": 0.01}):
        for method in methods:
            method.optimizer.param_groups[0].update(changes)
        train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)


class Variant(nn.Module):
    """A GRU cell with a read-out that does one unusual thing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.rnn, self.readout = nn.GRUCell(D, H), nn.Linear(H, C)
        self.mean = nn.Parameter(torch.zeros(H), requires_grad=False)
        self.settings: dict[str, list[float]] = {"scale": [1.0]}
        self.activation: nn.Module = nn.Tanh()
        self.hidden = [nn.Parameter(torch.ones(H))]
        self.initial_state = nn.Parameter(torch.randn(H)) if kind == "initial" else None

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = (
                inputs.new_zeros(inputs.shape[1], H) if self.initial_state is None else self.initial_state.expand(B, -1)
            )
        if self.kind == "in place":
            inputs.mul_(1.5)
            state = state.clone().mul_(0.9)
        for step in inputs:
            state = self.rnn(step, state)
        if self.kind == "statistic":
            with torch.no_grad():
                self.mean.lerp_(state.mean(0), 0.1)
        if self.kind == "list":
            state = state * self.hidden[0]
        if self.kind == "checkpoint":
            state = checkpoint(lambda h: functional.dropout(h.tanh(), 0.5), state, use_reentrant=False)
        if self.kind == "seed":
            torch.manual_seed(0)
            state = state * torch.rand(H).round()
        return self.readout(self.activation(state - self.mean) * self.settings["scale"][0])[None], state


@pytest.mark.parametrize("kind", ["in place", "statistic", "initial", "none"])
def test_unusual_models_agree(kind: str) -> None:
    methods = make_pair(Variant(kind))
    for _ in range(2):
        inputs, labels = batch()
        results = [method.train_batch(inputs.clone(), labels) for method in methods]
        assert_equal_results(results, 1e-10)
    assert_equal_memory(methods, 1e-10)


def test_settings_of_the_model_that_change_are_followed() -> None:
    methods = make_pair(Variant("none"))
    train_both(methods, *batch())
    for change in (
        lambda model: model.settings["scale"].__setitem__(0, 0.5),
        lambda model: setattr(model, "activation", nn.Sigmoid()),
        lambda model: model.readout.register_forward_hook(lambda *arguments: arguments[2] * 2),
        lambda model: model.readout._forward_hooks.clear(),
        lambda model: setattr(model.readout.weight, "data", model.readout.weight.data.t().clone().t()),
        lambda model: model.readout.weight.requires_grad_(False),
    ):
        for method in methods:
            change(method.model)
        train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)


@dataclass(frozen=True)
class Slope:
    """An activation with a number of its own."""

    k: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(self.k * x)


def test_an_activation_that_is_made_anew_is_followed() -> None:
    """Each object is freed before the next one is made, which then often has its address."""
    methods = make_pair(Variant("none"))
    for k in (1.0, 2.0, 3.0, 1.0):
        for make in (Slope, lambda k: partial(torch.mul, k)):
            for method in methods:
                del method.model.activation
                method.model.activation = make(k)  # pyright: ignore[reportArgumentType]
            train_both(methods, *batch())
    # two lengths of the first state, None or not; the equal slope again has a step, an equal object of others has none
    assert len(methods[1]._engine._entries) == 2 * (3 + 4)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_key_keeps_its_objects_alive() -> None:
    """Another object could have the address of one that was freed, and be taken for it."""
    module, activation = nn.Identity(), partial(torch.mul, 2.0)
    module.activation = activation  # pyright: ignore[reportArgumentType]
    alive, key = weakref.ref(activation), constants(module)
    del module.activation, activation
    assert alive() is not None
    del key
    assert alive() is None


def test_smooth_spikes_are_followed() -> None:
    methods = make_pair(fptt.nn.spiking.LIF(D, H, C, last_only=True), "sgd")
    inputs, labels = batch()
    for _ in range(2):
        train_both(methods, inputs * 5, labels)
        with fptt.nn.spiking.smooth_spikes():
            train_both(methods, inputs * 5, labels)


class LearnedBeginning(fptt.nn.GRU):
    """Begins at a state that is learned, beside an inherited `initial_state` that knows nothing of it."""

    def __init__(self) -> None:
        super().__init__(D, H, C, last_only=True)
        self.begin = nn.Parameter(torch.zeros(1, 1, H))  # zeros too, but with a gradient

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(inputs, self.begin.expand(-1, inputs.shape[1], -1) if state is None else state)


def test_none_is_what_the_model_takes_it_for() -> None:
    methods = make_pair(LearnedBeginning())
    for _ in range(2):
        train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)
    assert methods[1].model.get_parameter("begin").abs().min() > 0
    method = make_method(LearnedBeginning(), "adam", horizon=2, engine="compiled")
    with pytest.raises(fptt.CompilationError, match="which returns what the state None stands for"):
        method.train_batch(*batch())


class Begun(nn.Module):
    """A model whose class the engine does not know, with the first state of another one."""

    def __init__(self, vice: str = "") -> None:
        super().__init__()
        self.inner, self.vice = make_model("lstm"), vice

    def initial_state(self, inputs: Tensor) -> Any:
        if self.vice == "another meaning":
            return torch.zeros(inputs, H)  # pyright: ignore[reportArgumentType]
        return self.inner.initial_state(inputs)  # pyright: ignore[reportCallIssue]

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.inner(inputs, state)


@pytest.mark.parametrize(("vice", "steps"), [("", 1), ("another meaning", 2)])
def test_an_initial_state_saves_the_first_chunk_a_step(vice: str, steps: int) -> None:
    methods = make_pair(Begun(vice))
    for _ in range(2):
        train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)
    assert len(methods[1]._engine._entries) == steps  # pyright: ignore[reportAttributeAccessIssue]


class Memory:
    """A state of a class of its own, without a `repr` that says what is in it."""

    def __init__(self, h: Tensor) -> None:
        self.h = h


register_pytree_node(Memory, lambda memory: ([memory.h], None), lambda children, _: Memory(*children))


def test_states_of_a_class_of_its_own_have_one_step() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = make_model("gru")

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            outputs, h = self.rnn(inputs, None if state is None else state.h)
            return outputs, Memory(h)

    methods = make_pair(Keeping())
    for _ in range(2):
        inputs, labels = batch()
        one, other = (method.train_batch(inputs, labels) for method in methods)
        torch.testing.assert_close(one.chunk_losses, other.chunk_losses, rtol=1e-10, atol=1e-10)
    assert len(methods[1]._engine._entries) == 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("checkpoint", "runs once, as it is compiled, and not again"),
        ("list", r"cannot train a parameter of shape \(5,\)"),
    ],
)
def test_what_a_trace_would_get_wrong_is_refused(kind: str, message: str) -> None:
    model = Variant(kind)
    optimizer = torch.optim.Adam([*model.parameters(), *model.hidden], lr=0.01)
    method = fptt.FPTT(model, optimizer, terminal_loss(), num_chunks=3, engine="compiled")
    with pytest.raises(fptt.CompilationError, match=message):
        method.train_batch(*batch())


def test_numbers_that_differ_from_run_to_run_are_refused() -> None:
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return functional.cross_entropy(output, target, reduction="none") * len(calls)

    method = make_method(make_model("gru"), "adam", fptt.TerminalLoss(loss), engine="compiled")
    with pytest.raises(fptt.CompilationError, match="give the same numbers when they are run again"):
        method.train_batch(*batch())


class OwnLoss(fptt.ChunkLoss):
    """A loss with a parameter, parts of any nest and an estimate of its own."""

    seen: Tensor

    def __init__(self, vice: str = "") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.register_buffer("seen", torch.zeros(()))
        self.vice, self.count = vice, 0

    def split(self, targets: Tensor, mask: Tensor | None, lengths: Any, batch_size: int) -> list[Any]:
        names = ("hard", "soft")
        return [{names[k % 2]: targets, "weight": [1.0 + k, True, None, "x"]} for k in range(len(lengths))]

    def forward(self, output: Tensor, part: Any) -> Tensor:
        loss = functional.cross_entropy(output[-1], part.get("hard", part.get("soft")))
        return loss * part["weight"][0] * self.scale * (2 if "soft" in part else 1) / (1 + self.seen)

    def observe(self, output: Tensor, part: Any, reduce: Any = None) -> None:
        if self.vice == "counter":
            self.count += 1
        elif self.vice == "reassigned":
            self.seen = self.seen + 1
        else:
            self.seen.add_(output.mean().abs())


def test_a_loss_of_ones_own_with_parameters_and_nested_parts() -> None:
    loss, model = OwnLoss(), make_model("lstm")
    methods = make_pair(model, loss=loss)
    for method in methods:
        method.optimizer.add_param_group({"params": list(method.loss.parameters()), "fptt_alpha": None})
    for _ in range(2):
        train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)
    assert methods[1].loss.get_parameter("scale") != 1.3


@pytest.mark.parametrize(("vice", "name"), [("counter", "loss.count"), ("reassigned", "loss.seen")])
def test_hidden_state_of_a_loss_is_refused(vice: str, name: str) -> None:
    method = make_method(make_model("lstm"), "adam", OwnLoss(vice), engine="compiled")
    with pytest.raises(fptt.CompilationError, match=f"cannot follow {name}"):
        method.train_batch(*batch())


class Rebinding(nn.Module):
    """Puts a tensor of another shape into the place of a buffer, as some spiking neurons do with their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model("lstm")
        self.register_buffer("memory", torch.zeros(0))

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.memory = inputs.detach().sum(0)
        return self.inner(inputs, state)


def test_a_buffer_that_is_bound_anew_is_named() -> None:
    method = make_method(Rebinding(), "adam", engine="compiled")
    with pytest.raises(fptt.CompilationError, match=r"cannot follow model\.memory, which the forward pass changes"):
        method.train_batch(*batch())
    assert method.model.get_buffer("memory").shape == (0,)


@pytest.mark.parametrize("bad_chunk", [0, 1, 4])
def test_counts_are_right_after_bad_numbers(bad_chunk: int) -> None:
    """With a model whose first chunk has a step of its own, so that groups are gathered again in mid-batch."""
    methods = make_pair(
        fptt.nn.Recurrent(nn.GRU(D, H), nn.Linear(H, C)), loss=fptt.TerminalLoss(functional.cross_entropy)
    )
    inputs, labels = batch()
    inputs[2 * bad_chunk] = 1e200  # finite, but not its square
    for method in methods:
        method.model.register_forward_pre_hook(lambda _, arguments: (arguments[0] ** 2, *arguments[1:]))
        with pytest.raises(FloatingPointError, match=f"in chunk {bad_chunk} of batch 0"):
            method.train_batch(inputs, labels)
        assert method.updates == bad_chunk
    train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)


def test_updates_before_an_error_are_counted() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = make_model("lstm")

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            if len(inputs) == 1:
                raise ValueError("too short")
            return self.rnn(inputs, state)

    methods = make_pair(Failing(), num_chunks=None, chunk_length=2)
    data = batch(5)
    for method in methods:
        with pytest.raises(ValueError, match="too short"):
            method.train_batch(*data)
        assert method.updates == 2
    assert_equal_memory(methods, 1e-10)


def test_clear_refusals() -> None:
    method = make_method(make_model("lstm"), "adam", engine="compiled")
    inputs, labels = batch()
    with pytest.raises(fptt.CompilationError, match="inputs must not require a gradient"):
        method.train_batch(inputs.requires_grad_(), labels)
    model = make_model("lstm")
    model.register_parameter("idle", nn.Parameter(torch.zeros(2)))
    idle = fptt.TBPTT(model, RULES["adam"]([model.idle]), terminal_loss(), num_chunks=2, engine="compiled")
    with pytest.raises(fptt.CompilationError, match="no parameter of the optimizer in the loss"):
        idle.train_batch(*batch())


def test_an_optimizer_may_hold_a_part_of_the_model() -> None:
    """The recurrent layer has a gradient, which nobody takes and no norm counts."""
    model = make_model("lstm")
    models = [model, copy.deepcopy(model)]
    before = [param.clone() for param in model.get_submodule("rnn").parameters()]
    methods = []
    for model, engine in zip(models, ("eager", "compiled"), strict=True):
        optimizer = RULES["adam"](model.get_submodule("readout").parameters())
        methods.append(fptt.FPTT(model, optimizer, terminal_loss(), num_chunks=6, max_norm=0.5, engine=engine))
    for _ in range(3):
        train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)
    assert all(torch.equal(*pair) for pair in zip(before, model.get_submodule("rnn").parameters(), strict=True))


def test_half_precision_does_not_overflow_in_the_norm() -> None:
    model = make_model("rnn").to(torch.float16)
    methods = make_pair(
        model,
        "sgd",
        loss=fptt.TerminalLoss(lambda output, target: 900 * functional.cross_entropy(output, target, reduction="none")),
        max_norm=1.0,
        num_chunks=2,
    )
    inputs, labels = batch()
    results = [method.train_batch(inputs.half(), labels) for method in methods]
    assert results[1].gradient_norm > 300
    torch.testing.assert_close(results[0].chunk_losses, results[1].chunk_losses, rtol=1e-2, atol=1.0)


def test_autocast_trains_on_the_weights_after_the_last_update() -> None:
    """The cache of autocast must not outlive an update."""
    model = make_model("rnn").float()
    inputs, labels = batch()
    losses = []
    for cache in (True, False):
        torch.manual_seed(0)
        method = make_pair(model, "sgd", num_chunks=T)[0]  # one use of each weight a chunk: no sums in bfloat16
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            losses.append(method.train_batch(inputs.float(), labels).chunk_losses)
    assert torch.equal(*losses)


def test_autocast_sees_the_weights_after_compiled_updates() -> None:
    method = make_pair(make_model("rnn").float(), "sgd", num_chunks=1)[1]
    inputs, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        before = method.model(inputs.float())[0]
        method.train_batch(inputs.float(), labels)
        inside = method.model(inputs.float())[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside, method.model(inputs.float())[0])
    assert not torch.equal(inside, before)


def test_no_step_is_compiled_from_bad_numbers() -> None:
    """Chunk 0 has a step already and leaves a NaN in the state; chunk 1 would need a new one."""
    methods = make_pair(fptt.nn.Recurrent(nn.GRU(D, H), nn.Linear(H, C)), num_chunks=None, chunk_length=3)
    for method in methods:
        method.model.register_forward_pre_hook(
            lambda _, arguments: (arguments[0] + arguments[0] ** 2 * 0, *arguments[1:])
        )
    train_both(methods, *batch(3))
    inputs, labels = batch(6)
    inputs[0] = 1e200  # finite, but not its square
    for method in methods:
        with pytest.raises(FloatingPointError, match="in chunk 0 of batch 1"):
            method.train_batch(inputs, labels)
        assert method.updates == 1
    train_both(methods, *batch(6))
    assert_equal_memory(methods, 1e-10)


def halved(_: nn.Module, __: Any, results: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    return results[0] / 2, results[1]


def weight_norm(rnn: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")


@pytest.mark.parametrize("kernel", ["fused", "torch", "plain"])
@pytest.mark.parametrize("change", [weight_norm, lambda rnn: rnn.register_forward_hook(halved)])
def test_a_recurrent_layer_that_somebody_has_changed(change: Any, kernel: Any) -> None:
    """A step with its weights alone would leave out the rest."""
    model = fptt.nn.GRU(D, H, C, kernel=kernel)
    change(model.rnn)
    methods = make_pair(model)
    train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)


@pytest.mark.parametrize("kernel", ["fused", "plain"])
def test_a_hook_that_comes_later(kernel: Any) -> None:
    methods = make_pair(fptt.nn.GRU(D, H, C, kernel=kernel))
    train_both(methods, *batch())
    for method in methods:
        method.model.get_submodule("rnn").register_forward_hook(halved)
    train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=["prune", "weight_norm", "spectral_norm"],
)
def test_a_layer_whose_weight_a_hook_makes_anew_is_refused(change: Any) -> None:
    """From one call to the next, as an attribute; to keep that as a state or buffer is no remedy."""
    model = fptt.nn.GRU(D, H, C)
    change(model.get_submodule("readout.0"))
    method = make_method(model, "sgd", engine="compiled")
    with pytest.raises(
        fptt.CompilationError,
        match=r"cannot follow model\.readout\.0\.weight, which the forward pass changes: a hook .*\.parametrizations",
    ):
        method.train_batch(*batch())


@pytest.mark.parametrize(
    "options", [{}, {"horizon": 2}, {"on_bad_number": "skip"}, {"on_bad_number": "skip", "horizon": 3}], ids=str
)
def test_a_model_may_write_into_the_inputs_and_state_that_it_is_given(options: dict[str, Any]) -> None:
    ends = []
    engines: tuple[EngineName, EngineName] = ("eager", "compiled")
    for in_place, engine in zip((False, True), engines, strict=True):
        torch.manual_seed(0)
        model, given = DecayingCell(D, C, in_place=in_place), torch.ones(B, C)
        optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.3), fptt.SequenceLoss(functional.mse_loss)
        method = fptt.FPTT(model, optimizer, loss, num_chunks=4, alpha=0.4, engine=engine, **options)
        found, state = [], given
        for _ in range(2):
            inputs, targets = torch.randn(T, B, D), torch.zeros(T, B, C)
            targets[T // 2] = torch.nan if "on_bad_number" in options else 0.0
            result = method.train_batch(inputs, targets, state=state)
            state = result.state
            found += [result.chunk_losses.nan_to_num(), state]
        assert torch.equal(given, torch.ones(B, C))
        ends.append([*model.parameters(), *found])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_model_without_a_gradient_is_named() -> None:
    model = fptt.nn.LSTM(D, H, C, last_only=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = fptt.TBPTT(model, optimizer, terminal_loss(), num_chunks=4, engine="compiled")
    model.requires_grad_(requires_grad=False)
    with pytest.raises(fptt.CompilationError, match="a loss that depends on a weight that requires a gradient: all"):
        method.train_batch(*batch())

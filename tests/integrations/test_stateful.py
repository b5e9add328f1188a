"""Modules that keep their state inside: own ones that behave as those of the libraries do, and the libraries' own."""

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import fptt
from fptt._sequence import flatten_state
from fptt.integrations.stateful import Explicit
from fptt.nn.spiking import Sigmoid, spike

T, B, D, H, C, K = 12, 4, 3, 6, 5, 4
OWN_ERROR = "the one that the test raises"


def fire(v: Tensor) -> tuple[Tensor, Tensor]:
    s = spike(v - 0.3, Sigmoid())
    return s, v - 0.3 * s


class Attribute(nn.Module):
    """An attribute that is a number before the first step, with a flag, as neurons of many programs."""

    v: Any = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.is_begun = False
        self.decay = torch.tensor(0.8, dtype=torch.float64)  # a constant

    def forward(self, x: Tensor) -> Tensor:
        before = self.v if self.is_begun else 0.0
        s, self.v = fire(self.decay.to(x) * before + x)
        self.is_begun = True
        return s


class Buffer(nn.Module):
    """A buffer without entries before the first step, as in snnTorch."""

    mem: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mem", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        s, self.mem = fire(0.8 * self.mem + x)
        return s


class Memories(nn.Module):
    """A dict of memories with a number before the first step, as in SpikingJelly."""

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[str, Any] = {"v": 0.0, "decay": 0.8, "unused": None}

    def forward(self, x: Tensor) -> Tensor:
        s, self._memories["v"] = fire(self._memories["decay"] * self._memories["v"] + x)
        return s


class InPlace(nn.Module):
    """A tensor that is changed in place; it is there from the beginning, for one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.v = torch.zeros(B, H, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        s, v = fire(0.8 * self.v + x)
        self.v.copy_(v)
        return s


class Nest(nn.Module):
    """A list of a pair, which does not exist before the first step."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "memory"):
            self.memory = [(torch.zeros_like(x), torch.zeros_like(x))]
        s, v = fire(0.8 * self.memory[0][1] + x)
        self.memory[0] = (s, v)
        return s


class Reference(nn.Module):
    """The same neurons with their state passed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(D, H), nn.Linear(H, C)])

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        v, outputs = inputs.new_zeros(inputs.shape[1], H) if state is None else state, []
        for x in inputs:
            s, v = fire(0.8 * v + self.layers[0](x))
            outputs.append(self.layers[1](s))
        return torch.stack(outputs), v


KINDS = pytest.mark.parametrize("kind", [Attribute, Buffer, Memories, InPlace, Nest])
NAMES = {Attribute: "1.v", Buffer: "1.mem", Memories: "1._memories.v", InPlace: "1.v", Nest: "1.memory"}


def make_pair(kind: type[nn.Module]) -> tuple[Reference, Explicit]:
    """Return the reference, and the adapter around a net with the same weights."""
    reference = Reference().double()
    return reference, Explicit(nn.Sequential(reference.layers[0], kind(), reference.layers[1]))


def held(module: nn.Module) -> list[tuple[int, Any]]:
    """Return everything in a module but parameters, by object and, of tensors, value."""
    found: list[Any] = []
    for own in module.modules():
        for values in (vars(own), vars(own)["_buffers"], vars(own).get("_memories", {})):
            found += [
                (key, id(value), copy.deepcopy(value) if isinstance(value, Tensor) else None)
                for key, value in values.items()
                if not key.startswith("_")
            ]
    return found


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, D, dtype=torch.float64), torch.randint(C, (B,))


def make_method(model: nn.Module, kind: Any = fptt.FPTT, **options: Any) -> fptt.Method:
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    return kind(model, torch.optim.Adam(model.parameters(), lr=0.01), loss, num_chunks=K, **options)


@KINDS
def test_the_state_that_was_inside_goes_in_and_comes_out(kind: type[nn.Module]) -> None:
    reference, model = make_pair(kind)
    inputs, _ = data()
    before = held(model.module)
    expected, _ = reference(inputs)
    outputs, state = model(inputs[:5])
    kept = copy.deepcopy(fptt.detach_state(state))
    rest, after = model(inputs[5:], state)
    assert torch.equal(torch.cat([outputs, rest]), expected)
    assert list(state) == list(after) == [NAMES[kind]]
    # the given state is as it was, and so is the module
    torch.testing.assert_close(fptt.detach_state(state), kept, rtol=0, atol=0)
    assert str(held(model.module)) == str(before)


@KINDS
@pytest.mark.parametrize("method", [fptt.FPTT, fptt.TBPTT, fptt.BPTT])
def test_training_is_that_with_the_state_passed(kind: type[nn.Module], method: Any) -> None:
    reference, model = make_pair(kind)
    reference = copy.deepcopy(reference)
    methods = [make_method(each, method) for each in (reference, model)]
    for _ in range(2):
        batch = data()
        results = [each.train_batch(*batch) for each in methods]
        torch.testing.assert_close(results[0].chunk_losses, results[1].chunk_losses, rtol=1e-12, atol=1e-12)
    for one, other in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in (InPlace, Nest)]


@pytest.mark.machine_code
@pytest.mark.parametrize("kind", [Attribute, Buffer, Memories, *SLOW])
def test_both_engines_agree(kind: type[nn.Module]) -> None:
    _, model = make_pair(kind)
    methods = [make_method(copy.deepcopy(model), engine=engine) for engine in ("eager", "compiled")]
    for _ in range(2):
        batch = data()
        one, other = (method.train_batch(*batch) for method in methods)
        torch.testing.assert_close(one.chunk_losses, other.chunk_losses, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.state, other.state, rtol=1e-10, atol=1e-10)


@KINDS
def test_single_lanes_begin_again(kind: type[nn.Module]) -> None:
    reference, model = make_pair(kind)
    inputs, _ = data()
    labels, is_first = torch.randint(C, (T, B)), torch.zeros(T, B, dtype=torch.bool)
    is_first[5, 1] = is_first[6, 2] = True
    results = []
    for each in (copy.deepcopy(reference), model):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        method = fptt.TBPTT(each, optimizer, fptt.SequenceLoss(functional.cross_entropy), num_chunks=K)
        results.append(method.train_batch(inputs, labels, is_first=is_first))
    assert torch.equal(results[0].chunk_losses, results[1].chunk_losses)


def test_the_module_is_put_back_after_an_error() -> None:
    class Fails(Memories):
        def forward(self, x: Tensor) -> Tensor:
            self.extra = super().forward(x)
            raise ArithmeticError(OWN_ERROR)

    model = Explicit(Fails())
    with pytest.raises(ArithmeticError, match=OWN_ERROR):
        model(torch.ones(1, B, D))
    assert model.module._memories == {"v": 0.0, "decay": 0.8, "unused": None}
    assert not hasattr(model.module, "extra")


def test_sequences_begin_with_what_the_module_holds() -> None:
    module = Memories()
    module._memories["v"] = torch.full((D,), 0.2, dtype=torch.float64)
    model = Explicit(module)
    inputs = torch.randn(3, B, D, dtype=torch.float64)
    initial = model.initial_state(inputs)
    assert torch.equal(initial["_memories.v"], torch.full((B, D), 0.2, dtype=torch.float64))
    assert torch.equal(model(inputs, initial)[0], model(inputs)[0])
    module._memories["v"] = 0.25
    assert torch.equal(model.initial_state(inputs)["_memories.v"], torch.full((B, D), 0.25, dtype=torch.float64))


def test_a_beginning_that_cannot_be_known_is_named() -> None:
    class BeginsWithOnes(nn.Module):
        v: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.v = (torch.ones_like(x) if self.v is None else self.v) + x
            return self.v

    model = Explicit(nn.Sequential(BeginsWithOnes()))
    assert model(torch.zeros(2, B, D))[0].eq(1).all()
    with pytest.raises(ValueError, match=r"0\.v of the Sequential must begin with zeros"):
        model.initial_state(torch.zeros(2, B, D))


class BeginsTwiceAsHigh(nn.Module):
    """A first step of its own, which a flag tells."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0
        self.is_first = True

    def forward(self, x: Tensor) -> Tensor:
        self.v = 0.5 * self.v + (2 * x if self.is_first else x)
        self.is_first = False
        return self.v


def test_a_flag_that_makes_the_first_step_another_one_is_named() -> None:
    """A state of tensors cannot have it: lanes that begin again would go on with its later value."""
    model, inputs = Explicit(BeginsTwiceAsHigh()), torch.ones(3, B, D)
    assert model(inputs)[0][:, 0, 0].tolist() == [2, 2, 2]
    with pytest.raises(
        ValueError, match=r"^v of the BeginsTwiceAsHigh must begin with zeros.* as is_first tells it\.$"
    ):
        model.initial_state(inputs)


def test_statistics_are_no_state_and_move_on() -> None:
    statistics = nn.BatchNorm1d(D, momentum=0.5)
    model = Explicit(nn.Sequential(statistics, Memories()))
    inputs = torch.ones(1, B, D)
    _, state = model(inputs)
    assert list(state) == ["1._memories.v"]
    _, state = model(inputs, state)
    model.initial_state(inputs)  # which tries a step without a lasting effect
    assert statistics.running_mean is not None
    assert statistics.running_mean.tolist() == [0.75] * D


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "rewrite",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=["prune", "weight_norm", "spectral_norm"],
)
def test_weights_that_torch_computes_before_each_call_are_no_state(rewrite: Any) -> None:
    torch.manual_seed(0)
    model = Explicit(nn.Sequential(rewrite(nn.Linear(D, C)), Memories()).double())
    inputs, _ = data()
    labels, is_first = torch.randint(C, (T, B)), torch.zeros(T, B, dtype=torch.bool)
    is_first[5, 1] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = fptt.TBPTT(model, optimizer, fptt.SequenceLoss(functional.cross_entropy), num_chunks=K)
    assert list(method.train_batch(inputs, labels, is_first=is_first).state) == ["1._memories.v"]
    outputs, _ = model.eval()(inputs)
    torch.testing.assert_close(outputs, torch.stack([model.module(step) for step in inputs]))


def test_all_steps_at_once_and_one_of_two_outputs() -> None:
    class Layer(nn.Module):
        h: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(D, H)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            outputs, self.h = self.rnn(inputs, self.h)
            return -outputs, outputs

    layer, inputs = Layer(), torch.randn(T, B, D)
    expected, final = layer.rnn(inputs)
    model = Explicit(layer, each_step=False, output=1)
    first, state = model(inputs[:5])
    second, state = model(inputs[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), expected)
    torch.testing.assert_close(state["h"], final)


@pytest.mark.parametrize("size", [2, 3])
def test_a_lane_begins_again_in_the_dimension_that_is_named(size: int) -> None:
    """A state of two layers, also where there are as many lanes."""

    class Layers(nn.Module):
        h: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(D, H, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs, self.h = self.rnn(inputs, self.h)
            return outputs

    layers, inputs, is_first = Layers(), torch.randn(T, size, D), torch.zeros(T, size, dtype=torch.bool)
    is_first[4, 0] = True
    model = Explicit(layers, each_step=False, state_batch_dim=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    method = fptt.TBPTT(model, optimizer, fptt.SequenceLoss(functional.mse_loss), chunk_length=4)
    found = method.train_batch(inputs, torch.zeros(T, size, H), is_first=is_first).chunk_losses[1]
    before = layers.rnn(inputs[:4])[1]
    before[:, 0] = 0
    expected = layers.rnn(inputs[4:8], before)[0].square().mean()
    torch.testing.assert_close(torch.as_tensor(found), expected.detach())


def test_a_copy_goes_on_from_a_given_state() -> None:
    _, model = make_pair(Attribute)
    inputs, _ = data()
    expected, state = model(inputs)
    fresh = Explicit(copy.deepcopy(model.module))  # as after loading weights: it has not run
    assert torch.equal(fresh(inputs, state)[0], model(inputs, state)[0])
    assert torch.equal(fresh(inputs)[0], expected)


def test_the_gradient_is_right() -> None:
    _, model = make_pair(Memories)
    report = fptt.check_gradient(model, *data(), fptt.TerminalLoss(functional.cross_entropy), num_chunks=K)
    assert report.passed
    assert report.spike_rate is not None
    assert report.spike_rate > 0.05


class Masked(nn.Module):
    """A leaky sum, in training without the units that its mask leaves out, the same at all steps of a sequence."""

    v: Any = 0.0
    mask: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.v = 0.5 * self.v + self.scale * x
        if not self.training:
            return self.v
        if self.mask is None:
            self.mask = 2 * torch.bernoulli(torch.full_like(x, 0.5))
        return self.v * self.mask


def test_what_one_mode_alone_keeps_goes_through_the_other() -> None:
    torch.manual_seed(0)
    model, x = Explicit(Masked()), torch.ones(2, 1, 8)
    outputs, state = model(x)
    mask = outputs[0, 0]  # v = 1 at first
    assert set(mask.tolist()) == {0.0, 2.0}
    outputs, state = model.eval()(x, state)
    torch.testing.assert_close(outputs[:, 0, 0], torch.tensor([1.75, 1.875]))
    outputs, state = model.train()(x, state)
    torch.testing.assert_close(outputs[:, 0], torch.tensor([[1.9375], [1.96875]]) * mask)
    outputs, state = model.eval()(x)
    assert list(state) == ["v"]
    outputs, state = model.train()(x, state)  # training makes what it alone keeps, as at the beginning
    assert "mask" not in vars(model.module)
    assert set(outputs[0, 0].tolist()) == {0.0, 3.5}
    torch.testing.assert_close(outputs[1], outputs[0] * 1.875 / 1.75)
    with pytest.raises(ValueError, match=r"state must be a dict of .*got one of mask, v, w"):
        model(x, dict(sorted({**state, "w": x}.items())))
    with pytest.raises(ValueError, match=r"state must be a dict of .*got one of mask"):
        model(x, {"mask": state["mask"]})


def test_a_stream_is_learned_with_what_training_alone_keeps() -> None:
    model = Explicit(Masked())
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters()), loss, chunk_length=2)
    online = fptt.OnlineLearner(method, max_delay=1)
    for step in range(9):
        online.predict_one([1.0])
        online.learn_one([1.0], None if step in (2, 3) else 1.0)  # a chunk without a label is run by inference
    assert method.updates == 3
    with pytest.raises(ValueError, match="state must have 1 tensors, as the model keeps in evaluation mode, got 2"):
        online.load_state_dict(online.state_dict())


# -- what does not fit is named ----------------------------------------------------------------------------------------


class Counts(Memories):
    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x) * self.steps


@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=pytest.mark.machine_code)])
def test_a_number_that_goes_on_is_named(engine: str) -> None:
    model = Explicit(nn.Sequential(nn.Linear(D, C), Counts()).double())
    with pytest.raises(
        ValueError, match=r"1\.steps of the Sequential must stay as it is after the first step.*got 6 after 3"
    ):
        make_method(model, engine=engine).train_batch(*data())


def test_a_buffer_that_is_changed_in_place_with_a_graph_is_named() -> None:
    class Overwrites(nn.Module):
        v: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("v", torch.zeros(B, C))

        def forward(self, x: Tensor) -> Tensor:
            self.v.copy_(0.5 * self.v + x)
            return self.v

    model = Explicit(nn.Sequential(nn.Linear(D, C), Overwrites()))
    with pytest.raises(ValueError, match=r"1\.v must be no buffer that is changed in place with a graph"):
        model(torch.ones(2, B, D))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(B, H), "got a Tensor"),
        ({}, "got one of nothing"),
        ({"v": torch.zeros(B, H)}, "got one of v"),
    ],
)
def test_a_wrong_state_is_named(state: Any, message: str) -> None:
    _, model = make_pair(Memories)
    with pytest.raises(ValueError, match=rf"state must be a dict of 1\._memories\.v, .*{message}"):
        model(data()[0], state)


def test_a_state_of_another_width_is_named_by_the_method() -> None:
    _, model = make_pair(Memories)
    with pytest.raises(ValueError, match="state must fit the model, got tensors of shapes"):
        make_method(model).train_batch(*data(), {"1._memories.v": torch.zeros(B, H + 1, dtype=torch.float64)})


@pytest.mark.parametrize(("output", "hint"), [(None, ": say by `output`"), (1, "")])
def test_outputs_that_are_no_tensor_are_named(output: int | None, hint: str) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, {}

    with pytest.raises(TypeError, match=f"module must return a tensor, got a .*{hint}"):
        Explicit(Several(), output=output)(torch.ones(2, B, D))


@KINDS
def test_the_same_module_without_the_adapter_is_named(kind: type[nn.Module]) -> None:
    class Unasked(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            return torch.stack([self.net(x) for x in inputs]), state

    method = make_method(Unasked(make_pair(kind)[1].module))
    owner = rf"net\.1 \({kind.__name__}\.{NAMES[kind].split('.')[1]}\)"
    with pytest.raises(RuntimeError, match=rf"keeps a state of its own.* in {owner}.*Explicit.*docs/spiking\.md"):
        method.train_batch(*data())


# -- the libraries' own ------------------------------------------------------------------------------------------------


def snntorch_net() -> nn.Module:
    snntorch = pytest.importorskip("snntorch")
    options = {"beta": 0.8, "threshold": 0.3, "init_hidden": True}
    return nn.Sequential(
        nn.Linear(D, H),
        snntorch.Leaky(**options),
        nn.Linear(H, C),
        snntorch.RLeaky(V=0.5, learn_recurrent=False, all_to_all=False, **options),
    )


def spikingjelly_net() -> nn.Module:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    return nn.Sequential(
        nn.Linear(D, H), neuron.LIFNode(v_threshold=0.3), nn.Linear(H, C), neuron.ParametricLIFNode(v_threshold=0.3)
    )


LIBRARIES = pytest.mark.parametrize("make", [snntorch_net, spikingjelly_net])


@LIBRARIES
def test_a_net_of_a_library_runs_as_by_itself(make: Callable[[], nn.Module]) -> None:
    net, inputs = make(), torch.randn(T, B, D)
    own = copy.deepcopy(net)
    expected = torch.stack([own(x) for x in inputs])
    assert 0 < expected.mean().item() < 1
    model = Explicit(net)
    state, outputs = None, []
    for (chunk,) in fptt.split_sequence(inputs, num_chunks=K):
        output, state = model(chunk, state)
        outputs.append(output)
    assert torch.equal(torch.cat(outputs), expected)
    assert torch.equal(model(inputs, model.initial_state(inputs))[0], expected)


@LIBRARIES
@pytest.mark.parametrize("method", [fptt.FPTT, fptt.TBPTT, fptt.BPTT])
def test_a_net_of_a_library_trains(make: Callable[[], nn.Module], method: Any) -> None:
    model = Explicit(make())
    before = copy.deepcopy(model.state_dict())
    inputs, labels = data()
    result = make_method(model, method).train_batch(inputs.float(), labels)
    assert result.loss.isfinite()
    assert any(not torch.equal(before[name], own) for name, own in model.state_dict().items())


@LIBRARIES
@pytest.mark.slow
@pytest.mark.machine_code
def test_both_engines_agree_on_a_net_of_a_library(make: Callable[[], nn.Module]) -> None:
    model = Explicit(make())
    methods = [make_method(copy.deepcopy(model), engine=engine) for engine in ("eager", "compiled")]
    inputs, labels = data()
    one, other = (method.train_batch(inputs.float(), labels) for method in methods)
    torch.testing.assert_close(one.chunk_losses, other.chunk_losses, rtol=1e-5, atol=1e-5)


class Trace(nn.Module):
    """A state that begins with the second step, and one in a dict whose keys are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Any = None
        self.traces: dict[int, Any] = {0: 0.0, 1: 0.0}

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            self.traces[1] = 0.5 * self.traces[1] + self.before
        self.before = x
        return x + self.traces[1]


def test_a_state_that_begins_with_the_second_step_is_carried() -> None:
    explicit = Explicit(Trace())
    inputs = torch.ones(4, 1, 1)
    state = explicit.initial_state(inputs)
    for _ in range(2):  # nothing of the first call is left in the second
        outputs, _ = explicit(inputs, state)
        assert outputs.flatten().tolist() == [1, 2, 2.5, 2.75]


def test_a_state_that_begins_with_the_second_step_is_carried_after_a_chunk_of_one() -> None:
    """And is in the state from the first chunk on: the states of all chunks are of one structure."""
    explicit = Explicit(Trace())
    for _ in range(2):  # nothing of the first sequence is left in the second
        found, structures, state = [], set(), None
        for step in torch.ones(4, 1, 1):
            outputs, state = explicit(step.unsqueeze(0), state)
            assert isinstance(state, dict)
            found.append(outputs.item())
            structures.add(frozenset(state))
        assert found == [1, 2, 2.5, 2.75]
        assert structures == {frozenset({"before", "traces.1"})}


class Entries(nn.Module):
    """Tensors in a list that are changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = [torch.zeros(B, H, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        self.memory[0].mul_(0.5).add_(x)
        return self.memory[0] + 0


def test_entries_of_a_list_that_are_changed_in_place_are_carried() -> None:
    module = Entries()
    explicit, inputs = Explicit(module), torch.ones(2, B, H, dtype=torch.float64)
    for _ in range(2):
        outputs, _ = explicit(inputs, None)
        assert outputs[:, 0, 0].tolist() == [1, 1.5]
        assert not module.memory[0].any()


class LateInPlace(nn.Module):
    """A tensor that the first step makes, and every other changes in place."""

    v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.v = torch.zeros_like(x) if self.v is None else self.v
        self.v.mul_(0.5).add_(x)
        return self.v + 0


def test_a_given_state_is_not_written_into() -> None:
    explicit, inputs = Explicit(LateInPlace()), torch.ones(1, B, H)
    _, state = explicit(inputs)
    for _ in range(2):
        assert explicit(inputs, state)[0][0, 0, 0] == 1.5
        assert flatten_state(state)[0][0, 0] == 1


class Adaptive(nn.Module):
    """A threshold that rises with a spike, and not before."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0
        self.threshold = torch.ones((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.v = 0.5 * self.v + x
        spikes = (self.v > self.threshold).to(x.dtype)
        if spikes.any():
            self.threshold = self.threshold + spikes
        return spikes


@pytest.mark.parametrize("is_number", [False, True])
def test_what_changes_in_a_later_chunk_is_carried_from_then_on(is_number: bool) -> None:
    """Nothing of it stays in the module; a sequence before it, and one of the other mode, lacks it."""
    module = Adaptive()
    module.threshold = 1.0 if is_number else module.threshold  # pyright: ignore[reportAttributeAccessIssue]
    explicit, inputs = Explicit(module), torch.tensor([0, 0, 2, 2, 2, 5], dtype=torch.float64).view(6, 1, 1)
    # v = 0, 0, 2, 3, 3.5, 6.75 beside thresholds 1, 1, 1, 2, 3, 4
    expected = [0, 0, 1, 1, 1, 1]
    for is_training in (True, True, False):
        explicit.train(is_training)
        outputs, state = [], None
        for chunk in inputs.split(2):
            some, state = explicit(chunk, state)
            outputs += some.flatten().tolist()
        assert outputs == expected
        assert isinstance(state, dict)
        assert state["threshold"].item() == 5
        assert (module.threshold, module.v) == (1, 0)


def test_what_changed_once_is_in_every_state() -> None:
    explicit = Explicit(Adaptive())
    for expected in ({"v"}, {"v", "threshold"}):
        _, state = explicit(torch.zeros(2, 1, 1))
        assert isinstance(state, dict)
        assert state.keys() == expected
        explicit(2 * torch.ones(2, 1, 1), state)


def test_a_state_from_before_a_late_change_goes_on_after_it() -> None:
    explicit = Explicit(Adaptive())
    _, before = explicit(torch.zeros(2, 1, 1))
    (once, first), (again, second) = (explicit(2 * torch.ones(2, 1, 1), before) for _ in range(2))
    assert isinstance(before, dict)
    assert isinstance(second, dict)
    assert (before.keys(), second.keys()) == ({"v"}, {"v", "threshold"})
    assert torch.equal(once, again)
    assert first == second


class Counting(nn.Module):
    """A number that changes with a spike."""

    num_spikes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_spikes += int(x.sum())
        return x


def test_a_number_that_changes_in_a_later_chunk_is_named_and_put_back() -> None:
    module = Counting()
    explicit = Explicit(module)
    _, state = explicit(torch.zeros(2, 1, 1))
    with pytest.raises(ValueError, match=r"num_spikes of the Counting must stay as it is .* got 2 after 0"):
        explicit(torch.ones(2, 1, 1), state)
    assert module.num_spikes == 0


class Listing(nn.Module):
    """A list that grows from step to step, on which the outputs depend."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0
        self.steps: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.steps.append(1)
        self.v = self.v + x * len(self.steps)
        return self.v


def test_a_list_that_goes_on_is_named() -> None:
    module = Listing()
    with pytest.raises(ValueError, match="steps"):
        Explicit(module)(torch.ones(2, 1, 1), {"v": torch.ones(1, 1)})
    assert module.steps == []


# -- containers of every kind ------------------------------------------------------------------------------------------


class Inside(nn.Module):
    """v = 0.5 v + x, read from a container and written to it again."""

    def __init__(self, memory: Any, read: Callable[[Any], Any], write: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.memory, self.read, self.write = memory, read, write

    def forward(self, x: Tensor) -> Tensor:
        v = 0.5 * self.read(self.memory) + x
        self.write(self.memory, v)
        return v + 0


def put(*keys: Any) -> Callable[[Any, Any], None]:
    def write(memory: Any, v: Any) -> None:
        for key in keys[:-1]:
            memory = memory[key]
        memory[keys[-1]] = v

    return write


def zeros() -> Tensor:
    return torch.zeros(B, H, dtype=torch.float64)


CONTAINERS: dict[str, Any] = {
    "ordered": (lambda: OrderedDict(v=0.0, other=1.0), lambda memory: memory["v"], put("v")),
    "default": (lambda: defaultdict(zeros), lambda memory: memory["v"], put("v")),
    "deque": (
        lambda: deque([zeros(), zeros()], maxlen=2),
        lambda memory: memory[-1],
        lambda memory, v: memory.append(v),
    ),
    "nested": (lambda: {"layer": {"v": 0.0}}, lambda memory: memory["layer"]["v"], put("layer", "v")),
    "lists": (lambda: [[0.0], [zeros()]], lambda memory: memory[0][0], put(0, 0)),
    "in place": (lambda: [({"v": zeros()},)], lambda memory: memory[0][0]["v"], lambda m, v: m[0][0]["v"].copy_(v)),
}


@pytest.mark.parametrize(("make", "read", "write"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_state_in_a_container_at_any_depth_is_carried_and_put_back(make: Any, read: Any, write: Any) -> None:
    """By hand: 1, 1.5, 1.75, …, in one call or in several; every sequence begins with zeros again."""
    explicit, inputs = Explicit(Inside(make(), read, write)), torch.ones(4, B, H, dtype=torch.float64)
    before = repr(explicit.module.memory)
    for _ in range(2):
        assert explicit(inputs)[0][:, 0, 0].tolist() == [1, 1.5, 1.75, 1.875]
        _, state = explicit(inputs[:1])
        for expected in (1.5, 1.75):
            again = explicit(inputs[:1], state)[0]  # does not write to the given state
            outputs, state = explicit(inputs[:1], state)
            assert outputs[0, 0, 0].item() == again[0, 0, 0].item() == expected
        assert repr(explicit.module.memory) == before
    assert explicit(inputs, explicit.initial_state(inputs))[0][:, 0, 0].tolist() == [1, 1.5, 1.75, 1.875]
    assert repr(explicit.module.memory) == before


class Pocket:
    """An object with a tensor in it."""

    def __init__(self) -> None:
        self.v = [zeros()]


@pytest.mark.parametrize(
    ("memory", "read", "write", "kind"),
    [
        (Pocket(), lambda memory: memory.v[0], lambda memory, v: put(0)(memory.v, v), "Pocket"),
        ([Pocket()], lambda memory: memory[0].v[0], lambda memory, v: memory[0].v[0].copy_(v), "list"),
        ([0, zeros()], lambda memory: memory[1], put(1), "list"),
    ],
)
def test_a_state_that_no_nest_of_tensors_has_is_named(memory: Any, read: Any, write: Any, kind: str) -> None:
    explicit = Explicit(nn.Sequential(Inside(memory, read, write)))
    with pytest.raises(ValueError, match=rf"0\.memory of the Sequential must be .* got a changed {kind}"):
        explicit(torch.ones(1, B, H, dtype=torch.float64))


def test_entries_that_two_modules_share_stay_shared() -> None:
    memory = [zeros()]
    net = nn.Sequential(*(Inside(memory, lambda own: own[0], lambda own, v: own[0].copy_(v)) for _ in range(2)))
    assert Explicit(net)(torch.ones(1, B, H, dtype=torch.float64))[0][0, 0, 0].item() == 1 + 0.5
    assert not memory[0].any()

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fptt
from fptt._sequence import map_state

MODELS = {"LSTM": fptt.nn.LSTM, "GRU": fptt.nn.GRU, "RNN": fptt.nn.RNN}
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.usefixtures("float64")
def test_plain_cells_have_the_numbers_and_gradients_of_the_fused_kernels(name: str, num_layers: int) -> None:
    fused, plain = (
        MODELS[name](3, 5, 2, num_layers=num_layers, readout_sizes=[4], kernel=kernel) for kernel in ("fused", "plain")
    )
    plain.load_state_dict(fused.state_dict())
    inputs = [torch.randn(7, 4, 3, requires_grad=True) for _ in range(2)]
    inputs[1] = inputs[0].detach().clone().requires_grad_()
    _, states = zip(*(model(torch.ones(2, 4, 3)) for model in (fused, plain)), strict=True)
    results = [
        model(x, fptt.detach_state(state)) for model, x, state in zip((fused, plain), inputs, states, strict=True)
    ]
    for outputs, _ in results:
        outputs.square().sum().backward()
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(tuple(results[0][1]), tuple(results[1][1]), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-10, atol=1e-10)
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)


@every_model
@pytest.mark.parametrize("kernel", ["fused", "plain"])
def test_chunks_with_the_state_handed_on_are_the_whole(name: str, kernel: Any) -> None:
    model = MODELS[name](3, 5, 2, num_layers=2, kernel=kernel)
    inputs = torch.randn(11, 4, 3)
    whole, final = model(inputs)
    state, pieces = None, []
    for (chunk,) in fptt.split_sequence(inputs, num_chunks=4):
        output, state = model(chunk, state)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(state, final)


def test_layouts_and_readouts() -> None:
    inputs = torch.randn(7, 4, 3)
    model, twin = fptt.nn.LSTM(3, 5, 2), fptt.nn.LSTM(3, 5, 2, batch_first=True)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(inputs.transpose(0, 1))[0].transpose(0, 1), model(inputs)[0])
    deep = fptt.nn.LSTM(3, 5, 2, readout_sizes=[4], readout_activation=nn.ReLU)
    assert [type(module) for module in deep.readout.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    last = fptt.nn.LSTM(3, 5, 2, last_only=True)
    last.load_state_dict(model.state_dict())
    torch.testing.assert_close(last(inputs)[0], model(inputs)[0][-1:])  # a product of fewer rows may round otherwise
    assert fptt.nn.LSTM(3, 5)(inputs)[0].shape == (7, 4, 5)
    assert isinstance(model(inputs)[1], fptt.nn.LSTMState)


def test_forget_bias_keeps_the_memory() -> None:
    torch.manual_seed(0)
    plain = fptt.nn.LSTM(3, 5, num_layers=2)
    torch.manual_seed(0)
    biased = fptt.nn.LSTM(3, 5, num_layers=2, forget_bias=4.0)
    for name, value in plain.state_dict().items():
        shift = torch.zeros_like(value)
        if "bias_ih" in name:
            shift[5:10] = 4.0
        torch.testing.assert_close(biased.state_dict()[name], value + shift)
    zeros = torch.zeros(2, 1, 5)
    for model, least, most in ((plain, 0.0, 0.05), (biased, 0.5, 1.0)):
        memories = [model(torch.zeros(10, 1, 3), fptt.nn.LSTMState(zeros, zeros + c))[1].c[0].mean() for c in (0, 1)]
        assert least < (memories[1] - memories[0]).item() < most
    with pytest.raises(ValueError, match="forget_bias"):
        fptt.nn.GRU(3, 5, forget_bias=1.0)


@pytest.mark.parametrize("cell", [fptt.nn.LSTM, fptt.nn.GRU])
def test_chrono_init_spreads_the_memories_over_all_times(cell: type[fptt.nn.LSTM | fptt.nn.GRU]) -> None:
    """A unit that keeps σ(b) a step remembers for 1 / (1 − σ(b)) = 1 + exp(b) steps: 2 to T, and evenly so."""
    torch.manual_seed(0)
    model = cell(3, 2000, num_layers=2, chrono_init=101)
    for layer in range(2):
        biases = [model.rnn.get_parameter(f"bias_{side}_l{layer}").detach().split(2000) for side in ("ih", "hh")]
        first, keeps = (own + other for own, other in list(zip(*biases, strict=True))[:2])
        times = 1 + keeps.exp()
        assert 2 <= times.min() < 2.5
        assert 100 < times.max() <= 101
        torch.testing.assert_close(times.mean(), torch.tensor(51.5), rtol=0.05, atol=0)
        if cell is fptt.nn.LSTM:
            torch.testing.assert_close(first, -keeps)


def test_chrono_init_of_what_cannot_have_it() -> None:
    with pytest.raises(ValueError, match="chrono_init belongs to LSTM and GRU, got 9 for a RNN"):
        fptt.nn.RNN(3, 5, chrono_init=9)
    with pytest.raises(ValueError, match="chrono_init must be at least 2, got 1"):
        fptt.nn.LSTM(3, 5, chrono_init=1)
    with pytest.raises(ValueError, match=r"forget_bias must be 0 with chrono_init=9, got 1\.0"):
        fptt.nn.LSTM(3, 5, chrono_init=9, forget_bias=1.0)


def test_fan_in_init_makes_few_inputs_loud() -> None:
    model = fptt.nn.GRU(4, 100, num_layers=2, fan_in_init=True)
    weights = model.get_parameter("rnn.weight_ih_l0")
    assert 0.48 < weights.abs().max() <= 0.5
    assert weights.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)
    for name in ("rnn.weight_ih_l1", "rnn.weight_hh_l0"):
        assert model.get_parameter(name).abs().max() <= 0.1


def test_dropout_acts_between_layers_in_training_only() -> None:
    for kernel in ("fused", "plain"):
        model = fptt.nn.GRU(3, 5, num_layers=2, dropout=0.5, kernel=kernel)
        inputs = torch.randn(7, 4, 3)
        assert not torch.equal(model(inputs)[0], model(inputs)[0])
        model.eval()
        assert torch.equal(model(inputs)[0], model(inputs)[0])


@pytest.mark.parametrize(
    "cell", [nn.LSTMCell(3, 5), nn.GRUCell(3, 5), nn.RNNCell(3, 5)], ids=lambda c: type(c).__name__
)
def test_a_cell_of_ones_own_is_one_line(cell: nn.Module) -> None:
    model = fptt.nn.Recurrent(fptt.nn.Unroll(cell), nn.Linear(5, 2))
    loss = fptt.TerminalLoss(nn.functional.cross_entropy)
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters()), loss, num_chunks=3)
    assert method.train_batch(torch.randn(7, 4, 3), torch.tensor([0, 1, 0, 1])).updates == 3


def test_unrolled_cell_equals_the_layer() -> None:
    layer, cell = nn.LSTM(3, 5), nn.LSTMCell(3, 5)
    cell.load_state_dict({name: layer.state_dict()[f"{name}_l0"] for name in cell.state_dict()})
    inputs = torch.randn(7, 4, 3)
    torch.testing.assert_close(fptt.nn.Unroll(cell)(inputs)[0], layer(inputs)[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 5),
        nn.parallel.DataParallel(nn.GRU(3, 5)),
        fptt.nn.LSTM(3, 5),
        fptt.nn.spiking.LIF(3, 5),
        fptt.nn.Recurrent(nn.RNN(3, 5)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_is_not_taken_for_a_cell(layer: nn.Module) -> None:
    name = type(layer).__name__
    with pytest.raises(TypeError, match=f"cell must be a cell, .* got the layer {name}: give it to fptt.nn.Recurrent"):
        fptt.nn.Unroll(layer)


@pytest.mark.parametrize("cell", [nn.LSTMCell(3, 5), nn.GRUCell(3, 5)], ids=lambda cell: type(cell).__name__)
def test_a_cell_is_not_taken_for_a_layer(cell: nn.Module) -> None:
    name = type(cell).__name__
    with pytest.raises(TypeError, match=rf"rnn must be a layer, .* got the cell {name}: wrap it in fptt\.nn\.Unroll"):
        fptt.nn.Recurrent(cell)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fptt.nn.LSTM(3, 5, kernel="triton"), "kernel must be one of"),  # pyright: ignore
        (lambda: fptt.nn.LSTM(3, 5, readout_sizes=[4]), "readout_sizes"),
        (lambda: fptt.nn.LSTM(3, 5)(torch.zeros(7, 4)), "inputs must have shape"),
        (lambda: fptt.nn.GRU(3, 5)(torch.zeros(7, 4, 3), torch.zeros(1, 3, 5)), "state must have"),
        (lambda: fptt.nn.LSTM(0, 5), "input_size must be a positive integer, got 0"),
        (lambda: fptt.nn.LSTM(3, 8.0), r"hidden_size must be a positive integer, got 8\.0"),  # pyright: ignore
        (lambda: fptt.nn.GRU(3, 5, 0), "output_size must be a positive integer, got 0"),
        (lambda: fptt.nn.RNN(3, 5, num_layers=True), "num_layers must be a positive integer, got True"),
        (lambda: fptt.nn.LSTM(3, 5, 2, readout_sizes=[4, 0]), r"readout_sizes\[1\] must be a positive integer, got 0"),
        (lambda: fptt.nn.LSTM(3, 5, num_layers=2, dropout=1.0), r"dropout must be in \[0, 1\), got 1\.0"),
        (lambda: fptt.nn.LSTM(3, 5, forget_bias=torch.nan), "forget_bias must be a finite number, got nan"),
        (lambda: fptt.nn.LSTM(3, 5, chrono_init=2.5), r"chrono_init must be a positive integer, got 2\.5"),  # pyright: ignore
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"readout_sizes": 16}, "readout_sizes must be iterable, got a int"),
        (
            {"readout_activation": nn.ReLU()},
            r"must make a module when it is called, as torch\.nn\.ReLU does, got ReLU\(\)",
        ),
        ({"readout_activation": nn.functional.relu}, "readout_activation must make a module .* got <function relu"),
        ({"readout_activation": "relu"}, "readout_activation must make a module .* got 'relu'"),
        ({"readout_activation": int}, "readout_activation must make a module .*, which makes a int"),
    ],
    ids=["a size", "a module", "a function", "a name", "no module"],
)
def test_what_makes_no_readout_is_named(option: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"readout_sizes": [4], **option}
    with pytest.raises(TypeError, match=message):
        fptt.nn.LSTM(3, 5, 2, **options)


def test_numbers_of_numpy_are_sizes() -> None:
    labels = np.array([0, 1, 2])
    model = fptt.nn.GRU(3, 5, labels.max() + 1, readout_sizes=np.array([4]))  # pyright: ignore
    assert tuple(model(torch.zeros(7, 2, 3))[0].shape) == (7, 2, 3)


def test_a_linear_readout_calls_what_is_put_into_it() -> None:
    """Its layers are multiplied first only while they are layers, whoever wants to see or change them."""
    torch.manual_seed(0)
    model = fptt.nn.GRU(3, 8, 2, readout_sizes=[64]).double()
    inputs, calls = torch.randn(9, 50, 3, dtype=torch.float64), []
    merged, _ = model(inputs)
    assert isinstance(model.readout, nn.Sequential)
    first, _, last = model.readout
    handle = first.register_forward_hook(lambda *_: calls.append(1))
    apart, _ = model(inputs)
    assert calls == [1]
    torch.testing.assert_close(apart, merged)
    handle.remove()
    model.readout[1] = nn.ReLU()
    hidden, _ = model.rnn(inputs)
    torch.testing.assert_close(model(inputs)[0], last(first(hidden).relu()))


@pytest.mark.parametrize("without", [[0], [2], [4], [0, 2], [0, 2, 4]])
def test_a_linear_readout_works_without_biases(without: list[int]) -> None:
    torch.manual_seed(0)
    model = fptt.nn.LSTM(3, 16, 2, readout_sizes=[32, 8]).double()
    assert isinstance(model.readout, nn.Sequential)
    for number in without:
        model.readout[number].register_parameter("bias", None)
    hidden = torch.randn(50, 8, 16, dtype=torch.float64)  # many: the weights are multiplied first, where they can be
    torch.testing.assert_close(model.readout(hidden), nn.Sequential(*model.readout)(hidden))


def test_a_linear_readout_works_without_layers() -> None:
    model = fptt.nn.LSTM(3, 16, 2, readout_sizes=[32])
    assert isinstance(model.readout, nn.Sequential)
    hidden = torch.randn(50, 8, 16)
    model.readout[2] = nn.Identity()
    assert torch.equal(model.readout(hidden), model.readout[0](hidden))
    model.readout[0] = nn.Identity()
    assert torch.equal(model.readout(hidden), hidden)


every_kernel = pytest.mark.parametrize("kernel", ["fused", "torch", "plain"])


@every_model
@every_kernel
def test_hooks_of_the_layer_run(name: str, kernel: Any) -> None:
    """32 units are enough for machine code, which would pass them over, as would the plain cell."""
    model, inputs = MODELS[name](3, 32, 2, kernel=kernel), torch.randn(7, 4, 3)
    expected = model.readout(2 * model.rnn(inputs + 1)[0])
    model.rnn.register_forward_pre_hook(lambda _, arguments: (arguments[0] + 1, *arguments[1:]))
    model.rnn.register_forward_hook(lambda _, __, results: (2 * results[0], results[1]))
    assert model.kernel_for(inputs) == "torch"
    torch.testing.assert_close(model(inputs)[0], expected)


class Halved(nn.GRU):
    """A layer of `torch.nn` with a `forward` of its own."""

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002  # as in torch.nn
        outputs, state = super().forward(input, hx)
        return outputs / 2, state


@every_kernel
@pytest.mark.parametrize(
    "layer", [Halved(3, 32), nn.GRU(3, 32, bias=False), nn.RNN(3, 32, nonlinearity="relu")], ids=["own", "bias", "relu"]
)
def test_a_layer_of_another_kind_is_called_itself(layer: nn.RNNBase, kernel: Any) -> None:
    model, inputs = fptt.nn.GRU(3, 32, 2, kernel=kernel), torch.randn(7, 4, 3)
    model.rnn = layer
    assert model.kernel_for(inputs) == "torch"
    torch.testing.assert_close(model(inputs)[0], model.readout(layer(inputs)[0]))


@every_model
@every_kernel
@pytest.mark.parametrize("width", [5, 32])
def test_parametrized_weights(name: str, kernel: Any, width: int) -> None:
    """W = g v/|v|, by torch.nn's own layer and by ours: outputs and gradients of g and v."""
    torch.manual_seed(0)
    model, inputs = MODELS[name](3, width, 2, kernel=kernel), torch.randn(7, 4, 3)
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    params = list(model.parameters())
    found, expected = model(inputs)[0], model.readout(model.rnn(inputs)[0])
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(outputs.square().sum(), params) for outputs in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@every_model
@every_kernel
@pytest.mark.parametrize("width", [8, 32])
def test_sequences_and_states_that_no_layer_takes_are_named(name: str, kernel: Any, width: int) -> None:
    model, inputs = MODELS[name](3, width, 2, kernel=kernel), torch.ones(7, 4, 3)
    with pytest.raises(TypeError, match="inputs must be a tensor, got a PackedSequence"):
        model(nn.utils.rnn.pack_padded_sequence(inputs, torch.tensor([7, 5, 5, 1])))
    with pytest.raises(ValueError, match=r"inputs must have at least one time step, got shape \(0, 4, 3\)"):
        model(inputs[:0])
    state = map_state(Tensor.double, model.initial_state(inputs))
    with pytest.raises(ValueError, match=r"state must have the dtype of the weights, torch.float32, got torch.float64"):
        model(inputs, state)
    batch_first = MODELS[name](3, width, 2, kernel=kernel, batch_first=True)
    with pytest.raises(ValueError, match=r"at least one time step, got shape \(4, 0, 3\)"):
        batch_first(inputs.transpose(0, 1)[:, :0])
    assert batch_first(inputs[:, :0].transpose(0, 1))[0].shape == (0, 7, 2)


@every_model
@every_kernel
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16])
def test_inputs_of_another_dtype_are_named(name: str, kernel: Any, dtype: torch.dtype) -> None:
    model, inputs = MODELS[name](3, 32, 2, kernel=kernel), torch.ones(7, 4, 3, dtype=dtype)
    with pytest.raises(ValueError, match=f"must have the dtype of the weights, torch.float32, got {dtype}"):
        model(inputs)
    if dtype == torch.float16:
        with torch.autocast("cpu", torch.float16):
            assert model(inputs)[0].shape == (7, 4, 2)
    model.rnn.register_forward_pre_hook(lambda _, arguments: tuple(tensor.float() for tensor in arguments[:1]))
    assert model(inputs)[0].shape == (7, 4, 2)

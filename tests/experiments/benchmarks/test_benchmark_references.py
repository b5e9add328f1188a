"""What the speed benchmark measures against: the literal loop and the floor."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import functional

import fptt
from fptt.experiments.benchmarks.contestants import LiteralFPTT, running_kernel
from fptt.experiments.benchmarks.floor import Floor, Product, chunk_products, readout_products, sequence_products
from fptt.experiments.benchmarks.grid import Spec, Workload
from fptt.experiments.benchmarks.timing import Stopwatch
from fptt.nn import native

CPU = torch.device("cpu")


# -- the literal loop --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("max_norm", [0.05, 100.0])
@pytest.mark.parametrize("num_chunks", [3, 7])
def test_the_literal_loop_is_the_coupled_paper_form(num_chunks: int, max_norm: float) -> None:
    models = [fptt.nn.LSTM(2, 5, 4, readout_sizes=[6], last_only=True) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.02) for model in models]
    literal = LiteralFPTT(models[0], optimizers[0], num_chunks=num_chunks, alpha=0.3, max_norm=max_norm)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    options: dict[str, Any] = {"alpha": 0.3, "beta": 0.5, "form": "paper", "coupling": "coupled", "max_norm": max_norm}
    library = fptt.FPTT(models[1], optimizers[1], loss, num_chunks=num_chunks, **options)
    before = [param.detach().clone() for param in models[0].parameters()]
    for _ in range(4):
        inputs, targets = torch.randn(7, 3, 2), torch.randint(4, (3,))
        mean_loss = literal.train_batch(inputs, targets)
        torch.testing.assert_close(mean_loss, library.train_batch(inputs, targets).loss, rtol=0, atol=1e-10)
    assert library.regularizer is not None
    for start, (name, param), other in zip(before, models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (param - start).abs().max() > 1e-3
        average, dual = library.regularizer.state[other]
        torch.testing.assert_close(param, other, rtol=0, atol=1e-10)
        torch.testing.assert_close(literal.averages[name], average, rtol=0, atol=1e-10)
        torch.testing.assert_close(literal.duals[name], dual, rtol=0, atol=1e-10)


# -- the floor ---------------------------------------------------------------------------------------------------------


def test_the_products_of_one_step_are_those_worked_out_by_hand() -> None:
    recurrent = {Product(128, 128, 512): 1, Product(512, 128, 128): 1}  # gates; gradient of the recurrent weights
    weights_first = {
        Product(10, 256, 128): 1,  # W2 W1
        Product(128, 128, 10): 1,  # outputs
        Product(128, 10, 128): 1,  # back to the hidden state
        Product(10, 128, 128): 1,  # gradient of W2 W1
        Product(10, 128, 256): 1,  # of W2
        Product(256, 10, 128): 1,  # of W1
    }
    assert chunk_products("lstm", 1, 128) == {**recurrent, **weights_first}


def test_the_products_of_a_longer_chunk() -> None:
    products = chunk_products("gru", 28, 1) - readout_products(1)
    assert products == {Product(1, 128, 384): 28, Product(1, 384, 128): 27, Product(384, 28, 128): 1}


def test_the_read_out_multiplies_sample_by_sample_where_that_is_cheaper() -> None:
    """1 · (128·256 + 256·10) = 35,328 < 128 · (1·10 + 256·10) = 328,960 products of numbers; equal between 9 and 10."""
    assert readout_products(1) == {
        Product(1, 128, 256): 1,
        Product(1, 256, 10): 1,
        Product(1, 10, 256): 1,
        Product(10, 1, 256): 1,
        Product(1, 256, 128): 1,
        Product(256, 1, 128): 1,
    }
    assert Product(9, 128, 256) in readout_products(9)
    assert Product(10, 256, 128) in readout_products(10)


def test_a_sequence_has_the_products_of_its_chunks() -> None:
    total = sequence_products(Workload("lstm", 784, 16), 10)  # 4 chunks of 79 steps, 6 of 78
    expected: Counter[Product] = Counter()
    for num_steps, count in ((79, 4), (78, 6)):
        for product, times in chunk_products("lstm", num_steps, 16).items():
            expected[product] += count * times
    assert total == expected
    assert total[Product(16, 128, 512)] == 784
    assert total[Product(16, 512, 128)] == 774
    assert total[Product(512, 79 * 16, 128)] == 4


def test_a_floor_is_products_plus_traffic() -> None:
    setting = Workload("lstm", 6, 2)
    floor = Floor(setting, [1, 6], 1000, Stopwatch(CPU))
    assert floor.measure() > 0
    for torch_mm, *others in floor.samples.values():
        torch_mm.seconds = [1.0, 2.0, 9.0]
        for other in others:
            other.seconds = [3.0, 3.0, 1.0]  # the way with the lower median counts
    floor.copies.seconds = [4.0, 4.0, 4.0]  # for 6 buffers of 1000 numbers
    assert floor.bytes_per_second == 6000
    num_products = 6 * (2 + 6)  # gates and weight gradient, and six of the read-out, of each step
    assert floor.seconds(Spec("fptt", "eager", 6)) == pytest.approx(2 * num_products + 6 * 11 * 4000 / 6000)
    assert floor.seconds(Spec("literal", None, 6, "torch")) == floor.seconds(Spec("fptt", "eager", 6))
    assert floor.seconds(Spec("tbptt", "eager", 6)) == pytest.approx(2 * num_products + 6 * 7 * 4000 / 6000)
    assert floor.seconds(Spec("bptt", "eager", 1)) == pytest.approx(2 * (6 + 5 + 1 + 6) + 7 * 4000 / 6000)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_floor_multiplies_in_the_precision_of_its_workload(precision: str) -> None:
    floor = Floor(Workload("gru", 2, 2, precision), [2], 1000, Stopwatch(CPU))
    kinds = {sample.function().dtype for samples in floor.samples.values() for sample in samples}  # pyright: ignore
    assert kinds == {getattr(torch, precision)}


def test_rows_say_which_kernel_runs() -> None:
    own = "torch" if native._library() is None else "native"
    workload = Workload("lstm", 56, 2)
    kernels = [
        running_kernel(spec, workload, CPU)
        for spec in (
            Spec("fptt", "eager", 2),
            Spec("fptt", "eager", 2, "torch"),
            Spec("fptt", "compiled", 2),
            Spec("fptt", "compiled", 56),
        )
    ]
    assert kernels == [own, "torch", "plain" if own == "torch" else own, "plain"]

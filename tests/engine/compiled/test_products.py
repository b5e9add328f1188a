"""The products of a compiled step: which way each is taken, and that every way gives the product."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

import fptt
from fptt._engine.compiled import compiler, products
from tests.engine.compiled.agreement import assert_equal_memory, assert_equal_results, make_pair


@pytest.fixture(autouse=True)
def _onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def traced(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> set[str]:
    """Return the names of the operations to which a product of tensors of these shapes is traced."""
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    function = torch.mm if len(shapes) == 2 else torch.addmm
    graph = make_fx(function, products.DECOMPOSITIONS)(*tensors)
    torch.testing.assert_close(graph(*tensors), function(*tensors))
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


def test_large_products_are_onednn() -> None:
    assert "fptt.onednn_product.default" in traced((32, 48), (48, 40))
    assert "fptt.onednn_product.default" in traced((40,), (32, 48), (48, 40))


def test_outer_products_are_elementwise() -> None:
    assert traced((5, 1), (1, 7)) == {"aten.mul.Tensor"}


@pytest.mark.parametrize("shapes", [((31, 48), (48, 40)), ((32, 2), (2, 40)), ((32, 48), (48, 3)), ((2, 3), (3, 4))])
def test_small_products_stay(shapes: tuple[tuple[int, int], ...]) -> None:
    assert traced(*shapes) == {"aten.mm.default"}
    assert traced((shapes[1][1],), *shapes) == {"aten.addmm.default"}


def test_other_precisions_stay() -> None:
    assert traced((32, 48), (48, 40), dtype=torch.float64) == {"aten.mm.default"}


def test_onednn_is_for_float32_on_the_processor_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert traced((32, 48), (48, 40)) == {"aten.mm.default"}


def test_thin_products_are_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "is_thin", lambda *_: True)
    assert traced((31, 48), (48, 10)) == {"aten.unsqueeze.default", "aten.mul.Tensor", "aten.sum.dim_IntList"}
    # a thin sum term by term
    assert "aten.sum.dim_IntList" not in traced((31, 16), (16, 48))
    assert not {"aten.mm.default", "aten.addmm.default"} & traced((10,), (31, 48), (48, 10))


@pytest.mark.parametrize(
    ("left", "right", "dtype", "thin"),
    [
        ((128, 256), (256, 16), torch.float32, True),
        ((16, 256), (256, 128), torch.float64, True),
        ((128, 16), (16, 256), torch.float32, True),
        ((128, 256), (256, 17), torch.float32, False),
        ((2**9, 2**9), (2**9, 16), torch.float32, True),
        ((2**9 + 1, 2**10), (2**10, 16), torch.float32, False),
        ((128, 256), (256, 10), torch.bfloat16, False),
    ],
)
def test_products_are_thin_on_a_gpu_only(
    left: tuple[int, int], right: tuple[int, int], dtype: torch.dtype, thin: bool
) -> None:
    with FakeTensorMode():
        for device, expected in (("cuda", thin), ("cpu", False)):
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape in (left, right)]
            assert products.is_thin(*tensors) == expected


def test_overlapping_rows_stay() -> None:
    """As in the gradient of a linear layer over sliding windows: oneDNN does not take such strides."""
    windows = torch.randn(99).unfold(0, 64, 1)
    graph = make_fx(torch.mm, products.DECOMPOSITIONS)(torch.randn(40, 36), windows)
    assert {str(node.target) for node in graph.graph.nodes if node.op == "call_function"} == {"aten.mm.default"}


@pytest.mark.machine_code
def test_compiled_product_is_the_product() -> None:
    """Of contiguous and of transposed tensors, as in the gradient of a weight."""

    def function(left: torch.Tensor, right: torch.Tensor) -> list[torch.Tensor]:
        return [left @ right.T, left.T @ left, torch.addmm(right[0, :1], left, right.T)]

    tensors = [torch.randn(64, 40), torch.randn(33, 40)]
    compiled = compiler.compile_step(function, tensors, torch.nn.Module())
    for found, expected in zip(compiled(*tensors), function(*tensors), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("size", [1, 32])
def test_training_with_these_products_equals_eager(size: int) -> None:
    """One sample: outer products; 32 samples: oneDNN. Float32, with the bound of test_agreement."""
    model = fptt.nn.LSTM(2, 32, 4, last_only=True)
    methods = make_pair(
        model, "adam", fptt.TerminalLoss(functional.cross_entropy, "uniform"), num_chunks=9, max_norm=0.5
    )
    for _ in range(4):
        inputs, labels = torch.randn(9, size, 2), torch.randint(4, (size,))
        assert_equal_results([method.train_batch(inputs, labels) for method in methods], 1e-4)
    assert_equal_memory(methods, 1e-4)

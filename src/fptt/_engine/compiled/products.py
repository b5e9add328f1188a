"""The matrix products of a compiled step, each by the way that is fastest for its shape."""

import functools
import math
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALLEST_SIDE = 32
"""The sides of a product from which on oneDNN is faster, where it is at all."""

THIN_SIDE = 16
"""The side of a product up to which a GPU sums it up itself: cuBLAS took 30 to 50 µs for the ten classes of a read-out,
(128, 128) × (128, 10), whose products are fused with what follows and take 2 (H100)."""

MOST_PRODUCTS = 2**22
"""The products of numbers up to which it does: for more, cuBLAS has enough to do at once."""


@torch.library.custom_op("fptt::onednn_product", mutates_args=())
def _onednn_product(left: Tensor, right_transposed: Tensor) -> Tensor:
    """Return the product of (M, K) with the transpose of (N, K); compiled, it is oneDNN's."""
    return left @ right_transposed.T


@_onednn_product.register_fake
def _(left: Tensor, right_transposed: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right_transposed.shape[0])


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """Trace a product (M, K) × (K, N) as what it should be compiled to."""
    if left.shape[1] == 1 and left.dtype == right.dtype:
        return left * right  # an outer product: the compiler fuses it with what follows, and no product is stored
    return _product(left, right)


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Trace a product to which a bias is added; adding is fused with what follows."""
    product = _product(left, right) if beta == alpha == 1 else NotImplemented
    # apart from the product, so that the bias is not copied under it
    return product if product is NotImplemented else product + bias


def _product(left: Tensor, right: Tensor) -> Any:
    """Return a product by oneDNN or as a sum where that is faster, else NotImplemented."""
    if _suits_onednn(left, right):
        return torch.ops.fptt.onednn_product(left, right.T)
    return sum_products(left, right) if is_thin(left, right) else NotImplemented


DECOMPOSITIONS: dict[Any, Any] = {torch.ops.aten.mm.default: _mm, torch.ops.aten.addmm.default: _addmm}
"""What becomes of products while a step is traced."""


def is_thin(left: Tensor, right: Tensor) -> bool:
    """Return whether a product on a GPU is too thin for cuBLAS; half precision keeps the sums of its own kernels."""
    sides = (*left.shape, right.shape[1])
    is_exact = left.dtype == right.dtype and left.dtype in {torch.float32, torch.float64}
    return left.is_cuda and is_exact and min(sides) <= THIN_SIDE and math.prod(sides) <= MOST_PRODUCTS


def sum_products(left: Tensor, right: Tensor) -> Tensor:
    """Return (M, K) × (K, N), written so that the compiler makes one loop of it and of its neighbors."""
    if left.shape[1] <= THIN_SIDE:  # term by term, not as a reduction, which would be a kernel of its own
        terms = zip(left.unbind(1), right.unbind(0), strict=True)
        return functools.reduce(torch.add, (column.unsqueeze(1) * row for column, row in terms))
    return (left.unsqueeze(2) * right.unsqueeze(0)).sum(1)


def _suits_onednn(left: Tensor, right: Tensor) -> bool:
    sides = (*left.shape, right.shape[1])
    if not _has_plain_strides(right):
        return False
    # only where it was measured to be faster: calling oneDNN costs 12 µs, which short sides do not win back
    is_float = left.dtype == right.dtype == torch.float32 and left.device.type == "cpu"
    return is_float and min(sides) >= SMALLEST_SIDE and onednn_is_faster()


def _has_plain_strides(matrix: Tensor) -> bool:
    """Return whether rows or columns lie one after the other without overlapping, as oneDNN demands."""
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)


def _can_be_lowered() -> bool:
    """Return whether `register_lowering` fits this PyTorch: it is written for the Inductor of 2.13 and later."""
    return torch.backends.mkldnn.is_available() and torch.__version__ >= "2.13"  # no comparison of texts: TorchVersion


@functools.cache
def onednn_is_faster() -> bool:
    """Return whether oneDNN multiplies faster than what is behind `torch.mm`.

    On other processors than Intel's MKL leaves out the widest instructions, which halves its speed; oneDNN asks what
    the processor can do.
    """
    return torch.backends.mkl.is_available() and _can_be_lowered() and not _is_intel()


def _is_intel() -> bool:
    info = Path("/proc/cpuinfo")
    return "GenuineIntel" in (info.read_text(encoding="utf-8") if info.exists() else platform.processor())


@functools.cache
def register_lowering() -> None:
    """Teach Inductor, once, to call oneDNN for `fptt::onednn_product`.

    Its own lowering of oneDNN's linear map is for frozen weights only, which these are not.
    """
    if not _can_be_lowered():
        return
    from torch._inductor import lowering, mkldnn_ir
    from torch._inductor.ir import FixedLayout, TensorBox

    class Product(mkldnn_ir.LinearUnary):
        @classmethod
        def create(cls, x: Any, w: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            left, right = cls.require_contiguous(cls.realize_input(x)), cls.realize_input(w)
            size = [left.get_size()[0], right.get_size()[0]]
            layout = FixedLayout(device=left.get_device(), dtype=left.get_dtype(), size=size)
            no_epilogue = [None, "none", [-1], ""]
            return mkldnn_ir._create_output_node(cls(layout, [left, right], no_epilogue))

    @lowering.register_lowering(torch.ops.fptt.onednn_product.default, type_promotion_kind=None)
    def lower(left: Any, right_transposed: Any) -> Any:
        return TensorBox.create(Product.create(left, right_transposed))

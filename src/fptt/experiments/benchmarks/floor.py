"""The floor: the time of the matrix products and of the memory traffic that no implementation gets around.

A chunk of L steps has, at batch size B, width H and G gates, in the recurrent layer

    L      products (B, H) × (H, G·H)          the gates of each step from the hidden state
    L − 1  products (B, G·H) × (G·H, H)        back to the hidden state before, inside the chunk only
    1      product  (G·H, L·B) × (L·B, H)      the gradient of the recurrent weights, over all steps at once

and the products of the read-out at its last step, forward and backward, in the order in which `fptt.nn` multiplies
them: the two weight matrices first where that is cheaper, which depends on B. The input is one number wide, and
products with vectors (inputs, biases) do not count, nor does anything that is done element by element; on a GPU that
goes for the read-out's products with a side of ten classes too, which a compiled step sums up inside other kernels.

An update reads and writes whole copies of the parameters, four bytes each: it reads weights, gradients and Adam's two
moments, FPTT also averages and duals, and writes all of these but the gradients. `fptt` thus moves 11 copies, `tbptt`
and `bptt` 7, at the rate at which `copy_` moves buffers of that size.

Products are those of the workload's precision, float32 or bfloat16 with results in bfloat16; weights and all that
belongs to an update are float32 in both.

Both are measured in the same process and the same rounds as what is compared with them, and medians are taken; of the
ways to multiply, `torch.mm` and oneDNN's, the faster one counts. On a GPU a loop of them is recorded, so that no launch
counts. BPTT has the floor of one chunk of T steps.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

import torch

from fptt import chunk_lengths
from fptt._engine.compiled.products import THIN_SIDE
from fptt.experiments.benchmarks.grid import HIDDEN_SIZE, NUM_CLASSES, NUM_GATES, READOUT_SIZE, Spec, Workload
from fptt.experiments.benchmarks.timing import Stopwatch

COPIES = {"bptt": 7, "tbptt": 7, "fptt": 11, "literal": 11}
"""Copies of the parameters that an update of each method reads or writes."""

BYTES = 4
SAMPLE_SECONDS = 5e-3
MAX_CALLS = 2000


class Product(NamedTuple):
    """A matrix product (rows, inner) × (inner, columns)."""

    rows: int
    inner: int
    columns: int


def chunk_products(cell: str, num_steps: int, batch_size: int) -> Counter[Product]:
    """Return how often each product occurs in a chunk of so many steps."""
    gates = NUM_GATES[cell] * HIDDEN_SIZE
    products = readout_products(batch_size)
    products[Product(batch_size, HIDDEN_SIZE, gates)] += num_steps
    products[Product(gates, num_steps * batch_size, HIDDEN_SIZE)] += 1
    if num_steps > 1:
        # not from the first step: its state is a constant to the chunk
        products[Product(batch_size, gates, HIDDEN_SIZE)] += num_steps - 1
    return products


def readout_products(batch_size: int) -> Counter[Product]:
    """Return the products of the read-out of one step, forward and backward."""
    samples, inputs, middle, classes = batch_size, HIDDEN_SIZE, READOUT_SIZE, NUM_CLASSES
    apart = samples * (inputs * middle + middle * classes)
    together = inputs * (samples * classes + middle * classes)
    if together < apart:
        return Counter(
            [
                Product(classes, middle, inputs),  # the two weight matrices
                Product(samples, inputs, classes),  # the outputs
                Product(samples, classes, inputs),  # gradients: of the hidden state,
                Product(classes, samples, inputs),  # of the weights' product,
                Product(classes, inputs, middle),  # of the second weights,
                Product(middle, classes, inputs),  # of the first weights
            ]
        )
    return Counter(
        [
            Product(samples, inputs, middle),
            Product(samples, middle, classes),
            Product(samples, classes, middle),  # gradients: of what is between the layers,
            Product(classes, samples, middle),  # of the second weights,
            Product(samples, middle, inputs),  # of the hidden state,
            Product(middle, samples, inputs),  # of the first weights
        ]
    )


def sequence_products(workload: Workload, num_chunks: int) -> Counter[Product]:
    """Return how often each product occurs in a sequence of so many chunks."""
    total: Counter[Product] = Counter()
    for num_steps, count in Counter(chunk_lengths(workload.sequence_length, num_chunks)).items():
        for product, times in chunk_products(workload.cell, num_steps, workload.batch_size).items():
            total[product] += count * times
    return total


class Floor:
    """Measures the parts of the floors of a workload, a sample a round.

    Args:
        workload: Cell and shapes.
        num_chunks: Every K of the workload.
        num_parameters: Of the model.
        stopwatch: Of the device.
    """

    def __init__(
        self, workload: Workload, num_chunks: Iterable[int], num_parameters: int, stopwatch: Stopwatch
    ) -> None:
        self.workload, self.num_parameters, self.stopwatch = workload, num_parameters, stopwatch
        smallest = THIN_SIDE + 1 if stopwatch.device.type == "cuda" else 0
        self.products = {
            count: {key: times for key, times in sequence_products(workload, count).items() if min(key) >= smallest}
            for count in num_chunks
        }
        device, dtype = stopwatch.device, getattr(torch, workload.precision)
        self.samples = {
            product: [_Sample(multiply, stopwatch) for multiply in _multiplications(product, device, dtype)]
            for products in self.products.values()
            for product in products
        }
        self.copies = _Sample(_copying(num_parameters, device), stopwatch)

    def measure(self) -> float:
        """Take one more sample of everything; return the seconds of one update's traffic."""
        for samples in self.samples.values():
            for sample in samples:
                sample.take()
        return self.copies.take()

    def seconds(self, spec: Spec) -> float:
        """Return the floor of a row, from the medians of the samples so far."""
        products = self.products[spec.num_chunks].items()
        fastest = {product: min(sample.median() for sample in self.samples[product]) for product, _ in products}
        multiplying = sum(times * fastest[product] for product, times in products)
        return multiplying + spec.num_chunks * COPIES[spec.method] * BYTES * self.num_parameters / self.bytes_per_second

    @property
    def bytes_per_second(self) -> float:
        """Bytes read or written a second, in buffers of the size of the parameters."""
        return 6 * BYTES * self.num_parameters / self.copies.median()


class _Sample:
    """The time of one call, from loops long enough to be measured."""

    def __init__(self, function: Callable[[], object], stopwatch: Stopwatch) -> None:
        self.function, self.stopwatch = function, stopwatch
        self.seconds: list[float] = []
        function()  # the first call sets up more than it computes
        self.num_calls = max(1, min(MAX_CALLS, round(SAMPLE_SECONDS / max(stopwatch.seconds(function), 1e-9))))
        self.loop = self._recorded() if stopwatch.device.type == "cuda" else self._loop

    def take(self) -> float:
        self.seconds.append(self.stopwatch.seconds(self.loop) / self.num_calls)
        return self.seconds[-1]

    def _loop(self) -> None:
        for _ in range(self.num_calls):
            self.function()

    def _recorded(self) -> Callable[[], None]:
        """Return the loop as one CUDA graph: launched one by one, small products would take as long as a launch."""
        with torch.cuda.device(self.stopwatch.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._loop()
        graph.replay()
        return graph.replay

    def median(self) -> float:
        return median(self.seconds)


def _multiplications(product: Product, device: torch.device, dtype: torch.dtype) -> list[Callable[[], object]]:
    """Return the product by `torch.mm` and, on the processor, by oneDNN: the floor has the faster one."""
    left = torch.rand(product.rows, product.inner, device=device).to(dtype)
    right = torch.rand(product.inner, product.columns, device=device).to(dtype)
    result = torch.empty(product.rows, product.columns, device=device, dtype=dtype)
    ways: list[Callable[[], object]] = [lambda: torch.mm(left, right, out=result)]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        transposed = right.T.contiguous()
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(left, transposed, None, "none", [], ""))
    return ways


def _copying(num_parameters: int, device: torch.device) -> Callable[[], object]:
    """Return a function that copies three buffers to three others: about as many as take part in an update."""
    buffers = [torch.zeros(num_parameters, device=device) for _ in range(6)]

    def copy() -> None:
        for source, target in zip(buffers[:3], buffers[3:], strict=True):
            target.copy_(source)

    return copy

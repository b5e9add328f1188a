"""A compiled step recorded as a CUDA graph: one launch a chunk instead of one a kernel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class CUDAGraph:
    """Replays a function of tensors on one CUDA device.

    The first tensors are resident: the graph reads and changes them where they lie, and it is recorded again if they
    are others. The rest is copied to where the graph reads it.

    Args:
        function: Returns tensors; changes resident ones in place; launches kernels only, no synchronization.
        examples: Tensors of the shapes that it will get.
        num_resident: How many of them are resident.
    """

    WARM_UPS = 3

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], num_resident: int
    ) -> None:
        self.function, self.num_resident = function, num_resident
        self.inputs = [tensor.clone() for tensor in examples[num_resident:]]
        self.recorded_for: list[int] = []
        self.graph = torch.cuda.CUDAGraph()
        self.outputs: Sequence[Tensor] = ()

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run the function on these tensors, and return copies of what it gives."""
        resident, others = tensors[: self.num_resident], tensors[self.num_resident :]
        places = [tensor.data_ptr() for tensor in resident]
        if places != self.recorded_for:
            self._record(resident, others)
            self.recorded_for = places
        self._copy_in(others)
        self.graph.replay()
        self._copy_out(others)
        # the next replay writes into the same outputs
        return [tensor.clone() for tensor in self.outputs]

    def _copy_in(self, others: Sequence[Tensor]) -> None:
        for place, tensor in zip(self.inputs, others, strict=True):
            place.copy_(tensor)  # a graph reads where it was recorded to read

    def _copy_out(self, others: Sequence[Tensor]) -> None:
        others[0].copy_(self.inputs[0])  # `alive`, the one tensor besides the resident ones that is changed in place

    def _record(self, resident: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Warm up on another stream, as recording demands, put back what that changed, and record."""
        before = [tensor.clone() for tensor in resident]
        self._copy_in(others)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.random.fork_rng([torch.cuda.current_device()]), torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                self.function(*resident, *self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = self.function(*resident, *self.inputs)
        torch._foreach_copy_(list(resident), before)

"""A compiled step as CUDA graphs: one launch for many chunks instead of one a kernel."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SeriesResult(NamedTuple):
    """What the steps of a series of chunks have returned.

    Attributes:
        losses: One a chunk.
        norms: One a chunk.
        states: The tensors of the states after the last one.
    """

    losses: list[Tensor]
    norms: list[Tensor]
    states: list[Tensor]


class _Recorded(NamedTuple):
    """A block of chunks that was recorded.

    Attributes:
        replay: Runs it.
        outputs: Where it leaves the losses and the norms of its chunks, one tensor each, and its last states.
    """

    replay: Callable[[], None]
    outputs: list[Tensor]


RECORDED_ON = ("cuda",)
"""The types of devices on which steps are recorded."""


class CUDAGraphs:
    """Runs a step over a series of chunks on one CUDA device, in blocks that were recorded.

    A step is some dozens of small kernels whose launches take longer than they do, and between two steps Python takes
    longer still. Inside a block of chunks there is neither: each step reads its own inputs where they were put for the
    whole block at once, and the state where the step before it has left it. Blocks of four sizes are enough for any
    number of chunks, so that sequences of many lengths need no recordings of their own.

    Args:
        step: Takes the tensors in place, those of the chunk, and those of the state; returns loss, norm, and the
            tensors of the states after it, the first of which are those that the next one takes. It launches kernels
            only, without synchronization.
        own: Examples of the tensors of a chunk.
        num_states: How many tensors the state after a step has.
    """

    SIZES = (64, 16, 4, 1)
    MOST_BYTES = 2**26
    """For the inputs of a block: chunks with more are long enough to hide the launch of the next block."""
    WARM_UPS = 3

    def __init__(self, step: Callable[..., Sequence[Tensor]], own: Sequence[Tensor], num_states: int) -> None:
        self.step, self.num_states = step, num_states
        own_bytes = sum(tensor.numel() * tensor.element_size() for tensor in own)
        self.sizes = [size for size in self.SIZES if size == 1 or size * own_bytes <= self.MOST_BYTES]
        self.example = [tensor.clone() for tensor in own]
        # for each chunk of a block; tensors of their own, each aligned as the compiler has seen it
        self.slots: list[list[Tensor]] = []
        self.state: list[Tensor] = []  # before a block
        self.places: list[int] = []
        self.recorded: dict[int, _Recorded] = {}

    def run(
        self, in_place: Sequence[Tensor], series: Sequence[Sequence[Tensor]], state: Sequence[Tensor]
    ) -> SeriesResult:
        """Make the steps of a series of chunks.

        Args:
            in_place: The tensors that a step changes, or reads where they lie; if they move, it is recorded again.
            series: Of each chunk its own tensors.
            state: Before the first chunk.
        """
        places = [tensor.data_ptr() for tensor in in_place]
        if places != self.places:
            self.recorded.clear()
            self.places = places
        if not self.state:
            self.state = [tensor.clone() for tensor in state]
        _copy(state, self.state)
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        states: list[Tensor] = []
        done = 0
        while done < len(series):
            size = next(size for size in self.sizes if size <= len(series) - done)
            self._fill(series[done : done + size])
            if size not in self.recorded:
                self.recorded[size] = self._record(in_place, size)
            self.recorded[size].replay()
            # clones, since the next replay writes there
            of_losses, of_norms, *states = (tensor.clone() for tensor in self.recorded[size].outputs)
            losses += of_losses.unbind()
            norms += of_norms.unbind()
            done += size
        return SeriesResult(losses, norms, states)

    def _fill(self, block: Sequence[Sequence[Tensor]]) -> None:
        """Copy the tensors of some chunks to where the recorded steps read them, one launch for each kind."""
        while len(self.slots) < len(block):
            self.slots.append([tensor.clone() for tensor in self.example])
        for tensors, places in zip(zip(*block, strict=True), zip(*self.slots, strict=True), strict=True):
            _copy(tensors, places[: len(block)])

    def _run_block(self, in_place: Sequence[Tensor], size: int) -> list[Tensor]:
        """Make the steps of the first slots; leave the last state before the next block, and return the outputs."""
        losses, norms, states, state = [], [], [], self.state
        for own in self.slots[:size]:
            loss, norm, *states = self.step(*in_place, *own, *state)
            state = states[: self.num_states]
            losses.append(loss)
            norms.append(norm)
        if [tensor.shape for tensor in state] == [tensor.shape for tensor in self.state]:
            _copy(state, self.state)  # otherwise this step is a series by itself, and no block follows on it
        return [torch.stack(losses), torch.stack(norms), *states]

    def _record(self, in_place: Sequence[Tensor], size: int) -> _Recorded:
        """Warm up on another stream, as recording demands, put back what that changed, and record."""
        changed = [*in_place, *self.state]
        before = [tensor.clone() for tensor in changed]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.random.fork_rng([torch.cuda.current_device()]), torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                self._run_block(in_place, 1)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._run_block(in_place, size)
        _copy(before, changed)
        return _Recorded(graph.replay, outputs)


def _copy(tensors: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    if places:
        torch._foreach_copy_(list(places), list(tensors))

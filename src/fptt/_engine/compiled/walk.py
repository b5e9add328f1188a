"""A batch on its way through its chunks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fptt._batches.cut import Chunk
from fptt._engine.compiled.arguments import part_leaves
from fptt._engine.compiled.constants import nest_key
from fptt._engine.compiled.flat import FlatGroup
from fptt._sequence import State, flatten_state, map_state

Key = tuple[Any, ...]


class Walk:
    """What a compiled step takes of each chunk, and what the steps so far have given.

    Attributes:
        position: The next chunk.
        losses: Of the chunks so far.
        norms: Of their loss gradients.
        checks: Whether their recomputed gradients are finite, if they have one.
        stepped: The groups that each chunk has updated.
    """

    def __init__(
        self, chunks: Sequence[Chunk], state: State, context: Key, max_norm: float | None, dtype: torch.dtype
    ) -> None:
        self.chunks, self.context, self.position = chunks, context, 0
        self.device = chunks[0].inputs.device
        self.makes_update = torch.tensor([chunk.has_steps for chunk in chunks])
        self.inputs = [chunk.inputs.contiguous() for chunk in chunks]
        leaves = [part_leaves(chunk.part) for chunk in chunks]
        self.tensors = [[leaf.contiguous() for leaf in own if isinstance(leaf, Tensor)] for own in leaves]
        self.rows = self._make_rows(leaves, max_norm, dtype)
        self._part_keys = [nest_key(chunk.part) for chunk in chunks]
        self._nest = self._nest_before = Nest(state)
        self.state_tensors = [tensor.contiguous() for tensor in flatten_state(state)]
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.checks: list[Tensor] = []
        self.stepped: list[list[FlatGroup]] = []

    def _make_rows(self, leaves: list[list[Any]], max_norm: float | None, dtype: torch.dtype) -> list[Tensor]:
        """Return the row of every chunk: whether it updates, the norm to clip at, the floats of its part."""
        rows = [
            [float(chunk.has_steps), max_norm or 0.0, *(leaf for leaf in own if isinstance(leaf, float))]
            for chunk, own in zip(self.chunks, leaves, strict=True)
        ]
        flat = torch.tensor([value for row in rows for value in row], dtype=torch.promote_types(dtype, torch.float32))
        return list(flat.to(self.device).split([len(row) for row in rows]))

    @property
    def chunk(self) -> Chunk:
        """The next chunk."""
        return self.chunks[self.position]

    @property
    def is_over(self) -> bool:
        """Whether all chunks are behind."""
        return self.position == len(self.chunks)

    def key(self) -> Key:
        """Return what decides about the compiled step of the next chunk."""
        inputs = self.inputs[self.position]
        part = self._part_keys[self.position]
        return (inputs.shape, inputs.dtype, inputs.device, part, self._nest.key, self.context)

    def goes_on_alike(self) -> bool:
        """Tell whether there is a next chunk, and its step is that of the chunk before."""
        now, before = self.position, self.position - 1
        return (
            not self.is_over
            and self.inputs[now].shape == self.inputs[before].shape
            and self._part_keys[now] == self._part_keys[before]
            and self._nest.key == self._nest_before.key
        )

    def arguments(self) -> list[Tensor]:
        """Return what is the next chunk's own among the arguments of a step."""
        position = self.position
        return [self.rows[position], self.inputs[position], *self.tensors[position], *self.state_tensors]

    def state(self) -> State:
        """Return the state now, as a nest."""
        following = iter(self.state_tensors)
        return map_state(lambda _: next(following), self._nest.state)

    def take(self, outputs: Sequence[Tensor], nest: "Nest", groups: list[FlatGroup]) -> None:
        """Take in what the step of a chunk has returned, and go on to the next."""
        loss, norm, *rest = outputs
        self.losses.append(loss)
        self.norms.append(norm)
        self.checks.extend(rest[: len(rest) - nest.size])
        self.state_tensors = rest[len(rest) - nest.size :]
        self._nest_before, self._nest = self._nest, nest
        updated = groups if self.chunk.has_steps else []
        for group in updated:
            group.num_steps += 1
        self.stepped.append(updated)
        self.position += 1

    def first_bad(self) -> tuple[int, bool]:
        """Return the first chunk with NaN or Inf, and whether it made its update and only the recomputation is bad."""
        makes_no_update = ~self.makes_update[: self.position]
        finite = torch.isfinite(torch.stack(self.losses)).cpu()
        finite &= torch.isfinite(torch.stack(self.norms)).cpu() | makes_no_update
        good = finite & torch.stack(self.checks).cpu() if self.checks else finite
        bad = int((~good).nonzero()[0])
        return bad, bool(finite[bad])

    def undo_count(self, num_good: int) -> None:
        """Forget the updates after so many chunks: they were not made."""
        for groups in self.stepped[num_good:]:
            for group in groups:
                group.num_steps -= 1
        del self.stepped[num_good:]

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        return sum(bool(groups) for groups in self.stepped)


class Nest:
    """The nest of a state.

    Attributes:
        state: Any state of this nest.
        size: How many tensors it has.
        key: Types, shapes and dtypes, to compare.
    """

    def __init__(self, state: State) -> None:
        self.state, self.size = state, len(flatten_state(state))
        self.key = repr(map_state(lambda tensor: (tuple(tensor.shape), tensor.dtype), state))  # pyright: ignore

"""What a compiled step takes as constant: fingerprints of modules, and of the parts of targets."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

Key = tuple[Any, ...]
PLAIN = (bool, int, float, complex, str, bytes, type(None))
KNOWN = {Tensor, *PLAIN}

CACHES = ("_flat_weights", "_flat_weight_refs")
"""Attributes of `torch.nn`'s recurrent layers that are made anew as their weights move."""


class _Same:
    """An object as a part of a key, equal to itself alone.

    The key keeps it alive: an object made after it was freed could have its `id`, and would be taken for it.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def constants(module: nn.Module) -> tuple[Any, ...]:
    """Return a hashable fingerprint of everything in a module but the values of parameters and buffers.

    It covers plain attributes (a dropout rate), the contents of lists, dicts and frozen dataclasses, hooks, tensors
    that are neither parameters nor buffers with their version, and of parameters and buffers the shape, dtype and
    whether they are frozen. Global variables and the insides of other objects are not seen.
    """
    return tuple(
        (name, type(owner), key, fingerprint)
        for name, owner in module.named_modules()
        for key, fingerprint in _attributes(owner)
    )


def _attributes(owner: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module by name, as fingerprints."""
    for key, value in vars(owner).items():
        if key == "_buffers":  # one by one, to name the one that was replaced
            yield from ((name, None if tensor is None else _place(tensor)) for name, tensor in value.items())
        elif key not in CACHES:
            yield key, _fingerprint(value)


def is_made_by_hook(name: str, params: Mapping[str, Any]) -> bool:
    """Return whether a hook of `torch.nn.utils` computes an attribute from parameters of its module before each call.

    Pruning and the older `spectral_norm` name these `…_orig`, the older `weight_norm` `…_g` and `…_v`.
    """
    return f"{name}_orig" in params or {f"{name}_g", f"{name}_v"} <= params.keys()


def changed(before: tuple[Any, ...], after: tuple[Any, ...]) -> str | None:
    """Return the name of an attribute that differs between two fingerprints, or None."""
    fingerprints = [{(name, key): value for name, _, key, value in one} for one in (before, after)]
    for place in fingerprints[0] | fingerprints[1]:  # also what is there in one of them only
        if fingerprints[0].get(place) != fingerprints[1].get(place):
            return ".".join(filter(None, place))
    return None


def flatten_part(part: Any) -> tuple[list[Any], Key]:
    """Return the leaves of a part, and a hashable fingerprint: its nest, shapes and dtypes of tensors, constants.

    Floats are left out: to a compiled step they are inputs.

    Raises:
        TypeError: If it holds something else than tensors, plain values, tuples, lists and dicts.
    """
    # by hand for a flat NamedTuple, as the losses of this library give it: this runs at every chunk, and pytree takes
    # six times as long
    if isinstance(part, tuple) and hasattr(part, "_fields") and KNOWN.issuperset(map(type, part)):
        return list(part), (type(part), tuple(map(_leaf_key, part)))
    leaves, spec = tree_flatten(part)
    return leaves, (spec, tuple(map(_leaf_key, leaves)))


def _leaf_key(leaf: Any) -> Any:
    if isinstance(leaf, float):
        return float
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype
    if isinstance(leaf, PLAIN):
        return type(leaf), leaf
    raise TypeError(f"the part of a chunk must hold tensors, plain values, tuples, lists and dicts, got {type(leaf)}.")


def _place(tensor: Tensor) -> Any:
    return _Same(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _fingerprint(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _place(value) if isinstance(value, nn.Parameter) else (_place(value), value._version)
    if isinstance(value, PLAIN):
        return type(value), repr(value)  # NaN is equal to itself
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(map(_fingerprint, value))
    if isinstance(value, dict):
        return type(value), tuple((key, _fingerprint(entry)) for key, entry in value.items())
    if is_dataclass(type(value)) and value.__dataclass_params__.frozen:
        # such as a surrogate, whose slope a schedule may change
        return type(value), tuple(_fingerprint(getattr(value, own.name, None)) for own in fields(value))
    return type(value), _Same(value)  # its insides are not seen, but another object is

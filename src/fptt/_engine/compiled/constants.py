"""What of a module a compiled step takes as constant: everything but the values of its parameters and buffers."""

from typing import Any

from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))

CACHES = ("_flat_weights", "_flat_weight_refs")
"""Attributes of `torch.nn`'s recurrent layers that are made anew as their weights move."""


def constants(module: nn.Module) -> tuple[Any, ...]:
    """Return a hashable picture of all modules in a module.

    It shows plain attributes (a dropout rate), the contents of lists and dicts, hooks, tensors that are neither
    parameters nor buffers with their version, and of parameters and buffers the shape, dtype and whether they are
    frozen. Global variables and the insides of other objects are out of sight.
    """
    return tuple(
        (name, type(owner), key, _picture_of_buffers(value) if key == "_buffers" else _picture(value))
        for name, owner in module.named_modules()
        for key, value in vars(owner).items()
        if key not in CACHES
    )


def changed(before: tuple[Any, ...], after: tuple[Any, ...]) -> str | None:
    """Return the name of an attribute that differs between two pictures, or None."""
    pictures = [{(name, key): value for name, _, key, value in picture} for picture in (before, after)]
    for place in pictures[0] | pictures[1]:
        if pictures[0].get(place) != pictures[1].get(place):
            return ".".join(filter(None, place))
    return None


def nest_key(nest: Any) -> Any:
    """Return a hashable picture of a nest: types, shapes and dtypes of tensors, and the values of constants.

    Floats are left out: to a compiled step they are inputs.

    Raises:
        TypeError: If it holds something else than tensors, plain values, tuples, lists and dicts.
    """
    if isinstance(nest, Tensor):
        return nest.shape, nest.dtype
    if isinstance(nest, float):
        return float
    if isinstance(nest, PLAIN):
        return type(nest), nest
    if isinstance(nest, tuple | list):
        return type(nest), tuple(map(nest_key, nest))
    if isinstance(nest, dict):
        return dict, tuple((key, nest_key(value)) for key, value in nest.items())
    raise TypeError(f"the part of a chunk must hold tensors, plain values, tuples, lists and dicts, got {type(nest)}.")


def _picture_of_buffers(buffers: dict[str, Tensor | None]) -> Any:
    return tuple((key, None if tensor is None else _place(tensor)) for key, tensor in buffers.items())


def _place(tensor: Tensor) -> Any:
    return id(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _picture(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return _place(value)
    if isinstance(value, Tensor):
        return _place(value), value._version
    if isinstance(value, PLAIN):
        return type(value), repr(value)  # NaN is equal to itself
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(map(_picture, value))
    if isinstance(value, dict):
        return type(value), tuple((key, _picture(entry)) for key, entry in value.items())
    return type(value), id(value)

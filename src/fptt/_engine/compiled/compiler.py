"""From a function of tensors to machine code: traced to one graph, compiled by PyTorch's Inductor."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fptt._announce import announce
from fptt._engine.compiled.products import DECOMPOSITIONS, register_lowering
from fptt.nn.models import plain_cells
from fptt.nn.native import raise_mmap_threshold

Compiled = Callable[..., Sequence[Tensor]]


class CompilationError(RuntimeError):
    """A model cannot be trained with engine='compiled', for the reason that the message gives."""


EAGER_INSTEAD = "engine='eager' runs it as it is."


def compile_step(function: Callable[..., list[Tensor]], examples: Sequence[Tensor], module: nn.Module) -> Compiled:
    """Trace and compile a function of tensors, and tell how long it took.

    Args:
        function: Returns a list of tensors; may change its arguments in place.
        examples: Arguments of the shapes for which it is compiled; they are not changed.
        module: What the function calls, to name the place if it cannot be traced.

    Raises:
        CompilationError: If it cannot be traced or compiled; says where, why, and what to do.
    """
    raise_mmap_threshold()
    start = time.perf_counter()
    # the tracer would take a tensor that is given twice for one input
    firsts = {id(tensor): number for number, tensor in reversed(list(enumerate(examples)))}
    examples = [own if firsts[id(own)] == number else own.clone() for number, own in enumerate(examples)]
    graph = _trace(function, examples, module)
    constants = _lift_constants(graph)
    traced = time.perf_counter()
    compiled = _compile(graph, [*examples, *constants])
    end = time.perf_counter()
    announce(f"compiled a chunk step in {end - start:.1f} s (tracing {traced - start:.1f} s)")
    return (lambda *tensors: compiled(*tensors, *constants)) if constants else compiled


def _trace(
    function: Callable[..., list[Tensor]], examples: Sequence[Tensor], module: nn.Module
) -> torch.fx.GraphModule:
    try:
        with plain_cells(), _without_onednn():
            # not Dynamo: it cannot follow `torch.autograd.grad`, and its wrapper costs more than a small step
            traced = make_fx(function, DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True)
            return traced(*examples)
    except Exception as error:  # whatever the user's model raises when its tensors have no values
        raise CompilationError(
            f"engine='compiled' cannot trace {_place(error.__traceback__, module)}: {_reason(error)}. {EAGER_INSTEAD}"
        ) from error


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Let torch's own LSTM in float32 be traced step by step: oneDNN's fused layer cannot be compiled."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # of GPUs that it does not know
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _lift_constants(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a traced graph holds as attributes into inputs, behind the others; return them in order.

    Those are tensors of the model that are neither parameters nor buffers. As inputs they are seen as they are now, and
    the machine code, which is called without the wrapper that would pass them, gets them.
    """
    nodes = list(graph.graph.nodes)
    last_input = [node for node in nodes if node.op == "placeholder"][-1]
    lifted: dict[str, torch.fx.Node] = {}
    for node in nodes:
        if node.op == "get_attr":
            if node.target not in lifted:
                with graph.graph.inserting_after(last_input):
                    last_input = lifted[node.target] = graph.graph.placeholder(f"constant_{len(lifted)}")
                last_input.meta.update(node.meta)
            node.replace_all_uses_with(lifted[node.target])
            graph.graph.erase_node(node)
    graph.recompile()
    tensors = [getattr(graph, name) for name in lifted]
    for name in lifted:  # what the module still holds would be an input of the machine code, ahead of the others
        delattr(graph, name)
    return tensors


def _place(traceback: TracebackType | None, root: nn.Module) -> str:
    """Return the name and class of the innermost module in which an error was raised."""
    # a traceback has no names of modules, but its frames have the modules that were running
    names = {id(module): name for name, module in root.named_modules()}
    found = "the model"
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        if id(owner) in names and names[id(owner)]:
            found = f"{names[id(owner)]} ({type(owner).__name__})"
        traceback = traceback.tb_next
    return found


def _reason(error: Exception) -> str:
    if "DataDependent" in type(error).__name__:
        return "its control flow depends on the values of tensors (an `if`, `bool()` or `.item()` of a tensor)"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _compile(graph: torch.fx.GraphModule, examples: Sequence[Tensor]) -> Compiled:
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    try:
        with torch.no_grad(), warnings.catch_warnings():
            # hints at settings of PyTorch, which would fail the compilation where warnings are errors
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
            return _inductor(graph, examples)
    except Exception as error:
        if _has_cause(error, InvalidCxxCompiler):
            raise CompilationError(
                "engine='compiled' needs a C++ compiler and found none: install g++ (Debian, Ubuntu: apt install g++; "
                "Fedora: dnf install gcc-c++; conda: conda install cxx-compiler; macOS: xcode-select --install), or "
                "name one in the environment variable CXX. " + EAGER_INSTEAD
            ) from error
        if isinstance(error, InductorError | RuntimeError):
            raise CompilationError(
                f"engine='compiled' cannot compile the chunk step: {_reason(error)}. {EAGER_INSTEAD}"
            ) from error
        raise


def _inductor(graph: torch.fx.GraphModule, examples: Sequence[Tensor]) -> Compiled:
    """Compile by Inductor; return the machine code itself where PyTorch's wrapper around it has nothing to do."""
    from torch._functorch import config as functorch_config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    register_lowering()
    kept: list[Any] = []  # the compiled graphs: one, unless Inductor has split it

    def compile_inner(*arguments: Any, **settings: Any) -> Any:
        kept.append(compile_fx_inner(*arguments, **settings))
        return kept[-1]

    on_cpu = examples[0].device.type == "cpu"
    options = {
        "fallback_random": True,  # eager's random numbers, so that dropout is the same in both engines
        "cpp_wrapper": on_cpu,  # kernels called from C++, not from Python
        "combo_kernels": not on_cpu,  # small kernels that do not need each other as one: launches are most of a step
    }
    with functorch_config.patch(enable_autograd_cache=False):  # it would pass over `compile_inner`
        wrapped: Any = compile_fx(graph, list(examples), inner_compile=compile_inner, config_patches=options)
    # the machine code without PyTorch's wrapper, which costs 30 µs a call; checked against it before it is used
    code = getattr(kept[0], "current_callable", None) if len(kept) == 1 else None

    def direct(*tensors: Tensor) -> Sequence[Tensor]:
        return code(list(tensors))  # pyright: ignore[reportOptionalCall]

    return direct if code is not None and _agree(wrapped, direct, examples) else wrapped


def _agree(one: Compiled, other: Compiled, examples: Sequence[Tensor]) -> bool:
    """Return whether two functions return and change the same bits on copies of the examples."""
    seen = []
    for function in (one, other):
        tensors = [tensor.clone() for tensor in examples]  # the step changes its arguments in place
        with torch.random.fork_rng([examples[0].device] if examples[0].device.type == "cuda" else []):
            seen.append([*function(*tensors), *tensors])
    return len(seen[0]) == len(seen[1]) and all(
        first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
        for first, second in zip(*seen, strict=True)
    )


def _has_cause(error: BaseException | None, kind: type[Exception]) -> bool:
    while error is not None:
        if isinstance(error, kind) or kind.__name__ in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False

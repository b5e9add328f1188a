"""Denormal numbers, which a processor handles many times slower than others, as zeros for a while, on every core."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SOURCE = r"""
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
static thread_local unsigned int before;
static void begin() { before = _mm_getcsr(); _mm_setcsr(before | 0x8040); }  // flush to zero, denormals are zero
static void end() { _mm_setcsr(before); }
#elif defined(__aarch64__)
static thread_local unsigned long before;
static void begin() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" ::"r"(before | (1ul << 24)));
}
static void end() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#else
static void begin() {}
static void end() {}
#endif

extern "C" void begin_flushing() {
    #pragma omp parallel
    begin();
}

extern "C" void end_flushing() {
    #pragma omp parallel
    end();
}
"""


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flush denormals to zero in this thread and in all workers of its pool, and put every mode back afterwards.

    `torch.set_flush_denormal` reaches the calling thread and the workers that start later; those of a pool that runs
    already, as after any earlier operation, keep their mode.
    """
    library = _library()  # PyTorch has no call that reaches the threads of a pool that runs
    library.begin_flushing()
    try:
        yield
    finally:
        library.end_flushing()


@cache
def _library() -> Any:
    from torch._inductor.codecache import CppCodeCache  # knows the compiler, and the threads of the compiled steps

    return CppCodeCache.load(SOURCE)

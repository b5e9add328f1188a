"""Executors of one chunk step; the eager one is the reference, and stands in `fptt._methods`."""

from fptt._engine._compiled import CompiledEngine as CompiledEngine
from fptt._engine._compiler import CompilationError as CompilationError

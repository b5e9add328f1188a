"""The compiled executor of a chunk step; the eager one, the reference, is `fptt._chunked` itself."""

from fptt._engine._compiled import CompiledEngine as CompiledEngine
from fptt._engine._compiled import Walked as Walked
from fptt._engine._compiler import CompilationError as CompilationError

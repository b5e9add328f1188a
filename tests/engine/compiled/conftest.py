from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fptt._engine.compiled import compiler


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the traced graph of a step as it is, without the minutes that machine code takes to make."""

    def interpret(graph: torch.fx.GraphModule, examples: Sequence[Tensor]) -> torch.fx.GraphModule:
        return graph

    monkeypatch.setattr(compiler, "_compile", interpret)


@pytest.fixture(params=["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def both_ways(request: pytest.FixtureRequest) -> None:
    """Run a test with the traced graph and, among the slow tests, with machine code."""
    if request.param == "traced":
        request.getfixturevalue("interpreted")

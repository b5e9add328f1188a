"""The code of docs/spiking.md, block after block, those for other libraries where they are installed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fptt

PAGE = Path(__file__).parents[2] / "docs" / "spiking.md"


def blocks(library: str = "") -> list[str]:
    """Return the blocks of code that need a library, or none."""
    found = re.findall(r"```python ?(\w*)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [block for name, block in found if name == library]


def test_the_code_of_the_page_runs() -> None:
    assert len(blocks()) >= 4
    names: dict[str, object] = {}
    for block in blocks():
        exec(block, names)


@pytest.mark.parametrize("library", ["norse", "snntorch", "spikingjelly"])
@pytest.mark.parametrize("kind", [fptt.BPTT, fptt.TBPTT, fptt.FPTT])
def test_networks_of_other_libraries_train(library: str, kind: Any) -> None:
    pytest.importorskip(library)
    names: dict[str, Any] = {"torch": torch, "fptt": fptt}
    (block,) = blocks(library)
    exec(block, names)
    model = names["model"]
    loss = fptt.TerminalLoss(torch.nn.functional.cross_entropy, divergence="uniform")
    method = kind(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, num_chunks=4)
    before = [param.detach().clone() for param in model.parameters()]
    result = method.train_batch(20 * torch.rand(12, 6, 8), torch.randint(10, (6,)))
    assert result.updates == (1 if kind is fptt.BPTT else 4)
    assert all(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))

"""Results of others, beside which ours are shown."""

from collections.abc import Mapping
from typing import NamedTuple


class Reference(NamedTuple):
    """Results of others, in the unit of the metric: an accuracy in [0, 1]."""

    published: float | None
    replicated: float | None
    source: str


References = Mapping[tuple[str, str], Reference]
"""Results of others for an experiment and a method."""

_PAPER = "BPTT, FPTT: Kag & Saligrama 2021; replications: two graduation reports (TU Eindhoven, HWRNNFPTT)"

_SMNIST = {
    "bptt": Reference(0.9771, None, _PAPER),
    "tbptt": Reference(None, 0.9752, _PAPER),
    "fptt": Reference(0.9867, 0.9744, _PAPER),
}
_PSMNIST = {
    "bptt": Reference(0.8891, None, _PAPER),
    "tbptt": Reference(None, 0.9437, _PAPER),
    "fptt": Reference(0.9475, 0.9407, _PAPER),
}
_CIFAR10 = {
    "bptt": Reference(0.6011, None, _PAPER),
    "tbptt": Reference(None, 0.6676, _PAPER),
    "fptt": Reference(0.7103, 0.6538, _PAPER),
}
_CODE = "FPTT: a comment in the authors' code; replications: two graduation reports (TU Eindhoven, HWRNNFPTT)"

_PTB_300 = {
    "bptt": Reference(None, 148.4, _CODE),
    "tbptt": Reference(None, 104.74, _CODE),
    "fptt": Reference(103.29, 101.52, _CODE),
}

_PER_STEP = {"tbptt": Reference(None, 0.1586, _PAPER), "fptt": Reference(None, 0.1832, _PAPER)}


def _of_the_full_recipe(references: dict[str, Reference]) -> dict[str, Reference]:
    note = "; these are of the full recipe, which trains many times longer than the small one"
    return {method: reference._replace(source=reference.source + note) for method, reference in references.items()}


_BY_RECIPE = {
    "smnist": _SMNIST,
    "smnist-small": _of_the_full_recipe(_SMNIST),
    "smnist-per-step": _PER_STEP,
    "psmnist": _PSMNIST,
    "psmnist-small": _of_the_full_recipe(_PSMNIST),
    "cifar10": _CIFAR10,
    "cifar10-small": _of_the_full_recipe(_CIFAR10),
    "ptb-300": _PTB_300,
    "ptb-300-small": _of_the_full_recipe(_PTB_300),
}

REFERENCES: dict[tuple[str, str], Reference] = {
    (name, method): reference for name, references in _BY_RECIPE.items() for method, reference in references.items()
}
"""By recipe and method. The replications' best K is 7 (FPTT) and 2 (TBPTT) on S-MNIST, 14 on PS-MNIST, 8 on CIFAR-10,
15 (FPTT), 20 (TBPTT) and 1 (BPTT) on PTB-300; see the settings of each row for ours."""

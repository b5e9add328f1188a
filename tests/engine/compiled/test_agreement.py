"""Compiled = eager, in float64 to 1e-9 after 300 updates, for every cell, form and rule."""

import pytest
import torch

from tests.engine.compiled.agreement import (
    CELLS,
    FORMS,
    FORMS_AND_RULES,
    T,
    assert_equal_memory,
    assert_equal_results,
    batch,
    make_model,
    make_pair,
)

TOLERANCE = 1e-9


def run(cell: str, form: str, rule: str, *, num_updates: int, tolerance: float = TOLERANCE) -> None:
    methods = make_pair(make_model(cell), rule, max_norm=0.5, **FORMS[form])
    while methods[0].updates < num_updates:
        inputs, labels = batch()
        assert_equal_results([method.train_batch(inputs, labels) for method in methods], tolerance)
    assert methods[1].updates == num_updates
    assert_equal_memory(methods, tolerance)


@pytest.mark.parametrize(("form", "rule"), FORMS_AND_RULES)
@pytest.mark.usefixtures("float64", "interpreted")
def test_traced_step_equals_eager(form: str, rule: str) -> None:
    run("lstm", form, rule, num_updates=60)


@pytest.mark.parametrize(("cell", "rule"), [("gru", "nesterov"), ("rnn", "amsgrad")])
@pytest.mark.usefixtures("float64", "interpreted")
def test_traced_step_of_other_cells_equals_eager(cell: str, rule: str) -> None:
    run(cell, "released-coupled", rule, num_updates=60)


@pytest.mark.machine_code
@pytest.mark.usefixtures("float64")
def test_compiled_equals_eager() -> None:
    run("lstm", "paper-decoupled", "adam", num_updates=300)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "rule"), FORMS_AND_RULES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("float64")
def test_compiled_equals_eager_for_all(cell: str, form: str, rule: str) -> None:
    run(cell, form, rule, num_updates=300)


@pytest.mark.machine_code
@pytest.mark.parametrize("rule", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
def test_float32_agrees_within_its_rounding(rule: str) -> None:
    """60 updates; the bound is that of sums in another order, carried on by the recurrence."""
    run("lstm", "paper-decoupled", rule, num_updates=60, tolerance=1e-4)


@pytest.mark.machine_code
@pytest.mark.usefixtures("float64")
def test_one_chunk_a_step_equals_eager() -> None:
    methods = make_pair(make_model("lstm", readout_sizes=[7]), "adam", num_chunks=T)
    for size in (3, 3, 60):  # 60 samples make the read-out multiply its weights first
        inputs, labels = batch(size=size)
        assert_equal_results([method.train_batch(inputs, labels) for method in methods], TOLERANCE)
    assert_equal_memory(methods, TOLERANCE)
    assert methods[1].updates == 3 * T


@pytest.mark.machine_code
def test_flushing_reaches_every_thread_and_ends() -> None:
    from fptt._engine.compiled.denormals import flushed_denormals

    torch.set_num_threads(2)
    tiny, one = torch.full((1_000_000,), 1e-39), torch.ones(1_000_000)
    assert (tiny * one != 0).all()
    with flushed_denormals():
        assert (tiny * one == 0).all()
    assert (tiny * one != 0).all()

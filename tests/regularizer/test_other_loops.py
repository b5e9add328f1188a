"""Optimizers in the wrappers of Fabric, Accelerate and Lightning take the same FPTT steps as bare ones."""

import copy
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import fptt
from tests.problems import assert_same_weights, attached, loss_of, run_steps, small_model, weights

SETTINGS: dict[str, Any] = {"alpha": 0.3, "coupling": "coupled"}


@pytest.fixture
def accelerator() -> Iterator[Any]:
    state = importlib.import_module("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()
    yield importlib.import_module("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


@pytest.fixture(params=["fabric", "accelerate"])
def wrap(request: pytest.FixtureRequest) -> Callable[[nn.Module, Any], tuple[Any, Any]]:
    if request.param == "fabric":
        return Fabric(accelerator="cpu", devices=1).setup
    return request.getfixturevalue("accelerator").prepare


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def norm_of_gradient(model: nn.Module) -> torch.Tensor:
    return nn.utils.get_total_norm([param.grad for param in model.parameters() if param.grad is not None])


@pytest.mark.parametrize("is_wrapped_first", [True, False])
def test_a_wrapped_optimizer_takes_the_same_steps(wrap: Any, is_wrapped_first: bool) -> None:
    bare, model = small_model(), small_model()
    model.load_state_dict(bare.state_dict())
    optimizer = adam(bare)
    attached(bare, optimizer, **SETTINGS)
    run_steps(bare, optimizer, range(5))
    inner = adam(model)
    if not is_wrapped_first:
        attached(model, inner, **SETTINGS)
    wrapped_model, wrapped = wrap(model, inner)
    if is_wrapped_first:
        attached(model, wrapped, **SETTINGS)
    run_steps(wrapped_model, wrapped, range(5))
    assert_same_weights(bare, model)
    for refused in (inner, wrapped):
        with pytest.raises(RuntimeError, match="step hooks of another"):
            attached(model, refused)


def test_a_method_takes_a_wrapped_optimizer(wrap: Any) -> None:
    models = [fptt.nn.LSTM(3, 5, 4, last_only=True)]
    models.append(copy.deepcopy(models[0]))
    loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence="uniform")
    inputs, labels = torch.randn(8, 6, 3), torch.randint(4, (6,))
    for model, optimizer in [(models[0], adam(models[0])), wrap(models[1], adam(models[1]))]:
        method = fptt.FPTT(model, optimizer, loss, num_chunks=4, max_norm=0.1, **SETTINGS)
        assert method.train_batch(inputs, labels).updates == 4
    assert_same_weights(*models)


def test_accumulated_gradients_make_one_step(accelerator: Any) -> None:
    """Accelerate divides the loss, and passes over `step` and `zero_grad` in between."""
    bare, model = small_model(), small_model()
    model.load_state_dict(bare.state_dict())
    optimizer = adam(bare)
    attached(bare, optimizer, **SETTINGS)
    wrapped_model, wrapped = accelerator.prepare(model, adam(model))
    regularizer = attached(model, wrapped, **SETTINGS)
    for step in range(0, 8, 2):
        optimizer.zero_grad()
        (loss_of(bare, step) / 2).backward()
        (loss_of(bare, step + 1) / 2).backward()
        optimizer.step()
    for step in range(8):
        with accelerator.accumulate(wrapped_model):
            accelerator.backward(loss_of(wrapped_model, step))
            wrapped.step()
            wrapped.zero_grad()
    assert_same_weights(bare, model)
    assert regularizer._hooks is not None
    assert regularizer._hooks.num_steps == 4


@pytest.mark.usefixtures("float64")
def test_micro_batches_of_one_chunk_make_the_step_of_the_batch() -> None:
    """The loop over chunks is the outer one: then the gradients that add up are of one chunk and the same weights."""
    models = [fptt.nn.LSTM(3, 5, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [adam(model) for model in models]
    regularizers = [fptt.DynamicRegularizer.for_optimizer(optimizer, 0.3, max_norm=0.1) for optimizer in optimizers]
    inputs, labels = torch.randn(12, 6, 3), torch.randint(4, (12, 6))
    parts = (slice(0, 6),), (slice(0, 2), slice(2, 4), slice(4, 6))
    for model, optimizer, micro_batches in zip(models, optimizers, parts, strict=True):
        states: list[Any] = [None] * len(micro_batches)
        for chunk, targets in fptt.split_sequence(inputs, labels, num_chunks=4):
            optimizer.zero_grad()
            for m, part in enumerate(micro_batches):
                output, states[m] = model(chunk[:, part], fptt.detach_state(states[m]))
                loss = nn.functional.cross_entropy(output.flatten(0, 1), targets[:, part].flatten())
                (loss / len(micro_batches)).backward()
            optimizer.step()
    pairs = list(zip(*(model.parameters() for model in models), strict=True))
    pairs += [(a.dual, b.dual) for a, b in zip(*(r.state.values() for r in regularizers), strict=True)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_accelerates_scaler_unscales_before_the_penalty_and_skips_it_with_the_step(accelerator: Any) -> None:
    wrapper = importlib.import_module("accelerate.optimizer").AcceleratedOptimizer
    bare, model = small_model(), small_model()
    model.load_state_dict(bare.state_dict())
    optimizer = adam(bare)
    attached(bare, optimizer, **SETTINGS)
    run_steps(bare, optimizer, range(4))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    wrapped = wrapper(adam(model), scaler=scaler)
    regularizer = attached(model, wrapped, **SETTINGS)
    for step in range(4):
        wrapped.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        wrapped.step()
    assert_same_weights(bare, model)
    before, state = weights(model), copy.deepcopy(list(regularizer.state.values()))
    wrapped.zero_grad()
    scaler.scale(loss_of(model, 4) * float("inf")).backward()
    wrapped.step()
    assert wrapped.step_was_skipped
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    for entry, (average, dual) in zip(regularizer.state.values(), state, strict=True):
        assert torch.equal(entry.average, average)
        assert torch.equal(entry.dual, dual)


def test_accelerate_saves_the_regularizer(accelerator: Any, tmp_path: Path) -> None:
    model = accelerator.prepare(small_model())
    optimizer = accelerator.prepare(adam(model))
    regularizer = attached(model, optimizer, **SETTINGS)
    accelerator.register_for_checkpointing(regularizer)
    run_steps(model, optimizer, range(3))
    accelerator.save_state(str(tmp_path))
    run_steps(model, optimizer, range(3, 6))
    expected = weights(model)
    accelerator.load_state(str(tmp_path))
    run_steps(model, optimizer, range(3, 6))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected, strict=True))


def test_fabric_saves_the_method(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    bare = fptt.nn.LSTM(3, 5, 4, last_only=True)
    model, optimizer = fabric.setup(bare, adam(bare))
    loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence=fptt.RunningPrior(4))
    method = fptt.FPTT(model, optimizer, loss, num_chunks=4, backward=fabric.backward)
    inputs, labels = torch.randn(8, 6, 3), torch.randint(4, (6,))
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "method": method}
    method.train_batch(inputs, labels)
    fabric.save(tmp_path / "checkpoint", parts)
    expected = method.train_batch(inputs, labels).chunk_losses, weights(bare)
    fabric.load(tmp_path / "checkpoint", parts)
    assert method.updates == 4
    assert torch.equal(method.train_batch(inputs, labels).chunk_losses, expected[0])
    assert all(torch.equal(*pair) for pair in zip(bare.parameters(), expected[1], strict=True))


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("is_automatic", [True, False])
def test_lightnings_closures_are_called_before_the_penalty(is_automatic: bool) -> None:
    """Lightning calls `step(closure)`: the whole training step, or, in manual optimization, its hooks."""
    lightning = importlib.import_module("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.automatic_optimization, self.norms = small_model(), is_automatic, []

        def configure_optimizers(self) -> Any:
            return adam(self.model)

        def on_train_start(self) -> None:
            attached(self.model, self.optimizers(), **SETTINGS)

        def on_before_optimizer_step(self, _: Any) -> None:
            self.norms.append(norm_of_gradient(self.model))

        def training_step(self, _: Any, step: int) -> Any:
            loss = loss_of(self.model, step)
            if is_automatic:
                return loss
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            return self.optimizers().step()

    module = Module()
    bare = copy.deepcopy(module.model)
    optimizer, norms = adam(bare), []
    attached(bare, optimizer, **SETTINGS)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(bare, step).backward()
        norms.append(norm_of_gradient(bare))
        optimizer.step()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    steps: Any = list(range(5))
    trainer.fit(module, torch.utils.data.DataLoader(steps, batch_size=None))
    assert_same_weights(bare, module.model)
    assert module.norms == norms  # of the loss gradient alone
    assert trainer.global_step == 5

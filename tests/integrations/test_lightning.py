"""A Lightning `Trainer` with the callback makes the steps of a plain loop with the regularizer attached."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fptt
from tests.problems import assert_same_weights, loss_of, run_steps, small_model

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from fptt.integrations.lightning import FPTTCallback, averaged_state_dict  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own
SETTINGS: dict[str, Any] = {"alpha": 0.3, "coupling": "coupled", "max_norm": 0.5}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([param for param in model.parameters() if param.requires_grad], lr=0.01)


class Module(lightning.LightningModule):
    """A batch is the number of a step of `loss_of`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_model()
        self.validated: list[list[Tensor]] = []
        self.on_validation: Callable[[], None] = lambda: None

    def configure_optimizers(self) -> Any:
        return adam(self.model)

    def training_step(self, batch: int, _: int) -> Tensor:
        return loss_of(self.model, batch)

    def validation_step(self, *_: Any) -> None:
        self.validated.append([param.clone() for param in self.model.parameters()])
        self.on_validation()


def steps(count: int) -> Any:
    numbers: Any = list(range(count))
    return DataLoader(numbers, batch_size=None)


def trainer(*callbacks: Any, epochs: int = 1, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks)}
    return lightning.Trainer(max_epochs=epochs, callbacks=list(callbacks), num_sanity_val_steps=1, **quiet, **options)


def plain(model: nn.Module, count: int) -> fptt.DynamicRegularizer:
    optimizer = adam(model)
    regularizer = fptt.DynamicRegularizer.for_optimizer(optimizer, **SETTINGS)
    run_steps(model, optimizer, range(count))
    return regularizer


def test_steps_are_those_of_a_plain_loop() -> None:
    module, callback = Module(), FPTTCallback(**SETTINGS)
    bare = copy.deepcopy(module.model)
    trainer(callback).fit(module, steps(5))
    expected = plain(bare, 5)
    assert_same_weights(bare, module.model)
    assert callback.regularizer is not None
    for one, other in zip(expected.state.values(), callback.regularizer.state.values(), strict=True):
        assert torch.equal(one.average, other.average)
        assert torch.equal(one.dual, other.dual)


@pytest.mark.parametrize("evaluate", ["weights", "averages"])
def test_validation_measures_what_was_asked_for_and_checkpoints_have_the_weights(evaluate: Any, tmp_path: Path) -> None:
    """Lightning validates in inference mode, and saves at the end of validation."""
    module, callback = Module(), FPTTCallback(**SETTINGS, evaluate=evaluate)
    bare = copy.deepcopy(module.model)
    # listed first, and yet called last
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True, every_n_epochs=1, save_on_train_epoch_end=False)
    trainer(saver, callback).fit(module, steps(5), steps(2))
    regularizer = plain(bare, 5)
    assert_same_weights(bare, module.model)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    averages = [regularizer.state[param].average for param in bare.parameters()]
    expected = averages if evaluate == "averages" else list(bare.parameters())
    assert len(module.validated) == 3  # one before training
    assert all(torch.equal(*pair) for pair in zip(module.validated[-1], expected, strict=True))
    for name, param in bare.named_parameters():
        assert torch.equal(checkpoint["state_dict"][f"model.{name}"], param)
        assert torch.equal(averaged_state_dict(checkpoint)[f"model.{name}"], regularizer.state[param].average)


def test_a_resumed_training_goes_on_bit_for_bit_and_warns_without_averages(tmp_path: Path) -> None:
    whole, begun, resumed = Module(), Module(), Module()
    begun.model.load_state_dict(whole.model.state_dict())
    trainer(FPTTCallback(**SETTINGS), epochs=2).fit(whole, steps(5))
    first = trainer(FPTTCallback(**SETTINGS))
    first.fit(begun, steps(5))
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(FPTTCallback(**SETTINGS), epochs=2).fit(resumed, steps(5), ckpt_path=tmp_path / "half.ckpt")
    assert_same_weights(whole.model, resumed.model)

    without = trainer()
    without.fit(Module(), steps(5))
    without.save_checkpoint(tmp_path / "without.ckpt")
    callback = FPTTCallback(**SETTINGS)
    with pytest.warns(UserWarning, match="without.ckpt has no averages and duals of an FPTTCallback"):
        trainer(callback, epochs=2).fit(Module(), steps(5), ckpt_path=tmp_path / "without.ckpt")
    with pytest.warns(UserWarning, match="add the following callbacks: \\['FPTTCallback'\\]"):  # Lightning's own
        trainer(epochs=2).fit(Module(), steps(5), ckpt_path=tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match="must be of a training with an FPTTCallback"):
        averaged_state_dict(torch.load(tmp_path / "without.ckpt", weights_only=True))


def test_a_checkpoint_that_was_measured_is_none_to_resume_from(tmp_path: Path) -> None:
    """Lightning restores callbacks for `validate` and `test`, too; a fit that follows begins with no averages."""
    callback = FPTTCallback(**SETTINGS)
    begun = trainer(callback)
    begun.fit(Module(), steps(5))
    begun.save_checkpoint(tmp_path / "begun.ckpt")
    for used in (callback, FPTTCallback(**SETTINGS)):
        running, module = trainer(used), Module()
        running.validate(Module(), steps(1), ckpt_path=tmp_path / "begun.ckpt", verbose=False)
        bare = copy.deepcopy(module.model)
        running.fit(module, steps(3))
        plain(bare, 3)
        assert_same_weights(bare, module.model)


def test_a_resumed_training_has_the_settings_of_its_checkpoint_and_warns_of_others(tmp_path: Path) -> None:
    begun = trainer(FPTTCallback(**SETTINGS))
    begun.fit(Module(), steps(2))
    begun.save_checkpoint(tmp_path / "1.ckpt")
    for epoch in (1, 2):  # a checkpoint of the resumed training has the settings in effect, not those that were given
        callback = FPTTCallback(0.5, beta=0.9, coupling="coupled")
        resumed = trainer(callback, epochs=epoch + 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resumed.fit(Module(), steps(2), ckpt_path=tmp_path / f"{epoch}.ckpt")
        ours = [str(own.message) for own in caught if "FPTTCallback" in str(own.message)]
        assert [message.partition(":")[0] for message in ours] == [
            "alpha is 0.3, that of the checkpoint, got 0.5 for the FPTTCallback",
            "beta is 0.5, that of the checkpoint, got 0.9 for the FPTTCallback",
        ]
        assert callback.regularizer is not None
        assert callback.regularizer.param_groups[0]["fptt_alpha"] == 0.3
        assert callback.regularizer.beta == 0.5
        resumed.save_checkpoint(tmp_path / f"{epoch + 1}.ckpt")
    callback = FPTTCallback(**SETTINGS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, epochs=4).fit(Module(), steps(2), ckpt_path=tmp_path / "3.ckpt")
    assert not [own for own in caught if "FPTTCallback" in str(own.message)]


def test_averages_of_a_derived_callback_are_found(tmp_path: Path) -> None:
    class Derived(FPTTCallback):
        pass

    callback = Derived(**SETTINGS)
    running = trainer(callback)
    module = Module()
    running.fit(module, steps(5))
    running.save_checkpoint(tmp_path / "derived.ckpt")
    averaged = averaged_state_dict(torch.load(tmp_path / "derived.ckpt", weights_only=True))
    assert callback.regularizer is not None
    for name, param in module.named_parameters():
        assert torch.equal(averaged[name], callback.regularizer.state[param].average)


def test_tied_weights_have_their_average_under_every_name(tmp_path: Path) -> None:
    module, callback = Module(), FPTTCallback(**SETTINGS)
    module.model.register_parameter("tied", next(module.model.parameters()))
    running = trainer(callback)
    running.fit(module, steps(5))
    running.save_checkpoint(tmp_path / "tied.ckpt")
    checkpoint = torch.load(tmp_path / "tied.ckpt", weights_only=True)
    assert callback.regularizer is not None
    averages = {param: entry.average.clone() for param, entry in callback.regularizer.state.items()}
    module.load_state_dict(averaged_state_dict(checkpoint))
    for name, param in module.named_parameters():
        assert torch.equal(param, averages[param]), name

    # a checkpoint of an earlier version, with one name of each
    names = checkpoint["callbacks"]["FPTTCallback"]["names"]
    checkpoint["callbacks"]["FPTTCallback"]["names"] = [own[0] for own in names]
    averaged = averaged_state_dict(checkpoint)
    assert all(torch.equal(averaged[own[0]], averages[param]) for own, param in zip(names, averages, strict=True))


def test_weights_come_back_after_an_error_and_no_checkpoint_is_saved_within_validation(tmp_path: Path) -> None:
    module, callback = Module(), FPTTCallback(**SETTINGS, evaluate="averages")
    bare = copy.deepcopy(module.model)
    running = trainer(callback)

    def save() -> None:
        if callback.regularizer is not None:  # not before training
            running.save_checkpoint(tmp_path / "within.ckpt")

    module.on_validation = save
    with pytest.raises(RuntimeError, match="would have the averages as weights"):
        running.fit(module, steps(5), steps(1))
    plain(bare, 5)
    assert_same_weights(bare, module.model)
    assert not (tmp_path / "within.ckpt").exists()


def test_frozen_weights_are_skipped_and_thawed_ones_taken_in(tmp_path: Path) -> None:
    """A layer that is thawed after two steps takes FPTT steps from then on, and so after a resume."""

    class Thaw(lightning.pytorch.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.model[0])

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.model[0], optimizer, lr=0.01, initial_denom_lr=1.0)
            elif epoch > 1:  # Lightning restores the group, and freezes its weights again
                self.make_trainable(pl_module.model[0])

    module, callback = Module(), FPTTCallback(**SETTINGS)
    bare = copy.deepcopy(module.model)
    running = trainer(Thaw(), callback, epochs=2)
    running.fit(module, steps(2))

    bare[0].requires_grad_(False)
    optimizer = adam(bare)
    regularizer = fptt.DynamicRegularizer.for_optimizer(optimizer, **SETTINGS)
    run_steps(bare, optimizer, range(2))
    assert set(regularizer.state) == set(bare[2].parameters())
    bare[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(bare[0].parameters()), "lr": 0.01})
    regularizer.add_param_group(optimizer.param_groups[-1])
    run_steps(bare, optimizer, range(2))
    assert_same_weights(bare, module.model)

    running.save_checkpoint(tmp_path / "thawed.ckpt")
    resumed = Module()
    trainer(Thaw(), FPTTCallback(**SETTINGS), epochs=3).fit(resumed, steps(2), ckpt_path=tmp_path / "thawed.ckpt")
    run_steps(bare, optimizer, range(2))
    assert_same_weights(bare, resumed.model)


def test_several_optimizers_and_a_wrong_choice_are_refused() -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [adam(self.model), adam(self.model)]

    with pytest.raises(ValueError, match="a module with one optimizer, got 2"):
        trainer(FPTTCallback()).fit(Two(), steps(1))
    with pytest.raises(ValueError, match="evaluate must be one of 'weights', 'averages', got 'best'"):
        FPTTCallback(evaluate="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="alpha must be a positive number, got -1"):
        trainer(FPTTCallback(-1)).fit(Module(), steps(1))

"""FPTT in a Lightning `Trainer`: `pip install 'fptt[lightning]'`."""

# ruff: noqa: ARG002
# Lightning's hooks have the arguments that they have

import warnings
from contextlib import AbstractContextManager
from typing import Any, Literal

from torch import Tensor

import fptt
from fptt._checks import check_choice

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.states import TrainerFn
except ModuleNotFoundError as error:
    raise ImportError(f"fptt.integrations.lightning needs {error.name}: pip install 'fptt[lightning]'") from error


class FPTTCallback(Callback):
    """Make every step of a LightningModule's optimizer an FPTT step, and keep averages and duals in the checkpoint.

    The regularizer is that of `DynamicRegularizer.for_optimizer`, made when training starts; a later group of the
    optimizer, as `BaseFinetuning` adds one, is taken in before the next batch. With automatic optimization a batch is
    one chunk. For several chunks a batch set `automatic_optimization = False`, and step after each. Lightning's own
    clipping comes before the penalty; `max_norm` comes after it. In a resumed training alpha, beta and mu are those of
    the checkpoint, as the learning rate is of torch's optimizers; a warning says where others were given.

    Args:
        alpha: Strength of the penalty, see `fptt.DynamicRegularizer`, and so the others.
        max_norm: Clip the norm of loss gradient plus penalty gradient, see `fptt.DynamicRegularizer.attach`.
        beta: Weight of the new parameters in the average.
        form: `paper` or `released`.
        coupling: `coupled` or `decoupled`.
        mu: Weight of the pull in the `released` form.
        evaluate: Validate within `fit` with the `weights` W or the `averages` W̄. Checkpoints have W as the weights of
            the module in any case; `averaged_state_dict` returns W̄ of a checkpoint.

    Attributes:
        regularizer: The `fptt.DynamicRegularizer`; None before training starts.

    Raises:
        ValueError: At the start of training, if the module has not exactly one optimizer.

    Examples:
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from fptt.integrations.lightning import FPTTCallback
        >>> trainer = Trainer(max_epochs=5, callbacks=[FPTTCallback(alpha=0.1)])  # doctest: +SKIP
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        max_norm: float | None = None,
        beta: float = 0.5,
        form: Literal["paper", "released"] = "paper",
        coupling: Literal["coupled", "decoupled"] = "decoupled",
        mu: float = 1.0,
        evaluate: Literal["weights", "averages"] = "weights",
    ) -> None:
        check_choice("evaluate", evaluate, ("weights", "averages"))
        self.options: dict[str, Any] = {"alpha": alpha, "max_norm": max_norm, "beta": beta, "mu": mu}
        self.options |= {"form": form, "coupling": coupling}
        self.evaluate = evaluate
        self.regularizer: fptt.DynamicRegularizer | None = None
        self._settings: dict[str, float] = {}
        self._names: dict[Tensor, list[str]] = {}
        self._loaded: dict[str, Any] = {}
        self._averaged: AbstractContextManager[None] | None = None  # entered in one hook, left in another

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit, and the checkpoint that `trainer.validate` or `trainer.test` has loaded."""
        if stage != "fit":
            return
        if self.regularizer is not None:
            self.regularizer.detach()  # its optimizer is gone
        self.regularizer, self._loaded = None, {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, and restore what the checkpoint has; the optimizer has its groups and the weights their device."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"FPTTCallback needs a module with one optimizer, got {len(trainer.optimizers)}: call "
                "DynamicRegularizer.for_optimizer for those that are to make FPTT steps."
            )
        self.regularizer = fptt.DynamicRegularizer.for_optimizer(trainer.optimizers[0], **self.options)
        self._names = {}
        for name, param in pl_module.named_parameters(remove_duplicate=False):  # tied weights have several names
            self._names.setdefault(param, []).append(name)
        self._settings = {name: self.options[name] for name in ("alpha", "beta", "mu")}
        if self._loaded:
            self.regularizer.load_state_dict(self._loaded["regularizer"])
            self._keep_settings(self._loaded.get("settings", {}))  # which earlier versions did not save
        elif trainer.ckpt_path:
            warnings.warn(
                f"checkpoint {trainer.ckpt_path} has no averages and duals of an FPTTCallback: they begin again.",
                stacklevel=2,
            )
        self._loaded = {}

    def _keep_settings(self, saved: dict[str, float]) -> None:
        """Keep the settings of the checkpoint, which the regularizer now has; warn where others were given."""
        for name, value in saved.items():
            if self._settings[name] != value:
                warnings.warn(
                    f"{name} is {value}, that of the checkpoint, got {self._settings[name]} for the FPTTCallback: a "
                    "resumed training keeps alpha, beta and mu, as it keeps the learning rate.",
                    stacklevel=3,
                )
        self._settings = self._settings | saved

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take in groups that the optimizer has got since the last batch."""
        if self.regularizer is not None:
            for group in trainer.optimizers[0].param_groups[len(self.regularizer.param_groups) :]:
                self.regularizer.add_param_group(group)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the averages in."""
        # a checkpoint that `trainer.validate` has loaded is not the one that the averages belong to
        if self.regularizer is not None and self.evaluate == "averages" and trainer.state.fn == TrainerFn.FITTING:
            self._averaged = self.regularizer.averaged()
            self._averaged.__enter__()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back; Lightning calls the callbacks that save checkpoints last."""
        self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back after an error or Ctrl-C in validation."""
        self._put_back()

    def _put_back(self) -> None:
        if self._averaged is not None:
            self._averaged.__exit__(None, None, None)
        self._averaged = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise RuntimeError within validation with averages, whose checkpoint would have W̄ in the place of W."""
        if self._averaged is not None:
            raise RuntimeError(
                "a checkpoint saved within validation would have the averages as weights: save it later."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return averages, duals and settings, and the names of the parameters; Lightning puts them in checkpoints."""
        if self.regularizer is None:
            return self._loaded
        params = [param for group in self.regularizer.param_groups for param in group["params"]]
        names = [self._names.get(param, []) for param in params]
        return {"regularizer": self.regularizer.state_dict(), "names": names, "settings": dict(self._settings)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until training starts."""
        self._loaded = state_dict


def averaged_state_dict(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of a module from a checkpoint, with the averages W̄ in the place of those that have one.

    Args:
        checkpoint: What Lightning has saved of a training with an `FPTTCallback`, as `torch.load` returns it.

    Raises:
        ValueError: If there was no such callback, or it had not begun.

    Examples:
        >>> from fptt.integrations.lightning import averaged_state_dict
        >>> checkpoint = torch.load("last.ckpt", weights_only=True)  # doctest: +SKIP
        >>> module.load_state_dict(averaged_state_dict(checkpoint))  # doctest: +SKIP
    """
    # Lightning keeps each state under the name of its class, which may be derived from FPTTCallback
    states = checkpoint.get("callbacks", {}).values()
    saved = next((own for own in states if isinstance(own, dict) and {"regularizer", "names"} <= own.keys()), None)
    if saved is None:
        raise ValueError("checkpoint must be of a training with an FPTTCallback, got one without averages.")
    averages: dict[str, Any] = {}
    for number, entry in saved["regularizer"]["state"].items():
        names = saved["names"][number]
        # a version that did not know tied weights saved one name alone
        averages |= dict.fromkeys([names] if isinstance(names, str) else names or [], entry["average"])
    return {name: averages.get(name, weight) for name, weight in checkpoint["state_dict"].items()}

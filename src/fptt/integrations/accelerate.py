"""FPTT in a loop of Hugging Face Accelerate: `pip install 'fptt[accelerate]'`."""

from typing import Any, Literal

from torch.optim import Optimizer

import fptt

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ModuleNotFoundError as error:
    raise ImportError(f"fptt.integrations.accelerate needs {error.name}: pip install 'fptt[accelerate]'") from error


def attach_regularizer(
    accelerator: Accelerator,
    optimizer: Optimizer,
    alpha: float = 0.1,
    *,
    max_norm: float | None = None,
    beta: float = 0.5,
    form: Literal["paper", "released"] = "paper",
    coupling: Literal["coupled", "decoupled"] = "decoupled",
    mu: float = 1.0,
) -> fptt.DynamicRegularizer:
    """Make every step of a prepared optimizer an FPTT step, and return the regularizer.

    Averages and duals go into `accelerator.save_state` and come back by `load_state`, which raises RuntimeError for a
    checkpoint without them. Under `accelerator.accumulate` the steps that Accelerate makes are FPTT steps.

    Args:
        accelerator: The one that has prepared model and optimizer.
        optimizer: What `accelerator.prepare` returned.
        alpha: Strength of the penalty, see `fptt.DynamicRegularizer`, and so the others.
        max_norm: Clip the norm of loss gradient plus penalty gradient, see `fptt.DynamicRegularizer.attach`;
            `accelerator.clip_grad_norm_` clips that of the loss alone.
        beta: Weight of the new parameters in the average.
        form: `paper` or `released`.
        coupling: `coupled` or `decoupled`.
        mu: Weight of the pull in the `released` form.

    Raises:
        TypeError: If the optimizer was not prepared.
        ValueError: As `fptt.DynamicRegularizer.for_optimizer`.

    Examples:
        >>> from accelerate import Accelerator
        >>> from fptt.integrations.accelerate import attach_regularizer
        >>> model = nn.Linear(3, 1)
        >>> accelerator = Accelerator(cpu=True)
        >>> model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
        >>> regularizer = attach_regularizer(accelerator, optimizer, alpha=0.1, max_norm=1.0)
        >>> accelerator.backward(model(torch.randn(8, 3)).square().mean())
        >>> optimizer.step()
        >>> len(regularizer.state)
        2
    """
    # of another, `prepare` might still move the weights to new tensors
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise TypeError(
            f"optimizer must be what accelerator.prepare returned, got a {type(optimizer).__name__} of its own."
        )
    settings: dict[str, Any] = {"beta": beta, "form": form, "coupling": coupling, "mu": mu}
    regularizer = fptt.DynamicRegularizer.for_optimizer(optimizer, alpha, max_norm=max_norm, **settings)
    accelerator.register_for_checkpointing(regularizer)
    return regularizer

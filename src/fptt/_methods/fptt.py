"""FPTT: forward propagation through time."""

from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from fptt._checks import check_positive, check_type
from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.method import EngineName, Method, MethodOptions, check_options
from fptt._regularizer.regularizer import Coupling, DynamicRegularizer, Form, PreviousGradient

OF_FPTT = ("alpha", "beta", "form", "coupling", "mu", "previous_gradient", "num_duals")
"""Settings of `FPTT` that the other methods do not have."""


class FPTT(Method):
    """Cut the sequence into chunks, and update after each with a penalty that remembers the losses of those before.

    With −u the optimizer's own step on ∇ℓ_t, W̄ the average and l the dual of each weight (Kag & Saligrama 2021,
    Algorithm 1, in the decoupled form, which is the default):

        W_{t+1} = W_t − u − [γ (W_t − W̄_t) − l_t/2]
        l_{t+1} = l_t − γ (W_{t+1} − W̄_t)
        W̄_{t+1} = (1 − β) W̄_t + β W_{t+1} − (β/γ) l_{t+1}

    where `alpha` is γ. With `coupling="coupled"`, as printed, the penalty goes through the optimizer instead, and
    `alpha` is the paper's α, in another unit:

        W_{t+1} = W_t − η ∇(ℓ_t + R_t)(W_t),   R_t(W) = (α/2) ‖W − W̄_t − λ_t/(2α)‖²

    For SGD without momentum or clipping both are the same with γ = ηα. See `DynamicRegularizer`. Averages and duals go
    on from batch to batch. One chunk a time step is plain FPTT, K chunks are FPTT-K; K ≈ √T is said to work best.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`; state None is the model's own initial state.
        optimizer: Any `torch.optim` optimizer over the model's parameters. Gains step hooks, until `close()`.
        loss: A `TerminalLoss` or `SequenceLoss`.
        num_chunks: K, the number of chunks of every sequence.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        engine: `eager`, or `compiled`, the whole chunk step as machine code, for many small updates.
        alpha: Strength of the penalty, ≥ 0: γ if decoupled, α if coupled; 0 is exactly TBPTT.
        beta: Weight of the new parameters in the average, in (0, 1]; ½ in the paper.
        form: `paper`, the printed formula, or `released`, the authors' code; see `DynamicRegularizer`.
        coupling: `decoupled`, the penalty taken off the weights after the optimizer's step, or `coupled`, added to the
            gradient.
        mu: Weight of the pull towards the average in the form `released`, > 0.
        num_duals: Duals of each parameter: 1, or as many as chunks, so that each has its own; with `chunk_length` as
            many as the longest sequence has. Eager only.
        previous_gradient: `dual`, at no cost, or `recomputed`, which takes ∇ℓ_t(W_{t+1}) by a second forward and
            backward pass a chunk, from the same incoming state and with the same random numbers; normalization layers
            with running statistics see the chunk twice. Eager, coupled and `paper` only.
        regularizer: A `DynamicRegularizer` of your own over the optimizer's parameters, instead of the settings from
            `alpha` on, which are left out then. Without one, the parameters that the optimizer has now are regularized;
            for those it gets later, call `method.regularizer.add_param_group`.
        **options: See `TBPTT`. `max_norm` clips the sum of loss gradient and coupled penalty gradient.

    Raises:
        ValueError: If a setting is out of range, or given beside a `regularizer` of your own; or not exactly one of
            `num_chunks` and `chunk_length` is given.
        TypeError: If `loss` is a plain function: it does not say whether targets belong to the sequence or its steps;
            or if there is no such option.
        RuntimeError: If the optimizer has the hooks of another method or regularizer.

    Examples:
        >>> model = nn.LSTM(3, 5)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence="uniform")
        >>> method = fptt.FPTT(model, optimizer, loss, num_chunks=4)
        >>> result = method.train_batch(torch.randn(12, 4, 3), torch.tensor([0, 1, 2, 3]))
        >>> result.updates, result.chunk_losses.shape
        (4, torch.Size([4]))
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        engine: EngineName = "eager",
        alpha: float = 0.1,
        beta: float = 0.5,
        form: Form = "paper",
        coupling: Coupling = "decoupled",
        mu: float = 1.0,
        previous_gradient: PreviousGradient = "dual",
        num_duals: int = 1,
        regularizer: DynamicRegularizer | None = None,
        **options: Unpack[MethodOptions],
    ) -> None:
        check_options(self, options)
        check_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
        own = regularizer
        if own is None:
            if alpha != 0:
                check_positive("alpha", alpha)
            own = DynamicRegularizer(
                optimizer.param_groups,
                alpha or 1.0,  # without a penalty the other settings are checked all the same
                beta=beta,
                form=form,
                coupling=coupling,
                mu=mu,
                previous_gradient=previous_gradient,
                num_duals=num_duals,
            )
        else:
            settings = (alpha, beta, form, coupling, mu, previous_gradient, num_duals)
            defaults = FPTT.__init__.__kwdefaults__ or {}
            for name, setting in zip(OF_FPTT, settings, strict=True):
                if setting != defaults[name]:
                    raise ValueError(f"{name} must be left out with a regularizer of your own, got {setting!r}.")
        check_type("regularizer", own, DynamicRegularizer, "a DynamicRegularizer")
        if num_chunks is not None and own.num_duals not in (1, num_chunks):
            raise ValueError(f"num_duals must be 1 or num_chunks, {num_chunks}, got {own.num_duals}.")
        super().__init__(
            model,
            optimizer,
            loss,
            num_chunks=num_chunks,
            chunk_length=chunk_length,
            engine=engine,
            regularizer=own if alpha else None,
            **options,
        )

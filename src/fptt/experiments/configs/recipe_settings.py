"""What several recipes have in common: settings of the papers, and of small versions of them."""

from typing import Any

# An update every time step: small ones, many, judged by their moving average, for the weights never stand still.
PER_STEP: dict[str, Any] = {
    "engine": "compiled",
    "lr": 5e-4,
    "schedule": "constant",
    "ema_decay": 0.98,
    "forget_bias": 1.0,
    "fan_in_init": True,
    "readout_sizes": (256,),
    "readout_activation": "relu",
}

# Kag & Saligrama: LSTM-128, Adam 1e-3, ÷ 10 at epochs 50, 75 and 90 of 200, batch 128, clip 1, α 0.1, β ½, K = 10
IMAGES: dict[str, Any] = {
    "readout_sizes": (256,),
    "batch_size": 128,
    "num_chunks": 10,
    "lr": 1e-3,
    "form": "released",
    "coupling": "coupled",
    "alpha": 0.1,
    "divergence": "running",
    "epochs": 200,
    "schedule": "steps",
    "milestones": (0.25, 0.375, 0.45),
}

SMALL_IMAGES: dict[str, Any] = {
    "readout_sizes": (256,),
    "batch_size": 64,
    "epochs": 2,
    "threads": 1,
    "num_chunks": 28,
    "lr": 1e-3,
    "forget_bias": 1.0,
    "fan_in_init": True,
}

ADDING: dict[str, Any] = {
    "readout_sizes": (256,),
    "forget_bias": 1.0,
    "fan_in_init": True,
    "num_chunks": 10,
    "batch_size": 128,
    "lr": 1e-3,
    "schedule": "trapezoid",
    "divergence": "none",
}

# Kag & Saligrama: LSTM-256, SGD 2 with momentum 0.9, batch 128, dropout 0.2, α 0.5, μ 2, K = 6, rate ÷ 4 on a plateau
PTB_300: dict[str, Any] = {
    "length": 300,
    "hidden_size": 256,
    "optimizer": "sgd",
    "lr": 2.0,
    "momentum": 0.9,
    "batch_size": 128,
    "dropout": 0.2,
    "input_dropout": 0.2,
    "num_chunks": 6,
    "form": "released",
    "coupling": "coupled",
    "alpha": 0.5,
    "mu": 2.0,
    "schedule": "plateau",
    "lr_factor": 0.25,
}

# Merity, Keskar & Socher 2018
AWD: dict[str, Any] = {
    "num_layers": 3,
    "tied": True,
    "hidden_dropout": 0.25,
    "weight_dropout": 0.5,
    "weight_decay": 1.2e-6,
    "num_chunks": 3,
}

"""sesttune: hyperparameter sweeps for ST heads on a frozen State Embedding encoder."""

__version__ = "0.1.0"

"""sesttune: hyperparameter sweeps for State Transition heads on a frozen State Embedding encoder."""

__version__ = "0.1.0"

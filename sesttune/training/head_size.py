"""How large a run's head is, told apart from its training: who uses a head needs no Lightning."""

from sesttune.config.schema import Config
from sesttune.data.trial_data import TrialData
from sesttune.model.st_head import HeadConfig


def head_config(config: Config, data: TrialData) -> HeadConfig:
    """Sizes of the head: widths from the settings, dimensions from the data."""
    kwargs = config.model.kwargs
    return HeadConfig(
        data.embed_dim,
        data.pert_dim,
        data.n_genes,
        kwargs.hidden_dim,
        kwargs.n_layers,
        kwargs.n_heads,
        kwargs.dropout,
    )

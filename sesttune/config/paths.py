"""Which settings name files, and where those lie whatever folder a run is gone on with from."""

from pathlib import Path

from sesttune.config.load import settings_by_key, with_point
from sesttune.config.schema import Config

PATHS = (
    "data.kwargs.toml_config_path",
    "data.kwargs.perturbation_features_file",
    "data.kwargs.gene_list",
    "data.cache_dir",
    "model.kwargs.se_model_path",
    "model.kwargs.se_checkpoint_path",
    "model.checkpoint",
)
MOVABLE = tuple(key for key in PATHS if key != "model.checkpoint")
"""Those that a run may be given anew: what they lead to is known by its content."""
INPUTS = (
    "data.kwargs.embed_key",
    "data.kwargs.perturbation_features_file",
    "model.kwargs.se_model_path",
    "model.kwargs.se_checkpoint_path",
)
"""Where a model finds its inputs; that they are those it learnt from is checked."""
SQLITE = "sqlite:///"


def with_whole_paths(config: Config) -> Config:
    """`config` with whole paths for those from the working directory; `~` stays as it is."""
    settings = settings_by_key(config)
    whole: dict[str, object] = {
        key: str(Path(path).absolute())
        for key in PATHS
        if (path := settings[key]) is not None and not Path(path).expanduser().is_absolute()
    }
    if config.tracking.uri is not None:
        whole["tracking.uri"] = whole_uri(config.tracking.uri)
    return with_point(config, whole)


def whole_uri(uri: str) -> str:
    """`sqlite:///mlflow.db` names a file of the working directory: its whole path; others as is."""
    file = uri.removeprefix(SQLITE)
    return f"{SQLITE}{Path(file).absolute()}" if file != uri and file else uri

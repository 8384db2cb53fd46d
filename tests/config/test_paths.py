from pathlib import Path

import pytest

from sesttune.config.load import load_config, settings_by_key
from sesttune.config.paths import whole_uri, with_whole_paths

FILES = (
    "data.kwargs.toml_config_path",
    "data.kwargs.perturbation_features_file",
    "data.kwargs.gene_list",
    "data.cache_dir",
    "model.kwargs.se_model_path",
    "model.kwargs.se_checkpoint_path",
    "model.checkpoint",
)


def test_every_path_is_whole_wherever_a_run_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = load_config(base=dict.fromkeys(FILES, "a/b") | {"tracking.uri": "sqlite:///x.db"})
    found = settings_by_key(with_whole_paths(given))
    assert {key: found[key] for key in FILES} == dict.fromkeys(FILES, str(tmp_path / "a/b"))
    assert found["tracking.uri"] == f"sqlite:///{tmp_path}/x.db"
    for kept in ("~/a", "/a/b", None):  # of another's home, or nowhere
        given = load_config(base=dict.fromkeys(FILES, kept) | {"data.cache_dir": "~/c"})
        assert with_whole_paths(given) == given


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "sqlite:////data/x.db", "postgresql://u@h/d", "sqlite:///"]
)
def test_a_store_that_names_no_file_of_the_folder_stays(uri: str) -> None:
    assert whole_uri(uri) == uri

from pathlib import Path

import pytest

from sesttune.config.load import load_config, settings_by_key
from sesttune.config.paths import PATHS, whole_uri, with_whole_paths
from sesttune.config.schema import Config


def test_every_setting_that_names_a_file_is_known_as_one() -> None:
    """One that is left out would lead elsewhere where a run is gone on with from another folder."""
    names = ("_path", "_file", "_dir", "_list", "checkpoint")
    found = {key for key in settings_by_key(Config()) if key.endswith(names)}
    assert found - {"output_dir"} == set(PATHS)  # that one is given anew at each command


def test_every_path_is_whole_wherever_a_run_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = load_config(base=dict.fromkeys(PATHS, "a/b") | {"tracking.uri": "sqlite:///x.db"})
    found = settings_by_key(with_whole_paths(given))
    assert {key: found[key] for key in PATHS} == dict.fromkeys(PATHS, str(tmp_path / "a/b"))
    assert found["tracking.uri"] == f"sqlite:///{tmp_path}/x.db"
    for kept in ("~/a", "/a/b", None):  # of another's home, or nowhere
        given = load_config(base=dict.fromkeys(PATHS, kept) | {"data.cache_dir": "~/c"})
        assert with_whole_paths(given) == given


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "sqlite:////data/x.db", "postgresql://u@h/d", "sqlite:///"]
)
def test_a_store_that_names_no_file_of_the_folder_stays(uri: str) -> None:
    assert whole_uri(uri) == uri

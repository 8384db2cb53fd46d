import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from helpers.tiny_data import MeanEncoder, TinyData, write_cells, write_tiny
from scipy import sparse

from sesttune.cache import main as cache_command
from sesttune.config.load import load_config
from sesttune.data import cache_entries, shards
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError
from sesttune.system.cached_folder import cached_folder, locked, mark_used

N_CONTROLS = 120


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CELLS", 16)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyData:
    return write_tiny(tmp_path)


def encoded(tiny: TinyData, encoder: MeanEncoder | None = None) -> tuple[TrialData, int]:
    """The prepared data, and how many cells had to be encoded for them."""
    encoder = encoder or MeanEncoder()
    data = TrialData(prepare(load_config(base=tiny.settings()), lambda: encoder))
    return data, encoder.encoded


def shard_folders(tiny: TinyData) -> list[Path]:
    return sorted(p for p in (tiny.folder / "cache" / "shards").iterdir() if p.is_dir())


def test_an_added_file_costs_its_own_cells_only(tiny: TinyData) -> None:
    before, count = encoded(tiny)
    assert count == N_CONTROLS
    labels = ["non-targeting"] * 20 + ["P0"] * 10
    genes = before.store.genes
    write_cells(tiny.folder / "delta.h5ad", np.random.default_rng(9), labels, "delta", genes)
    text = tiny.split_file.read_text().replace("gamma}", "gamma,delta}")
    tiny.split_file.write_text(text)
    after, count = encoded(tiny)
    assert count == 20
    assert np.array_equal(after.controls.matrix[:N_CONTROLS], before.controls.matrix)
    assert len(after.controls.matrix) == N_CONTROLS + 20


def test_a_file_that_was_touched_or_moved_is_not_encoded_again(tiny: TinyData) -> None:
    encoded(tiny)
    os.utime(tiny.files["alpha"], (1, 1))
    assert encoded(tiny)[1] == 0


def test_changed_cells_or_gene_names_or_encoder_are_encoded_again(tiny: TinyData) -> None:
    encoded(tiny)
    cells = anndata.read_h5ad(tiny.files["beta"])
    cells.X[0, 0] += 1  # row 0 is a control: its shard of 16 is another one now
    cells.write_h5ad(tiny.files["beta"])
    assert encoded(tiny)[1] == 16
    cells.var_names = [*cells.var_names[:-1], "another"]
    cells.write_h5ad(tiny.files["beta"])
    settings = {"model.kwargs.input_dim": 59, "model.kwargs.output_dim": 59}
    encoder = MeanEncoder()
    prepare(load_config(base=tiny.settings(**settings)), lambda: encoder)
    assert encoder.encoded == 40
    other = MeanEncoder()
    other.key = "another encoder"
    prepare(load_config(base=tiny.settings(**settings)), lambda: other)
    assert other.encoded == N_CONTROLS


def test_cells_that_changed_since_they_were_read_are_refused(tiny: TinyData) -> None:
    encoded(tiny)
    beta = tiny.files["beta"]
    before = beta.stat()
    with h5py.File(beta, "r+") as file:
        file["X/data"][0] += 1  # row 0 is a control
    os.utime(beta, ns=(before.st_atime_ns, before.st_mtime_ns))  # the store thinks it knows it
    other = MeanEncoder()
    other.key = "another encoder"
    with pytest.raises(UserError, match=r"beta\.h5ad: its cells have changed since"):
        encoded(tiny, other)
    beta.touch()
    assert encoded(tiny, other)[1] > 0


def test_a_stricter_gene_threshold_is_asked_again(tiny: TinyData) -> None:
    encoded(tiny)
    stricter = MeanEncoder()
    stricter.min_matched = 0.3
    assert encoded(tiny, stricter)[1] == 0
    stricter.min_matched = 1.1  # more than there are
    with pytest.raises(UserError, match="too few genes are known"):
        encoded(tiny, stricter)


def test_a_damaged_shard_is_noticed_and_made_again(tiny: TinyData) -> None:
    matrix = np.array(encoded(tiny)[0].controls.matrix)
    embeddings = shard_folders(tiny)[3] / "embeddings.npy"
    content = bytearray(embeddings.read_bytes())
    content[-1] ^= 1  # same size, another value
    embeddings.write_bytes(bytes(content))
    for folder in (tiny.folder / "cache" / "embeddings").glob("[!.]*/"):
        (folder / "complete.json").unlink()
    data, count = encoded(tiny)
    assert 0 < count <= 16
    assert np.array_equal(data.controls.matrix, matrix)


class Overlapping(MeanEncoder):
    """Its first two calls wait for each other; without company they fail."""

    calls_at_once = 2

    def __init__(self) -> None:
        super().__init__()
        self.together, self.calls = threading.Barrier(2), itertools.count()

    def encode(self, x: sparse.csr_matrix, match: object) -> np.ndarray:
        if next(self.calls) < 2:
            self.together.wait(timeout=60)
        return super().encode(x, match)


def test_a_damaged_matrix_is_noticed_and_put_together_again(tiny: TinyData) -> None:
    data, _ = encoded(tiny)
    values = np.array(data.controls.matrix)
    file = data.controls.folder / "embeddings.npy"
    content = bytearray(file.read_bytes())
    content[-2] ^= 0xFF
    file.write_bytes(content)
    assert not np.array_equal(np.load(file), values)
    again, count = encoded(tiny)
    assert count == 0, "of shards that are there"
    assert np.array_equal(again.controls.matrix, values)


def test_shards_are_read_and_written_while_others_are_encoded(
    tiny: TinyData, tmp_path: Path
) -> None:
    in_turn = np.array(encoded(tiny)[0].controls.matrix)
    other = replace(tiny, folder=tmp_path / "other")
    data, count = encoded(other, Overlapping())
    assert np.array_equal(data.controls.matrix, in_turn)
    assert count == len(in_turn)


SLOW = """
import sys, time
from pathlib import Path
from helpers.tiny_data import MeanEncoder, TinyData
from sesttune.config.load import load_config
from sesttune.data import shards
from sesttune.data.trial_data import prepare

shards.SHARD_CELLS = 16
class Slow(MeanEncoder):
    def encode(self, x, match):
        time.sleep(0.5)
        return super().encode(x, match)
folder = Path(sys.argv[1])
tiny = TinyData(folder, folder / "split.toml", folder / "features.pt", {})
prepare(load_config(base=tiny.settings()), Slow)
"""


def test_a_kill_keeps_the_finished_shards(tiny: TinyData) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tiny.folder)], env={**os.environ, "PYTHONPATH": path}
    )
    deadline = time.monotonic() + 60
    folder = tiny.folder / "cache" / "shards"
    while not folder.is_dir() or len(list(folder.glob("*/complete.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len([p for p in shard_folders(tiny) if not p.name.startswith(".")])
    data, count = encoded(tiny)
    assert 0 < count <= N_CONTROLS - 8 * finished  # a file's last shard has 8 cells
    assert len(data.controls.matrix) == N_CONTROLS


def test_what_is_being_built_or_was_used_meanwhile_is_not_pruned(
    tiny: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(tiny)
    held, used, gone = shard_folders(tiny)[:3]
    for folder in (held, used, gone):
        os.utime(folder / "complete.json", (1, 1))
    whole = cache_entries.entries(tiny.folder / "cache")
    mark_used(used)  # after the list was made
    monkeypatch.setattr(cache_entries, "entries", lambda _: whole)
    with locked(held):
        size = sum(file.stat().st_size for file in gone.iterdir())
        assert cache_entries.prune(tiny.folder / "cache", 30) == (1, size)
    assert (held.exists(), used.exists(), gone.exists()) == (True, True, False)
    assert cache_entries.prune(tiny.folder / "cache", 30)[0] == 1  # `gone` is no error
    assert not held.exists()


@pytest.fixture
def listings() -> Iterator[list[str]]:
    """The folders that are listed meanwhile."""
    seen: list[str] = []
    listening = True

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event in ("os.scandir", "os.listdir"):
            seen.append(str(arguments[0]))

    sys.addaudithook(hear)
    yield seen
    listening = False


def test_many_shards_are_not_listed_for_each_of_them(tmp_path: Path, listings: list[str]) -> None:
    shards_folder = tmp_path / "shards"
    for number in range(20):
        cached_folder(shards_folder / f"{number}", lambda draft: (draft / "x").touch())
    assert str(shards_folder) not in listings
    (shards_folder / ".7-1234").mkdir()  # of a builder that was killed
    with locked(shards_folder / "8"):
        (shards_folder / ".8-1234").mkdir()  # of one that is at it
        assert cache_entries.prune(tmp_path, 30)[0] == 1
    assert listings.count(str(shards_folder)) < 5
    assert not (shards_folder / ".7-1234").exists()
    assert (shards_folder / ".8-1234").exists()
    shutil.rmtree(shards_folder / "8")
    cached_folder(shards_folder / "8", lambda draft: (draft / "x").touch())
    assert not (shards_folder / ".8-1234").exists(), "its builder has gone, too"


def test_a_shard_that_serves_again_and_what_a_trial_opens_are_marked_as_used(
    tiny: TinyData,
) -> None:
    data, _ = encoded(tiny)
    folders = [*shard_folders(tiny), data.store.folder, data.controls.folder, data.manifest.parent]
    for folder in folders:
        os.utime(folder / "complete.json", (1, 1))
    TrialData(data.manifest)
    assert all((f / "complete.json").stat().st_mtime > 1 for f in folders[-3:])
    shutil.rmtree(data.controls.folder)
    encoded(tiny)
    assert all((f / "complete.json").stat().st_mtime > 1 for f in folders if f.exists())


def test_a_full_disk_is_named_whatever_error_it_causes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(draft: Path) -> None:
        raise RuntimeError("1024 requested and 16 written")

    with pytest.raises(RuntimeError):
        cached_folder(tmp_path / "x", build)
    monkeypatch.setattr("sesttune.system.cached_folder.is_full", lambda folder: True)
    with pytest.raises(UserError, match=r"data.cache_dir: the disk of .* is full"):
        cached_folder(tmp_path / "x", build)


def test_a_cache_on_a_file_system_without_locks_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(UserError, match=r"cannot write to .* implemented\); set data.cache_dir to"):
        cached_folder(tmp_path / "x", lambda draft: None)


def cache(tiny: TinyData, *arguments: str) -> int:
    return cache_command([*arguments, "--cache-dir", str(tiny.folder / "cache")])


def test_the_cache_command_lists_verifies_and_prunes(
    tiny: TinyData, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded(tiny)
    assert cache(tiny, "list") == 0
    assert "shards" in capsys.readouterr().out
    assert cache(tiny, "verify") == 0
    values = next((tiny.folder / "cache" / "stores").glob("[!.]*/values.npy"))
    content = bytearray(values.read_bytes())
    content[-1] ^= 1
    values.write_bytes(bytes(content))
    assert cache(tiny, "verify") == 1
    assert f"damaged: {values.parent}" in capsys.readouterr().out
    # An old shard, a killed builder's draft and a torn folder go; what was used just now stays.
    old, torn = shard_folders(tiny)[:2]
    os.utime(old / "complete.json", (1, 1))
    (torn / "embeddings.npy").write_bytes(b"")
    draft = old.with_name(f".{torn.name}-1")
    draft.mkdir()
    before = len(shard_folders(tiny))
    assert cache(tiny, "prune", "--dry-run") == 0
    assert "would remove 3 folders" in capsys.readouterr().out
    assert len(shard_folders(tiny)) == before
    assert cache(tiny, "prune") == 0
    assert not old.exists()
    assert not torn.exists()
    assert not draft.exists()
    assert len(shard_folders(tiny)) == before - 3
    assert encoded(tiny)[1] == 0  # the whole matrix is still there

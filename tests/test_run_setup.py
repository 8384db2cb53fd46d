"""What is refused before a run folder appears, and when a run is gone on with."""

import io
import shutil
import weakref
from pathlib import Path

import anndata
import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny
from helpers.trained_runs import EMBED_KEY, write_embedded
from omegaconf import OmegaConf
from rich.console import Console

from sesttune import sweep, train
from sesttune.command import Main, open_console, run
from sesttune.config.load import load_config
from sesttune.run_setup import open_run, prepare_run, prepared_data, write_settings
from sesttune.system.atomic import DiskFull, write_text
from sesttune.system.run_lock import only_driver


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Data with a training of 20 steps, `outputs/first`."""
    tiny = write_embedded(tmp_path_factory.mktemp("setup"))
    assert run(train.main, arguments(tiny, name="first")) == 0
    return tiny


def arguments(tiny: TinyData, **more: object) -> list[str]:
    outputs = {"output_dir": str(tiny.folder / "outputs"), "data.kwargs.embed_key": EMBED_KEY}
    settings = tiny.settings(**{**outputs, **more})
    return [f"{key}={value}" for key, value in settings.items()]


def first_state(tiny: TinyData) -> Path:
    return tiny.folder / "outputs" / "first" / "trials" / "001" / "checkpoints" / "last.ckpt"


def refused(main: Main, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(main, words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def beside(tmp_path: Path, space: str) -> tuple[dict[str, object], list[str]]:
    """Folders that are not there yet, and what names a sweep's space, a YAML file of `space`."""
    file = tmp_path / "space.yaml"
    file.write_text(f"parameters: {{{space}}}\n")
    folders: dict[str, object] = {"output_dir": tmp_path / "outputs"}
    return {**folders, "data.cache_dir": tmp_path / "cache"}, ["--space", str(file)]


@pytest.mark.parametrize("main", [train.main, sweep.main])
def test_a_warm_up_without_end_is_refused_before_the_data_are_read(
    tiny: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Main
) -> None:
    folders, space = beside(tmp_path, "training.weight_decay: {type: choice, values: [0.0, 0.1]}")
    words = arguments(tiny, **folders, **{"training.warmup_steps": 20})
    words += space if main is sweep.main else []
    line = refused(main, words, capsys)
    assert "training.warmup_steps=20 lasts to the end of training.max_steps=20, and lr" in line
    assert ("add the constraint 'warmup_steps < max_steps'" in line) == (main is sweep.main)
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


@pytest.mark.parametrize("main", [train.main, sweep.main])
def test_a_machine_without_the_gpu_that_is_asked_for_is_refused_before_the_data_are_read(
    main: Main,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    toml = f"data.kwargs.toml_config_path={tmp_path}/not there.toml"
    assert run(main, ["training.device=cuda", toml, f"output_dir={tmp_path}"]) == 2
    assert "error: training.device=cuda, but" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("main", [train.main, sweep.main])
def test_a_starting_point_is_refused_before_the_data_are_read(
    tiny: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Main
) -> None:
    folders, space = beside(tmp_path, "training.max_steps: {type: choice, values: [20, 40]}")
    start = {"model.checkpoint": first_state(tiny), **folders, "name": "more"}
    words = arguments(tiny, **start)
    if main is sweep.main:  # the smallest that is searched counts
        words = [w for w in words if not w.startswith("training.max_steps")] + space
    assert "is at step 20 already: training.max_steps=20" in refused(main, words, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.kwargs.toml_config_path", "gone.toml"),
        ("data.kwargs.pert_col", "gone"),
        ("model.kwargs.output_dim", 7),
    ],
)
@pytest.mark.parametrize("main", [train.main, sweep.main])
def test_a_refusal_is_not_below_a_page_of_settings(
    tiny: TinyData, capsys: pytest.CaptureFixture[str], main: Main, key: str, value: object
) -> None:
    words = arguments(tiny, name="wrong", **{key: value})
    if main is sweep.main:
        words = [w for w in words if not w.startswith("training.lr=")] + ["sweep.space=quick"]
    assert run(main, words) == 2
    shown = capsys.readouterr()
    assert str(value) in shown.err
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)


@pytest.mark.parametrize("cached", [True, False])
def test_settings_are_shown_once_before_what_is_found_in_the_data(
    tiny: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str], cached: bool
) -> None:
    cache = {} if cached else {"data.cache_dir": tmp_path}
    words = arguments(tiny, name=f"shown-{cached}", output_dir=tmp_path, **cache)
    prepare_run(load_config(words), None, open_console())
    settings, _, notes = capsys.readouterr().out.partition("  max_steps: 20\n")
    assert "toml_config_path: " in settings
    assert "alpha.h5ad: 100 cells" in notes
    assert "max_steps: 20" not in notes


def test_a_starting_point_of_other_genes_leaves_no_run(
    tiny: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genes = list(anndata.read_h5ad(tiny.files["alpha"]).var_names)
    (tmp_path / "genes.txt").write_text("\n".join(reversed(genes)))
    start = {"model.checkpoint": first_state(tiny), "name": "more", "training.max_steps": 40}
    words = arguments(tiny, **start, **{"data.kwargs.gene_list": tmp_path / "genes.txt"})
    assert "was trained on other genes than these 60, or" in refused(train.main, words, capsys)
    assert not (tiny.folder / "outputs" / "more").exists()


def test_a_starting_point_of_another_split_is_told_of(tiny: TinyData, tmp_path: Path) -> None:
    """It may have been trained on what is held out now."""
    other = tiny.split_file.with_name("other.toml")
    other.write_text(tiny.split_file.read_text().replace('test = ["P2"]', 'test = ["P3"]'))
    for split, is_told in ((tiny.split_file, False), (other, True)):
        settings = tiny.settings(
            **{
                "output_dir": str(tmp_path),
                "name": split.stem,
                "data.kwargs.embed_key": EMBED_KEY,
                "data.kwargs.toml_config_path": str(split),
                "model.checkpoint": str(first_state(tiny)),
                "training.max_steps": 40,
            }
        )
        shown = io.StringIO()
        prepare_run(load_config(base=settings), None, Console(file=shown, width=500))
        told = f"warning: model.checkpoint: {first_state(tiny)} was trained on other data or"
        assert (told in shown.getvalue()) == is_told


def test_sizes_of_a_head_that_is_there_are_not_searched(
    tiny: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("parameters: {model.kwargs.n_layers: {type: int, low: 1, high: 3}}\n")
    words = [w for w in arguments(tiny, name="more") if "n_layers" not in w]
    words += [f"model.checkpoint={first_state(tiny)}", "--space", str(space)]
    assert "model.kwargs.n_layers cannot be searched with model.checkpoint" in refused(
        sweep.main, words, capsys
    )


def test_a_run_is_gone_on_with_from_another_folder(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.folder)
    more = {
        "data.kwargs.toml_config_path": tiny.split_file.name,
        "data.kwargs.perturbation_features_file": tiny.features.name,
        "data.cache_dir": "cache",
        "model.checkpoint": first_state(tiny).relative_to(tiny.folder),
        "tracking.uri": "sqlite:///own.db",
        "output_dir": "outputs",
        "training.max_steps": 25,
    }
    assert run(train.main, arguments(tiny, name="longer", **more)) == 0
    monkeypatch.chdir(tmp_path)
    again = ["--resume", "longer", f"output_dir={tiny.folder / 'outputs'}"]
    features = shutil.copy(tiny.features, tmp_path)
    again.append("data.kwargs.perturbation_features_file=features.pt")
    assert run(train.main, again) == 0
    assert [str(path) for path in tmp_path.iterdir()] == [features]
    kept = open_run(str(tiny.folder / "outputs"), "longer").config
    assert kept.model.checkpoint == str(first_state(tiny))
    assert kept.data.cache_dir == str(tiny.folder / "cache")
    assert kept.data.kwargs.gene_list is None
    assert kept.data.kwargs.perturbation_features_file == features
    assert kept.tracking.uri == f"sqlite:///{tiny.folder / 'own.db'}"


def test_a_training_takes_the_cores_that_its_control_group_leaves(
    tiny: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("sesttune.system.machine.cores", lambda: 1)
    torch.set_num_threads(2)
    try:
        assert run(train.main, arguments(tiny, name="in-one-core")) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_training_that_runs_is_not_run_by_a_second_process(
    tiny: TinyData, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tiny.folder / "outputs"
    with only_driver(outputs / "first"):
        words = ["--resume", "first", f"output_dir={outputs}"]
        assert "is being run by another process" in refused(train.main, words, capsys)


def test_a_run_does_not_go_on_with_other_inputs(
    tiny: TinyData, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["--resume", "first", f"output_dir={tiny.folder / 'outputs'}"]
    assert run(train.main, again) == 0
    vectors = torch.load(tiny.features, weights_only=True)
    torch.save({name: vector + 1 for name, vector in vectors.items()}, tiny.features)
    told = refused(train.main, again, capsys)
    assert "the vectors of the perturbations have changed since first was started" in told
    words = [w for w in arguments(tiny, name="later") if not w.startswith("training.lr=")]
    later = [*words, "sweep.space=quick", "--warm-start", "first", "--dry-run"]
    assert run(sweep.main, later) == 0
    told = "first had other vectors of the perturbations: its results are learnt from, its"
    assert told in capsys.readouterr().out
    torch.save(vectors, tiny.features)
    cells = anndata.read_h5ad(tiny.files["alpha"])
    cells.obsm[EMBED_KEY] = cells.obsm[EMBED_KEY] * 2
    cells.write_h5ad(tiny.files["alpha"])
    assert "the embeddings of the controls" in refused(train.main, again, capsys)
    cells.obsm[EMBED_KEY] = cells.obsm[EMBED_KEY] / 2
    cells.X[0, 0] += 1
    cells.write_h5ad(tiny.files["alpha"])
    assert "the cells or the splits have changed" in refused(train.main, again, capsys)
    assert "it was run on other data, so their losses" in refused(sweep.main, later, capsys)
    assert not (tiny.folder / "outputs" / "later").exists()


def test_the_encoder_has_left_the_gpu_before_trials_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are other processes, and torch would keep what a pass took for this one's next."""
    opened: list[weakref.ref[MeanEncoder]] = []
    gone: list[bool] = []

    def open_encoder(*_: object, **__: object) -> MeanEncoder:
        encoder = MeanEncoder()
        opened.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr("sesttune.model.se_checkpoint.find_files", lambda *_: None)
    monkeypatch.setattr("sesttune.model.se_encoder.SEEncoder", open_encoder)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: gone.append(opened[0]() is None))
    config = load_config(base=write_tiny(tmp_path).settings())
    prepared_data(config, Console(quiet=True))
    assert gone == [True]


@pytest.mark.parametrize(
    "words",
    [
        ["/a/b/sesttune/train.py"],
        ["/a/bin/sesttune", "train"],
        ["/a/b/sesttune/cli.py", "train"],
        ["/a/bin/se-st-train"],
    ],
)
def test_the_command_is_kept_as_it_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", [*words, "name=a b"])
    write_settings(tmp_path, load_config(), None)
    command = OmegaConf.load(tmp_path / "sweep.yaml").command
    assert command == "sesttune train 'name=a b'"


def test_a_folder_is_there_with_all_that_it_is_gone_on_from_or_not_at_all(
    tiny: TinyData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(path: Path, text: str) -> None:
        if path.name == "data.json":  # the last one that is written
            raise DiskFull("the disk is full")
        write_text(path, text)

    outputs = tmp_path / "outputs"
    words = arguments(tiny, name="half", output_dir=outputs)
    with monkeypatch.context() as patch:
        patch.setattr("sesttune.run_setup.write_text", full_disk)
        assert "is full" in refused(train.main, words, capsys)
    assert list(outputs.iterdir()) == []
    assert run(train.main, words) == 0

from pathlib import Path

import pytest

from sesttune.data.splits import assign_splits, expand_braces, read_split_file
from sesttune.errors import UserError

CONDITIONS = [
    ("d", cell_type, pert)
    for cell_type in ("alpha", "beta", "gamma")
    for pert in ("P0", "P1", "P2")
]
GOOD = """
[datasets]
d = "cells"
[training]
d = "train"
[zeroshot]
"d.gamma" = "test"
[fewshot."d.beta"]
val = ["P0"]
test = ["P1"]
"""
ZEROSHOT = '[zeroshot]\n"d.gamma" = "test"\n'
ALL_TEST = ZEROSHOT + '"d.alpha" = "test"\n"d.beta" = "test"\n'
E_IS_TEST = '\n[zeroshot]\n"e.beta" = "test"'


def write(folder: Path, text: str) -> Path:
    (folder / "cells").mkdir(exist_ok=True)
    (folder / "cells" / "a.h5ad").touch()
    (folder / "split.toml").write_text(text)
    return folder / "split.toml"


def files_of(folder: Path, where: str) -> list[str]:
    """What `where` names, relative to `folder`."""
    text = f'[datasets]\nd = "{where}"\n[training]\nd = "train"\n'
    files = read_split_file(write(folder, text)).datasets["d"]
    return [str(file.relative_to(folder)) for file in files]


def test_every_condition_goes_where_the_tables_say(tmp_path: Path) -> None:
    splits, notes = assign_splits(read_split_file(write(tmp_path, GOOD)), CONDITIONS, 0.1, 0)
    assert {c for c, s in splits.items() if s == "test"} == {
        ("d", "gamma", "P0"),
        ("d", "gamma", "P1"),
        ("d", "gamma", "P2"),
        ("d", "beta", "P1"),
    }
    assert {c for c, s in splits.items() if s == "val"} == {("d", "beta", "P0")}
    assert splits[("d", "alpha", "P0")] == "train"  # held out in beta only
    assert splits[("d", "beta", "P2")] == "train"
    assert notes == []


def test_without_val_training_perturbations_are_held_out_and_test_is_not_touched(
    tmp_path: Path,
) -> None:
    file = read_split_file(write(tmp_path, GOOD.replace('val = ["P0"]\n', "")))
    before = {c for c in CONDITIONS if c[1] == "gamma"} | {("d", "beta", "P1")}
    for seed in range(5):
        splits, notes = assign_splits(file, CONDITIONS, 0.34, seed)
        held_out = {c[2] for c, s in splits.items() if s == "val"}
        assert len(held_out) == 1
        assert "held out 1 of 3 training perturbations" in notes[0]
        assert {c for c, s in splits.items() if s == "test"} == before
        assert not [c for c, s in splits.items() if s == "train" and c[2] in held_out]


def test_hold_out_follows_the_seed(tmp_path: Path) -> None:
    file = read_split_file(write(tmp_path, '[datasets]\nd = "cells"\n[training]\nd = "train"\n'))
    many = [("d", "alpha", f"P{i}") for i in range(50)]
    first, again, other = (assign_splits(file, many, 0.1, seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sum(split == "val" for split in first.values()) == 5


def test_outside_training_only_what_a_table_names_is_used(tmp_path: Path) -> None:
    (tmp_path / "e.h5ad").touch()
    text = GOOD.replace("[training]", 'e = "e.h5ad"\nf = "not/even/there"\n[training]')
    text += '[fewshot."e.alpha"]\ntest = ["P0"]\n'
    file = read_split_file(write(tmp_path, text))
    assert list(file.datasets) == ["d", "e"]
    of_e = [("e", cell_type, pert) for _, cell_type, pert in CONDITIONS]
    splits, notes = assign_splits(file, [*CONDITIONS, *of_e], 0.3, 0, dropped=["P2"])
    assert {c[1:]: split for c, split in splits.items() if c[0] == "e"} == {
        ("alpha", "P0"): "test",
        ("alpha", "P1"): "train",  # what [fewshot] leaves is trained on, as in cell-load
    }
    assert notes == [
        "datasets not read, as no table names them: f",
        "conditions left out, of datasets outside [training]: 4",
    ]


@pytest.mark.parametrize("name", ["replogle.k562", "a b/c", "δ.", "n" * 300])
def test_a_dataset_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, GOOD.replace("d =", f'"{name}" =').replace('"d.', f'"{name}.'))
    file = read_split_file(path)
    assert (file.training, [*file.zeroshot, *file.fewshot]) == (
        (name,),
        [(name, "gamma"), (name, "beta")],
    )


def test_a_context_of_two_datasets_is_a_question(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace('d = "cells"', 'd = "cells"\n"d.beta" = "cells"'))
    assert (read_split_file(path).fewshot) == {("d", "beta"): {"val": ("P0",), "test": ("P1",)}}
    path.write_text(path.read_text().replace('"d.beta"]', '"d.beta.x"]'))
    with pytest.raises(UserError, match=r'"d.beta.x" may be of dataset d or d.beta: rename one'):
        read_split_file(path)


def test_datasets_as_folder_file_and_glob(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.h5ad").touch()
    assert files_of(tmp_path, "a.h5ad") == ["a.h5ad"]
    assert files_of(tmp_path, "{b,c}.h5ad") == ["b.h5ad", "c.h5ad"]
    for everything in (".", "*.h5ad", "{a,a,b,c}.h5ad"):
        assert files_of(tmp_path, everything) == ["a.h5ad", "b.h5ad", "c.h5ad"]


def test_braces_and_globs_match_folders_too(tmp_path: Path) -> None:
    for name in ("x1/a.h5ad", "x2/b.h5", "x2/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for where in ("{x1,x2}", "x?", f"{tmp_path}/x*"):
        assert files_of(tmp_path, where) == ["x1/a.h5ad", "x2/b.h5"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="d: no .h5ad or .h5 file at .*/empty$"):
        files_of(tmp_path, "{x1,empty}")


def test_a_folder_is_read_without_what_is_hidden_in_it_and_in_any_case(tmp_path: Path) -> None:
    for name in ("a.h5ad", "B.H5AD", ".123.c.h5ad", "._a.h5ad"):
        (tmp_path / name).touch()
    assert files_of(tmp_path, ".") == ["B.H5AD", "a.h5ad"]


def test_a_packed_file_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "cells" / "a.h5ad.gz").touch()
    assert files_of(tmp_path, "cells") == ["cells/a.h5ad"]
    (tmp_path / "cells" / "b.h5ad.gz").touch()
    with pytest.raises(UserError, match="cells/b.h5ad.gz would not be read: unpack it with gunzip"):
        files_of(tmp_path, "cells")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_split_file(path).training == ("d",)


@pytest.mark.parametrize("name", ["run[1]", "run{1,2}", "run*"])
def test_the_split_files_own_folder_is_no_pattern(tmp_path: Path, name: str) -> None:
    for folder in ("run1", "run2", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"of {folder}.h5ad").touch()
    for where in ("*.h5ad", "{of,of} *.h5ad"):
        assert files_of(tmp_path / name, where) == [f"of {name}.h5ad"]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ('d = "{a,b}.h5ad"\ne = "b.h5ad"' + E_IS_TEST, r"d \(.*/b.h5ad\) and e \(.*/b.h5ad\)"),
        ('d = "{a,cells/../a}.h5ad"', r"d \(.*/a.h5ad\) and d \(.*/cells/../a.h5ad\)"),
        ('d = "b.h5ad"\ne = "link.h5ad"' + E_IS_TEST, r"d \(.*/b.h5ad\) and e \(.*/link.h5ad\)"),
    ],
)
def test_a_file_named_twice_is_refused(tmp_path: Path, datasets: str, message: str) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.h5ad").touch()
    (tmp_path / "link.h5ad").symlink_to("b.h5ad")
    path = write(tmp_path, f'[datasets]\n{datasets}\n[training]\nd = "train"\n')
    with pytest.raises(UserError, match=f"split.toml: .datasets. {message} are the same"):
        read_split_file(path)


def test_braces() -> None:
    assert expand_braces("x{a,b}y{c,d}") == ["xayc", "xayd", "xbyc", "xbyd"]
    assert expand_braces("plain") == ["plain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("d.gamma", "e.gamma"), "names dataset 'e'"),
        (('"test"\n[few', '"tests"\n[few'), '"val" or "test"'),
        (("d.gamma", "d.gama"), "cell type 'gama'.*did you mean 'gamma'"),
        (('"P0"', '"P00"'), "perturbation 'P00'.*did you mean 'P0'"),
        (('"P0"', '"p0 "'), "perturbation 'p0 '.*did you mean 'P0'"),
        (("[training]", "[trainig]"), r"unknown table \[trainig\]"),
        (('d = "train"', 'd = "test"'), 'must be "train"'),
        (('["P1"]', '["P0"]'), "in val and in test"),
        (("d.gamma", "d.beta"), "in .zeroshot. and .fewshot.: keep one"),
        (("cells", "nowhere"), "no .h5ad or .h5 file at .*nowhere"),
        (("val =", "vall ="), "must hold val"),
        (('d = "cells"', 'd.k562 = "cells"'), r"\[datasets\] d.k562 must be in quotes, .*: \"d.k"),
        (('"d.gamma"', "d.gamma"), r"\[zeroshot\] d.gamma must be in quotes"),
        (('"d.beta"', "d.beta"), r"\[fewshot\] d.beta must be in quotes"),
        (("[datasets]", "[datasets"), "not valid TOML"),
        (('d = "cells"', 'd = ["cells"]'), "datasets. d must be one text"),
        ((GOOD[GOOD.index("[training]") :], ""), "nothing is left to train on"),
        ((GOOD[GOOD.index("[training]") :], ZEROSHOT), "to train on; name a dataset in .training."),
        ((GOOD[GOOD.index("[zeroshot]") :], ALL_TEST), "to train on: .* held out by .zeroshot. or"),
    ],
)
def test_mistakes_are_named_in_one_line(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(UserError, match=message) as caught:
        assign_splits(read_split_file(path), CONDITIONS, 0.1, 0)
    assert "\n" not in str(caught.value)
    assert "split.toml" in str(caught.value)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 1), (0.16, 2), (0.5, 5), (0.99, 9)])
def test_the_share_held_out_is_rounded_and_never_none(
    tmp_path: Path, fraction: float, held_out: int
) -> None:
    file = read_split_file(write(tmp_path, '[datasets]\nd = "cells"\n[training]\nd = "train"\n'))
    ten = [("d", "alpha", f"P{i}") for i in range(10)]
    splits, _ = assign_splits(file, ten, fraction, 0)
    assert list(splits.values()).count("val") == held_out
    with pytest.raises(UserError, match="1 training perturbation cannot be split into training"):
        assign_splits(file, ten[:1], fraction, 0)

"""The package as a wheel brings it, not this checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_has_the_search_spaces(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("sesttune", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        "from sesttune.search.space_file import SPACES_FOLDER, load_space\n"
        "print(SPACES_FOLDER, *(load_space(f.stem) and f.name for f in SPACES_FOLDER.iterdir()))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    folder, *names = done.stdout.split()
    assert Path(folder).is_relative_to(site)
    assert sorted(names) == sorted(file.name for file in (ROOT / "search_spaces").iterdir())

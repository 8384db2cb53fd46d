"""The code that a registered model brings along: with it MLflow runs the model without sesttune.

MLflow puts a loaded model's code before everything else on `sys.path`. Under the name `sesttune`
these few modules would hide the installed package, in that process and in those it spawns, and of
two loaded models the second would run on the first one's code. So the copy is named after its
contents.
"""

import re
from hashlib import sha256
from pathlib import Path

import sesttune

PYFUNC = "pyfunc_model.py"
MODULES = (
    "__init__.py",
    "errors.py",
    "system/__init__.py",
    "system/atomic.py",
    "model/__init__.py",
    "model/st_head.py",
    "model/head_checkpoint.py",
)
"""What `pyfunc_model.py` runs on."""
_IMPORT = re.compile(rf"^(\s*(?:from|import) ){sesttune.__name__}\b", re.MULTILINE)


def write_code(folder: Path) -> tuple[Path, Path]:
    """Write the model's own file and its package into `folder`; returns both paths."""
    here = Path(sesttune.__file__).parent
    modules = {name: (here / name).read_text() for name in MODULES}
    package = f"sesttune_head_{sha256(''.join(modules.values()).encode()).hexdigest()[:12]}"
    files = {f"{package}/{name}": text for name, text in modules.items()}
    files[PYFUNC] = Path(__file__).with_name(PYFUNC).read_text()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(_IMPORT.sub(rf"\g<1>{package}", text))
    return folder / PYFUNC, folder / package

"""Lower layers stand on their own: what a GPU is needed for runs where only they are installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITHOUT = "import sys, runpy; sys.modules.update(dict.fromkeys(('ray', 'mlflow', 'optuna')))\n"


def without_engines(script: str) -> subprocess.CompletedProcess[str]:
    """`script` in a Python that has neither Ray, MLflow nor Optuna."""
    command = [sys.executable, "-c", WITHOUT + script]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_tests_and_benchmarks_for_a_gpu_start_without_ray_and_mlflow() -> None:
    folders = ["tests/data", "tests/model", "tests/training"]
    arguments = [*folders, "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    names = ("train_step", "dense_rows", "step_variants", "encode")
    done = without_engines(
        "sys.path.insert(0, 'benchmarks')\n"
        f"for name in {names!r}:\n"
        "    sys.argv = [f'benchmarks/{name}.py', '--help']\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "import pytest\n"  # after them, as it adds folders that they may import from
        f"sys.exit(pytest.main({arguments!r}))"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "tests/training/test_trial.py::" in done.stdout
    assert [f"usage: {name}.py" in done.stdout for name in names] == [True] * 4


def test_who_uses_a_trained_head_waits_for_no_lightning() -> None:
    """Promote, evaluate and predict: it takes seconds to import."""
    script = "import sesttune.training.trained_head; print('lightning' in sys.modules)"
    assert without_engines(script).stdout == "False\n"

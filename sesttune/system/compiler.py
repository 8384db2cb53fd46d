"""Whether torch can compile on this machine: it writes C++, and launches a GPU's kernels by it."""

import os
import shutil
import sysconfig
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")


def missing() -> str | None:
    """What torch needs to compile and this machine has not got."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name):
        return "a C++ compiler (g++ on the PATH, or CXX)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers (python3-dev)"
    return None

"""Where a trial was trained: the versions and the hardware that its last digits depend on.

On a CPU the same versions, instruction set and number of threads give the same bits.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sesttune import __version__
from sesttune.training.records import note_facts, read_trial

PACKAGES = ("torch", "lightning", "numpy", "ray")


def versions() -> dict[str, str]:
    """Name -> version of Python, sesttune and what it trains with, as installed here."""
    found = {"python": platform.python_version(), "sesttune": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # training needs no ray
            continue
    return found


def describe_device(device: torch.device) -> str:
    """`cpu x86_64 AVX512`, or the name of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def note_environment(folder: Path, device: torch.device) -> None:
    """Record versions, device and threads with the trial in `folder`.

    Where other versions began the trial, they stay as `earlier_versions`.
    """
    known, now = read_trial(folder), versions()
    then = known.facts.get("versions", now) if known is not None else now
    facts: dict[str, Any] = {"earlier_versions": then} if then != now else {}
    facts |= {"versions": now, "device": describe_device(device)}
    note_facts(folder, **facts, threads=torch.get_num_threads())

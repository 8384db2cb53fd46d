"""Sweeps of a few steps on real Ray, and what is heard of them."""

import json
import os
import subprocess
import sys

from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config, to_yaml
from sesttune.data.trial_data import prepare
from sesttune.run_setup import write_settings
from sesttune.search.listener import SweepListener
from sesttune.search.space_file import parse_space
from sesttune.training.records import DATA, read_metrics

_DRIVER = """
import logging
import sys
from pathlib import Path
from sesttune.config.load import load_config
from sesttune.search.driver import run_sweep
from sesttune.search.space_file import load_space
logging.basicConfig(level="INFO")
config = load_config(file=Path(sys.argv[1]))
run_sweep(Path(sys.argv[2]), config, load_space(sys.argv[3]), Path(sys.argv[4]))
"""


def prepared(folder):
    """Settings and prepared data; patience 2, so the first rung is at step 10; no last rounds."""
    settings = write_tiny(folder).settings(
        **{
            "training.patience": 2,
            "sweep.reduction_factor": 2,
            "sweep.continue_stopped": False,
            "sweep.seeds": 1,
        }
    )
    config = load_config(base=settings)
    return config, prepare(config, MeanEncoder)


def start_driver(folder, config, space, manifest, **environment):
    """A process that runs the sweep `folder/run` over `space`, the text of a YAML file."""
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "space.yaml").write_text(space)
    arguments = [folder / "config.yaml", folder / "run", folder / "space.yaml", manifest]
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


INPUTS = {"fingerprint": "f", "features": "v", "encoder": {"sha256": "e"}}
"""What a sweep is known to be of."""


def begin(folder, config):
    """The folder of a sweep that has no trials yet."""
    folder.mkdir(parents=True)
    (folder / DATA).write_text(json.dumps(INPUTS))
    write_settings(folder, config, None)
    return folder


def choice(*values):
    return {"type": "choice", "values": list(values)}


def grid(**parameters):
    named = {key.replace("__", "."): value for key, value in parameters.items()}
    return parse_space({"searcher": "grid", "parameters": named}, "test space")


class Heard(SweepListener):
    def __init__(self):
        self.starts, self.ends, self.reports, self.ticks = [], [], [], 0

    def on_start(self, record, max_steps):
        self.starts.append((record.id, max_steps))

    def on_report(self, trial_id, metrics):
        self.reports.append((trial_id, metrics["step"]))

    def on_end(self, record):
        self.ends.append((record.id, record.status))

    def on_tick(self):
        self.ticks += 1


def assert_clean_curve(folder, last_step):
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == list(range(0, last_step + 1, 5))

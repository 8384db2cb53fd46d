"""`sesttune reproduce`: say what made a registered version, and make it again.

It runs what `sesttune train` runs, after the data, the encoder and the perturbation features
have been found to be those of then. On the same CPU under the same versions the best val_loss
(of a step without a validation the weights) is the same to the last bit; else the difference is
named, with what differs.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sesttune.command import open_console, run
from sesttune.config.schema import Config
from sesttune.errors import UserError

if TYPE_CHECKING:
    from sesttune.data.shards import Runner
    from sesttune.run_setup import Run


def main(argv: Sequence[str]) -> int:
    """Print what made a registered version; without --dry-run, make it again and compare."""
    parser = argparse.ArgumentParser("sesttune reproduce", description=main.__doc__)
    parser.add_argument("model", help="models:/se-st@champion, or a folder")
    parser.add_argument("--dry-run", action="store_true", help="print, do not train")
    parser.add_argument("--output-dir", default="outputs", help="runs and MLflow: %(default)s")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="where things lie now, if elsewhere, e.g. data.kwargs.toml_config_path=…",
    )
    args = parser.parse_intermixed_args(argv)
    from sesttune.config.load import parse_override, with_point
    from sesttune.model.head_checkpoint import read_about
    from sesttune.recipe import describe, reasons, settings_of
    from sesttune.tracking.registry import fetch_model
    from sesttune.tracking.store import tracking_uri

    places = dict(parse_override(text) for text in args.overrides)
    folder = fetch_model(args.model, tracking_uri(Config(output_dir=args.output_dir)))
    about = read_about(folder)
    config = with_point(settings_of(about, places), {"output_dir": args.output_dir})
    from sesttune.training.environment import describe_device, versions
    from sesttune.training.trainer import pick_device

    console, device = open_console(), describe_device(pick_device(config.training))
    for line in describe(about, config, versions(), device):
        console.print(line)
    if args.dry_run:
        return 0
    threads = _same_threads(about, device)
    training = _prepare(config, about, folder, console)
    from sesttune.train import train

    train(training, console)
    differing = reasons(about, versions(), device, threads)
    if about["val_loss"] is None:
        same, told = _compare_weights(training, about, folder, differing)
    else:
        same, told = _compare(training.folder, about, differing)
    console.print(f"\n{told}")
    return 0 if same or differing else 1


def _same_threads(about: Mapping[str, Any], device: str) -> int:
    """Sums on a CPU are split by threads: take as many as then."""
    import torch

    then = about["environment"].get("threads")
    if device.startswith("cpu") and then is not None:
        torch.set_num_threads(then)
    return torch.get_num_threads()


def _prepare(config: Config, about: Mapping[str, Any], model: Path, console: Console) -> "Run":
    """A run folder on the same data; raises UserError, and leaves nothing, where they changed."""
    from sesttune.run_setup import prepare_run
    from sesttune.training.records import read_data

    training = prepare_run(config, None, console, _refuse_other_encoder(about))
    try:
        now = read_data(training.folder)
        _check_encoder(about, now["encoder"])
        if now["fingerprint"] != about["data_fingerprint"]:
            raise UserError(
                f"the data are not those it was trained on: fingerprint {now['fingerprint']}, "
                f"then {about['data_fingerprint']} ({config.data.kwargs.toml_config_path})"
            )
        _check_features(model, training.manifest, config)
    except UserError:
        shutil.rmtree(training.folder)  # nothing has run in it yet
        raise
    return training


def _refuse_other_encoder(about: Mapping[str, Any]) -> "Runner":
    """Encodes, but not with another encoder: that would be hours for nothing."""
    from sesttune.data.shards import encode_here

    def runner(shards: Any, encoder: Any, progress: Any) -> None:
        _check_encoder(about, encoder.identity)
        encode_here(shards, encoder, progress)

    return runner


def _check_encoder(about: Mapping[str, Any], now: Mapping[str, str]) -> None:
    then = about["encoder"]
    if now["sha256"] != then["sha256"]:
        raise UserError(
            f"the encoder is not that of then: {now['path']} has sha256 {now['sha256'][:12]}, "
            f"then {then['sha256'][:12]} ({then['path']})"
        )
    if "proteins" in then and now["proteins"] != then["proteins"]:
        raise UserError(f"the protein embeddings of {now['path']} are not those of then")
    if "values" in then and now["values"] != then["values"]:
        raise UserError(f"{now['path']} of the files does not hold the values of then")


def _check_features(model: Path, manifest: Path, config: Config) -> None:
    """The data's fingerprint is of cells and splits; features are compared one by one."""
    import numpy as np

    from sesttune.data.trial_data import TrialData
    from sesttune.model.head_checkpoint import read_vectors

    data = TrialData(manifest)
    row = {name: number for number, name in enumerate(data.store.names["pert"])}
    for name, vector in read_vectors(model).items():
        if not np.array_equal(data.features[row[name]], vector):
            raise UserError(
                f"{config.data.kwargs.perturbation_features_file}: the vector of '{name}' is not "
                "that of then"
            )


def _compare(folder: Path, about: Mapping[str, Any], differing: list[str]) -> tuple[bool, str]:
    """Whether val_loss at the registered step is the same to the last bit, and a line on it."""
    from sesttune.train import TRIAL_ID
    from sesttune.training.records import read_metrics, trial_folder

    step, then = about["step"], about["val_loss"]
    lines = read_metrics(trial_folder(folder, TRIAL_ID))
    found = next((line["val_loss"] for line in lines if line["step"] == step), None)
    if found is None:
        return False, f"not reproduced: this training has no validation at step {step:,}"
    if found == then:
        return True, f"reproduced: val_loss {found:.9g} at step {step:,}, the same to the last bit"
    return False, (
        f"not the same bits: val_loss {found:.9g} at step {step:,}, then {then:.9g} "
        f"({abs(found - then) / abs(then):.2g} of it apart): {_why(differing)}"
    )


def _compare_weights(
    training: "Run", about: Mapping[str, Any], model: Path, differing: list[str]
) -> tuple[bool, str]:
    """The same of a step where no validation was due: the weights themselves are compared."""
    from sesttune.data.trial_data import TrialData
    from sesttune.model.head_checkpoint import import_head
    from sesttune.train import TRIAL_ID
    from sesttune.training.records import list_trials
    from sesttune.training.trained_head import trained_head

    [record] = [found for found in list_trials(training.folder) if found.id == TRIAL_ID]
    try:
        head, _ = trained_head(record, TrialData(training.manifest), about["step"])
    except UserError as error:  # of a schedule that goes on, periodic checkpoints may be thinned
        return False, f"not compared: {error}"
    now, then = head.state_dict(), import_head(model)[0].state_dict()
    apart = max(float((now[name] - then[name]).abs().max()) for name in then)
    if apart == 0:
        return True, f"reproduced: the weights of step {about['step']:,}, the same to the last bit"
    return False, (
        f"not the same bits: the weights of step {about['step']:,} are up to {apart:.2g} apart: "
        f"{_why(differing)}"
    )


def _why(differing: list[str]) -> str:
    return "; ".join(differing) or "nothing that is recorded differs"


if __name__ == "__main__":
    sys.exit(run(main))

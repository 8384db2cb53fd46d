"""A ledger without an engine: a test says what each trial reports."""

from sesttune.config.load import load_config
from sesttune.training.records import append_metrics, trial_folder

CONFIG = load_config(
    ["training.val_check_interval=10", "training.patience=5", "sweep.reduction_factor=2"]
)


def folder(ledger, job):
    return trial_folder(ledger.folder, job.id)


def say(ledger, job, step, loss, time):
    line = {"step": step, "train_loss": loss, "val_loss": loss, "best_val_loss": loss}
    append_metrics(folder(ledger, job), {**line, "best_step": step, "time": time})

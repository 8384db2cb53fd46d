import io

import pytest
from rich.console import Console
from rich.text import Text

from sesttune.config.load import load_config
from sesttune.search.ledger import TrialLedger
from sesttune.search.live import LiveTable, describe, duration
from sesttune.search.space_file import parse_space
from sesttune.training.records import (
    TrialRecord,
    append_metrics,
    list_trials,
    read_trial,
    trial_folder,
    update_trial,
)

PARAMS = {"training.lr": 0.00012345678, "training.batch_size": 16}


def play(live, tmp_path, **more):
    record = TrialRecord("002", tmp_path / "002", PARAMS | more)
    live.on_start(record, 400)
    line = {"step": 100, "val_loss": 1.5, "best_val_loss": 1.25, "steps_per_s": 2.0}
    live.on_report("002", line)
    live.on_tick()
    return record


def test_a_terminal_sees_every_column_of_a_running_trial(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    with LiveTable(console, total=4) as live:
        play(live, tmp_path)
    shown = out.getvalue()
    for text in ("002", "lr=0.0001235 batch_size=16", "100/400", "1.5", "1.25", "running"):
        assert text in shown
    assert "0:02:30" in shown, "300 steps at 2 a second"
    assert "0/4 trials" in shown


def test_a_narrow_terminal_breaks_words_and_no_number(tmp_path):
    out = io.StringIO()
    with LiveTable(Console(file=out, force_terminal=True, width=80), total=4) as live:
        play(live, tmp_path, n_layers=4, max_steps=40_000, replicate=2)
    shown = out.getvalue()
    assert "…" not in shown
    whole = ("002", "batch_size=16", "n_layers=4", "replicate=2", "100/400", "1.25", "0:02:30")
    assert all(text in shown for text in whole)


@pytest.mark.parametrize("width", [60, 140])
def test_of_many_trials_those_that_run_and_the_best_are_seen(tmp_path, width):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=24)
    now = iter(range(10_000))
    with LiveTable(console, total=1_100, clock=lambda: next(now)) as live:
        for number in range(1, 1_100):
            record = TrialRecord(f"{number:03d}", tmp_path, PARAMS)
            live.on_start(record, 400)
            live.on_report(record.id, {"step": 100, "val_loss": 2.0, "best_val_loss": number})
            if number not in (998, 1_099):
                live.on_end(TrialRecord(record.id, tmp_path, PARAMS, "done", "max_steps"))
        out.truncate(out.seek(0))
        live.on_tick()
        drawn = [line.split() for line in Text.from_ansi(out.getvalue()).plain.splitlines()]
    assert len(drawn) <= 24
    running = [words[0] for words in drawn if "running" in words]
    assert running == ["998", "1099"]
    ended = [words[0] for words in drawn if "done:" in words]
    assert ended == [f"{number:03d}" for number in range(1, len(ended) + 1)], "the best of them"
    left = 1_099 - len(running) - len(ended)
    assert drawn[-1] == ["and", f"{left:,}", "more"]


def test_a_log_file_gets_one_line_per_finished_trial(tmp_path):
    out = io.StringIO()
    with LiveTable(Console(file=out, width=40, markup=False, soft_wrap=True), total=4) as live:
        record = play(live, tmp_path)
        assert out.getvalue() == ""
        live.on_end(TrialRecord("002", record.folder, PARAMS, "done", "max_steps"))
    assert out.getvalue() == (
        "trial 002 done: max_steps, best val_loss 1.25 [lr=0.0001235 batch_size=16]\n"
    )
    why = "asha: rung 100, best val_loss 1.25 is above the cutoff 1"
    live.on_end(TrialRecord("002", record.folder, PARAMS, "stopped", why))
    last = out.getvalue().splitlines()[-1]
    assert last == f"trial 002 stopped: {why} [lr=0.0001235 batch_size=16]", "the loss once"


def test_a_resumed_sweep_shows_the_trials_that_had_finished(tmp_path):
    done = TrialRecord("001", tmp_path / "001", PARAMS, "done", "max_steps")
    done.folder.mkdir()
    line = {"step": 300, "val_loss": 0.5, "best_val_loss": 0.5, "max_steps": 400}
    append_metrics(done.folder, line)
    running = TrialRecord("002", tmp_path / "002", PARAMS, "running")
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    with LiveTable(console, 4, [done, running]):
        pass
    assert "1/4 trials" in out.getvalue()
    assert "best val_loss 0.5 (trial 001)" in out.getvalue()
    assert "300/400" in out.getvalue(), "its budget is of the settings, not searched"


class Sweep:
    """One training with trials of 100, 200 and 300 steps (in the order of `seed`), 1 step a second.

    The ledger's own decisions and files reach the table as Ray's callbacks pass them on; another
    one of the same folder resumes it.
    """

    def __init__(self, folder, seed):
        steps = {"training.max_steps": {"type": "choice", "values": [100, 200, 300]}}
        described = {"searcher": "random", "num_trials": 3, "parameters": steps}
        config = load_config(
            [
                "training.val_check_interval=10",
                "training.patience=5",
                "sweep.reduction_factor=2",
                f"sweep.seed={seed}",
            ]
        )
        self.folder, self.now = folder, 0.0
        self.ledger = TrialLedger(folder, config, parse_space(described, "s.yaml"))
        console = Console(file=io.StringIO())
        self.live = LiveTable(console, 3, list_trials(folder), 300, clock=lambda: self.now)
        self.begin()

    def begin(self):
        self.job = self.ledger.next()
        record = read_trial(trial_folder(self.folder, self.job.id))
        self.step = record.metrics()[-1]["step"] if record.metrics() else 0
        self.live.on_start(record, self.job.max_steps)

    def train(self, until):
        while self.step < until:
            self.step, self.now = self.step + 50, self.now + 50
            loss = 1 / self.step
            line = {"step": self.step, "val_loss": loss, "best_val_loss": loss, "time": self.now}
            folder = trial_folder(self.folder, self.job.id)
            append_metrics(folder, line)
            stop = self.ledger.report(self.job.id, self.step, loss)
            self.live.on_report(self.job.id, line)
            if stop or self.step == self.job.max_steps:
                if not stop:
                    update_trial(folder, "done", "max_steps")
                self.ledger.end(self.job.id)
                self.tell_ended()
                if not self.ledger.done and self.step < 300:
                    self.begin()
            self.tell_ended()

    def tell_ended(self):
        for record in self.ledger.take_ended():
            self.live.on_end(record)

    def left(self):
        return self.live.table().title.plain.split(", ")[2]


@pytest.mark.parametrize("seed", range(14, 20))
def test_steps_that_trials_share_are_counted_once(tmp_path, seed):
    sweep = Sweep(tmp_path, seed)
    for step in range(50, 300, 50):
        sweep.train(step)
        assert sweep.left() == f"about {duration(300 - step)} left"
    assert len(list_trials(tmp_path)) == 3


@pytest.mark.parametrize("killed_at", [50, 100, 150, 200, 250])
def test_a_resumed_sweep_takes_no_step_for_its_own_that_was_made_before(tmp_path, killed_at):
    Sweep(tmp_path, 16).train(killed_at)
    resumed = Sweep(tmp_path, 16)
    for step in range(killed_at + 50, 300, 50):
        resumed.train(step)
        assert resumed.left() == f"about {duration(300 - step)} left"


def test_durations_and_settings_are_short():
    assert duration(3723.4) == "1:02:03"
    assert duration(float("nan")) == ""
    assert describe({"model.kwargs.dropout": 0.1}) == "dropout=0.1"

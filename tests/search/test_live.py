import io

from rich.console import Console

from sesttune.search.live import LiveTable, describe, duration
from sesttune.training.records import TrialRecord, append_metrics

PARAMS = {"training.lr": 0.00012345678, "training.batch_size": 16}


def play(live, tmp_path):
    record = TrialRecord("002", tmp_path / "002", PARAMS)
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


def test_a_log_file_gets_one_line_per_finished_trial(tmp_path):
    out = io.StringIO()
    with LiveTable(Console(file=out, width=40), total=4) as live:
        record = play(live, tmp_path)
        assert out.getvalue() == ""
        live.on_end("002", TrialRecord("002", record.folder, PARAMS, "done", "max_steps"))
    assert out.getvalue() == (
        "trial 002 done: max_steps, best val_loss 1.25 [lr=0.0001235 batch_size=16]\n"
    )


def test_a_resumed_sweep_shows_the_trials_that_had_finished(tmp_path):
    done = TrialRecord("001", tmp_path / "001", PARAMS, "done", "max_steps")
    done.folder.mkdir()
    append_metrics(done.folder, {"step": 400, "val_loss": 0.5, "best_val_loss": 0.5})
    running = TrialRecord("002", tmp_path / "002", PARAMS, "running")
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    with LiveTable(console, 4, [done, running]):
        pass
    assert "1/4 trials" in out.getvalue()
    assert "best val_loss 0.5 (trial 001)" in out.getvalue()


def test_durations_and_settings_are_short():
    assert duration(3723.4) == "1:02:03"
    assert duration(float("nan")) == ""
    assert describe({"model.kwargs.dropout": 0.1}) == "dropout=0.1"

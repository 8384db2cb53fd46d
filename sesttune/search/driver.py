"""Run a sweep: Ray Tune carries the ledger's trials to machines until none is left.

Nothing of Ray's state is kept. After any crash a new run over the same folder continues
(at most one validation interval per running trial is repeated), where `Tuner.restore`
would start running trials from step 0 and forget the rungs.
"""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sesttune.config.load import to_dict, with_point
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.search.budget import limit_reached
from sesttune.search.ledger import INTERRUPTED, TrialLedger
from sesttune.search.listener import SweepListener
from sesttune.search.outcome import SweepOutcome, read_outcome
from sesttune.search.packing import trials_per_gpu
from sesttune.search.ray_session import Slots, ray_session, slots
from sesttune.search.recorded import try_again
from sesttune.search.space import SearchSpace
from sesttune.system.run_lock import only_driver
from sesttune.training.records import list_trials

_TRIES = 2  # a worker that dies is started once more, and continues its trial


def run_sweep(
    folder: Path,
    config: Config,
    space: SearchSpace,
    manifest: Path,
    listeners: Sequence[SweepListener] = (),
    resume: bool = False,
) -> SweepOutcome:
    """Run the trials of the sweep in `folder` to their ends and say what came of them.

    `manifest`: the prepared data that every trial opens. With `resume`, trials already in
    `folder` are kept, and unfinished ones and those that failed with an error (a full disk,
    a killed worker; not a loss that is NaN) or at a limit are continued first, unless a limit of
    the sweep is reached. Ray is not started where that leaves nothing to train. Raises UserError
    where the folder holds trials and `resume` is not set, where another driver runs it, and where
    no trial fits the machine; KeyboardInterrupt after Ctrl-C, SIGTERM or SIGHUP, when every trial
    has stopped at its next validation (at once after a second Ctrl-C or SIGTERM).
    """
    folder, manifest = folder.absolute(), manifest.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not resume and list_trials(folder):
        raise UserError(f"{folder} already holds trials: choose another name= or use --resume")
    with only_driver(folder):
        if resume and limit_reached(folder, config.sweep) is None:
            try_again(folder)
        if resume and _all_trained(folder, config, space):
            return read_outcome(folder, config)
        with ray_session(config) as available:
            packed, given = _pack(config, space, manifest, folder, listeners, available)
            ledger = TrialLedger(folder, packed, space, given.gpus)
            _fit(ledger, packed, manifest, listeners, given)
        if ledger.closed == INTERRUPTED:
            raise KeyboardInterrupt
        return read_outcome(folder, config)


def _all_trained(folder: Path, config: Config, space: SearchSpace) -> bool:
    """Whether the records leave nothing to train, so that Ray need not start."""
    ledger = TrialLedger(folder, config, space)
    if ledger.next() is not None:  # recorded, so that the ledger that runs it begins with it
        return False
    ledger.settle()
    return True


def _pack(
    config: Config,
    space: SearchSpace,
    manifest: Path,
    folder: Path,
    listeners: Sequence[SweepListener],
    given: Slots,
) -> tuple[Config, Slots]:
    """Settings and slots with `sweep.gpus_per_trial=auto` measured."""
    if config.sweep.gpus_per_trial != "auto" or given.gpus == 0:
        return config, given
    import ray

    def note(text: str) -> None:
        for listener in listeners:
            listener.on_note(text)

    share = 1 / trials_per_gpu(config, space, manifest, folder, note)
    packed = with_point(config, {"sweep.gpus_per_trial": share})
    return packed, slots(packed, ray.cluster_resources())


def _fit(
    ledger: TrialLedger,
    config: Config,
    manifest: Path,
    listeners: Sequence[SweepListener],
    slots: Slots,
) -> None:
    # As many workers as slots start at once; Ray's default starts them one by one.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.concurrent)
    from ray import tune
    from ray.tune import TuneError

    from sesttune.search.ray_adapters import (
        LedgerCallback,
        LedgerScheduler,
        LedgerSearcher,
        quieten,
    )
    from sesttune.search.worker import work

    quieten()
    scratch = ledger.folder / ".ray"
    searcher = LedgerSearcher(ledger, slots.concurrent)
    tuner = tune.Tuner(
        tune.with_resources(work, {"cpu": slots.cpus, "gpu": slots.gpus}),
        param_space={
            "config": to_dict(config),
            "manifest": str(manifest),
            "threads": slots.threads,
        },
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=LedgerScheduler(ledger),
            num_samples=-1,  # until the searcher says that all is done
            # A kept worker begins its next trial at once, a new one after 6 s of imports.
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=_TRIES - 1),
            callbacks=[LedgerCallback(ledger, searcher, list(listeners))],
            verbose=0,
        ),
    )
    try:
        with _first_interrupt_to(ledger.interrupt):
            tuner.fit()
    except TuneError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None  # Ray wraps what a callback raises, e.g. that the disk is full
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    ledger.settle()


@contextmanager
def _first_interrupt_to(gently: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls `gently`, the second does what it ever did.

    So does a terminal that closes, as often as it says so: the kernel, the shell and systemd each
    send a SIGHUP. What the process was started to ignore (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread handle signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    heard = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}

    def set_back(numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            signal.signal(number, heard[number])

    def first(number: int, frame: object) -> None:
        if number != signal.SIGHUP:
            set_back(heard.keys() - {signal.SIGHUP})
        gently()

    for number in heard:
        signal.signal(number, first)
    try:
        yield
    finally:
        set_back(heard)

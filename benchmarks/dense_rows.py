"""How fast rows of the store are made dense, beside reading the h5ad file row by row.

    python benchmarks/dense_rows.py                       # 3,000 of 18,080 genes expressed
    python benchmarks/dense_rows.py --expressed 8400      # the density of the VCC data

Rows/s, the best of five times 12 batches, in the order the sampler wants them: from the
store on the host with a reader thread and with one a core, by as many processes with a reader
thread each (as the trials of a sweep read), and, on a GPU, from device memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from synthetic_trial import add_sizes, open_matrix, read_job, read_row, write_trial

from sesttune.data.loader import TrainingBatches
from sesttune.data.readers import DenseReader, HostReader, Reader, ResidentReader
from sesttune.data.sampling import CellSetSampler
from sesttune.data.trial_data import TrialData
from sesttune.system.host_memory import keep_freed_memory

BATCHES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_sizes(parser)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()  # as a trial does
    if args.worker:
        read_when_told(Path(args.worker))
        return
    with tempfile.TemporaryDirectory() as name:
        write_trial(Path(name), args, {})
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(
            f"{where}, {os.cpu_count()} cores, torch {torch.__version__}; {args.cells:,} cells of "
            f"{args.expressed:,} of {args.genes:,} genes"
        )
        for what, rate in Rates(Path(name)).all():
            print(f"{what:<34}{rate:12,.0f} rows/s", flush=True)


class Rates:
    """Of what `write_trial` left in `folder`."""

    def __init__(self, folder: Path) -> None:
        config, manifest = read_job(folder)
        self._folder, self.data = folder, TrialData(manifest)
        self._sets = config.training.batch_size
        self._length = config.model.kwargs.st_cell_set_len

    def all(self) -> Iterator[tuple[str, float]]:
        cores, device = os.cpu_count() or 1, torch.device("cuda")
        yield "HDF5, row by row", self._of_file()
        yield "store, 1 thread", self._of_batches(HostReader(self.data), 1)
        if cores > 1:
            yield f"store, {cores} threads", self._of_batches(HostReader(self.data), cores)
            yield f"store, {cores} processes", self._of_processes(cores)
        if torch.cuda.is_available():
            yield "device memory", self._of_batches(ResidentReader(self.data, device), 1)
            whole = DenseReader(self.data, device)
            yield "device memory, with zeros", self._of_batches(whole, 1)

    def batches(self, reader: Reader, threads: int) -> TrainingBatches:
        return TrainingBatches(self._sampler(), reader, self._sets, threads)

    def _of_batches(self, reader: Reader, threads: int) -> float:
        batches = self.batches(reader, threads)

        def read() -> None:
            for _ in range(BATCHES):
                next(batches)
            if reader.device.type == "cuda":
                torch.cuda.synchronize()

        try:
            return self._rate(read, BATCHES)
        finally:
            batches.close()

    def _of_processes(self, count: int) -> float:
        command = [sys.executable, "-W", "ignore", __file__, "--worker", str(self._folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(command, **pipes) for _ in range(count)]  # type: ignore[call-overload]

        def read() -> None:
            for process in started:
                process.stdin.write("read\n")
                process.stdin.flush()
            for process in started:
                process.stdout.readline()

        try:
            return self._rate(read, count * BATCHES)
        finally:
            for process in started:
                process.communicate()

    def _of_file(self) -> float:
        sampler, x = self._sampler(), open_matrix(self._folder)

        def read() -> None:
            for row in sampler.next_sets(self._sets).pert_rows.ravel():
                read_row(x, int(row), self.data.n_genes)

        return self._rate(read, 1)

    def _sampler(self) -> CellSetSampler:
        return CellSetSampler(self.data, self._length, 0)

    def _rate(self, read: Callable[[], None], batches: int) -> float:
        times = []
        for _ in range(6):  # the first warms memory up
            start = time.perf_counter()
            read()
            times.append(time.perf_counter() - start)
        return batches * self._sets * self._length / min(times[1:])


def read_when_told(folder: Path) -> None:
    """A worker: for each line it gets, reads batches with one thread, then answers."""
    rates = Rates(folder)
    batches = rates.batches(HostReader(rates.data), 1)
    for _ in sys.stdin:
        for _ in range(BATCHES):
            next(batches)
        print("done", flush=True)
    batches.close()


if __name__ == "__main__":
    main()

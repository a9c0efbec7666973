"""A training that is killed at the points that matter, and gone on with: run as a program, which has no threads yet.

Usage: kills.py FOLDER DATA. Prints a line for each point: what it was, how many times it was killed, the status in the
end, and whether weights and log are those of an unbroken run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from camrt.train import log, run
from camrt.train.options import TrainingOptions
from tests.camrt.train import toy

FIELDS = "max_iter: 7 snapshot: 2 test_interval: 3 display: 2 average_loss: 3"


def in_child(work: Callable[[], object]) -> int:
    """Run it in a process of its own; 0, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def train(folder: Path, data: str, die_at: tuple[str, int] | None = None) -> None:
    """Train, and die at a file's taking its place, or within an iteration."""
    kind, number = die_at or ("", 0)
    count = 0
    replace, update = os.replace, run._Training._update

    def die_in(which: str) -> None:
        nonlocal count
        count += which == kind
        if which == kind and count > number:
            os.kill(os.getpid(), signal.SIGKILL)

    def replacing(*args: object) -> None:
        die_in("file")
        replace(*args)
        die_in("written")

    def updating(self: run._Training) -> None:
        die_in("iteration")
        update(self)

    os.replace, run._Training._update = replacing, updating
    log.curves = lambda records: None  # which takes most of the time, and nothing depends on it
    run.train(TrainingOptions(folder / "solver.prototxt", data=data, test_data=data, resume=True, threads=1, workers=0))


def note_modules(file: Path, work: Callable[[], object]) -> None:
    """Do it, and write down what it imported."""
    before = set(sys.modules)
    work()
    file.write_text("\n".join(sorted(set(sys.modules) - before)))


def lines(folder: Path) -> list[object]:
    records = [json.loads(line) for line in (folder / "out" / "toy_log.jsonl").read_text().splitlines()]
    clocks = ("seconds", "images_per_second")
    return [{key: value for key, value in record.items() if key not in clocks} for record in records]


def main() -> None:
    """See the module's text."""
    root, data = Path(sys.argv[1]), sys.argv[2]
    unbroken = root / "unbroken"
    toy.write(unbroken, solver=FIELDS, mirror=True, batch=4)
    assert in_child(lambda: note_modules(root / "modules", lambda: train(unbroken, data))) == 0
    for name in (root / "modules").read_text().split():  # else each child would import them anew: most of its time
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # Files 3 and 4 are the weights and the state of the first snapshot; 6 and 7 those of the second.
    points = [("iteration", 0), ("file", 4), ("written", 4), ("file", 6), ("file", 7), ("iteration", 4)]
    for point in points:
        folder = root / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        toy.write(folder, solver=FIELDS, mirror=True, batch=4)
        deaths = int(in_child(partial(train, folder, data, point)) == -signal.SIGKILL)
        ended = in_child(partial(train, folder, data))
        names = [f"out/toy_iter_{n}.caffemodel" for n in (2, 4, 6, 7)]
        same = all((folder / name).read_bytes() == (unbroken / name).read_bytes() for name in names)
        print(*point, deaths, ended, same, lines(folder) == lines(unbroken), flush=True)


if __name__ == "__main__":
    main()

"""The training log: JSON Lines, a CSV table, and a plot of the curves.

``PREFIX_log.jsonl`` gets a line at each display and test, and is continued by a resumed run. ``PREFIX_log.csv`` is the
same as a table, written at each snapshot and at the end. ``PREFIX_curves.png`` is a plot of it.

Fields of a training line: ``iteration``, ``phase`` (``"train"``), ``seconds`` (training time over all runs), ``rate``,
``loss``, ``smoothed_loss`` (mean over the last ``average_loss`` iterations). Fields of a test line: ``iteration``,
``phase`` (``"test"``), ``seconds``, ``net`` (the number of the test net), ``outputs`` (name -> mean over all batches).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from camrt import results
from camrt.errors import CamrtError

LINES, TABLE, CURVES = "_log.jsonl", "_log.csv", "_curves.png"
_FIRST_COLUMNS = ("iteration", "seconds", "rate", "loss", "smoothed_loss")

Record = Mapping[str, Any]


class Log:
    """The log of a training run.

    Args:
        prefix: The prefix of the file names, including the folder.
        iteration: The iteration at which training starts. Later lines of an existing log are dropped. 0 for a new
            log.

    Attributes:
        records: The lines so far.

    Raises:
        CamrtError: The log cannot be read or written, or has an invalid line.
    """

    def __init__(self, prefix: Path, iteration: int = 0) -> None:
        self.lines, self.table, self.curves = (
            prefix.with_name(f"{prefix.name}{ending}") for ending in (LINES, TABLE, CURVES)
        )
        kept = _read(self.lines) if iteration else []
        self.records: list[Record] = [record for record in kept if record["iteration"] < iteration]
        results.write(self.lines, "".join(f"{results.json_line(record)}\n" for record in self.records).encode())

    def add(self, record: Record) -> None:
        """Add a line.

        Raises:
            CamrtError: The log cannot be written.
        """
        record = _with_finite_numbers(record)
        results.append(self.lines, record)
        self.records.append(record)

    def write_table(self) -> None:
        """Write the table.

        Raises:
            CamrtError: The table cannot be written.
        """
        rows = [dict(_row(record)) for record in self.records]
        columns = list(dict.fromkeys([*_FIRST_COLUMNS, *(name for row in rows for name in row)]))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        results.write(self.table, text.getvalue().encode())

    def draw(self) -> Path | None:
        """Plot the curves.

        Returns:
            The image file; None if there is nothing to plot.

        Raises:
            CamrtError: The image cannot be written.
            ImportError: matplotlib is not installed.
        """
        picture = curves(self.records)
        if picture is None:
            return None
        results.write(self.curves, picture)
        return self.curves


def curves(records: Sequence[Record]) -> bytes | None:
    """Plot losses, test results and the learning rate over the iterations.

    Args:
        records: The lines of a log.

    Returns:
        A PNG image; None if the lines contain no numbers.

    Raises:
        ImportError: matplotlib is not installed.
    """
    panels = [lines for lines in (_losses(records), _measures(records), _rates(records)) if lines]
    if not panels:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3 * len(panels)), layout="constrained")
    for axes, lines in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
        for name, points in lines.items():
            is_single = name == "loss"
            axes.plot(*zip(*points, strict=True), label=name, linewidth=0.5 if is_single else 1.5,
                      alpha=0.5 if is_single else 1, marker="." if len(points) < 50 else None)  # fmt: skip
        if all(value > 0 for points in lines.values() for _, value in points) and "accuracy" not in " ".join(lines):
            axes.set_yscale("log")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    axes.set_xlabel("iteration")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


_Lines = dict[str, list[tuple[int, float]]]


def _losses(records: Sequence[Record]) -> _Lines:
    named = {"loss": "loss", "smoothed_loss": "loss, smoothed"}
    found = [(named[key], one["iteration"], one.get(key)) for one in records for key in named if key in one]
    return _lines_of([*found, *((name, *rest) for name, *rest in _tested(records) if "loss" in name)])


def _measures(records: Sequence[Record]) -> _Lines:
    return _lines_of((name, *rest) for name, *rest in _tested(records) if "loss" not in name)


def _rates(records: Sequence[Record]) -> _Lines:
    return _lines_of(("learning rate", one["iteration"], one.get("rate")) for one in records)


def _tested(records: Sequence[Record]) -> Iterator[tuple[str, int, Any]]:
    for record in records:
        if record.get("phase") == "test":
            yield from ((name, record["iteration"], value) for name, value in _row(record) if name.startswith("test"))


def _lines_of(points: Any) -> _Lines:
    lines: _Lines = {}
    for name, iteration, value in points:
        if isinstance(value, int | float):
            lines.setdefault(name, []).append((iteration, float(value)))
    return lines


def _row(record: Record) -> Iterator[tuple[str, Any]]:
    """Yield the columns and values of a line in the table."""
    for key, value in record.items():
        if key in _FIRST_COLUMNS:
            yield key, value
    number = record.get("net") or ""
    for name, value in record.get("outputs", {}).items():
        yield f"test{number} {name}", value


def _with_finite_numbers(record: Record) -> Record:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return json.loads(json.dumps(record), parse_constant=lambda _: None)


def _read(file: Path) -> list[Record]:
    """Read the lines of a log. An incomplete last line is ignored."""
    try:
        lines = file.read_bytes().split(b"\n") if file.exists() else []
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(file)) from error
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or type(record.get("iteration")) is not int:
                raise ValueError
        except ValueError:
            if number == len(lines):  # the run was killed while writing it
                continue
            raise CamrtError(
                "is not a line of a training log. Correct or remove it, or move the file away", file=f"{file}:{number}"
            ) from None
        records.append(record)
    return records

#!/usr/bin/env python3
"""Convert every Caffe network under a folder, and count what converts, what does not and why.

usage: census.py DIR [--compare] [--csv FILE] [--jobs N] [--seconds S] [--megabytes M]

DIR holds checkouts, or any folders with networks as text (`.prototxt`, `.pt`, ...). Each network is read in phase TEST
and converted in a process of its own, with limits of time and memory. Weights are stand-ins of the shapes that the
layers ask for; onnx's checker passes the model. An input whose shape the prototxt does not say gets a usual one,
1 x 3 x 224 x 224 first. Equal files count once.

--compare gives each network that converts seeded weights and a seeded input, runs it in ONNX Runtime and in OpenCV 4,
and names those that differ by more than 1e-4 of the largest value. For each it finds the first layer that differs and
says who is right by that layer's formula (scripts/formulas.py).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import multiprocessing
import re
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np

from converters import ConversionError, ConversionWarning, Net, conversion, read_net
from converters.conversion import Converted
from converters.layer import Layer
from converters.reader import MAX_PROTOTXT

GUESSES = {"im_info": (1, 3), "rois": (1, 5)}  # what Faster R-CNN's inputs are; a description may leave them open
NETWORKS = {".prototxt", ".pt", ".protxt", ".pbtxt", ".txt"}
VIDEOS = ((3, 16, 112, 112), (2, 16, 112, 112))
IMAGES = ((3, 224, 224), (1, 224, 224), (3, 360, 480), (10, 224, 224), (3, 32, 32))
# Reasons that lie in the file and not in the converter: it describes no network that could be used.
NOT_FOR_INFERENCE = {
    "V0": r"V0 form of 2013",
    "training alone": r"which phase TEST.* has not|has no layers left in phase",
    "a template": r"for num_output, expected a whole number",
    "no network": r"describes no layers|is empty|expected the name of a field",
}


@dataclass
class Result:
    """What became of one network."""

    path: str
    verdict: str  # converted, refused, not for inference
    reason: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    comparison: str = ""
    seconds: float = 0.0


# ------------------------------------------------------------------------------------------------------ one network


def convert(path: Path, *, compare: bool) -> Result:
    """Convert one prototxt; in a process of its own."""
    began = monotonic()
    result = Result(str(path), "converted")
    try:
        net = read_net(path)
        result.layers = dict(Counter(layer.type for layer in net.layers))
        net = with_stand_ins(net)
        converted, shapes = built(net)
        converted.draft.checked_header()
        if compare:
            from comparison import compared

            result.comparison = compared(path, net, shapes)
    except ConversionError as error:
        result.reason = shortened(error)
        reasons = NOT_FOR_INFERENCE.values()
        is_unfit = any(re.search(pattern, error.message) for pattern in reasons)
        result.verdict = "not for inference" if is_unfit else "refused"
    result.seconds = round(monotonic() - began, 2)
    return result


def with_stand_ins(net: Net) -> Net:
    """The network with weights that take no memory."""

    def stand_in(layer: Layer, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        return [np.broadcast_to(np.float32(1), shape) for shape in shapes]

    return replace(net, layers=tuple(replace(layer, filler=stand_in) for layer in net.layers))


def built(net: Net) -> tuple[Converted, dict[str, tuple[int, ...]]]:
    """The converted network, at the first of the usual sizes that fits where the prototxt does not say the size."""
    usual = VIDEOS if any(layer.type.endswith("3D") for layer in net.layers) else IMAGES
    unknown = [data for data in net.inputs if data.shape is None]
    refusal = None
    for image in [(batch, *image) for batch in (1, *batches(net)) for image in usual]:
        shapes = {
            data.name: tuple(size or other for size, other in zip(data.hint, image, strict=False))
            or GUESSES.get(data.name, image)
            for data in unknown
        }
        try:
            return conversion.build(net, input_shapes=shapes), shapes
        except ConversionError as error:
            refusal = refusal or error
            if not unknown:
                break
    assert refusal is not None
    raise refusal


def batches(net: Net) -> list[int]:
    """The batch that the data layers say: a network that cuts its batch up at a number needs it."""
    sizes = {data.hint[0] for data in net.inputs if data.hint and data.hint[0]} | {
        value.batch_size
        for layer in net.data
        for _, value in layer.params.ListFields()
        if getattr(value, "batch_size", 1) > 1
    }
    return sorted(sizes - {1})


def shortened(error: ConversionError) -> str:
    """A reason without names of files and layers, so that equal ones count together."""
    text = "\n".join([error.message, *error.details])
    types = re.findall(r"^  (.+?): .*$", text, re.MULTILINE) if "have no handler" in text else []
    if types:
        return "no handler for " + ", ".join(sorted(types))
    fields = re.findall(r"^  \S+: (\S+): .*$", text, re.MULTILINE) if "unknown field(s)" in text else []
    if fields:
        return "unknown " + ", ".join(sorted(fields))
    type = re.search(r"\(([^()]*)\)$", error.layer or "")
    text = re.sub(r"'[^']*'|\d[\d ,x]*\d|\d", "_", text.splitlines()[0])
    return f"{type.group(1)}: {text}" if type else text


# --------------------------------------------------------------------------------------------------------- processes


def child(path: Path, sender: Connection, megabytes: int, *, compare: bool) -> None:
    """What the process of one network runs."""
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    warnings.simplefilter("ignore", ConversionWarning)
    try:
        sender.send(convert(path, compare=compare))
    except MemoryError:
        sender.send(Result(str(path), "refused", f"more than {megabytes} MB of memory"))
    except Exception as error:  # a defect: the census goes on and counts it
        sender.send(Result(str(path), "refused", f"{error.__class__.__name__}: {error}"))


def census(paths: list[Path], arguments: argparse.Namespace) -> Iterator[Result]:
    """The results, as they come."""
    context = multiprocessing.get_context("fork")  # the imports are there already
    waiting = list(reversed(paths))
    running: dict[Connection, tuple[Path, multiprocessing.process.BaseProcess, float]] = {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            path = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=child, args=(path, sender, arguments.megabytes), kwargs={"compare": arguments.compare}
            )
            process.start()
            sender.close()
            running[receiver] = (path, process, monotonic() + arguments.seconds)
        for receiver in wait(list(running), timeout=1):
            assert isinstance(receiver, Connection)
            path, process, _ = running.pop(receiver)
            try:
                yield receiver.recv()
            except EOFError:
                process.join()
                name = signal.Signals(-process.exitcode).name if (process.exitcode or 0) < 0 else process.exitcode
                yield Result(str(path), "refused", f"its process ended with {name}")
            process.join()
        for receiver, (path, process, end) in list(running.items()):
            if monotonic() > end:
                process.kill()
                del running[receiver]
                yield Result(str(path), "refused", f"more than {arguments.seconds} s")


# ----------------------------------------------------------------------------------------------------------- report


def prototxts(folder: Path) -> list[Path]:
    """The networks under a folder; equal ones once, solvers not."""
    unique: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in NETWORKS or not path.is_file() or path.stat().st_size > MAX_PROTOTXT:
            continue
        data = path.read_bytes()
        if re.search(rb"^\s*layers?\s*:?\s*\{", data, re.MULTILINE):
            unique.setdefault(hashlib.sha256(data).hexdigest(), path)
    return list(unique.values())


def report(results: list[Result]) -> str:
    """The table, as text."""
    verdicts = Counter(one.verdict for one in results)
    usable = verdicts["converted"] + verdicts["refused"]
    share = verdicts["converted"] / usable if usable else 0
    lines = [
        f"{len(results)} networks, {verdicts['not for inference']} of them not for inference",
        f"{verdicts['converted']} of {usable} for inference convert ({share:.1%})",
        "",
    ]
    for title, verdict in (("refused", "refused"), ("not for inference", "not for inference")):
        lines += [title, *counted(one.reason for one in results if one.verdict == verdict), ""]
    layers: Counter[str] = Counter()
    for one in results:
        layers.update(one.layers)
    lines += ["layers", *(f"{count:8,}  {type}" for type, count in layers.most_common())]
    if any(one.comparison for one in results):
        verdicts = Counter(re.split(r"[:;]", one.comparison)[0] for one in results if one.comparison)
        lines += ["", "compared with OpenCV", *(f"{count:5}  {verdict}" for verdict, count in verdicts.most_common())]
        lines += [f"  {one.path}: {one.comparison}" for one in results if one.comparison.startswith("differs")]
    return "\n".join(lines)


def counted(reasons: Iterable[str]) -> list[str]:
    return [f"{count:5}  {reason}" for reason, count in Counter(reasons).most_common()]


def main() -> None:
    """Run the census and print its table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the prototxts lie")
    parser.add_argument("--compare", action="store_true", help="run each network in ONNX Runtime and OpenCV 4")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each network")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time (2)")
    parser.add_argument("--seconds", type=float, default=120, metavar="S", help="limit of one network (120)")
    parser.add_argument("--megabytes", type=int, default=4096, metavar="M", help="limit of one network (4096)")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is no folder")
    import onnx.checker  # noqa: F401 - loaded once, before the processes fork

    from converters import model, registry  # noqa: F401

    list(registry.entries())
    paths = prototxts(arguments.folder)
    results = []
    for number, result in enumerate(census(paths, arguments), 1):
        result.path = str(Path(result.path).relative_to(arguments.folder))
        results.append(result)
        if sys.stderr.isatty():
            print(f"\r{number} of {len(paths)}", end="", file=sys.stderr)
    results.sort(key=lambda one: one.path)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["path", "verdict", "reason", "comparison", "seconds"])
            writer.writeheader()
            for one in results:
                row = asdict(one)
                del row["layers"]
                writer.writerow(row)
    print(report(results))


if __name__ == "__main__":
    main()

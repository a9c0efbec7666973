#!/usr/bin/env python3
"""Converters of Caffe networks against real Caffe: how many networks each answers within 1e-3.

usage: python benchmarks/converters.py [PEER...] [--install] [--sets plain bvlc forks networks] [--only CASE...]

The networks are those of tests/data/caffe, with the answers of real Caffe, and, where the reference data are there
(CAMRT_REFERENCE), nine published ones. Each converter (benchmarks/converter_peers.py) runs in an environment of its
own, which --install makes in build/peers, and each network in a process of its own with limits of time and memory. One
that is not installed is left out.

The results go to benchmarks/converters.csv, which keeps those of converters and networks that were not asked for, and
the tables of docs/converters.md are written from it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from converters import ConversionError, ConversionWarning, read_net
from converters.reader import read_prototxt
from tests.caffe_cases import CASES, DATA, Case, answers_of
from tests.released import ten_crops
from tests.seeded import SeededModel

CSV, PAGE, SCRIPT = ROOT / "benchmarks" / "converters.csv", ROOT / "docs" / "converters.md", "converter_peers.py"
ENVIRONMENTS = ROOT / "build" / "peers"
TOLERANCE = 1e-3  # of the largest value of a blob
SECONDS = 300  # for one network: some read weights in Python, number by number
AGREES, SHAPE, DIFFERS, REFUSES, STOPS = "agrees", "other shape", "differs", "refuses", "stops"
SETS = {
    "plain": "plain layers",
    "bvlc": "BVLC's layers",
    "forks": "layers of forks",
    "networks": "published networks",
}


@dataclass(frozen=True)
class Peer:
    """A converter, and where it runs.

    Attributes:
        title: What the tables call it.
        packages: What pip installs, the converter first.
        beside: Whether its packages are added to this Python's; else they have an environment of their own.
    """

    title: str
    packages: tuple[str, ...] = ()
    beside: bool = True

    def command(self, name: str) -> tuple[list[str], dict[str, str]] | None:
        """The interpreter and the environment variables; None where it is not installed."""
        folder = ENVIRONMENTS / name
        if not self.packages:
            return [sys.executable], {}
        if self.beside:
            return ([sys.executable], {"PYTHONPATH": str(folder)}) if folder.is_dir() else None
        python = folder / "bin" / "python"
        return ([str(python)], {}) if python.exists() else None

    def install(self, name: str) -> None:
        """Install it into build/peers, with the dependencies that it runs with: its own pins may be too old."""
        folder, pip = ENVIRONMENTS / name, [sys.executable, "-m", "pip"]
        if self.command(name) is not None:
            return
        if self.beside:
            subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", folder, *self.packages], check=True)
            return
        converter, *others = self.packages
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip += ["--python", str(folder / "bin" / "python"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", converter], check=True)
        subprocess.run([*pip, *others], check=True)


OLD = ("protobuf==3.20.3", "numpy<1.24")  # their caffe_pb2.py and their np.int are of 2020
PEERS = {
    "camrt": Peer("camrt"),
    "camrt-opencv5": Peer("camrt, run by OpenCV 5", ("opencv-python-headless==5.0.0.93",)),
    "opencv4": Peer("OpenCV 4"),
    "mnn": Peer("MNN", ("MNN==3.6.1",)),
    "caffe2onnx": Peer(
        "caffe2onnx", ("caffe2onnx==2.0.1", "onnx==1.14.1", "onnxruntime", "typing_extensions", *OLD), beside=False
    ),
    "x2paddle": Peer(
        "X2Paddle",
        (
            *("x2paddle==1.6.0", "paddlepaddle==3.3.1", "onnx==1.14.1", "setuptools<81", "sympy", "packaging"),
            *("six", "requests", "pandas", "protobuf==3.20.3"),
        ),
        beside=False,
    ),
}


# -------------------------------------------------------------------------------------------------------- the networks


@dataclass(frozen=True)
class Network:
    """A network with Caffe's answers.

    Attributes:
        set: One of `SETS`; the plain layers are among BVLC's, and are marked by `plain_names`.
        name: Its name.
        prototxt: Its description.
        caffemodel: Its weights; None for a network without any.
        inputs: Blob -> array.
        outputs: Blob -> what Caffe gives.
    """

    set: str
    name: str
    prototxt: Path
    caffemodel: Path | None
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def write(self, folder: Path) -> None:
        """Write what a peer reads."""
        folder.mkdir(parents=True)
        shutil.copy(self.prototxt, folder / "net.prototxt")
        if self.caffemodel:
            shutil.copy(self.caffemodel, folder / "net.caffemodel")
        else:  # some converters ask for one in any case
            (folder / "net.caffemodel").write_bytes(read_prototxt(self.prototxt).message.SerializeToString())
        np.savez(folder / "inputs.npz", **self.inputs)
        try:
            net = read_net(self.prototxt, self.caffemodel)
        except ConversionError:
            writers, layers = {}, {}
        else:
            tops = {top: (layer.name, index) for layer in net.layers for index, top in enumerate(layer.tops)}
            writers = {blob: tops[tensor] for blob, tensor in net.tensors.items() if tensor in tops}
            layers = {top: layer.name for layer in net.data for top in layer.tops}
        outputs = [
            dict(zip(("blob", "layer", "top"), (blob, *writers.get(blob, (blob, 0))), strict=True))
            for blob in self.outputs
        ]
        inputs = {blob: layers.get(blob, blob) for blob in self.inputs}
        (folder / "case.json").write_text(json.dumps({"inputs": inputs, "outputs": outputs}))


def _of_case(name: str, case: Case) -> Network:
    answer = answers_of(case)[0]
    # An input that no layer changes is an output of Caffe's: there is nothing to convert.
    outputs = {
        blob: values
        for blob, values in answer.outputs.items()
        if blob not in answer.inputs or not np.array_equal(values, answer.inputs[blob])
    }
    return Network(case.origin, name, case.prototxt, case.caffemodel, answer.inputs, outputs or answer.outputs)


def _published(reference: Path) -> Iterator[Network]:
    """Trained networks. Their answers are OpenCV's where they equal Caffe's, and Caffe's for the detector."""
    for folder in sorted((reference / "caffemodels").iterdir()):
        (prototxt,) = (file for file in folder.glob("*.prototxt") if "train" not in file.name)
        (caffemodel,), (stored,) = folder.glob("*.caffemodel"), folder.glob("*.npz")
        arrays = np.load(stored)
        outputs = {key.removeprefix("out_").replace("__", "/"): arrays[key] for key in arrays.files if key != "input"}
        if folder.name == "hyperlpr-mininet-ssd":
            outputs = {"detection_out": np.load(DATA / "mininet_ssd_v1.npz")["out:detection_out"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConversionWarning)
            (data,) = read_net(prototxt, caffemodel).inputs
        yield Network("networks", folder.name, prototxt, caffemodel, {data.name: arrays["input"]}, outputs)


def _seeded(reference: Path, scratch: Path) -> Iterator[Network]:
    """Published networks of common architectures with random weights, at full size."""
    for name, folder, crop in (("vgg16CAM", "vgg16CAM", 224), ("alexnetplusCAM_imagenet", "alexnetplusCAM", 227)):
        table = json.loads((reference / "nets" / folder / "shapes.json").read_text())
        caffemodel = SeededModel.of_table(table).write(scratch / f"{name}.caffemodel", v1=True)
        scores = np.load(reference / "nets" / folder / "expected.npz")["scores"]
        prototxt = reference / "nets" / "prototxt" / f"deploy_{name}.prototxt"
        images = {"data": ten_crops(reference, crop)[[0, 5]]}  # a corner and its mirror image
        yield Network("networks", f"{name}, seeded weights", prototxt, caffemodel, images, {"prob": scores[[0, 5]]})


def reference_folder() -> Path | None:
    """The reference data, where they are."""
    folder = Path(os.environ.get("CAMRT_REFERENCE", ROOT.parent / "shared" / "reference"))
    return folder if folder.is_dir() else None


def plain_names() -> set[str]:
    """The cases of usual layers with usual settings."""
    reference = reference_folder()
    return {path.name for path in (reference / "layers").iterdir()} if reference else set()


def networks(sets: Sequence[str], only: Sequence[str], scratch: Path) -> list[Network]:
    """The networks to run; weights that are drawn go to ``scratch``."""
    plain, reference = plain_names() if "plain" in sets else set(), reference_folder()
    found = [
        _of_case(name, case) for name, case in CASES.items() if case.origin in sets or name.rpartition("/")[2] in plain
    ]
    if "networks" in sets and reference:
        found += [*_published(reference), *_seeded(reference, scratch)]
    return [one for one in found if not only or one.name in only]


# ---------------------------------------------------------------------------------------------------------- comparison


def verdict(expected: Mapping[str, np.ndarray], folder: Path, peer: str) -> str:
    """What a peer's answer is worth."""
    reason = folder / f"{peer}.txt"
    if reason.exists():
        text = " ".join(reason.read_text().split()).replace(f"{folder}/", "")
        return f"{STOPS if text.startswith(('crash', 'more than')) else REFUSES}: {text[:150]}"
    found = answers(folder, peer)
    if not found:
        return f"{STOPS}: no answer"
    return max((compared(found[name], values) for name, values in matched(found, expected)), key=_badness)


def answers(folder: Path, peer: str) -> dict[str, np.ndarray]:
    """What a peer gave."""
    if not (folder / f"{peer}.npz").exists():
        return {}
    with np.load(folder / f"{peer}.npz") as stored:
        return {name.replace("\\", "/"): stored[name] for name in stored.files}


def matched(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Pair the answers by name; by order where a converter renames its outputs, and their number is the same."""
    in_order = dict(zip(expected, found, strict=False)) if len(found) == len(expected) else {}
    for name, values in expected.items():
        theirs = name if name in found else in_order.get(name, "")
        yield (theirs, values) if theirs in found else (next(iter(found)), values)


def compared(found: np.ndarray, expected: np.ndarray) -> str:
    """Compare a blob with Caffe's; its values count, and its shape is a word of its own."""
    error = difference(found, expected)
    if error is None:
        return f"{DIFFERS}: {'x'.join(map(str, found.shape))}, not {'x'.join(map(str, expected.shape))}"
    if not error <= TOLERANCE:
        return f"{DIFFERS}: {error:.2g}"
    return AGREES if found.shape == expected.shape else f"{SHAPE}: {'x'.join(map(str, found.shape))}"


def difference(found: np.ndarray, expected: np.ndarray) -> float | None:
    """The largest difference, as a share of the largest value; None for another number of values."""
    if expected.shape[-1:] == (7,) and expected.ndim == 4 and found.size != expected.size:
        found, expected = _detections(found), _detections(expected)
    if found.size != expected.size:
        return None
    theirs, ours = found.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    is_nan = np.isnan(ours)
    if not np.array_equal(np.isnan(theirs), is_nan):
        return float("nan")
    with np.errstate(invalid="ignore"):
        apart = np.where(theirs == ours, 0, np.abs(theirs - ours))[~is_nan]  # infinities are equal
    largest = np.abs(ours[np.isfinite(ours)]).max(initial=0)
    return float(apart.max(initial=0) / max(largest, 1e-6))


def _detections(found: np.ndarray) -> np.ndarray:
    """Label, score and box of detections: some converters fill up with rows of zeros, some leave out the image."""
    if found.ndim < 2 or found.shape[-1] not in (6, 7):
        return found
    rows = found.reshape(-1, found.shape[-1])[:, -6:]
    return rows[rows.any(axis=1)]


def _badness(word: str) -> int:
    return [AGREES, SHAPE, DIFFERS, REFUSES, STOPS].index(word.split(":")[0])


# ------------------------------------------------------------------------------------------------------------- results

Row = dict[str, str]  # set, case, plain, and a verdict for each peer; of the set "versions", the case is the date


def read(path: Path) -> dict[str, Row]:
    """The rows by case."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def write(path: Path, rows: Mapping[str, Row]) -> None:
    partial = path.with_suffix(".part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["set", "case", "plain", *PEERS], lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows.values())
    partial.replace(path)


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between two comments of a page with a table."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page}: found no {begin.strip()} ... {end.strip()}")
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def run(peer: str, folder: Path) -> str:
    """Run a peer on the networks of a folder; its version, or nothing where it is not installed."""
    command = PEERS[peer].command(peer)
    if command is None:
        print(f"{PEERS[peer].title}: not installed, left out (--install)", file=sys.stderr)
        return ""
    python, variables = command
    quiet = {"OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "SILENT", "GLOG_minloglevel": "3", **variables}
    script = Path(__file__).resolve().parent / SCRIPT
    done = subprocess.run(
        [*python, "-W", "ignore", script, peer, folder, "--seconds", str(SECONDS)],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"{PEERS[peer].title}: cannot be run, left out: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return ""
    return (folder / f"{peer}.version").read_text()


def measure(peers: Sequence[str], wanted: Sequence[Network], rows: dict[str, Row]) -> None:
    """Run the peers, and put their verdicts into the rows."""
    plain = plain_names()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        folders = {one.name: Path(name) / one.name.replace("/", "@") for one in wanted}
        for one in wanted:
            one.write(folders[one.name])
            row = rows.setdefault(one.name, {"set": one.set, "case": one.name})
            row["plain"] = "yes" if one.name.rpartition("/")[2] in plain and one.set == "bvlc" else row.get("plain", "")
        for peer in peers:
            version = run(peer, Path(name))
            if not version:
                continue
            rows.setdefault("version", {"set": "version", "case": "version"})[peer] = (
                f"{version}, {datetime.date.today().isoformat()}"
            )
            for one in wanted:
                rows[one.name][peer] = verdict(one.outputs, folders[one.name], peer)
            counts = Counter(rows[one.name][peer].split(":")[0] for one in wanted)
            print(f"{PEERS[peer].title} {version}: " + ", ".join(f"{n} {word}" for word, n in counts.most_common()))


# ---------------------------------------------------------------------------------------------------------------- page


def counts(rows: Mapping[str, Row]) -> str:
    """The table of how many agree."""
    groups = {title: _rows_of(rows, name) for name, title in SETS.items()}
    sizes = {title: f"{title} ({len(group)})" for title, group in groups.items() if group}
    lines = [f"| converter | version, date | {' | '.join(sizes.values())} |", "|---" * (len(sizes) + 2) + "|"]
    for peer, one in PEERS.items():
        if not rows["version"].get(peer):
            continue
        version, _, date = rows["version"][peer].rpartition(", ")
        cells = [_count([row[peer] for row in groups[title] if row[peer]]) for title in sizes]
        lines.append(f"| {one.title} | {version}, {date} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _count(verdicts: Sequence[str]) -> str:
    found = Counter(word.split(":")[0] for word in verdicts)
    shapes = f" ({found[SHAPE]})" if found[SHAPE] else ""
    others = ", ".join(f"{found[word]} {word.removesuffix('s')}" for word in (DIFFERS, STOPS, REFUSES) if found[word])
    return f"**{found[AGREES] + found[SHAPE]}**{shapes}" + (f"; {others}" if others else "")


def failures(rows: Mapping[str, Row]) -> str:
    """The cases that fail, for each converter; those of a family with the same beginning together."""
    parts = []
    for peer, one in PEERS.items():
        if not rows["version"].get(peer):
            continue
        parts.append(f"### {one.title}\n")
        for word in (DIFFERS, STOPS, REFUSES):
            for name, title in SETS.items():
                failed = [
                    row["case"].rpartition("/")[2]
                    for row in _rows_of(rows, name)
                    if row[peer].split(":")[0] == word and not (name == "bvlc" and row["plain"])
                ]
                shown = {"bvlc": "BVLC, other settings"}.get(name, title)
                grouped = word == REFUSES and name in ("bvlc", "forks")
                if failed:
                    listed = _families(failed) if grouped else [f"`{case}`" for case in failed]
                    parts.append(f"{word.capitalize()}, {shown} ({len(failed)}): {', '.join(listed)}\n")
        if parts[-1].startswith("###"):
            parts.append("None.\n")
    return "\n".join(parts).rstrip()


def _families(cases: Sequence[str]) -> list[str]:
    """Cases whose names begin with the same word, and how many there are."""
    families = Counter(case.split("_")[0] for case in cases)
    names = {case.split("_")[0]: case for case in cases}
    return [f"`{word}_*` ({count})" if count > 1 else f"`{names[word]}`" for word, count in families.items()]


def _rows_of(rows: Mapping[str, Row], name: str) -> list[Row]:
    return [row for row in rows.values() if row["set"] == name or (name == "plain" and row["plain"])]


def write_page(page: Path, rows: Mapping[str, Row]) -> None:
    """Write the tables of the page."""
    fill(page, "counts", counts(rows))
    fill(page, "failures", failures(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"by default all: {', '.join(PEERS)}")
    parser.add_argument("--install", action="store_true", help="install what is missing into build/peers")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="such as bvlc/conv_basic")
    parser.add_argument("--csv", type=Path, default=CSV, metavar="FILE")
    given = parser.parse_args()
    if unknown := set(given.peers) - set(PEERS):
        parser.error(f"found the peers {', '.join(sorted(unknown))}, expected some of {', '.join(PEERS)}")
    peers = given.peers or list(PEERS)
    if given.install:
        for peer in peers:
            PEERS[peer].install(peer)
    rows = read(given.csv)
    with tempfile.TemporaryDirectory() as scratch:
        measure(peers, networks(given.sets, given.only, Path(scratch)), rows)
    write(given.csv, rows)
    if given.csv == CSV:
        write_page(PAGE, rows)


if __name__ == "__main__":
    main()

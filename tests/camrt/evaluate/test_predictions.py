"""`camrt evaluate --predictions`: results of `camrt batch` score as the images themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camrt import Explainer
from camrt.cluster import inputs, shards
from camrt.cluster.inputs import Selection
from camrt.evaluate import ilsvrc_protocol
from camrt.evaluate.ilsvrc_protocol import BoxRule, Maps
from camrt.loading import Request
from tests.camrt.cluster.jobs import compute, job_of, rows_of
from tests.camrt.evaluate.shapes import Shapes, evaluate, journal_lines, write_shapes, write_table

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def explained(out: Path, model: Path, source: str, request: Request | None = None, **selected: Any) -> Path:
    """Do what camrt batch does, without Ray."""
    job, graph = job_of(out, model, request, as_stored=True)
    images, missing = inputs.find([source], Selection(**selected))
    assert not missing
    for start in range(0, len(images), 5):
        assert compute(job, graph, images.slice(start, 5))["fatal"] is None
    return out


@pytest.fixture
def shapes(tmp_path: Path) -> Shapes:
    return write_shapes(tmp_path / "shapes", 12)


def test_ilsvrc_scores_are_those_of_the_images(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    results = explained(tmp_path / "results", tiny, str(shapes.images))
    truth = shapes.options[2:]
    direct = evaluate("ilsvrc", *shapes.options, "--model", tiny, "--out", tmp_path / "a", "--workers", 0, "--json")
    options = ("ilsvrc", *truth, "--predictions", results, "--out", tmp_path / "b", "--workers", 0, "--json")
    again = evaluate(*options)
    assert (direct[0], again[0]) == (0, 0), again[2]
    one, other = json.loads(direct[1]), json.loads(again[1])
    assert one["rankings"] == other["rankings"]
    assert one["rankings"]["bbox2"]["localization"] == [0] * 5  # there is something to get right
    assert (one["maps"], one["ran"]) == (other["maps"], other["ran"])

    # By hand: the guesses are those of the maps in the rows.
    rule, explainer = BoxRule(), Explainer(tiny)
    for line in journal_lines(tmp_path / "b", "guesses"):
        assert isinstance(line["found"], dict)
        row = rows_of(results)[f"{line['image']}.jpg"]
        maps = shards.unpacked(row["peaks"], row["heatmap"])
        _, guess = rule(Maps(str(line["image"]), maps, (row["height"], row["width"]), {}))
        assert guess["boxes"] == line["found"]["boxes"]
        np.testing.assert_allclose(maps, explainer(row["path"]).heatmaps, atol=np.abs(maps).max() * 2**-11)

    before = (tmp_path / "b" / "guesses.jsonl").read_bytes()
    assert evaluate(*options)[0] == 0  # nothing is left to do
    assert (tmp_path / "b" / "guesses.jsonl").read_bytes() == before


def test_ilsvrc_counts_what_has_no_row_or_an_error(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    (shapes.images / f"{shapes.names[2]}.jpg").write_bytes(b"broken")
    (shapes.images / f"{shapes.names[5]}.jpg").unlink()
    results = explained(tmp_path / "results", tiny, str(shapes.images))
    options = (*shapes.options[2:], "--predictions", results, "--out", tmp_path / "out", "--workers", 0)
    code, stdout, stderr = evaluate("ilsvrc", *options, "--json")
    assert (code, "1 of 12 images have no row" in stderr) == (1, True)
    failed = {each["image"]: each["reason"] for each in json.loads(stdout)["failed"]}
    assert set(failed) == {shapes.names[2], shapes.names[5]}
    assert failed[shapes.names[2]].startswith("is no image")
    assert json.loads(stdout)["rankings"]["bbox2"]["localization"] == pytest.approx([2 / 12] * 5)


@pytest.mark.parametrize("protocol", ["center", "whole"])
def test_wsol_scores_are_those_of_the_images(tiny: Path, tmp_path: Path, protocol: str) -> None:
    table = write_table(tmp_path / "shapes", 12)
    results = explained(
        tmp_path / "results", tiny, str(table / "boxes.csv"), Request(target="input", top=1, protocol=protocol),
        target_column="class", root=str(table / "images"),
    )  # fmt: skip
    data = ["--csv", table / "boxes.csv", "--masks", table / "masks", "--metrics", "boxes,masks,pointing"]
    direct = ["--images", table / "images", "--model", tiny, "--protocol", protocol, "--out", tmp_path / "a"]
    for out, options in (("a", direct), ("b", ["--predictions", results, "--out", tmp_path / "b"])):
        code, _, stderr = evaluate("wsol", *data, *options, "--workers", 0)
        assert code == 0, (out, stderr)
    one, other = (json.loads((tmp_path / out / "results.json").read_text())["methods"]["cam"] for out in "ab")
    assert one["pointing"] == one["top-1"] == 1
    for name, value in one.items():
        # Half precision moves single pixels of masks; what is counted in images does not change.
        assert other[name] == (pytest.approx(value, abs=1e-3) if name == "PxAP" else value), name


def test_wsol_needs_a_map_of_the_class(tiny: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "shapes", 4)
    results = explained(tmp_path / "results", tiny, str(table / "images"), Request(top=1, target="red"))
    options = ["--csv", table / "boxes.csv", "--predictions", results, "--out", tmp_path / "out", "--workers", 0]
    code, stdout, _ = evaluate("wsol", *options, "--json")
    failed = {each["image"]: each["reason"] for each in json.loads(stdout)["methods"]["cam"]["failed"]}
    assert (code, len(failed)) == (1, 3)  # all but the red one
    assert all("has no map: give camrt batch the classes with --target-column" in why for why in failed.values())
    code, _, stderr = evaluate("wsol", *options[:-4], "--out", tmp_path / "other", "--metrics", "drop")
    assert (code, "queries the network, expected boxes, masks or pointing" in stderr) == (1, True)


def test_what_goes_with_predictions(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    results = explained(tmp_path / "results", tiny, str(shapes.images))
    truth = shapes.options[2:]
    assert evaluate("ilsvrc", *shapes.options, "--predictions", results)[0] == 2
    for useless in (["--html"], ["--model", tiny], ["--protocol", "center"], ["--provider", "cuda"]):
        code, _, stderr = evaluate("ilsvrc", *truth, "--predictions", results, *useless)
        assert (code, f"leave out {useless[0]}" in stderr) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, stderr = evaluate("ilsvrc", *truth, "--predictions", tmp_path / "empty", "--out", tmp_path / "out")
    assert (code, "holds no results of camrt batch" in stderr) == (1, True)
    others = explained(tmp_path / "others", tiny, str(write_table(tmp_path / "x", 1) / "images"))
    (shapes.truth.parent / "list.txt").write_text("".join(f"other_{number}\n" for number in range(12)))
    code, _, stderr = evaluate(
        "ilsvrc", *truth, "--list", shapes.truth.parent / "list.txt", "--predictions", others, "--out", tmp_path / "out"
    )
    assert code == 1
    assert ilsvrc_protocol.JOURNAL not in stderr

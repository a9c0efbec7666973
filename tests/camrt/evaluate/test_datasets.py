"""Files that belong together, and files that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from camrt import CamrtError
from camrt.evaluate.datasets import find_images, read_ilsvrc
from tests.camrt.evaluate.shapes import NUMBERS, Shapes, write_shapes


@pytest.fixture
def shapes(tmp_path: Path) -> Shapes:
    return write_shapes(tmp_path / "shapes", 6)


def test_a_folder_of_xml(shapes: Shapes) -> None:
    counts: list[int] = []
    data = read_ilsvrc(shapes.xml, shapes.truth, meta=shapes.mapping, progress=counts.append)
    assert (data.names, len(data), sum(counts)) == (shapes.names, 6, 6)
    assert data.truth.tolist() == [3, 1, 6, 2, 3, 1]
    assert [boxes[0, 0] for boxes in data.boxes] == data.truth.tolist()
    assert data.synsets == NUMBERS
    assert all(size is not None and min(size) >= 90 for size in data.sizes)
    assert read_ilsvrc(shapes.xml, shapes.truth).synsets == {"red": 3, "green": 1, "blue": 6, "yellow": 2}


def test_the_order_of_a_list(shapes: Shapes, tmp_path: Path) -> None:
    order = [4, 0, 5, 2, 1, 3]
    truth = shapes.truth.read_text().split()
    (tmp_path / "list.txt").write_text("".join(f"val/{shapes.names[place]}.JPEG\n" for place in order))
    shapes.truth.write_text("".join(f"{truth[place]}\n" for place in order))
    plain = read_ilsvrc(shapes.xml, shapes.truth, names=tmp_path / "list.txt")
    assert plain.names == tuple(shapes.names[place] for place in order)
    assert [boxes[0, 0] for boxes in plain.boxes] == plain.truth.tolist() == [float(truth[place]) for place in order]
    first = read_ilsvrc(shapes.xml, shapes.truth, names=tmp_path / "list.txt", first=2)
    assert first.names == plain.names[:2]
    np.testing.assert_array_equal(first.boxes[1], plain.boxes[1])
    with pytest.raises(CamrtError, match="The annotations and the ground truth are not in one order"):
        read_ilsvrc(shapes.xml, shapes.truth)
    with pytest.raises(CamrtError, match=r"expected one of the|found no box of class"):
        read_ilsvrc(shapes.xml, shapes.truth, meta=shapes.mapping)
    (tmp_path / "list.txt").write_text("".join(f"shape_{number:05}\n" for number in range(2, 8)))
    with pytest.raises(CamrtError, match=r"there is no annotation shape_00007.xml"):
        read_ilsvrc(shapes.xml, shapes.truth, names=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("shape_00001\n")
    with pytest.raises(CamrtError, match="found 1 names with --list, and 6 classes"):
        read_ilsvrc(shapes.xml, shapes.truth, names=tmp_path / "list.txt")


def test_the_validation_images(reference: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.txt"
    truth.write_text((reference / "ilsvrc" / "visible_gt.txt").read_text())
    data = read_ilsvrc(reference / "ilsvrc" / "cache_groundtruth.mat", truth, first=1500)
    assert data.names[::1499] == ("ILSVRC2012_val_00000001", "ILSVRC2012_val_00001500")
    assert (data.synsets, data.sizes[0]) == (None, None)
    with pytest.raises(CamrtError, match="annotations of 50,000 images, and 1,500 classes"):
        read_ilsvrc(reference / "ilsvrc" / "cache_groundtruth.mat", truth)
    lines = truth.read_text().split()
    truth.write_text("\n".join([*lines[1:], lines[0]]))
    with pytest.raises(CamrtError, match=r"found no box of class 361, its ground truth, in ILSVRC2012_val_00000001"):
        read_ilsvrc(reference / "ilsvrc" / "cache_groundtruth.mat", truth, first=1500)


def test_an_image_without_a_box_can_be_on_the_blacklist(shapes: Shapes, tmp_path: Path) -> None:
    (shapes.xml / "shape_00002.xml").write_text("<annotation><filename>shape_00002</filename></annotation>")
    with pytest.raises(CamrtError, match=r"in shape_00002 \(image 2\): its boxes are of no class; so it is in 1 of 6"):
        read_ilsvrc(shapes.xml, shapes.truth, meta=shapes.mapping)
    (tmp_path / "blacklist.txt").write_text("2\n")
    data = read_ilsvrc(shapes.xml, shapes.truth, meta=shapes.mapping, blacklist=tmp_path / "blacklist.txt")
    assert (data.blacklist, data.boxes[1].shape) == ((2,), (0, 5))


def test_images_in_folders(shapes: Shapes) -> None:
    (shapes.images / "n01440764").mkdir()
    (shapes.images / "shape_00001.jpg").rename(shapes.images / "n01440764" / "shape_00001.JPEG")
    (shapes.images / "shape_00002.jpg").unlink()
    (shapes.images / "shape_00002.txt").write_text("no image")
    found = find_images(shapes.images, shapes.names)
    assert sorted(found) == sorted(set(shapes.names) - {"shape_00002"})
    assert found["shape_00001"].parent.name == "n01440764"

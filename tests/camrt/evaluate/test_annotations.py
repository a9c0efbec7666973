"""Metadata of wsolevaluation and CSV files: what is read, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from camrt import CamrtError
from camrt.evaluate.datasets import Dataset, read_csv, read_metadata

FILES = {
    "image_ids.txt": "a/1.jpg\na/2.jpg\nb, c.png\n",
    "class_labels.txt": "a/1.jpg,0\na/2.jpg,6\nb, c.png,3\n",
    "image_sizes.txt": "a/1.jpg,100,50\na/2.jpg,60,60\nb, c.png,10,20\n",
    "localization.txt": "a/1.jpg,0,0,99,49\na/2.jpg,1,2,3,4\nb, c.png,0,0,0,0\na/1.jpg,5,6,7,8\n",
}
MASKS = "a/1.jpg,m/1.png,m/1_ignore.png\na/1.jpg,m/2.png,\na/2.jpg,m/3.png,\nb, c.png,m/4.png,\n"


def write(folder: Path, **changed: str | None) -> Path:
    for name, text in {**FILES, **{f"{name}.txt": text for name, text in changed.items()}}.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def table(folder: Path, text: str | bytes) -> Path:
    file = folder / "boxes.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


# ------------------------------------------------------------------------------------------------------------ metadata


def test_boxes(tmp_path: Path) -> None:
    found = read_metadata(write(tmp_path))
    assert [each.image for each in found.images] == ["a/1.jpg", "a/2.jpg", "b, c.png"]
    first = found.images[0]
    assert (first.label, first.size, first.boxes) == (0, (100, 50), ((0, 0, 99, 49), (5, 6, 7, 8)))
    assert found.has_boxes
    assert not found.has_masks
    assert found.numbered(7) == {"a/1.jpg": 0, "a/2.jpg": 6, "b, c.png": 3}


def test_masks_without_sizes(tmp_path: Path) -> None:
    found = read_metadata(write(tmp_path, localization=MASKS, image_sizes=""))
    assert [each.masks for each in found.images] == [("m/1.png", "m/2.png"), ("m/3.png",), ("m/4.png",)]
    assert [each.ignored for each in found.images] == ["m/1_ignore.png", "", ""]
    assert found.has_masks
    assert not found.has_boxes
    assert found.images[0].size is None


def test_carriage_returns_and_empty_lines(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(("\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n").encode())
    assert read_metadata(tmp_path).images[2].size == (10, 20)


@pytest.mark.parametrize(
    ("changed", "place", "message"),
    [
        ({"image_ids": ""}, "image_ids.txt:", "lists no images"),
        ({"image_ids": "a/1.jpg\na/2.jpg\nb, c.png\na/1.jpg\n"}, "image_ids.txt:4:", "the first is line 1"),
        ({"image_ids": "a/1.jpg\na/2.jpg\n"}, "class_labels.txt:3:", "'b, c.png', which image_ids.txt does not name"),
        ({"class_labels": "a/1.jpg,0\na/2.jpg,6\n"}, "class_labels.txt:", "no line for 1 of the 3 images"),
        ({"class_labels": "a/1.jpg,0\na/2.jpg,6\nb, c.png,x\n"}, "class_labels.txt:3:", "the class 'x'"),
        ({"class_labels": "a/1.jpg,0\na/2.jpg,-1\nb, c.png,3\n"}, "class_labels.txt:2:", "at least 0"),
        ({"class_labels": "a/1.jpg 0\n"}, "class_labels.txt:1:", "expected path,class"),
        ({"class_labels": "a/1.jpg,0\na/1.jpg,0\n"}, "class_labels.txt:2:", "a second time"),
        ({"image_sizes": ""}, "image_sizes.txt:", "is empty"),
        ({"image_sizes": "a/1.jpg,100,50\n"}, "image_sizes.txt:", "no line for 2 of the 3 images"),
        ({"image_sizes": FILES["image_sizes.txt"].replace("60,60", "60,0")}, "image_sizes.txt:2:", "height 0"),
        ({"image_sizes": FILES["image_sizes.txt"].replace("60,60", "60")}, "image_sizes.txt:2:", "path,width,height"),
        ({"localization": FILES["localization.txt"].replace("1,2,3,4", "3,2,1,4")}, "localization.txt:2:", "x1 <= x2"),
        ({"localization": FILES["localization.txt"].replace("1,2,3,4", "1,4,3,2")}, "localization.txt:2:", "y1 <= y2"),
        ({"localization": FILES["localization.txt"].replace("1,2,3,4", "1,2,61,4")}, "localization.txt:2:", "60 x 60"),
        (
            {"localization": FILES["localization.txt"].replace("1,2,3,4", "-1,2,3,4")},
            "localization.txt:2:",
            "from 0 on",
        ),
        ({"localization": FILES["localization.txt"].replace("1,2,3,4", "1,2,3,nan")}, "localization.txt:2:", "numbers"),
        ({"localization": FILES["localization.txt"].replace("1,2,3,4", "1,2,3")}, "localization.txt:2:", "x1,y1,x2,y2"),
        ({"localization": "a/1.jpg,0,0,99,49\n"}, "localization.txt:", "no line for 2 of the 3 images"),
        ({"localization": "a/1.jpg,1,2,3\n"}, "localization.txt:1:", "is it metadata of wsolevaluation?"),
        ({"localization": "a/1.jpg\n"}, "localization.txt:1:", "is it metadata of wsolevaluation?"),
        ({"localization": MASKS.replace("m/2.png,", "m/2.png,x")}, "localization.txt:2:", "first line of an image"),
        ({"localization": MASKS.replace("m/3.png", " ")}, "localization.txt:3:", "found no mask"),
        ({"localization": FILES["localization.txt"] + "d.jpg,1,2,3,4\n"}, "localization.txt:5:", "does not name"),
        ({"localization": "\0\xff"}, "localization.txt:1:", "is it metadata"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path: Path, changed: dict[str, str], place: str, message: str) -> None:
    with pytest.raises(CamrtError) as raised:
        read_metadata(write(tmp_path, **changed))
    assert f"{tmp_path}/{place}" in str(raised.value) + ":"
    assert message in str(raised.value)


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "class_labels.txt").write_bytes(b"a/1.jpg,0\n\xff\xfe\x00")
    with pytest.raises(CamrtError, match=r"class_labels.txt:2: is not UTF-8 text"):
        read_metadata(tmp_path)


def test_one_file_by_two_paths(tmp_path: Path) -> None:
    changed = {name[:-4]: text.replace("a/2.jpg", "a/./1.jpg") for name, text in FILES.items()}
    with pytest.raises(CamrtError, match=r"'a/./1.jpg', which is 'a/1.jpg'"):
        read_metadata(write(tmp_path, **changed))


def test_folders_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="there is no such folder"):
        read_metadata(tmp_path / "none")
    with pytest.raises(
        CamrtError, match=r"holds no image_ids.txt, class_labels.txt, image_sizes.txt, localization.txt"
    ):
        read_metadata(tmp_path)
    for split in ("test", "val"):
        write_to = tmp_path / split
        write_to.mkdir()
        write(write_to)
    with pytest.raises(CamrtError, match="Name one of the folders in it: test, val"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(("classes", "message"), [(6, "the class 6, expected 0 to 5"), (0, "the class 0")])
def test_a_class_out_of_range_is_named(tmp_path: Path, classes: int, message: str) -> None:
    with pytest.raises(CamrtError, match=message) as raised:
        read_metadata(write(tmp_path)).numbered(classes)
    assert f"class_labels.txt:{2 if classes else 1}:" in str(raised.value)


# ------------------------------------------------------------------------------------------------------------- the CSV


def test_rows_with_a_head(tmp_path: Path) -> None:
    text = "class, image,x2,y2,x1,y1,mask\n3,a.png,30,40,10,20,m.png\ncat,b.png,,,,,n.png\n3,a.png,5.5,6,0,0,m.png\n"
    found = read_csv(table(tmp_path, text))
    first, second = found.images
    assert (first.image, first.label, first.boxes) == ("a.png", 3, ((10, 20, 30, 40), (0, 0, 5.5, 6)))
    assert (first.masks, second.masks, second.boxes, second.label) == (("m.png",), ("n.png",), (), "cat")
    assert first.place == f"{tmp_path}/boxes.csv:2"
    assert found.numbered(5, ["a", "b", "cat", "d", "e"]) == {"a.png": 3, "b.png": 2}
    assert (found.has_boxes, found.has_masks) == (False, True)


def test_rows_without_a_head(tmp_path: Path) -> None:
    found = read_csv(table(tmp_path, '"a, b.png",1,0,0,5,5\r\n\r\nc.png,0,1,1,2,2'))
    assert [(each.image, each.label, each.place[-2:]) for each in found.images] == [
        ("a, b.png", 1, ":1"),
        ("c.png", 0, ":3"),
    ]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "", "holds no images"),
        ("image,class,x1,y1,x2,y2\n", "", "holds no images"),
        ("a.png,1,0,0,5\n", ":1", "found 5 values, expected 6"),
        ("a.png,1,0,0,5,5\nb.png,1,5,0,4,5\n", ":2", "x1 <= x2"),
        ("a.png,1,0,0,5,five\n", ":1", "expected four numbers"),
        ("a.png,1,0,0,inf,5\n", ":1", "expected four numbers"),
        ("a.png,1,,,,\n", ":1", "found no box"),
        ("a.png,,0,0,5,5\n", ":1", "no image or no class"),
        ("a.png,1,0,0,5,5\na.png,2,0,0,5,5\n", ":2", "expected one class per image"),
        ("a.png,1,0,0,5,5\n./a.png,1,0,0,5,5\n", ":2", "expected each image once"),
        ("image,class,x1,y1,x2\n", ":1", "expected image,class,x1,y1,x2,y2"),
        ("image,class,x1,y1,x2,y2,colour\n", ":1", "found the columns"),
        ("image,class,x1,y1,x2,y2,x1\n", ":1", "each once"),
        (b"\x89PNG\r\n\x1a\n\xff\xff", ":1", "is not UTF-8 text"),
        (
            "image,class,x1,y1,x2,y2,mask,ignored\na,1,,,,,m,i\na,1,,,,,n,j\n",
            ":3",
            "second mask of pixels to ignore",
        ),
        ('"' + "x" * 200_000, ":1", "is not readable CSV"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, text: str | bytes, place: str, message: str) -> None:
    with pytest.raises(CamrtError) as raised:
        read_csv(table(tmp_path, text))
    assert str(raised.value).startswith(f"{tmp_path}/boxes.csv{place}: ")
    assert message in str(raised.value)


def test_a_name_that_the_network_does_not_know(tmp_path: Path) -> None:
    found = read_csv(table(tmp_path, "a.png,1,0,0,5,5\nb.png,cow,0,0,5,5\n"))
    with pytest.raises(CamrtError, match=r"boxes.csv:2: found the class 'cow'.*Did you mean 'crow'"):
        found.numbered(2, ["dog", "crow"])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="cannot be read: No such file"):
        read_csv(tmp_path / "none.csv")


def test_a_digest_tells_annotations_apart(tmp_path: Path) -> None:
    def digests(text: str) -> list[str]:
        found: Dataset = read_csv(table(tmp_path, text))
        return [each.digest for each in found.images]

    first = digests("a.png,1,0,0,5,5\nb.png,1,0,0,5,5\n")
    assert first[0] == first[1]
    assert digests("a.png,1,0,0,5,6\n")[0] != first[0]
    assert digests("a.png,2,0,0,5,5\n")[0] != first[0]

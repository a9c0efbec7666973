"""The devkit's files: what is read of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from camrt import CamrtError
from camrt.evaluate import devkit
from camrt.evaluate.devkit import (
    Annotations,
    class_ids,
    format_submission,
    read_annotation,
    read_annotations,
    read_blacklist,
    read_ground_truth,
    read_names,
    read_submission,
    read_synsets,
    synsets_of,
)

SYNSETS = {"n01440764": 449, "n01443537": 450, "n01484850": 442}


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def voc(body: str, *, prolog: str = "", name: str = "cat_1") -> str:
    return f"{prolog}<annotation><folder>val</folder><filename>{name}</filename>{body}</annotation>"


def box(name: str = "n01440764", *sides: object) -> str:
    values = sides or (3, 4, 10, 20)
    inner = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=False)
    )
    return f"<object><name>{name}</name><pose>Unspecified</pose><bndbox>{inner}</bndbox></object>"


# ------------------------------------------------------------------------------------------ text


def test_numbers(tmp_path: Path) -> None:
    file = written(tmp_path / "truth.txt", "490\n361\n\n1.7100000e+02\r\n 822 \n\n")
    assert read_ground_truth(file).tolist() == [490, 361, 171, 822]
    assert read_blacklist(written(tmp_path / "blacklist.txt", "36\n50\n")) == (36, 50)
    assert read_blacklist(written(tmp_path / "none.txt", "")) == ()


def test_visible_ground_truth(repository: Path) -> None:
    file = repository / "tests" / "data" / "ilsvrc" / "visible_gt.txt"
    np.testing.assert_array_equal(read_ground_truth(file, 1000), np.loadtxt(file))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("490\ncat\n", r"truth.txt:2: found 'cat', expected a whole number"),
        ("490\n\n1.5\n", r"truth.txt:3: found '1.5'"),
        ("490\n0\n", r"truth.txt:2: found the class 0, expected 1 to 1000"),
        ("1\n1001\n", r"truth.txt:2: found the class 1001, expected 1 to 1000"),
        ("inf\n", "expected a whole number"),
        ("nan\n", "expected a whole number"),
        ("1 2\n", "expected a whole number"),
        ("", "found no numbers"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_no_ground_truth(tmp_path: Path, content: str | bytes, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        read_ground_truth(written(tmp_path / "truth.txt", content), 1000)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for read in (read_ground_truth, read_blacklist, read_names, read_submission, read_synsets):
        with pytest.raises(CamrtError, match=r"none.txt: cannot be read: No such file"):
            read(tmp_path / "none.txt")
        with pytest.raises(CamrtError, match="Is a directory"):
            read(tmp_path)
    monkeypatch.setattr(devkit, "_LARGEST_TEXT", 3)
    with pytest.raises(CamrtError, match="more than 3 bytes"):
        read_blacklist(written(tmp_path / "long.txt", "1\n2\n"))


def test_names(tmp_path: Path) -> None:
    file = written(tmp_path / "list.txt", "val/a.JPEG\nb.jpg 1\nILSVRC2012_val_00000003\nd.x\t7\n".replace(" 1", ""))
    assert read_names(file) == ("a", "b", "ILSVRC2012_val_00000003", "d")
    with pytest.raises(CamrtError, match="the image 'a' twice"):
        read_names(written(tmp_path / "list.txt", "a.png\nb.png\na.jpg\n"))


def test_submission_there_and_back(tmp_path: Path, repository: Path) -> None:
    original = repository / "tests" / "data" / "ilsvrc" / "visible_pred.txt"
    predictions = read_submission(original, 1000)
    np.testing.assert_array_equal(predictions, np.loadtxt(original))
    assert format_submission(predictions) == original.read_text()
    odd = np.zeros((2, 25))
    odd[0, :5] = 3, -1.25, 0.1, 7, 1e6
    text = format_submission(odd)
    assert text.splitlines()[0] == "3 -1.25 0.1 7 1000000" + " 0" * 20
    np.testing.assert_array_equal(read_submission(written(tmp_path / "odd.txt", text)), odd)


def test_submission_with_fewer_and_more_guesses(tmp_path: Path) -> None:
    file = written(tmp_path / "pred.txt", "1 2 3 4 5\n" + "2 1 1 3 3 " * 6 + "\n")
    found = read_submission(file)
    assert found.shape == (2, 25)
    assert found[0].tolist() == [1, 2, 3, 4, 5] + [0] * 20
    assert found[1].tolist() == [2, 1, 1, 3, 3] * 5


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("1 2 3 4 5\n1 2 3 4\n", r"pred.txt:2: found 4 numbers, expected five per guess"),
        ("1 2 3 4 5\n\n1 2 3 4 5\n", r"pred.txt:2: found 0 numbers"),
        ("1 2 3 4 x\n", r"pred.txt:1: found something that is not a number"),
        ("1 2 3 4 5\n1 9 3 4 5\n", "guess 1 of image 2: found the box 9 3 4 5"),
        ("1 2 3 4 5\n7 2 3 4 5\n", r"pred.txt:2: found the class 7, expected 1 to 6"),
        ("-1 2 3 4 5\n", "found the class -1"),
        ("1 2 3 4 nan\n", "NaN or infinite"),
        ("", "found no lines"),
    ],
)
def test_no_submission(tmp_path: Path, content: str, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        read_submission(written(tmp_path / "pred.txt", content), 6)


# ------------------------------------------------------------------------------------------ XML


def test_annotation(tmp_path: Path) -> None:
    size = "<size><width>500</width><height>375</height><depth>3</depth></size><segmented>0</segmented>"
    part = "<object><name>cat</name><part><name>tail</name><bndbox><xmin>0</xmin></bndbox></part>" + box()[8:]
    part = part.replace("<name>n01440764</name>", "")
    found = read_annotation(written(tmp_path / "cat_1.xml", voc(size + box("n01443537", 1, 2, 1, 2.5) + part)))
    assert (found.image, found.names, found.size) == ("cat_1", ("n01443537", "cat"), (500, 375))
    assert found.boxes.tolist() == [[1, 2, 1, 2.5], [3, 4, 10, 20]]
    assert found.boxes.dtype == np.float64


def test_annotations_of_any_kind(tmp_path: Path) -> None:
    bom = "\ufeff" + voc(
        box("Käse &amp; <![CDATA[<Brot>]]>"), prolog='<?xml version="1.0" encoding="utf-8"?>\n<!-- x -->'
    )
    found = read_annotation(written(tmp_path / "cat_1.xml", bom))
    assert found.names == ("Käse & <Brot>",)
    utf16 = voc(box(), prolog='<?xml version="1.0" encoding="utf-16"?>').encode("utf-16")
    assert read_annotation(written(tmp_path / "cat_1.xml", utf16)).names == ("n01440764",)
    assert read_annotation(written(tmp_path / "cat_1.xml", voc(box(), name="cat_1.JPEG"))).image == "cat_1"
    empty = read_annotation(written(tmp_path / "cat_1.xml", voc("<size><width>0</width><height>0</height></size>")))
    assert (empty.boxes.shape, empty.names, empty.size) == ((0, 4), (), None)
    dotted = read_annotation(written(tmp_path / "a.b_1.xml", voc(box(), name="a.b_1")))
    assert dotted.image == "a.b_1"


BOMB = '<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + k)} "{f"&{chr(97 + k)};" * 10}">' for k in range(12)
)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (voc(box("&m;"), prolog=BOMB + "]>"), "found a document type"),
        (voc(box("&x;"), prolog='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "found a document type"),
        (voc(box(), prolog='<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd">'), "found a document type"),
        (voc("<a>" * 40 + "</a>" * 40), "more than 32 elements inside each other"),
        ("<a>" * 10**5, "expected <annotation>"),
        (voc(" " * (1 << 20)), "found more than 1,048,576 bytes"),
        (voc(box())[:-5], "is not readable XML: (no element found|unclosed token)"),
        (voc(box()) + "<x/>", "is not readable XML: junk after document element"),
        ("", "is not readable XML: no element found"),
        (b"\x89PNG\r\n\x1a\n", "is not readable XML"),
        (voc(box(), prolog='<?xml version="1.0" encoding="nonsense"?>'), "is not readable XML"),
        (voc("&nbsp;"), "is not readable XML: undefined entity"),
        ("<html></html>", "found <html>, expected <annotation>"),
        ("<annotation/>", "found no file name, size or object"),
        (voc(box(), name="cat_2"), "annotation of the image 'cat_2', expected that of 'cat_1'"),
        (voc(box("a", 10, 4, 3, 20)), "object 1: found the box 10 4 3 20, expected xmin ymin"),
        (voc(box() + box("a", 3, 21, 10, 20)), "object 2: found the box 3 21 10 20"),
        (voc(box("a", 3, 4, 10, "nan")), "object 1: found the box"),
        (voc(box("a", 3, 4, 10, "1e999")), "object 1: found the box"),
        (voc(box("a", 3, 4, 10, "x")), "object 1: could not convert"),
        (voc(box("a", 3, 4, 10)), "object 1 has no ymax"),
        (voc("<object><name>a</name></object>"), "object 1 has no xmin"),
        (voc(box("")), "object 1 has no name"),
    ],
)
def test_no_annotation(tmp_path: Path, content: str | bytes, text: str) -> None:
    file = written(tmp_path / "cat_1.xml", content)
    with pytest.raises(CamrtError, match=text) as error:
        read_annotation(file)
    assert str(error.value).startswith(f"{file}: ")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = voc(box() + box("b", 1, 1, 2, 2)).encode()
    for length in range(len(content)):
        with pytest.raises(CamrtError):
            read_annotation(written(tmp_path / "cat_1.xml", content[:length]))


def test_a_folder(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        body = "".join(box("n01440764", 1, 1, number, number) for _ in range(number % 3))
        written(tmp_path / f"v_{number:02}.xml", voc(body, name=f"v_{number:02}"))
    written(tmp_path / "README.txt", "x")
    counts: list[int] = []
    found = read_annotations(tmp_path, counts.append)
    assert found.images == ("v_01", "v_02", "v_10")
    assert [len(boxes) for boxes in found.boxes] == [1, 2, 1]
    assert sum(counts) == len(found) == 3
    numbered = found.numbered(SYNSETS, "folder")
    assert numbered.boxes[2].tolist() == [[449, 1, 1, 10, 10]]
    assert numbered.names is None
    with pytest.raises(CamrtError, match=r"folder: found a box of 'n01440764' in v_01, expected one of the 1 classes"):
        found.numbered({"n1": 1}, "folder")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match=r"holds no .xml files"):
        read_annotations(tmp_path)
    with pytest.raises(CamrtError, match="expected a folder of XML files"):
        read_annotations(written(tmp_path / "a.xml", voc(box())))
    with pytest.raises(CamrtError, match="cannot be read: No such file"):
        read_annotations(tmp_path / "none")


# ------------------------------------------------------------------------------------------ MATLAB's files


def test_cached_ground_truth(reference: Path) -> None:
    found = read_annotations(reference / "ilsvrc" / "cache_groundtruth.mat")
    assert (len(found), sum(map(len, found.boxes))) == (50_000, 80_477)
    assert found.boxes[0].tolist() == [[490, 111, 108, 441, 193]]
    assert found.boxes[1].tolist() == [[361, 45, 49, 499, 162], [361, 2, 69, 437, 207]]
    assert (found.images, found.names) == (None, None)
    truth = read_ground_truth(reference / "ilsvrc" / "visible_gt.txt")
    assert [int(boxes[0, 0]) for boxes in found.boxes[:1500]] == truth.tolist()


def test_cached_ground_truth_with_one_and_with_no_object(tmp_path: Path) -> None:
    objects = [np.zeros(count, [("label", "O"), ("bbox", "O")]) for count in (1, 0, 2)]
    for one in objects:
        for row in one:
            row["label"], row["bbox"] = 4.0, np.array([1, 2, 3, 4.5])
    records = np.zeros((1, 3), [("objects", "O")])
    for image, one in enumerate(objects):
        records[0, image]["objects"] = one
    savemat(tmp_path / "cache.mat", {"rec": records}, do_compression=True)
    found = read_annotations(tmp_path / "cache.mat")
    assert [boxes.tolist() for boxes in found.boxes] == [[[4, 1, 2, 3, 4.5]], [], [[4, 1, 2, 3, 4.5]] * 2]


def test_no_cached_ground_truth(tmp_path: Path) -> None:
    savemat(tmp_path / "other.mat", {"x": np.eye(3)})
    with pytest.raises(CamrtError, match="found no variable rec"):
        read_annotations(tmp_path / "other.mat")
    savemat(tmp_path / "plain.mat", {"rec": np.eye(3)})
    with pytest.raises(CamrtError, match="expected structures with the field objects"):
        read_annotations(tmp_path / "plain.mat")
    wrong = np.zeros((1, 1), [("objects", "O")])
    wrong[0, 0]["objects"] = np.eye(2)
    savemat(tmp_path / "wrong.mat", {"rec": wrong})
    with pytest.raises(CamrtError, match=r"rec\(1\).objects cannot be read"):
        read_annotations(tmp_path / "wrong.mat")
    head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    new = written(tmp_path / "new.mat", head + b"\x00" * 400)
    with pytest.raises(CamrtError, match=r"is a MATLAB 7.3 file"):
        read_annotations(new)
    whole = (tmp_path / "other.mat").read_bytes()
    for content in (b"", b"hello", whole[:150], whole[:130], b"\x00" * 300):
        with pytest.raises(CamrtError, match=r"broken.mat: "):
            read_annotations(written(tmp_path / "broken.mat", content))


def meta(path: Path, rows: list[tuple[object, ...]], *fields: str) -> Path:
    synsets = np.zeros((len(rows), 1), [(name, "O") for name in fields])
    for number, row in enumerate(rows):
        for name, value in zip(fields, row, strict=True):
            synsets[number, 0][name] = value
    savemat(path, {"synsets": synsets})
    return path


def test_meta_files(tmp_path: Path) -> None:
    rows = [(number, name, "words") for name, number in SYNSETS.items()]
    assert read_synsets(meta(tmp_path / "meta.mat", rows, "ILSVRC2014_ID", "WNID", "words")) == SYNSETS
    with_parents = [(number, name, 0) for name, number in SYNSETS.items()] + [(1001, "n00001740", 3)]
    assert read_synsets(meta(tmp_path / "2012.mat", with_parents, "ILSVRC2012_ID", "WNID", "num_children")) == SYNSETS
    with pytest.raises(CamrtError, match=r"fields \['words'\], expected WNID"):
        read_synsets(meta(tmp_path / "meta.mat", [("a",)], "words"))
    words = meta(tmp_path / "words.mat", [("a", "n1")], "ILSVRC2014_ID", "WNID")
    with pytest.raises(CamrtError, match="cannot be read"):
        read_synsets(words)
    savemat(tmp_path / "x.mat", {"x": 1})
    with pytest.raises(CamrtError, match="no variable synsets"):
        read_synsets(tmp_path / "x.mat")


def test_mapping_files(tmp_path: Path) -> None:
    assert read_synsets(written(tmp_path / "map.txt", "n01440764 449\n n01443537\t450\n\nupright  stripes 3\n")) == {
        "n01440764": 449,
        "n01443537": 450,
        "upright stripes": 3,
    }
    for content, text in (
        ("cat\n", r"map.txt:1: found 'cat', expected a name and a number"),
        ("cat 1\ndog x\n", r"map.txt:2: found 'x', expected a whole number"),
        ("cat 1\ncat 2\n", "found cat with the number 2"),
        ("cat 1\ndog 1\n", "found dog with the number 1"),
        ("cat 0\n", "found cat with the number 0"),
        ("", "found no classes"),
    ):
        with pytest.raises(CamrtError, match=text):
            read_synsets(written(tmp_path / "map.txt", content))


# ------------------------------------------------------------------------------------------ classes


def annotations(*names: tuple[str, ...]) -> Annotations:
    return Annotations(None, [np.ones((len(one), 5)) for one in names], list(names))


def test_numbers_follow_from_the_ground_truth() -> None:
    found = annotations(("cat", "cat"), ("dog",), ("cat", "dog"), (), ("cat",))
    assert synsets_of(found, np.array([7, 2, 2, 9, 7]), "xml") == {"cat": 7, "dog": 2}
    for truth in ([7, 7, 2, 9, 7], [7, 2, 2, 9, 8]):
        with pytest.raises(CamrtError, match=r"xml: found boxes of '(cat|dog)' in an image whose ground truth is"):
            synsets_of(found, np.array(truth), "xml")


def test_classes_of_a_network() -> None:
    words = ["n01484850 great white shark", "n01440764 tench, Tinca tinca", "n01443537, goldfish"]
    assert class_ids(SYNSETS, 3, words).tolist() == [442, 449, 450]
    assert class_ids(SYNSETS, 3, ["tench", "goldfish", "shark"]).tolist() == [449, 450, 442]  # in the synsets' order
    assert class_ids(SYNSETS, 3, None).tolist() == [449, 450, 442]
    assert class_ids({"dog": 1, "big cat": 2}, 2, ["big cat", "dog"]).tolist() == [2, 1]
    assert class_ids({"1": 5, "0": 6}, 2, None).tolist() == [6, 5]


def test_the_original_networks_classes_are_in_the_synsets_order(reference: Path) -> None:
    from scipy.io import loadmat

    names = [str(row[0][0]) for row in loadmat(reference / "matlab_demo" / "categories1000.mat")["categories"]]
    synsets = {name.split()[0]: 1000 - number for number, name in enumerate(names)}
    by_label = class_ids(synsets, 1000, names)
    assert by_label.tolist() == list(range(1000, 0, -1))
    np.testing.assert_array_equal(class_ids(synsets, 1000, None), by_label)


@pytest.mark.parametrize(
    ("synsets", "labels", "text"),
    [
        ({"n01440764": 1, "n01443537": 2}, None, "network has 3 classes, and 2 have a number"),
        ({"cat": 1, "dog": 2, "cow": 3}, ["cat", "dog", "hen"], "found 'hen' among the network's classes"),
        ({"cat": 1, "dog": 2, "cow": 3}, None, "found '0' among the network's classes"),
        ({"cat": 1, "dog": 2, "cow": 3}, ["cat", "dog", "dog"], "two of one name"),
        (SYNSETS, ["n01440764 tench", "n01443537 goldfish", "n09999999 x"], "found 'n09999999 x'"),
    ],
)
def test_classes_that_do_not_match(synsets: dict[str, int], labels: list[str] | None, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        class_ids(synsets, 3, labels)

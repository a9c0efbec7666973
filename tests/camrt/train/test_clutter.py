"""Cluttered digits: against a plain loop over what the module promises, and MNIST's own facts."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates

from camrt import CamrtError
from camrt.train import clutter
from camrt.train.clutter import SIDE, Clutter, Digits


@pytest.fixture(scope="module")
def drawn() -> Digits:
    return Digits.drawn(400, seed=5)


def write_idx(folder: Path, digits: Digits, *, packed: bool = False) -> Path:
    """MNIST's two files."""
    count = len(digits)
    images = np.array([0x803, count, SIDE, SIDE], ">u4").tobytes() + digits.images.tobytes()
    labels = np.array([0x801, count], ">u4").tobytes() + digits.labels.astype(np.uint8).tobytes()
    ending, pack = (".gz", gzip.compress) if packed else ("", bytes)
    (folder / f"t10k-labels-idx1-ubyte{ending}").write_bytes(pack(labels))
    file = folder / f"t10k-images-idx3-ubyte{ending}"
    file.write_bytes(pack(images))
    return file


def ink(image: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(image)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


# ------------------------------------------------------------------------------------------------------- random numbers


def test_random_numbers_are_those_of_splitmix64() -> None:
    """The first outputs of SplitMix64 from the seed 1234567, as its authors' C code prints them."""
    golden = int(clutter._GOLDEN)
    states = np.array([(1234567 + k * golden) % 2**64 for k in range(1, 6)], np.uint64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert clutter._splitmix64(states).tolist() == expected


def test_random_numbers_are_uniform_and_independent() -> None:
    chance = clutter._uniform(3, 1, np.arange(50_000, dtype=np.uint64), 6)
    assert chance.min() >= 0
    assert chance.max() < 1
    for column in chance.T:
        counts, _ = np.histogram(column, 20, (0, 1))
        assert ((counts - 2500) ** 2 / 2500).sum() < 50  # chi squared, 19 degrees of freedom: p = 0.0001
    correlated = np.corrcoef(np.hstack([chance[:-1], chance[1:]]).T) - np.eye(12)
    assert np.abs(correlated).max() < 0.025
    other = clutter._uniform(4, 1, np.arange(50_000, dtype=np.uint64), 6)
    assert abs(np.corrcoef(chance[:, 0], other[:, 0])[0, 1]) < 0.025


# ------------------------------------------------------------------------------------------------------------- canvases


def test_a_canvas_is_a_digit_and_patches_of_others(drawn: Digits) -> None:
    """Every step again, with loops and slices."""
    generator = Clutter(drawn, seed=9)
    numbers = np.array([0, 1, 2, 77, 2**40])
    images, labels, boxes = generator.batch(numbers)
    assert (images.shape, images.dtype) == ((5, 100, 100), np.uint8)
    assert (labels.dtype, boxes.dtype, boxes.shape) == (np.int64, np.int64, (5, 4))
    for n, chance in enumerate(clutter._uniform(9, clutter._CANVAS, numbers.astype(np.uint64), 43)):
        chosen = int(chance[0] * 400)
        x, y = int(chance[1] * 73), int(chance[2] * 73)
        canvas = np.zeros((100, 100), int)
        canvas[y : y + 28, x : x + 28] = drawn.images[chosen]
        for other, sx, sy, tx, ty in chance[3:].reshape(8, 5):
            piece = drawn.images[(chosen + 1 + int(other * 399)) % 400]
            sx, sy, tx, ty = int(sx * 21), int(sy * 21), int(tx * 93), int(ty * 93)
            canvas[ty : ty + 8, tx : tx + 8] += piece[sy : sy + 8, sx : sx + 8]
        assert (images[n] == np.minimum(canvas, 255)).all()
        assert labels[n] == drawn.labels[chosen]
        x1, y1, x2, y2 = ink(drawn.images[chosen])
        assert boxes[n].tolist() == [x + x1, y + y1, x + x2, y + y2]


def test_a_canvas_depends_on_its_number_alone(drawn: Digits) -> None:
    for augment, elastic in ((False, 0), (True, 0), (True, 4)):
        generator = Clutter(drawn, seed=2, augment=augment, elastic=elastic)
        together = generator.batch(range(100, 140))
        shuffled = np.random.default_rng(0).permutation(40)
        for whole, part in zip(together, generator.batch(100 + shuffled), strict=True):
            assert (whole[shuffled] == part).all()
        for whole, part in zip(together, Clutter(drawn, 2, augment=augment, elastic=elastic).batch([117]), strict=True):
            assert (whole[17] == part[0]).all()
        other = Clutter(drawn, seed=3, augment=augment).batch(range(100, 140))
        assert (together[2] != other[2]).any(axis=1).all()


def test_another_process_makes_the_same_canvases(drawn: Digits, repository: Path) -> None:
    code = (
        "import hashlib; from camrt.train.clutter import *\n"
        "images, labels, boxes = Clutter(Digits.drawn(400, seed=5), 7, augment=True).batch(range(20))\n"
        "print(hashlib.sha256(images.tobytes() + labels.tobytes() + boxes.tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    found = b"".join(part.tobytes() for part in Clutter(drawn, 7, augment=True).batch(range(20)))
    assert done.stdout.strip() == hashlib.sha256(found).hexdigest()


def test_the_box_is_tight_around_the_ink(drawn: Digits) -> None:
    images, _, boxes = Clutter(drawn, seed=1, distractors=0, augment=True).batch(range(300))
    for image, box in zip(images, boxes, strict=True):
        assert ink(image) == tuple(box)


def test_every_place_digit_and_label_occurs(drawn: Digits) -> None:
    _, labels, boxes = Clutter(drawn, seed=1, distractors=0).batch(range(20_000))
    assert np.bincount(labels, minlength=10).min() > 1000
    assert boxes.min() >= 0
    assert boxes.max() <= 100
    assert (boxes[:, :2].min(axis=0) < 6).all()
    assert (boxes[:, 2:].max(axis=0) > 94).all()


def test_augmenting_bends_the_digit_and_not_the_clutter(drawn: Digits) -> None:
    plain, bent = Clutter(drawn, seed=1), Clutter(drawn, seed=1, augment=True)
    images, labels, boxes = plain.batch(range(200))
    others, same, moved = bent.batch(range(200))
    assert (labels == same).all()
    assert (boxes != moved).any(axis=1).mean() > 0.9
    for image, other, one, two in zip(images, others, boxes, moved, strict=True):
        outside = np.ones((100, 100), bool)
        for x1, y1, x2, y2 in (one, two):
            outside[y1:y2, x1:x2] = False
        assert (image[outside] == other[outside]).all()
    sizes, bent_sizes = (b[:, 2:] - b[:, :2] for b in (boxes, moved))
    assert (bent_sizes / sizes).min() > 0.6
    assert (bent_sizes / sizes).max() < 2.5


def test_elastic_distortions(drawn: Digits) -> None:
    """The displacement is a cubic B-spline of its control points, and the digit is sampled there: SciPy does both."""
    counters = np.arange(30, dtype=np.uint64)
    field = clutter._displacements(4, counters, 5)
    chance = clutter._uniform(4, clutter._ELASTIC, counters, 2 * 7 * 7).reshape(-1, 2, 7, 7)
    basis = BSpline.design_matrix((np.arange(28) + 0.5) / 7, np.arange(-3, 8), 3).toarray()
    np.testing.assert_allclose(field, np.einsum("yk,nakl,xl->nayx", basis, 10 * chance - 5, basis), atol=1e-12)
    assert 1 < field.std() < 2  # as Simard et al. use for MNIST: 34 times the smoothed field has 1.4
    assert np.abs(field).max() < 5
    canvases = Clutter(drawn, seed=4, size=28, distractors=0, elastic=5)
    images, _, _ = canvases.batch(counters)
    plain, _, _ = Clutter(drawn, seed=4, size=28, distractors=0).batch(counters)
    rows, columns = np.mgrid[:28, :28]
    for image, digit, (x, y) in zip(images, plain, field, strict=True):
        expected = map_coordinates(digit.astype(float), [rows + y, columns + x], order=1, mode="constant")
        np.testing.assert_allclose(image, expected, atol=10)  # OpenCV rounds coordinates to 1/32 of a pixel


def test_other_sizes(drawn: Digits) -> None:
    images, _, boxes = Clutter(drawn, size=28, distractors=3, patch=28).batch(range(10))
    assert images.shape == (10, 28, 28)
    assert boxes.max() <= 28
    empty = Clutter(drawn).batch([])
    assert [part.shape for part in empty] == [(0, 100, 100), (0,), (0, 4)]


def test_it_is_fast(drawn: Digits) -> None:
    """Training must not wait for it: 10,000 canvases a second are the goal; this is loose, for busy machines."""
    for augment in (False, True):
        generator = Clutter(drawn, augment=augment)
        generator.batch(range(64))
        began = time.process_time()
        for first in range(0, 3200, 64):
            generator.batch(range(first, first + 64))
        assert 3200 / (time.process_time() - began) > 3000


# --------------------------------------------------------------------------------------------------------------- digits


def test_drawn_digits(drawn: Digits) -> None:
    assert (drawn.images.shape, drawn.images.dtype) == ((400, 28, 28), np.uint8)
    assert (Digits.drawn(50, seed=5).images == drawn.images[:50]).all()
    assert (Digits.drawn(50, seed=6).images != drawn.images[:50]).any(axis=(1, 2)).all()
    assert np.bincount(drawn.labels, minlength=10).min() > 20
    boxes = np.array([ink(image) for image in drawn.images])
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longest.min() >= 14
    assert longest.max() <= 27
    assert (drawn.images.reshape(400, -1).max(axis=1) > 200).all()
    assert ((drawn.images > 0) & (drawn.images < 255)).any(axis=(1, 2)).all(), "edges are soft"


def test_drawn_digits_look_like_their_labels() -> None:
    """Against OpenCV's plain font, drawn upright: each digit is nearer to its own label's drawings than to most."""
    digits = Digits.drawn(3000, seed=1)
    means = np.stack([digits.images[digits.labels == label].mean(axis=0) for label in range(10)])
    right = 0
    for label in range(10):
        canvas = np.zeros((64, 64), np.uint8)
        cv2.putText(canvas, str(label), (20, 50), cv2.FONT_HERSHEY_SIMPLEX, 1.4, 255, 4, cv2.LINE_AA)
        x, y, width, height = cv2.boundingRect(canvas)
        small = cv2.resize(canvas[y : y + height, x : x + width], (max(1, 20 * width // height), 20))
        image = np.zeros((28, 28))
        left = (28 - small.shape[1]) // 2
        image[4:24, left : left + small.shape[1]] = small
        scores = [np.corrcoef(image.ravel(), mean.ravel())[0, 1] for mean in means]
        right += int(np.argmax(scores)) == label
    assert right >= 8


def test_mnist(reference: Path) -> None:
    """The test set's own counts of each digit, and the first labels, as its page shows them."""
    digits = Digits.from_idx(reference / "mnist")
    assert len(digits) == 10_000
    assert np.bincount(digits.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert digits.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert digits.images[0].sum() == 18454
    part = digits.part(8000, 2000)
    assert (part.images == digits.images[8000:]).all()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(packed: bool, drawn: Digits, tmp_path: Path) -> None:
    file = write_idx(tmp_path, drawn, packed=packed)
    labels = file.with_name(file.name.replace("images-idx3", "labels-idx1"))
    copy = tmp_path / "copy"
    copy.write_bytes(labels.read_bytes())
    for found in (Digits.from_idx(file), Digits.from_idx(tmp_path), Digits.from_idx(str(file), copy)):
        assert (found.images == drawn.images).all()
        assert (found.labels == drawn.labels).all()
    if packed:  # one of the two unpacked
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(gzip.decompress(labels.read_bytes()))
        labels.unlink()
        assert (Digits.from_idx(file).labels == drawn.labels).all()


def broken(file: Path, how: str) -> None:
    data = file.read_bytes()
    changed = {
        "empty": b"",
        "cut": data[:-1],
        "longer": data + b"0",
        "header": data[:7],
        "magic": b"\0\0\x08\x02" + data[4:],
        "huge": data[:4] + b"\xff" * 12 + data[16:],
        "gzip": gzip.compress(data)[:-20],
        "half": b"\x1f\x8bnothing of the kind",
    }
    file.write_bytes(changed[how])


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("empty", "magic number"),
        ("cut", "found 313,615 bytes, expected 313,616"),
        ("longer", "found 313,617 bytes"),
        ("header", "magic number"),
        ("magic", "0x802, expected 0x803"),
        ("huge", "expected 79228162458924105385300197391"),
        ("gzip", "cannot be read"),
        ("half", "cannot be read"),
    ],
)
def test_broken_idx_files(how: str, word: str, drawn: Digits, tmp_path: Path) -> None:
    file = write_idx(tmp_path, drawn)
    broken(file, how)
    with pytest.raises(CamrtError) as found:
        Digits.from_idx(file)
    assert word.replace(",", "") in str(found.value).replace(",", "")
    assert str(found.value).startswith(f"{file}: ")


def test_idx_files_that_do_not_fit(drawn: Digits, tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="none, expected one file of images"):
        Digits.from_idx(tmp_path)
    with pytest.raises(CamrtError, match="No such file"):
        Digits.from_idx(tmp_path / "no-images-idx3-ubyte")
    file = write_idx(tmp_path, drawn)
    with pytest.raises(CamrtError, match="0x803, expected 0x801"):
        Digits.from_idx(file, file)
    file.rename(tmp_path / "other")
    with pytest.raises(CamrtError, match="specify the file of the labels"):
        Digits.from_idx(tmp_path / "other")
    write_idx(tmp_path, drawn.part(0, 100))
    with pytest.raises(CamrtError, match="found 100 labels, expected 400"):
        Digits.from_idx(tmp_path / "other", tmp_path / "t10k-labels-idx1-ubyte")
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(CamrtError, match="labels from 0 to 10"):
        Digits.from_idx(tmp_path / "t10k-images-idx3-ubyte")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clutter, "_MAX_IDX_BYTES", 1 << 20)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(np.array([0x803, 10_000, SIDE, SIDE], ">u4").tobytes() + bytes(7_840_000)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(CamrtError, match="more than 1,048,577 bytes"):
        Digits.from_idx(file)


def test_digits_that_are_none() -> None:
    images, labels = np.ones((3, 28, 28), np.uint8), np.zeros(3, np.int64)
    for wrong in (
        (images[:, :27], labels),
        (images.astype(float), labels),
        (images, labels[:2]),
        (images, labels.astype(np.uint8)),
        (images[:1], labels[:1]),
        (images, labels - 1),
        (images * np.array([1, 0, 1], np.uint8)[:, None, None], labels),
    ):
        with pytest.raises(CamrtError, match=r"found .*expected"):
            Digits(*wrong)
    digits = Digits(images, labels)
    for first, count in ((-1, 2), (0, 4), (3, 1), (3, None), (1, 0)):
        with pytest.raises(CamrtError, match="found 3 digits"):
            digits.part(first, count)
    with pytest.raises(CamrtError, match="at least 2"):
        Digits.drawn(1)


def test_wrong_arguments(drawn: Digits) -> None:
    for wrong in ({"size": 27}, {"size": 5000}, {"patch": 0}, {"patch": 29}, {"distractors": -1}):
        with pytest.raises(CamrtError, match=r"found .*expected"):
            Clutter(drawn, **wrong)
    for indices in ([-1], [0.5], [[1]], 3, ["a"], [2**63]):
        with pytest.raises(CamrtError, match=r"found .*expected"):
            Clutter(drawn).batch(indices)
    with pytest.raises(CamrtError, match="seed -1"):
        Clutter(drawn, seed=-1).batch([0])


# ---------------------------------------------------------------------------------------------------- the text of one


def test_a_text_names_the_digits_and_all_else(drawn: Digits, tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    write_idx(folder, drawn)
    found = Clutter.parse(
        f"clutter:{folder},first=100,count=50,seed=3,augment=1,elastic=4,size=64,distractors=2,patch=5"
    )
    assert (found.digits.images == drawn.images[100:150]).all()
    facts = (found.seed, found.augment, found.elastic, found.size, found.distractors, found.patch)
    assert facts == (3, True, 4, 64, 2, 5)
    drawing = Clutter.parse("clutter:drawn,count=100,seed=5,first=20")
    assert (drawing.digits.images == drawn.images[20:120]).all()
    assert (drawing.seed, drawing.augment, drawing.size) == (5, False, 100)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("mnist:x", "expected clutter:DIGITS"),
        ("clutter:", "expected clutter:DIGITS"),
        ("clutter:drawn,seed", "drawn,seed: has no images-idx3 in its name"),
        ("clutter:drawn,seed=1,seed=2", "each key once"),
        ("clutter:drawn,sead=1", "key 'sead'"),
        ("clutter:drawn,seed=-1", "integer"),
        ("clutter:drawn,seed=", "integer"),
        ("clutter:drawn,seed=٣", "integer"),
        ("clutter:drawn,augment=2", "integer"),
        ("clutter:drawn,elastic=29", "elastic distortions of 29 pixels, expected 0 to 28"),
        ("clutter:drawn,elastic=4.5", "integer"),
        ("clutter:drawn,count=1", "at least 2"),
        ("clutter:/nowhere/images-idx3-ubyte", "No such file"),
    ],
)
def test_texts_that_are_wrong(text: str, word: str) -> None:
    with pytest.raises(CamrtError, match=word):
        Clutter.parse(text)


def test_neither_torch_nor_the_runtime_is_needed(repository: Path) -> None:
    code = "import sys; import camrt.train.clutter; print(*({'torch', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert done.stdout.split() == []

from __future__ import annotations

import gzip
import struct
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest

from camrt.errors import CamrtError
from camrt.train.data import Feed, ImageFiles, Order, Transform, has_test_part, open_source
from camrt.train.data.transform import of_layer, read_mean
from converters.layer import Layer
from converters.schema import caffe_pb2

RNG = np.random.default_rng(5)


def picture(path: Path, pixels: np.ndarray) -> Path:
    """Write RGB pixels as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[:, :, ::-1])
    return path


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


class Stack:
    """Images that are in memory."""

    name, classes, largest_label, is_cheap = "stack", (), 0, True

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.count = images, len(images)

    def read(self, numbers):
        return self.images[numbers], numbers


def layer(text: str, type: str = "ImageData") -> Layer:
    from google.protobuf import text_format

    return Layer("data", type, (), ("data", "label"), text_format.Parse(text, caffe_pb2.LayerParameter()))


# ---------------------------------------------------------------------------------------------------------- the sources


def test_a_list_is_paths_and_labels(tmp_path):
    first, second = noise(4, 5, 3), noise(4, 5, 3)
    picture(tmp_path / "photos" / "a b.png", first)
    picture(tmp_path / "photos" / "c.png", second)
    (tmp_path / "list.txt").write_text("photos/a b.png 7\n\n/photos/c.png 0\n")
    source = open_source(f"list:{tmp_path / 'list.txt'}", "TRAIN")
    images, labels = source.read(np.array([1, 0]))
    assert source.count == 2
    assert source.largest_label == 7
    assert labels.tolist() == [0, 7]
    np.testing.assert_array_equal(images[0], second[:, :, ::-1])  # BGR, as OpenCV and so Caffe has it
    np.testing.assert_array_equal(images[1], first[:, :, ::-1])


def test_a_root_stands_before_the_paths_of_a_list(tmp_path):
    picture(tmp_path / "elsewhere" / "a.png", noise(3, 3, 3))
    (tmp_path / "list.txt").write_text("a.png 1\n")
    source = open_source(f"list:{tmp_path / 'list.txt'},root={tmp_path / 'elsewhere'}", "TRAIN")
    assert source.read(np.array([0]))[0][0].shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("line", "shown"), [("a.png", "'a.png'"), ("a.png x", "'a.png x'"), ("a.png -1", "-1"), ("a.png 1.5", "1.5")]
)
def test_a_line_without_a_label_is_named(tmp_path, line, shown):
    (tmp_path / "list.txt").write_text(f"b.png 0\n{line}\n")
    with pytest.raises(CamrtError, match=r"list\.txt:2: found .*expected a path, a space and a label") as caught:
        open_source(f"list:{tmp_path / 'list.txt'}", "TRAIN")
    assert shown in str(caught.value)


def test_missing_images_are_listed_at_the_start(tmp_path):
    picture(tmp_path / "here.png", noise(3, 3, 3))
    names = ["here.png", *(f"gone{number}.png" for number in range(12)), "nowhere/x.png"]
    (tmp_path / "list.txt").write_text("".join(f"{name} 0\n" for name in names))
    with pytest.raises(CamrtError, match="found 13 of 14 images missing") as caught:
        open_source(f"list:{tmp_path / 'list.txt'}", "TRAIN")
    assert "gone0.png" in str(caught.value)
    assert "here.png" not in str(caught.value)
    assert "and 3 more" in str(caught.value)


def test_folders_are_classes(tmp_path):
    for name in ("dog", "cat"):
        for number in range(2):
            picture(tmp_path / name / f"{number}.png", noise(3, 3, 3))
    picture(tmp_path / "dog" / "more" / "x.png", noise(3, 3, 3))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    source = open_source(f"folder:{tmp_path}", "TRAIN")
    assert source.classes == ("cat", "dog")
    assert source.read(np.arange(5))[1].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "found no folders"),
        (["a/x.png", "stray.png"], r"found images outside the class folders \(stray.png\)"),
        (["a/x.png", "b/notes.txt"], "found no images, expected those of a class"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, files, message):
    for file in files:
        picture(tmp_path / "f" / file, noise(3, 3, 3)) if file.endswith("png") else (
            (tmp_path / "f" / file).parent.mkdir(parents=True, exist_ok=True),
            (tmp_path / "f" / file).write_text(""),
        )
    (tmp_path / "f").mkdir(exist_ok=True)
    with pytest.raises(CamrtError, match=message):
        open_source(f"folder:{tmp_path / 'f'}", "TRAIN")


def tiny(folder: Path) -> Path:
    """Tiny ImageNet's layout, with two classes."""
    (folder / "val").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tshark\nn03\tray\n")
    for wnid in ("n01", "n02"):
        rows = []
        for number in range(2):
            name = f"{wnid}_{number}.png"
            picture(folder / "train" / wnid / "images" / name, np.full((8, 8, 3), 10 * number, np.uint8))
            rows.append(f"{name}\t{number}\t1\t5\t7\n")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(rows))
    for number, wnid in enumerate(("n01", "n02", "n01")):
        picture(folder / "val" / "images" / f"val_{number}.png", noise(8, 8, 3))
        with (folder / "val" / "val_annotations.txt").open("a") as stream:
            stream.write(f"val_{number}.png\t{wnid}\t0\t{number}\t7\t6\n")
    return folder


def test_tiny_imagenet(tmp_path):
    text = f"tiny:{tiny(tmp_path / 'tiny')}"
    train, test = open_source(text, "TRAIN"), open_source(text, "TEST")
    assert isinstance(train, ImageFiles)
    assert isinstance(test, ImageFiles)
    assert train.classes == test.classes == ("shark", "goldfish, Carassius")  # in the order of wnids.txt
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [1, 0, 1]
    assert test.boxes is not None
    assert test.boxes.tolist() == [[0, 0, 8, 7], [0, 1, 8, 7], [0, 2, 8, 7]]  # the last pixels belong to them
    assert train.boxes is not None
    assert train.boxes[1].tolist() == [1, 1, 6, 8]
    assert has_test_part(text)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("wnids.txt", "n01\nn01\n", "found a class twice"),
        ("wnids.txt", "n01\n", "found the classes n02, expected those of wnids.txt"),
        ("val/val_annotations.txt", "val_0.png\tn01\t0\t0\t7\n", r"val_annotations\.txt:1: found .*expected a name"),
        ("val/val_annotations.txt", "gone.png\tn01\t0\t0\t7\t7\n", "found 1 of 1 images missing"),
    ],
)
def test_a_broken_tiny_imagenet_is_named(tmp_path, file, content, message):
    folder = tiny(tmp_path / "tiny")
    (folder / file).write_text(content)
    with pytest.raises(CamrtError, match=message):
        open_source(f"tiny:{folder}", "TEST")


def mnist(folder: Path, part: str, images: np.ndarray, labels: np.ndarray, *, packed: bool) -> None:
    """Write idx files, as http://yann.lecun.com/exdb/mnist/ describes them."""
    folder.mkdir(exist_ok=True)
    files = {
        f"{part}-images-idx3-ubyte": struct.pack(">4I", 0x803, *images.shape) + images.tobytes(),
        f"{part}-labels-idx1-ubyte": struct.pack(">2I", 0x801, len(labels)) + labels.astype(np.uint8).tobytes(),
    }
    for name, content in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


def test_mnist(tmp_path):
    pixels, labels = np.maximum(noise(6, 28, 28), 1), np.array([3, 1, 4, 1, 5, 9])
    mnist(tmp_path / "mnist", "train", pixels, labels, packed=True)
    mnist(tmp_path / "mnist", "t10k", pixels[:2], labels[:2], packed=False)
    assert open_source(f"mnist:{tmp_path / 'mnist'}", "TRAIN").count == 6
    assert open_source(f"mnist:{tmp_path / 'mnist'}", "TEST").count == 2
    assert has_test_part(f"mnist:{tmp_path / 'mnist'}")
    some = open_source(f"mnist:{tmp_path / 'mnist' / 'train-images-idx3-ubyte.gz'},first=2,count=3", "TEST")
    images, found = some.read(np.arange(3))
    assert found.tolist() == [4, 1, 5]
    np.testing.assert_array_equal(np.asarray(images)[..., 0], pixels[2:5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photos", "expected KIND:PATH"),
        ("lmdb:train", "with KIND one of list, folder, tiny, mnist, clutter"),
        ("folder:", "expected KIND:PATH"),
        ("folder:nowhere", "there is no such folder"),
        ("list:nowhere.txt", "there is no such file"),
        ("mnist:nowhere", "nowhere"),
        ("tiny:nowhere", "there is no such folder"),
        ("clutter:nowhere", "nowhere"),
        ("folder:x,seed=1", "expected no options for folder:"),
        ("mnist:x,last=1", "expected the options first, count, each at most once"),
        ("mnist:x,first=-1", "found first=-1"),
    ],
)
def test_a_source_that_is_none_is_refused(text, message):
    with pytest.raises(CamrtError) as caught:
        open_source(text, "TRAIN")
    assert message in str(caught.value)


# --------------------------------------------------------------------------------------------------- the transformation


def test_the_crop_of_a_test_is_the_center():
    """data_transformer.cpp: h_off = (datum_height - crop_size) / 2, as whole numbers."""
    images = noise(3, 9, 12, 3)
    found = Transform(crop=(4, 4)).batch(images, 0)
    np.testing.assert_array_equal(found, images[:, 2:6, 4:8].transpose(0, 3, 1, 2))


def test_the_crop_of_a_training_is_anywhere_and_mirrored_half_of_the_time():
    image = np.arange(6 * 7, dtype=np.uint8).reshape(1, 6, 7, 1)
    found = Transform(crop=(4, 4), mirror=True, is_random=True, seed=3).batch(np.repeat(image, 2000, 0), 0)[:, 0]
    wanted = {
        image[0, y : y + 4, x : x + 4, 0][:, ::step].tobytes(): (y, x, step)
        for y, x, step in product(range(3), range(4), (1, -1))
    }
    counts = dict.fromkeys(wanted.values(), 0)
    for cut in found:
        counts[wanted[np.ascontiguousarray(cut).tobytes()]] += 1
    assert min(counts.values()) > 2000 / 24 / 2  # 24 ways, each as likely as another
    assert max(counts.values()) < 2000 / 24 * 2


def test_a_mean_image_is_cut_where_the_image_is():
    """data_transformer.cpp: the mean's offset is the image's, and mirroring comes after the subtraction."""
    mean = RNG.normal(100, 30, (3, 6, 7)).astype(np.float32)
    image = noise(6, 7, 3)
    transform = Transform(crop=(4, 4), mirror=True, is_random=True, mean=mean, scale=0.5, seed=1)
    found = transform.finish(transform.batch([image] * 40, 0))
    whole = (image.transpose(2, 0, 1).astype(np.float32) - mean) * np.float32(0.5)
    ways = [whole[:, y : y + 4, x : x + 4][:, :, ::step] for y, x, step in product(range(3), range(4), (1, -1))]
    for cut in found:
        assert sum(np.array_equal(cut, way) for way in ways) == 1


def test_mean_values_and_scale():
    images = noise(2, 5, 5, 3)
    mean = np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
    transform = Transform(mean=mean, scale=0.25)
    found = transform.finish(transform.batch(images, 0).astype(np.float32))
    for channel, value in enumerate((104, 117, 123)):
        np.testing.assert_array_equal(found[:, channel], (images[..., channel] - np.float32(value)) * np.float32(0.25))


def test_resizing_is_opencvs():
    image = noise(10, 14, 3)
    np.testing.assert_array_equal(Transform(resize=(6, 9)).prepared(image), cv2.resize(image, (9, 6)))


def test_grey_images_get_three_channels_and_colored_ones_one():
    gray, colored = noise(4, 4, 1), noise(4, 4, 3)
    transform = Transform(channels=3)
    found = transform.finish(transform.batch([transform.prepared(gray)], 0).astype(np.float32))
    np.testing.assert_array_equal(found[0], np.repeat(gray.transpose(2, 0, 1), 3, 0))
    assert Transform(channels=1).prepared(colored).shape == (4, 4, 1)
    expected = colored @ np.array([0.114, 0.587, 0.299])  # BT.601, of BGR
    np.testing.assert_allclose(Transform(channels=1).prepared(colored)[..., 0], expected, atol=0.6)


def test_what_is_random_depends_on_the_position_alone():
    images = noise(12, 9, 9, 3)
    transform = Transform(crop=(5, 5), mirror=True, is_random=True, seed=8)
    whole = transform.batch(images, 100)
    parts = [transform.batch(images[start : start + 4], 100 + start) for start in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(transform.with_seed(9).batch(images, 100), whole)


def test_a_layer_says_the_transformation(tmp_path):
    mean = RNG.normal(100, 30, (3, 8, 8)).astype(np.float32)
    blob = caffe_pb2.BlobProto(num=1, channels=3, height=8, width=8, data=mean.astype("<f4").tobytes())
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    one = layer(
        'transform_param { crop_size: 6 mirror: true scale: 2 mean_file: "mean.binaryproto" } '
        "image_data_param { new_height: 8 new_width: 8 is_color: true }"
    )
    found = of_layer(one, lambda path: tmp_path / path, is_random=True)
    assert (found.crop, found.resize, found.mirror, found.is_random, found.scale) == ((6, 6), (8, 8), True, True, 2)
    np.testing.assert_array_equal(found.mean, mean)
    assert of_layer(layer("image_data_param { is_color: false }"), Path, is_random=False).channels == 1
    values = of_layer(
        layer("transform_param { mean_value: 1 mean_value: 2 mean_value: 3 }", "Data"), Path, is_random=False
    )
    assert values.mean.ravel().tolist() == [1, 2, 3]
    both = layer('transform_param { mean_value: 1 mean_file: "m" }')
    with pytest.raises(CamrtError, match="found a mean_file and mean_value, expected one of them"):
        of_layer(both, Path, is_random=False)


@pytest.mark.parametrize(
    "content", [b"\xff\xff\xff", caffe_pb2.BlobProto(num=1, channels=3, height=2, width=2).SerializeToString(), b""]
)
def test_a_mean_that_is_none_is_named(tmp_path, content):
    (tmp_path / "mean.binaryproto").write_bytes(content)
    with pytest.raises(CamrtError, match=r"mean\.binaryproto: (is no|found 0 numbers)"):
        read_mean(tmp_path / "mean.binaryproto")


# ------------------------------------------------------------------------------------------------------ order and feed


def test_each_epoch_has_each_image_once_in_an_order_of_its_own():
    numbers = Order(50, shuffle=True, seed=2).numbers(np.arange(200)).reshape(4, 50)
    assert (np.sort(numbers, axis=1) == np.arange(50)).all()
    assert len({tuple(epoch) for epoch in numbers.tolist()}) == 4
    np.testing.assert_array_equal(Order(50, shuffle=True, seed=2).numbers(np.arange(45, 60)), numbers.ravel()[45:60])
    assert Order(50, shuffle=True, seed=3).numbers(np.arange(50)).tolist() != numbers[0].tolist()


def test_without_shuffling_they_come_as_they_are():
    assert Order(3).numbers(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert Order(3, skip=2).numbers(np.arange(4)).tolist() == [2, 0, 1, 2]
    assert Order(None).numbers(np.array([5, 10**12])).tolist() == [5, 10**12]


def test_batches_do_not_depend_on_how_they_are_cut():
    """What two processes load is what one loads: two batches of 4 are one of 8."""
    feed = Feed(Stack(noise(10, 6, 6, 3)), Transform(crop=(4, 4), is_random=True, mirror=True), Order(10, True, 1))
    whole = feed.batch(16, 8)
    parts = [feed.batch(16, 4), feed.batch(20, 4)]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)


def broken(tmp_path: Path, spoilt: dict[int, bytes], count: int = 6) -> Feed:
    """A feed of files, some of them with other contents."""
    paths = [picture(tmp_path / f"{number}.png", np.full((5, 5, 3), number, np.uint8)) for number in range(count)]
    for number, content in spoilt.items():
        paths[number].write_bytes(content)
    return Feed(ImageFiles("files", [str(path) for path in paths], range(count)), Transform(), Order(count))


def test_a_broken_image_is_reported_once_and_the_next_takes_its_place(tmp_path):
    whole = (cv2.imencode(".jpg", noise(40, 40, 3))[1]).tobytes()
    feed = broken(tmp_path, {1: b"no image", 2: whole[: len(whole) // 2], 5: b""})
    first = feed.batch(0, 4)
    assert first.labels.tolist() == [0, 3, 3, 3]
    assert first.images[:, 0, 0, 0].tolist() == [0, 3, 3, 3]
    assert [name for name, _ in first.unusable] == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    assert "is no image" in first.unusable[0][1]
    assert "truncated" in first.unusable[1][1]
    last = feed.batch(4, 4)  # 4, 5 and the next epoch
    assert last.labels.tolist() == [4, 0, 0, 3]
    assert [name for name, _ in last.unusable] == [str(tmp_path / "5.png")]


def test_what_is_in_a_batch_does_not_depend_on_what_was_loaded_before(tmp_path):
    one, other = (broken(tmp_path, {1: b"x", 4: b"y"}) for _ in range(2))
    one.batch(0, 6)
    np.testing.assert_array_equal(one.batch(3, 3).labels, other.batch(3, 3).labels)


def test_without_a_usable_image_there_is_an_error(tmp_path):
    with pytest.raises(CamrtError, match=r"files: found no usable image. The first error is: .*0\.png"):
        broken(tmp_path, dict.fromkeys(range(6), b"x")).batch(0, 2)


def test_an_image_smaller_than_the_crop_cannot_be_used(tmp_path):
    feed = broken(tmp_path, {})
    picture(tmp_path / "0.png", noise(3, 9, 3))
    feed.transform = Transform(crop=(5, 5))
    batch = feed.batch(0, 2)
    assert batch.labels.tolist() == [1, 1]
    assert "found 9 x 3 pixels, expected at least the crop's 5 x 5" in batch.unusable[0][1]


def test_images_of_different_sizes_do_not_make_a_batch(tmp_path):
    feed = broken(tmp_path, {})
    picture(tmp_path / "1.png", noise(3, 9, 3))
    with pytest.raises(CamrtError, match="found images of 5 x 5 and 9 x 3 pixels in one batch, expected one size"):
        feed.batch(0, 2)

"""Images with their classes and boxes, read from the files of a devkit and checked against each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from camrt.batch import ENDINGS
from camrt.errors import CamrtError
from camrt.evaluate import devkit
from camrt.evaluate.devkit import Annotations
from camrt.evaluate.ilsvrc import ANY_CLASS, Floats, Integers

NAME = "ILSVRC2012_val_{:08d}"  # of the validation images, counted from 1


@dataclass(frozen=True)
class Dataset:
    """What an evaluation compares with.

    Attributes:
        names: (N) the images' names, without endings, in the order of the ground truth.
        truth: (N,) int64: their classes.
        boxes: Of each image (M, 5) float64: class, x1, y1, x2, y2 in pixels.
        sizes: Of each image width and height in pixels, where the annotation says them; else None.
        blacklist: Images that do not count for the localization, counted from 1.
        synsets: Name -> number of the classes; None where nothing says it.
    """

    names: tuple[str, ...]
    truth: Integers
    boxes: list[Floats]
    sizes: tuple[tuple[int, int] | None, ...]
    blacklist: tuple[int, ...] = ()
    synsets: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self.names)


def load(
    annotations: Path,
    ground_truth: Path,
    *,
    meta: Path | None = None,
    names: Path | None = None,
    blacklist: Path | None = None,
    first: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Dataset:
    """Reads a data set.

    Image i is line i of the ground truth. Its name is line i of ``names``; where that is left out, it is that of the
    i-th XML file, and with cache_groundtruth.mat that of the ILSVRC's validation images.

    Args:
        annotations: A folder of VOC's XML files, or cache_groundtruth.mat.
        ground_truth: The class of each image.
        meta: The numbers of the classes: meta_clsloc.mat, or a mapping file. If left out, they follow from images whose
            boxes have a name and whose ground truth has a number, where the annotations have names.
        names: The images' names.
        blacklist: Images that do not count for the localization.
        first: How many images to take; all if left out. If given, what is behind them in a file is not looked at.
        progress: Called with how many more annotations were read.

    Raises:
        CamrtError: A file cannot be read, or the files do not belong together.
    """
    synsets = None if meta is None else devkit.read_synsets(meta)
    truth = devkit.read_ground_truth(ground_truth, None if synsets is None else max(synsets.values()))
    listed = None if names is None else devkit.read_names(names)
    listed_out = () if blacklist is None else devkit.read_blacklist(blacklist)
    for number in listed_out:
        if not 1 <= number <= len(truth):
            raise CamrtError(
                f"found image {number}, expected 1 to {len(truth):,}, as many as the ground truth has",
                file=str(blacklist),
            )
    found = devkit.read_annotations(annotations, progress)
    if first is not None:
        truth, listed = truth[:first], listed and listed[:first]
        listed_out = tuple(number for number in listed_out if number <= first)
        found = found if listed and found.images else found[:first]
    found = _in_order(found, listed, len(truth), annotations, ground_truth)
    if synsets is None and found.names is not None:
        synsets = devkit.synsets_of(found, truth, str(annotations))
    found = found.numbered(synsets or {}, str(annotations))
    images = listed or found.images or tuple(NAME.format(number) for number in range(1, len(truth) + 1))
    sizes = tuple(found.sizes or [None] * len(truth))
    dataset = Dataset(images, truth, found.boxes, sizes, listed_out, synsets)
    _check(dataset, annotations)
    return dataset


def find_images(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """The files of images, in the folder and in folders below.

    Args:
        folder: Where to look.
        names: The images' names, without endings.

    Returns:
        Name -> path of those that are there.

    Raises:
        CamrtError: There is no such folder, none of the images is there, or one is there twice.
    """
    if not folder.is_dir():
        raise CamrtError("there is no such folder, expected one with the images", file=str(folder))
    wanted = set(names)
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            stem, ending = os.path.splitext(file)  # noqa: PTH122 - 50,000 times
            if stem not in wanted or ending.lower() not in ENDINGS:
                continue
            if stem in found:
                raise CamrtError(
                    f"found the image {stem!r} twice: {found[stem]} and {Path(parent) / file}, expected it once",
                    file=str(folder),
                )
            found[stem] = Path(parent) / file
    if not found:
        raise CamrtError(
            f"holds none of the {len(names):,} images, the first of which is {names[0]!r}. Name the folder with "
            "--images, and with --list the images' names if they are others",
            file=str(folder),
        )
    return found


def _in_order(
    found: Annotations, listed: tuple[str, ...] | None, number: int, annotations: Path, ground_truth: Path
) -> Annotations:
    """The annotations in the order of the ground truth, as many as it has."""
    if listed is not None and len(listed) != number:
        raise CamrtError(f"found {len(listed):,} names with --list, and {number:,} classes in {ground_truth}")
    if listed is None or found.images is None:
        if len(found) != number:
            raise CamrtError(
                f"found annotations of {len(found):,} images, and {number:,} classes in {ground_truth}, expected as "
                "many",
                file=str(annotations),
            )
        return found
    places = {name: place for place, name in enumerate(found.images)}
    missing = next((name for name in listed if name not in places), None)
    if missing is not None:
        raise CamrtError(f"there is no annotation {missing}.xml, which --list names", file=str(annotations))
    order = [places[name] for name in listed]
    return Annotations(
        listed,
        [found.boxes[place] for place in order],
        None if found.names is None else [found.names[place] for place in order],
        [found.sizes[place] for place in order],
    )


def _check(dataset: Dataset, annotations: Path) -> None:
    """Every image that counts has a box of its class: else no guess could be right."""
    counted = np.ones(len(dataset), bool)
    counted[np.array(dataset.blacklist, np.int64) - 1] = False
    pairs = zip(dataset.boxes, dataset.truth.tolist(), strict=True)
    has_box = np.array([bool((boxes[:, 0] == truth).any() or truth == ANY_CLASS) for boxes, truth in pairs])
    without = np.flatnonzero(counted & ~has_box)
    if without.size:
        image = int(without[0])
        classes = sorted({int(number) for number in dataset.boxes[image][:, 0]})
        raise CamrtError(
            f"found no box of class {dataset.truth[image]}, its ground truth, in {dataset.names[image]} (image "
            f"{image + 1}): its boxes are of {classes or 'no class'}; so it is in {without.size:,} of {len(dataset):,} "
            "images. Are the ground truth and the annotations of one data set, in one order? An image that has no box "
            "can be put on the blacklist",
            file=str(annotations),
        )

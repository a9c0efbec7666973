"""Photographs for fine-tuning: the split into training and test images, and batches that a seed determines.

The augmentations are torchvision's: random resized crop, flip, color jitter, RandAugment. Test images are resized to
the network's square input, as `camrt.Explainer` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camrt import images
from camrt.errors import CamrtError
from camrt.preprocess import Preprocess
from camrt.train.data.sources import ImageFiles, abbreviated, has_test_part, open_source
from camrt.train.data.streams import derived_seed
from camrt.train.finetune.options import FinetuneOptions
from converters.errors import install

# The uses of the seed.
SPLIT, ORDER, AUGMENTATION, STEP = 1, 2, 3, 4


class Photographs(NamedTuple):
    """Image files with labels.

    Attributes:
        paths: The files.
        labels: (N,) int64.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64]

    def only(self, numbers: NDArray[Any]) -> Photographs:
        """Return some of the images."""
        return Photographs([self.paths[number] for number in numbers.tolist()], self.labels[numbers])


def open_photographs(options: FinetuneOptions) -> tuple[Photographs, Photographs, tuple[str, ...]]:
    """Return the training images, the test images, and the names of the classes.

    Raises:
        CamrtError: The images or classes are missing, or training and test images have other classes.
    """
    found = _open(options.data, "TRAIN")
    names = _classes(options.classes, found, options.data)
    train = _numbered(found, names, options.data)
    if options.test_data is not None or has_test_part(options.data):
        text = options.test_data or options.data
        return train, _numbered(_open(text, "TEST"), names, text), names
    is_test = _held_out(train.labels, options)
    return train.only(np.flatnonzero(~is_test)), train.only(np.flatnonzero(is_test)), names


def _open(text: str, phase: Any) -> ImageFiles:
    source = open_source(text, phase)
    if not isinstance(source, ImageFiles):
        raise CamrtError(f"found the data {text!r}, expected photographs: folder:DIR, list:FILE or tiny:DIR")
    return source


def _classes(text: str, found: ImageFiles, data: str) -> tuple[str, ...]:
    if text == "auto":
        names = found.classes or tuple(str(number) for number in range(int(found.labels.max()) + 1))
    else:
        try:
            names = tuple(line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise CamrtError(
                f"cannot be read ({error}), expected 'auto' or a file with the name of a class per line", file=text
            ) from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise CamrtError(
            f"found the classes {abbreviated(names) or 'none'}, expected two or more, each once", file=data
        )
    return names


def _numbered(found: ImageFiles, names: Sequence[str], data: str) -> Photographs:
    """Return the images with labels that number ``names``; images of other classes are left out."""
    paths = [path.decode(errors="surrogateescape") for path in found.paths.tolist()]
    if not found.classes:
        if found.largest_label is not None and found.largest_label >= len(names):
            raise CamrtError(f"found the label {found.largest_label}, expected 0 to {len(names) - 1}", file=data)
        return Photographs(paths, found.labels)
    missing = [name for name in names if name not in found.classes]
    if missing:
        raise CamrtError(f"found no images of {abbreviated(missing)}, expected images of each class", file=data)
    numbers = np.array([names.index(name) if name in names else -1 for name in found.classes])[found.labels]
    return Photographs(paths, numbers.astype(np.int64)).only(np.flatnonzero(numbers >= 0))


def _held_out(labels: NDArray[np.int64], options: FinetuneOptions) -> NDArray[np.bool_]:
    """Return which images are for testing: of each class the same fraction, and at least one image."""
    is_test = np.zeros(len(labels), bool)
    for number in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == number)
        if len(members) < 2:
            raise CamrtError(
                f"found {len(members)} image(s) of class {number}, expected at least 2: one to test. Add images, or "
                "name test images with --test-data",
                file=options.data,
            )
        order = np.random.default_rng(derived_seed(options.seed, SPLIT, number)).permutation(members)
        is_test[order[: min(len(members) - 1, max(1, round(options.holdout * len(members))))]] = True
    return is_test


# -------------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """A batch of images.

    Attributes:
        images: (N, 3, H, W) uint8 RGB.
        labels: (N,) int64.
        unreadable: Messages on images that were replaced by the next ones.
    """

    images: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]


class _Samples(Dataset[Any]):
    """Training images by (number, seed of the augmentation); test images by (number, None)."""

    def __init__(self, photographs: Photographs, side: int, transform: Any) -> None:
        self.paths, self.labels = (
            np.array([one.encode(errors="surrogateescape") for one in photographs.paths]),
            photographs.labels,
        )
        self.side, self.transform = side, transform

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, int, tuple[str, ...]]:
        number, seed = key
        unreadable: tuple[str, ...] = ()
        for _ in range(len(self.paths)):
            path = self.paths[number].decode(errors="surrogateescape")
            try:
                image = images.decode(path)
                break
            except CamrtError as error:
                unreadable += (str(error),)
                number = (number + 1) % len(self.paths)
        else:
            raise CamrtError(f"found no readable image: {unreadable[-1]}")
        if seed is None:
            pixels = images.resize(image, (self.side, self.side))
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), int(self.labels[number]), unreadable
        from PIL import Image

        torch.manual_seed(seed)
        return self.transform(Image.fromarray(image)), int(self.labels[number]), unreadable


def _collated(samples: Sequence[tuple[Tensor, int, tuple[str, ...]]]) -> Batch:
    pixels, labels, unreadable = zip(*samples, strict=True)
    return Batch(torch.stack(pixels), torch.tensor(labels), tuple(text for each in unreadable for text in each))


def augmentation(side: int, randaugment: int) -> Any:
    """Return torchvision's transformation of a PIL image to a random crop, (3, side, side) uint8.

    Args:
        side: The side of the crop in pixels.
        randaugment: The magnitude of RandAugment (Cubuk et al. 2020), with two operations; 0 for none.

    Raises:
        CamrtError: torchvision is not installed.
    """
    transforms = transforms_of_torchvision()
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [
        transforms.RandomResizedCrop(side, interpolation=bicubic),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.4, 0.4, 0.4),
    ]
    if randaugment:
        steps.append(transforms.RandAugment(num_ops=2, magnitude=randaugment))
    return transforms.Compose([*steps, transforms.PILToTensor()])


def transforms_of_torchvision() -> Any:
    """Import torchvision's transformations.

    Raises:
        CamrtError: torchvision is not installed, or is made for another PyTorch.
    """
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        raise CamrtError(
            f"the augmentations are torchvision's, which cannot be imported ({error}): "
            f"{install('torchvision')}, of the same kind as PyTorch (both for the CPU, or both for CUDA)"
        ) from error
    return v2


def training_batches(
    photographs: Photographs,
    preprocess: Preprocess,
    options: FinetuneOptions,
    steps: range,
    *,
    rank: int,
    world: int,
    workers: int,
) -> DataLoader[Batch]:
    """Return the batches of some steps, in an order and with augmentations that depend on the seed and the step alone.

    Args:
        photographs: The training images.
        preprocess: How the network wants its images.
        options: The options.
        steps: The numbers of the steps.
        rank: The number of this process.
        world: The number of processes.
        workers: The number of processes that load images.
    """
    per_epoch = steps_per_epoch(len(photographs.paths), options.batch, world)

    def keys() -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for step in steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = np.random.default_rng(derived_seed(options.seed, ORDER, epoch))
                order = generator.permutation(len(photographs.paths))
            first = (step % per_epoch * world + rank) * options.batch
            numbers = order[np.arange(first, first + options.batch) % len(order)].tolist()
            yield [
                (number, derived_seed(options.seed, AUGMENTATION, step, rank, index))
                for index, number in enumerate(numbers)
            ]

    samples = _Samples(photographs, preprocess.crop, augmentation(preprocess.crop, options.randaugment))
    return _loader(samples, _Keys(keys), workers)


def test_batches(photographs: Photographs, preprocess: Preprocess, batch: int, workers: int) -> DataLoader[Batch]:
    """Return the test images in order, resized to the network's input."""
    count = len(photographs.paths)
    keys = [[(number, None) for number in range(first, min(count, first + batch))] for first in range(0, count, batch)]
    return _loader(_Samples(photographs, preprocess.crop, None), keys, workers)


def steps_per_epoch(count: int, batch: int, world: int) -> int:
    """Return the number of steps in which each image is seen about once."""
    return max(1, count // (batch * world))


class _Keys:
    """The keys of the batches, as the sampler of a DataLoader."""

    def __init__(self, keys: Any) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys())


def _loader(samples: _Samples, keys: Any, workers: int) -> DataLoader[Batch]:
    # Of the workers' own random numbers none is used. The generator keeps the loader from drawing from the global one.
    return DataLoader(
        samples, batch_sampler=keys, collate_fn=_collated, num_workers=workers, generator=torch.Generator()
    )


def normalized(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the network's input (N, 3, H, W) float32 of RGB images, uint8."""
    mean = torch.tensor(preprocess.mean, device=pixels.device)[:, None, None]
    scale = torch.tensor(preprocess.scale, device=pixels.device)[:, None, None]
    ordered = pixels if preprocess.channels == "RGB" else pixels.flip(1)
    return (ordered.float() - mean) * scale

"""From a network's data layers to batches on their way to the device. Needs PyTorch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camrt.errors import CamrtError
from camrt.train.data.feed import Feed, Order
from camrt.train.data.sources import KINDS, Phase, Source, from_layer, open_source
from camrt.train.data.transform import Transform, of_layer
from converters.deploy import DATA_LAYERS
from converters.layer import Layer
from converters.net import Net

MOST_WORKERS = 8
_FEWER = 8 / 7  # images are this much larger than their crop: Caffe's 256 for 224


@dataclass(frozen=True, eq=False)
class Feeding:
    """What a network is fed with.

    Attributes:
        image: The blob of the images.
        label: The blob of the labels; None where the network has none.
        feed: The images and labels.
        batch_size: How many at once, in each process.
        notes: What the user should know.
    """

    image: str
    label: str | None
    feed: Feed
    batch_size: int
    notes: tuple[str, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the network's inputs.

        Raises:
            CamrtError: No image can be used.
        """
        shapes: dict[str, tuple[int, ...]] = {self.image: (self.batch_size, *self.feed.shape())}
        return shapes | ({self.label: (self.batch_size,)} if self.label else {})


def feeding(
    net: Net,
    text: str | None,
    *,
    seed: int,
    resize: tuple[int, int] | None = None,
    find: Callable[[str], Path] = Path,
) -> Feeding:
    """What a network is fed with: what was named, or else its ImageData layer.

    The data layer says how many images a batch has and what becomes of them (``transform_param``), wherever they come
    from.

    Args:
        net: The network, read for training.
        text: A source, for `open_source`; None for the data layer's own: the list of an ImageData layer, or the text
            of a source that stands in its place (``source: "clutter:drawn"``).
        seed: Of order, crops and mirroring.
        resize: Height and width that images get first, in place of what the layer says.
        find: From a relative path in the prototxt to where it lies.

    Raises:
        CamrtError: The layer is none that can be fed; images are missing.
    """
    phase: Phase = "TRAIN" if net.phase == "TRAIN" else "TEST"
    layer, image, label = _fed(net)
    text = text if text is not None else _said(layer)
    declared = next((one.shape for one in net.inputs if one.name == image), None)
    source = _source(net, layer, text, phase, find)
    transform = _transform(layer, phase, find)
    if layer is None or layer.type in ("Input", "MemoryData"):
        transform = _as_declared(transform, declared)
    notes = []
    if resize is not None:
        transform = replace(transform, resize=resize)
    elif transform.resize is None and text is not None and getattr(source, "paths", None) is not None:
        transform = _with_usual_size(transform)
        if transform.resize is not None:
            height, width = transform.resize
            notes.append(f"images of {source.name} are resized to {width} x {height}; --resize changes it")
    batch_size = _batch_size(layer) or (declared[0] if declared else 0)
    if not batch_size:
        raise CamrtError(f"found no batch_size in the data layer of {net.name!r} ({phase}), expected one")
    own = _own(layer)
    shuffle = phase == "TRAIN" if text is not None else bool(own and own.shuffle)
    keys = [int(key) for key in np.random.SeedSequence((seed, phase == "TRAIN")).generate_state(3, np.uint64)]
    skip = keys[2] % own.rand_skip if text is None and own is not None and own.rand_skip else 0
    order = Order(source.count, shuffle, keys[0], skip)
    return Feeding(image, label, Feed(source, transform.with_seed(keys[1]), order), batch_size, tuple(notes))


class _Batches(Dataset[Any]):
    """Batches by the position of their first image, as PyTorch's loader wants them."""

    def __init__(self, feed: Feed, size: int) -> None:
        self.feed, self.size = feed, size

    def __getitem__(self, position: int) -> Any:
        try:
            batch = self.feed.batch(position, self.size)
        except CamrtError as error:
            return error  # as it is: the loader would wrap it into a traceback
        return torch.from_numpy(batch.images), torch.from_numpy(batch.labels), batch.unusable


class Loading:
    """Loads batches, by workers of their own or, without any, when asked.

    Args:
        feeding: The images.
        positions: Of the first image of each batch.
        workers: Processes that load ahead; 0 for none. What is loaded does not depend on it.
        device: Where the batches go.
        on_unusable: Called with the name of each image that cannot be used, and the reason, once.
    """

    def __init__(
        self,
        feeding: Feeding,
        positions: Sequence[int],
        *,
        workers: int,
        device: torch.device,
        on_unusable: Callable[[str, str], Any] = lambda name, reason: None,
    ) -> None:
        self.feeding, self.device, self._on_unusable = feeding, device, on_unusable
        self._unusable: set[str] = set()
        self._loader: DataLoader[Any] | None = DataLoader(
            _Batches(feeding.feed, feeding.batch_size),
            batch_size=None,
            sampler=positions,
            collate_fn=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else it would draw from the one that dropout draws from
            worker_init_fn=_begin,
        )

    def __iter__(self) -> Generator[dict[str, Tensor], None, None]:
        """The network's inputs, batch after batch, on the device; from the start each time.

        Raises:
            CamrtError: No image can be used, or more than half cannot; images differ in size; a worker died.
        """
        try:
            for loaded in self._loader or ():
                if isinstance(loaded, CamrtError):
                    raise loaded
                images, labels, unusable = loaded
                self._report(unusable)
                yield self._inputs(images, labels)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise CamrtError(
                f"a process that loads images died: {str(error).splitlines()[0]}. It may have run out of memory: lower "
                "--workers (0 for none)"
            ) from error

    def close(self) -> None:
        """End the workers."""
        self._loader = None  # whose iterator ends them when it goes

    def _inputs(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        moved = images.to(self.device, non_blocking=True)
        inputs = {self.feeding.image: self.feeding.feed.transform.finish(moved.float())}
        if self.feeding.label:
            inputs[self.feeding.label] = labels.to(self.device, non_blocking=True)
        return inputs

    def _report(self, unusable: Sequence[tuple[str, str]]) -> None:
        for name, reason in unusable:
            if name not in self._unusable:  # every worker finds it once
                self._unusable.add(name)
                self._on_unusable(name, reason)
        count = self.feeding.feed.source.count
        if unusable and count and 2 * len(self._unusable) > count:
            name, reason = unusable[0]
            raise CamrtError(
                f"found {len(self._unusable):,} of {count:,} images that cannot be used, expected less than half. One "
                f"is {name}: {reason}",
                file=self.feeding.feed.source.name,
            )


def usual_workers(source: Source, processes: int = 1) -> int:
    """How many workers load images, where nothing is said.

    Args:
        source: The images.
        processes: How many train on this machine.
    """
    if source.is_cheap:
        return 0
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // (2 * processes)))


def _begin(_: int) -> None:
    """A worker leaves Ctrl-C to the process that trains, and threads to the other workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)


# ------------------------------------------------------------------------------------------------------ the data layers


def _fed(net: Net) -> tuple[Layer | None, str, str | None]:
    """The layer of the images, the blob of the images and that of the labels."""
    layers = [layer for layer in net.data if layer.type in DATA_LAYERS]
    if layers:
        tops: Sequence[str] = layers[0].tops
        others = [one.name for one in net.inputs if one.name not in tops]
        if len(layers) > 1 or others or len(tops) > 2:
            found = ", ".join([*(layer.name for layer in layers), *others])
            raise CamrtError(
                f"found the inputs {found} in {net.name!r} ({net.phase}), expected one layer of images and labels"
            )
        return layers[0], tops[0], tops[1] if len(tops) > 1 else None
    ranks = {one.name: len(one.shape or ()) for one in net.inputs}
    images = [name for name, rank in ranks.items() if rank >= 3]
    labels = [name for name in ranks if name not in images[:1]]
    if not images or len(labels) > 1:
        raise CamrtError(
            f"found the inputs {', '.join(ranks) or 'none'} in {net.name!r} ({net.phase}), expected images "
            "(N, C, H, W) and labels: a data layer, or Input layers"
        )
    layer = next((layer for layer in net.data if images[0] in layer.tops), None)
    return layer, images[0], labels[0] if labels else None


def _source(net: Net, layer: Layer | None, text: str | None, phase: Phase, find: Callable[[str], Path]) -> Source:
    if text is not None:
        return open_source(text, phase)
    flag = "--data" if phase == "TRAIN" else "--test-data"
    if layer is None or layer.type != "ImageData":
        kind = layer.type if layer else "Input"
        reads = "a database, which camrt does not read" if kind == "Data" else "nothing that camrt can read"
        raise CamrtError(
            f"found the {phase} data in a layer of type {kind}: {reads}. Say where the images are: {flag} folder:DIR, "
            "list:FILE, tiny:DIR, mnist:DIR or clutter:drawn",
            file=net.files[0] if net.files else None,
        )
    return from_layer(layer, find)


def _said(layer: Layer | None) -> str | None:
    """The text of a source that stands where a data layer names its file."""
    param = getattr(layer.params, DATA_LAYERS[layer.type]) if layer is not None and layer.type in DATA_LAYERS else None
    text = str(getattr(param, "source", ""))
    return text if text.partition(":")[0] in KINDS and ":" in text and not Path(text).exists() else None


def _transform(layer: Layer | None, phase: Phase, find: Callable[[str], Path]) -> Transform:
    if layer is None:
        return Transform()
    transform = of_layer(layer, find, is_random=phase == "TRAIN")
    channels = len(transform.mean) if transform.mean is not None else 1
    return replace(transform, channels=channels) if transform.channels is None and channels > 1 else transform


def _as_declared(transform: Transform, declared: tuple[int, ...] | None) -> Transform:
    """Images of the shape that the description declares."""
    if declared is None or len(declared) != 4:
        raise CamrtError(f"found {declared or 'no shape'} for the images, expected (N, C, H, W)")
    _, channels, height, width = declared
    if channels not in (1, 3):
        raise CamrtError(f"found {channels} channels for the images, expected 1 or 3")
    size = transform.resize or (None if transform.crop else (height, width))
    return replace(transform, channels=channels, resize=size)


def _with_usual_size(transform: Transform) -> Transform:
    """Photographs in place of a database, whose images had one size: that of the mean image, or 8/7 of the crop."""
    if transform.has_mean_image and transform.mean is not None:
        _, height, width = transform.mean.shape
        return replace(transform, resize=(height, width))
    if transform.crop is None:
        return transform
    height, width = (round(side * _FEWER) for side in transform.crop)
    return replace(transform, resize=(height, width))


def _own(layer: Layer | None) -> Any:
    return layer.params.image_data_param if layer is not None and layer.type == "ImageData" else None


def _batch_size(layer: Layer | None) -> int:
    if layer is None or layer.type not in DATA_LAYERS:
        return 0
    return int(getattr(getattr(layer.params, DATA_LAYERS[layer.type]), "batch_size", 0))

"""Loading of batches from the data layers of a network to the device. Requires PyTorch."""

from __future__ import annotations

import ast
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camrt.errors import CamrtError
from camrt.train.data.database import Database, DatumSource
from camrt.train.data.dummy import DummyData
from camrt.train.data.feed import Feed, Order
from camrt.train.data.hdf5 import Hdf5Data
from camrt.train.data.sources import KINDS, Phase, Source, from_layer, open_source
from camrt.train.data.streams import ImageStream, Stream, derived_seed
from camrt.train.data.transform import Transform, of_layer
from camrt.train.data.windows import WindowData
from converters.deploy import DATA_LAYERS
from converters.layer import Layer
from converters.net import Net
from converters.transform import IMAGE_PER_CROP

MAX_WORKERS = 8
KINDS_HINT = "folder:DIR, list:FILE, tiny:DIR, mnist:DIR or clutter:drawn"


class LabelLimit(NamedTuple):
    """The valid labels of a network.

    Attributes:
        classes: The number of classes. Labels are 0 to ``classes`` - 1.
        ignored: A further label, which the network ignores; None for none.
    """

    classes: int
    ignored: int | None


@dataclass(frozen=True, eq=False)
class DataLoaderSpec:
    """The data of a network.

    Attributes:
        streams: The batches of the data layers.
        notes: Notes for the user.
        label_limits: Top -> its valid labels, for labels that are checked in each batch; see `Stream.largest_label`.
    """

    streams: tuple[Stream, ...]
    notes: tuple[str, ...] = ()
    label_limits: Mapping[str, LabelLimit] = field(default_factory=dict)

    @property
    def first(self) -> Stream:
        """The stream of the first data layer, in which positions are counted."""
        return self.streams[0]

    @property
    def batch_size(self) -> int:
        """The batch size of the first data layer, in each process."""
        return self.first.batch_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the network's inputs.

        Raises:
            CamrtError: No image can be used.
        """
        return {top: shape for stream in self.streams for top, shape in stream.shapes().items()}


def data_loader_spec(
    net: Net,
    text: str | None,
    *,
    seed: int,
    resize: tuple[int, int] | None = None,
    batch: int | None = None,
    find: Callable[[str], Path] = Path,
) -> DataLoaderSpec:
    """Determine the data of a network: a given source, or its data layers.

    The batch size and the transformation (``transform_param``) are those of the data layer, also for a given source.

    Args:
        net: The network, read for training.
        text: A source, for `open_source`. By default, the data layers are used: databases, lists, HDF5 files, windows,
            or a source in their field ``source`` (``source: "clutter:drawn"``).
        seed: The seed of order, crops and mirroring.
        resize: Height and width in pixels to which images are resized first. By default, those of the layer.
        batch: The batch size. By default, that of the layers.
        find: Resolves a relative path of the prototxt.

    Raises:
        CamrtError: A layer has no usable data, or images or files are missing.
    """
    options = _Options(seed, resize, batch, find)
    layers = [layer for layer in net.data if layer.type != "Input"]
    if text is None and (len(layers) > 1 or any(map(_has_own_data, layers))) and not _has_bare_inputs(net, layers):
        streams, notes = [], []
        for number, layer in enumerate(layers):
            stream, more = _stream(net, layer, replace(options, seed=derived_seed(seed, number) if number else seed))
            streams.append(stream)
            notes += more
        return DataLoaderSpec(tuple(streams), tuple(notes))
    images, image, label = _image_inputs(net)
    stream, notes = _image_stream(net, images, image, label, text, options)
    return DataLoaderSpec((stream,), tuple(notes))


@dataclass(frozen=True)
class _Options:
    """The arguments of `data_loader_spec`."""

    seed: int
    resize: tuple[int, int] | None
    batch: int | None
    find: Callable[[str], Path]


def _has_own_data(layer: Layer) -> bool:
    """Return whether a data layer is used as written, without ``--data`` or a source in its field ``source``."""
    if layer.type == "ImageData":
        return _embedded_source(layer) is None
    return layer.type in ("Data", "DummyData", "HDF5Data", "WindowData")


def _has_bare_inputs(net: Net, layers: Sequence[Layer]) -> bool:
    """Return whether some inputs are not tops of data layers."""
    given = {top for layer in layers for top in layer.tops}
    return any(one.name not in given for one in net.inputs)


def _stream(net: Net, layer: Layer, options: _Options) -> tuple[Stream, list[str]]:
    """Return the batches of a data layer, and notes."""
    if layer.type == "DummyData":
        return DummyData.of(layer, options.seed), []
    if layer.type == "HDF5Data":
        return Hdf5Data.of(layer, options.find, seed=options.seed, batch=options.batch), []
    if layer.type == "WindowData":
        return WindowData.of(layer, options.find, seed=options.seed, batch=options.batch), []
    if len(layer.tops) > 2:
        raise CamrtError(f"found {len(layer.tops)} tops of {describe_layer(layer)}, expected 2: images and labels")
    return _image_stream(net, layer, layer.tops[0], layer.tops[1] if len(layer.tops) > 1 else None, None, options)


def _image_stream(
    net: Net, layer: Layer | None, image: str, label: str | None, text: str | None, options: _Options
) -> tuple[ImageStream, list[str]]:
    """Return the images and labels of a given source or of a layer, and notes."""
    phase: Phase = "TRAIN" if net.phase == "TRAIN" else "TEST"
    find = options.find
    text = text if text is not None else _embedded_source(layer)
    declared = next((one.shape for one in net.inputs if one.name == image), None)
    source = _source(net, layer, text, phase, find)
    transform = _transform(layer, phase, find)
    if layer is None or layer.type in ("Input", "MemoryData"):
        transform = _as_declared(transform, declared)
    notes = _notes(layer, text)
    if options.resize is not None:
        transform = replace(transform, resize=options.resize)
    elif transform.resize is None and text is not None and getattr(source, "paths", None) is not None:
        transform = _with_default_size(transform)
        if transform.resize is not None:
            height, width = transform.resize
            notes.append(f"images of {source.name} are resized to {width} x {height}: use --resize for another size")
    batch_size = options.batch or _batch_size(layer) or (declared[0] if declared else 0)
    if not batch_size:
        where = describe_layer(layer) if layer is not None else "the inputs"
        raise CamrtError(f"found no batch_size in {where} of {net.name!r} ({phase}), expected one: set it with --batch")
    param = _data_param(layer)
    shuffle = phase == "TRAIN" if text is not None else bool(getattr(param, "shuffle", False))
    keys = [int(key) for key in np.random.SeedSequence((options.seed, phase == "TRAIN")).generate_state(3, np.uint64)]
    rand_skip = getattr(param, "rand_skip", 0) if text is None else 0
    order = Order(source.count, shuffle, keys[0], keys[2] % rand_skip if rand_skip else 0)
    return ImageStream(image, label, Feed(source, transform.with_seed(keys[1]), order), batch_size), notes


class _Batches(Dataset[Any]):
    """Batches by the position of their first item, as a dataset for PyTorch's DataLoader."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams

    def __getitem__(self, position: int) -> Any:
        inputs: dict[str, Tensor] = {}
        unusable: list[tuple[str, str]] = []
        try:
            for stream in self.streams:
                # Data layers may have different batch sizes. Each advances by its own.
                loaded = stream.load(position // self.streams[0].batch_size * stream.batch_size)
                inputs |= {top: torch.from_numpy(values) for top, values in loaded.arrays.items()}
                unusable += loaded.unusable
        except CamrtError as error:
            return error  # PyTorch's loader would wrap a raised error into a traceback
        return inputs, unusable


class BatchLoader:
    """Loads batches, in worker processes or in this process.

    Args:
        spec: The data.
        positions: The position of the first item of each batch.
        workers: The number of processes that load in advance; 0 to load in this process. The batches do not depend on
            it.
        device: The device of the batches.
        on_unusable: Called once for each image that cannot be used, with its name and the reason.
    """

    def __init__(
        self,
        spec: DataLoaderSpec,
        positions: Sequence[int],
        *,
        workers: int,
        device: torch.device,
        on_unusable: Callable[[str, str], Any] = lambda name, reason: None,
    ) -> None:
        self.spec, self.device, self._on_unusable = spec, device, on_unusable
        self._unusable: set[str] = set()
        self._loader: DataLoader[Any] | None = DataLoader(
            _Batches(spec.streams),
            batch_size=None,
            sampler=positions,
            collate_fn=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # the default generator is that of dropout
            worker_init_fn=_initialize_worker,
        )

    def __iter__(self) -> Generator[dict[str, Tensor], None, None]:
        """Iterate over the network's inputs on the device, from the first batch.

        Raises:
            CamrtError: No image, or less than half of the images, can be used; images differ in size; or a worker died.
        """
        try:
            for loaded in self._loader or ():
                if isinstance(loaded, CamrtError):
                    raise loaded
                inputs, unusable = loaded
                self._report(unusable)
                self._check_labels(inputs)
                yield self._on_device(inputs)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise CamrtError(
                f"a worker process died: {str(error).splitlines()[0]}. It may have run out of memory: lower "
                "--workers (0 for no workers)"
            ) from error

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None  # its iterator stops them when it is deleted

    def _on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {top: values.to(self.device, non_blocking=True) for top, values in inputs.items()}
        for stream in self.spec.streams:
            moved = stream.finish(moved)
        return moved

    def _check_labels(self, inputs: dict[str, Tensor]) -> None:
        """Check that all labels are valid. On a GPU, an invalid label would abort the process."""
        for top, (classes, ignored) in self.spec.label_limits.items():
            labels = inputs[top]
            wrong = (labels < 0) | (labels >= classes)
            if ignored is not None:
                wrong &= labels != ignored
            if wrong.any():
                raise CamrtError(
                    f"found the label {labels[wrong][0].item():g}, expected 0 to {classes - 1}: the network has "
                    f"{classes} classes",
                    file=self.spec.first.name,
                )

    def _report(self, unusable: Sequence[tuple[str, str]]) -> None:
        for name, reason in unusable:
            if name not in self._unusable:  # every worker reports it
                self._unusable.add(name)
                self._on_unusable(name, reason)
        count = self.spec.first.count
        if unusable and count and 2 * len(self._unusable) > count:
            name, reason = unusable[0]
            raise CamrtError(
                f"found {len(self._unusable):,} of {count:,} images that cannot be used, expected at most half. For "
                f"example {name}: {reason}",
                file=self.spec.first.name,
            )


def default_workers(spec: DataLoaderSpec, processes: int = 1) -> int:
    """Return the default number of workers.

    Args:
        spec: The data.
        processes: The number of processes that train on this machine.
    """
    if all(stream.is_cheap for stream in spec.streams):
        return 0
    return max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // (2 * processes)))


def _initialize_worker(_: int) -> None:
    """Initialize a worker: it ignores Ctrl-C, which the training process handles, and uses one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)


# ------------------------------------------------------------------------------------------------------ the data layers


def _image_inputs(net: Net) -> tuple[Layer | None, str, str | None]:
    """Return the layer of the images, the blob of the images and the blob of the labels."""
    layers = [layer for layer in net.data if layer.type != "Input"]
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
            "(N, C, H, W) and labels, from a data layer or Input layers"
        )
    layer = next((layer for layer in net.data if images[0] in layer.tops), None)
    return layer, images[0], labels[0] if labels else None


def _source(net: Net, layer: Layer | None, text: str | None, phase: Phase, find: Callable[[str], Path]) -> Source:
    if text is not None:
        return open_source(text, phase)
    flag = "--data" if phase == "TRAIN" else "--test-data"
    if layer is not None and layer.type == "Data":
        return _database(layer, find, flag)
    if layer is None or layer.type != "ImageData":
        where = describe_layer(layer) if layer is not None else "Input layers"
        is_python = layer is not None and layer.type == "Python"
        reason = "runs Python code, which camrt does not execute" if is_python else "does not specify any images"
        raise CamrtError(
            f"found the {phase} data in {where}, which {reason}. Specify the images: {flag} {KINDS_HINT}",
            file=net.files[0] if net.files else None,
        )
    return from_layer(layer, find)


def _database(layer: Layer, find: Callable[[str], Path], flag: str) -> Source:
    param = layer.params.data_param
    if not param.source:
        raise CamrtError(f"found no source in {describe_layer(layer)}, expected a database")
    backend = type(param).DB.Name(param.backend) if param.HasField("backend") else None
    is_color = param.force_encoded_color or layer.params.transform_param.force_color
    path = find(param.source)
    if not path.exists():
        raise CamrtError(
            f"does not exist, expected the database of {describe_layer(layer)}. Create it with camrt "
            f"data, or specify the images: {flag} {KINDS_HINT}",
            file=str(path),
        )
    return DatumSource(Database(path, backend), is_color=is_color)


def describe_layer(layer: Layer) -> str:
    """Describe a data layer for messages: its name and type, and the module and class of a Python layer."""
    python = layer.params.python_param
    of = f" {python.module}.{python.layer}" if layer.type == "Python" else ""
    return f"the layer {layer.name!r} ({layer.type}{of})"


def _notes(layer: Layer | None, text: str | None) -> list[str]:
    """Return notes about the differences between a given source and the data of a layer."""
    if text is None or layer is None or layer.type != "WindowData":
        return []
    return [
        f"{describe_layer(layer)} crops windows from its images, but {text} has whole images: there are no windows and "
        "no background class"
    ]


def _embedded_source(layer: Layer | None) -> str | None:
    """Return the source in the field ``source`` of a data layer, or None if the field is a path."""
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
    """Return the transformation to images of the declared shape."""
    if declared is None or len(declared) != 4:
        raise CamrtError(f"found {declared or 'no shape'} for the images, expected (N, C, H, W)")
    _, channels, height, width = declared
    if channels not in (1, 3):
        raise CamrtError(f"found {channels} channels for the images, expected 1 or 3")
    size = transform.resize or (None if transform.crop else (height, width))
    return replace(transform, channels=channels, resize=size)


def _with_default_size(transform: Transform) -> Transform:
    """Resize photographs to the size of the mean image or 8/7 of the crop, as the images of a database would be."""
    if transform.has_mean_image and transform.mean is not None:
        _, height, width = transform.mean.shape
        return replace(transform, resize=(height, width))
    if transform.crop is None:
        return transform
    height, width = (round(side * IMAGE_PER_CROP) for side in transform.crop)
    return replace(transform, resize=(height, width))


def _data_param(layer: Layer | None) -> Any:
    return getattr(layer.params, DATA_LAYERS[layer.type]) if layer is not None and layer.type in DATA_LAYERS else None


def _batch_size(layer: Layer | None) -> int:
    if layer is None or layer.type not in DATA_LAYERS:
        return _python_batch_size(layer) if layer is not None and layer.type == "Python" else 0
    return int(getattr(getattr(layer.params, DATA_LAYERS[layer.type]), "batch_size", 0))


def _python_batch_size(layer: Layer) -> int:
    """Return batch_size from the `param_str` of a Python layer if it is a dict, as in Caffe's examples; else 0."""
    try:
        params = ast.literal_eval(layer.params.python_param.param_str or "None")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return 0
    size = params.get("batch_size", 0) if isinstance(params, dict) else 0
    return size if isinstance(size, int) and 0 < size < 2**31 else 0

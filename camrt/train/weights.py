"""Loading weights from, and saving them to, a `.caffemodel` or `.caffemodel.h5`; loading those of other formats."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from camrt.errors import CamrtError
from camrt.train.networks import Network
from camrt.train.pretrained import is_pretrained, read_pretrained
from converters.errors import ConversionError
from converters.reader import read_weights
from converters.shape import show
from converters.writer import write_caffemodel, write_caffemodel_h5


@dataclass(frozen=True)
class Report:
    """The result of loading weights.

    Attributes:
        loaded: The layers whose weights were loaded.
        filled: The layers with weights that are missing in the file. They are unchanged.
        unused: The layers of the file that are missing in the network.
        notes: Notes for the user.
    """

    loaded: tuple[str, ...]
    filled: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_weights(network: Network, path: str | os.PathLike[str]) -> Report:
    """Load the weights of all layers that a file and a network have in common.

    Args:
        network: The network. It is changed only if all common layers fit.
        path: A `.caffemodel` or `.caffemodel.h5`; or a state dict of PyTorch (`.pth`, `.pt`, `.bin`, `.safetensors`) or
            an `.onnx` model, whose layers are found by `camrt.train.pretrained`.

    Returns:
        The layers that were loaded, and those that were not.

    Raises:
        CamrtError: The file cannot be read, no layer is in common, or a layer has another number of blobs or blobs of
            another shape.
    """
    if not is_pretrained(path):
        return load_caffemodel(network, path)
    found = read_pretrained(network, path)
    _copy(network, found.layers, os.fspath(path))
    return Report(
        loaded=tuple(found.layers),
        filled=tuple(layer for layer in network.stored if layer not in found.layers),
        unused=found.unused,
        notes=(f"found the names of {found.family}", *found.notes),
    )


def load_caffemodel(network: Network, path: str | os.PathLike[str]) -> Report:
    """Load the weights of all layers that a file and a network have in common, matched by name.

    To train a layer from scratch, rename it in the prototxt, as with Caffe.

    Args:
        network: The network. It is changed only if all common layers fit.
        path: A `.caffemodel` in V1 or V2 format, or a `.caffemodel.h5`.

    Returns:
        The layers that were loaded, and those that were not.

    Raises:
        CamrtError: The file is not a caffemodel, no layer is in common, or a layer has another number of blobs or
            blobs of another shape.
    """
    try:
        weights = read_weights(path)
    except ConversionError as error:
        advice = ": give it the ending .pth" if "PyTorch" in error.message else ""
        raise CamrtError(f"{error}{advice}") from None
    stored = network.stored
    common = [layer for layer in weights.layers if layer in stored]
    if not common:
        raise CamrtError(
            f"found none of the layers of the network {network.name!r} among the {len(weights.layers)} of the file, "
            "expected layers with the same names",
            file=weights.file,
        )
    _copy(network, {layer: weights.layers[layer] for layer in common}, weights.file)
    return Report(
        loaded=tuple(common),
        filled=tuple(layer for layer in stored if layer not in weights.layers),
        unused=tuple(layer for layer in weights.layers if layer not in stored),
    )


def _copy(network: Network, layers: Mapping[str, Sequence[np.ndarray]], file: str) -> None:
    """Copy the blobs of layers into a network, after checking all shapes."""
    stored = network.stored
    fitted = {layer: _fitted(layer, blobs, stored[layer], file) for layer, blobs in layers.items()}
    with torch.no_grad():
        for layer, blobs in fitted.items():
            for target, blob in zip(stored[layer], blobs, strict=True):
                target.copy_(torch.from_numpy(np.array(blob, np.float32)))


def _fitted(layer: str, found: Sequence[np.ndarray], expected: Sequence[Tensor], file: str) -> list[np.ndarray]:
    shapes = [tuple(blob.shape) for blob in expected]
    if len(found) != len(shapes):
        raise CamrtError(
            f"layer {layer}: found {len(found)} blob(s), expected {len(shapes)} of {', '.join(map(show, shapes))}",
            file=file,
        )
    for index, (blob, shape) in enumerate(zip(found, shapes, strict=True)):
        # In files from before 2015, all blobs have four axes: a bias is 1 x 1 x 1 x n.
        if blob.shape not in (shape, (1,) * (4 - len(shape)) + shape):
            raise CamrtError(
                f"layer {layer}: found blob {index} of {show(blob.shape)}, expected {show(shape)}. To train the layer "
                "from scratch, rename it in the prototxt",
                file=file,
            )
    return [blob.reshape(shape) for blob, shape in zip(found, shapes, strict=True)]


def save_caffemodel(network: Network, path: str | os.PathLike[str]) -> None:
    """Save the weights of all layers, including BatchNorm's statistics, in Caffe's format.

    Args:
        network: The network, on any device.
        path: The file, HDF5 if its name ends in `.h5`. An existing file is replaced once the new one is complete.

    Raises:
        CamrtError: The file cannot be written, or h5py is missing for `.h5`.
    """
    types = {layer.name: layer.type for layer in network.net.layers}
    layers = {layer: _arrays(blobs) for layer, blobs in network.stored.items()}
    try:
        if os.fspath(path).endswith(".h5"):
            write_caffemodel_h5(path, layers)
        else:
            write_caffemodel(path, layers, types=types, name=network.name)
    except ConversionError as error:
        raise CamrtError(str(error)) from None


def _arrays(blobs: Sequence[Tensor]) -> Iterator[np.ndarray]:
    """Yield the blobs as arrays. Each blob is copied from the GPU only when it is written."""
    for blob in blobs:
        yield blob.detach().float().cpu().numpy()

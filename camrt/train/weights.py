"""Loading weights from, and saving them to, a `.caffemodel` or `.caffemodel.h5`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from camrt.errors import CamrtError
from camrt.train.networks import Network
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
    """

    loaded: tuple[str, ...]
    filled: tuple[str, ...]
    unused: tuple[str, ...]


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
        advice = ""
        if "PyTorch" in error.message:
            advice = ": copy its tensors to `camrt.train.network(net).stored`, and save them with `save_caffemodel`"
        raise CamrtError(f"{error}{advice}") from None
    stored = network.stored
    common = [layer for layer in weights.layers if layer in stored]
    if not common:
        raise CamrtError(
            f"found none of the layers of the network {network.name!r} among the {len(weights.layers)} of the file, "
            "expected layers with the same names",
            file=weights.file,
        )
    fitted = {layer: _fitted(layer, weights.layers[layer], stored[layer], weights.file) for layer in common}
    with torch.no_grad():
        for layer, blobs in fitted.items():
            for target, blob in zip(stored[layer], blobs, strict=True):
                target.copy_(torch.from_numpy(np.array(blob, np.float32)))
    return Report(
        loaded=tuple(common),
        filled=tuple(layer for layer in stored if layer not in weights.layers),
        unused=tuple(layer for layer in weights.layers if layer not in stored),
    )


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

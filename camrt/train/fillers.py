"""Fillers, which initialize blobs. Caffe: include/caffe/filler.hpp."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from converters.schema.caffe_pb2 import FillerParameter

Fill = Callable[[Tensor, FillerParameter, torch.Generator], None]


def fill(blob: Tensor, filler: FillerParameter | None, *, seed: int, name: str) -> None:
    """Fill a blob in place.

    The random numbers depend only on the seed and the blob's name, not on other blobs.

    Args:
        blob: The blob, on the CPU.
        filler: The filler. None for zeros.
        seed: The seed of the network.
        name: The name of the blob, such as ``"conv1/0"``.

    Raises:
        ValueError: The filler is unknown, has invalid parameters or does not suit the blob.
    """
    filler = filler or FillerParameter()
    if filler.type not in FILLERS:
        raise ValueError(f"found the filler {filler.type!r}, expected one of {', '.join(FILLERS)}")
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**63)
    with torch.no_grad():
        FILLERS[filler.type](blob, filler, generator)


def _constant(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    blob.fill_(filler.value)


def _uniform(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    if not -math.inf < filler.min <= filler.max < math.inf:
        raise ValueError(f"found the filler's min {filler.min:g} and max {filler.max:g}, expected min <= max")
    blob.uniform_(filler.min, filler.max, generator=generator)


def _gaussian(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """N(mean, std). With `sparse`, each value is kept with probability sparse / outputs, and is 0 otherwise."""
    if not 0 <= filler.std < math.inf:
        raise ValueError(f"found the filler's std {filler.std:g}, expected 0 or more")
    blob.normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse >= 0:
        if not blob.dim() or filler.sparse > blob.shape[0]:
            raise ValueError(
                f"found the filler's sparse {filler.sparse}, expected at most the {blob.shape[:1]} outputs"
            )
        blob.mul_(torch.empty_like(blob).bernoulli_(filler.sparse / blob.shape[0], generator=generator))


def _fan(blob: Tensor, filler: FillerParameter) -> float:
    """Return the number of inputs, the number of outputs, or their mean."""
    if not blob.dim():
        raise ValueError(f"found the filler {filler.type!r} for a scalar, expected a blob with axes")
    inputs = blob.numel() / blob.shape[0]
    outputs = blob.numel() / blob.shape[1] if blob.dim() > 1 else blob.numel()
    fans = {FillerParameter.FAN_OUT: outputs, FillerParameter.AVERAGE: (inputs + outputs) / 2}
    return fans.get(filler.variance_norm, inputs)


def _xavier(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Uniform with variance 1 / fan (Glorot and Bengio 2010)."""
    limit = math.sqrt(3 / _fan(blob, filler))
    blob.uniform_(-limit, limit, generator=generator)


def _msra(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Normal with variance 2 / fan (He et al. 2015)."""
    blob.normal_(0, math.sqrt(2 / _fan(blob, filler)), generator=generator)


def _bilinear(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Filters for a Deconvolution that upsamples by bilinear interpolation."""
    if blob.dim() != 4 or blob.shape[2] != blob.shape[3]:
        raise ValueError(f"found the filler 'bilinear' for a blob of shape {tuple(blob.shape)}, expected N x C x K x K")
    size = blob.shape[3]
    factor = math.ceil(size / 2)
    center = (size - 1) / (2 * factor)
    line = 1 - (torch.arange(size, dtype=torch.float64) / factor - center).abs()
    blob.copy_(torch.outer(line, line).expand_as(blob))


def _positive_unitball(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Positive values that sum to 1 for each output."""
    if not blob.dim():
        raise ValueError("found the filler 'positive_unitball' for a scalar, expected a blob with axes")
    blob.uniform_(0, 1, generator=generator)
    rows = blob.view(blob.shape[0], -1)
    rows.div_(rows.sum(1, keepdim=True))


FILLERS: dict[str, Fill] = {
    "bilinear": _bilinear,
    "constant": _constant,
    "gaussian": _gaussian,
    "msra": _msra,
    "positive_unitball": _positive_unitball,
    "uniform": _uniform,
    "xavier": _xavier,
}

"""Operators that move, cut and join elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.rules.registry import Cotangents, rule, unsupported, vjp
from camrt.graph.values import Value, expect_scatter_adds, join

vjp("Identity", "As it is.", lambda g, y, x: g)


@rule("Dropout", restrictions="not in training mode")
def dropout(g: Value, y: Value, x: Value, ratio: Value | None = None, training: Value | None = None) -> Value:
    """As it is."""
    if training is not None and (training.constant is None or training.constant):
        raise CamrtError("found Dropout in training mode, expected a model for inference: export it in eval mode")
    return g


vjp(
    "Cast, CastLike",
    "Back to the type of the input.",
    lambda g, y, x, like=None: g.cast(x.kind),
    restrictions="between floating-point types",
)
vjp(
    "Reshape, Flatten, Squeeze, Unsqueeze",
    "Back to the shape of the input.",
    lambda g, y, x, sizes=None: g.reshape_as(x),
)


@rule("Transpose")
def transpose(g: Value, y: Value, x: Value, *, perm: Sequence[int] = ()) -> Value:
    """The axes back to their positions."""
    return g.transpose(*np.argsort(perm or range(x.rank)[::-1]).tolist())


@rule("Concat")
def concat(g: Value, y: Value, *parts: Value, axis: int) -> Cotangents:
    """Each input's part."""
    lengths = [one.shape[axis] for one in parts]
    if None in lengths:
        return g.split(axis, join([one.lengths.slice(0, one.axis(axis), one.axis(axis) + 1) for one in parts], 0))
    return g.split(axis, [length for length in lengths if length is not None])


@rule("Split", several=True)
def split(g: list[Value], y: list[Value], x: Value, lengths: Value | None = None, *, axis: int = 0) -> Value:
    """The parts' gradients joined; zeros for parts that nothing reads."""
    return join(g, axis)


@rule("Slice", restrictions="constant bounds, except where the whole axis is taken")
def slice_(
    g: Value, y: Value, x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Value:
    """Zeros for what was cut off."""
    strides = steps.known("steps").tolist() if steps is not None else None
    listed = axes.known("axes").tolist() if axes is not None else range(len(strides) if strides else x.rank)
    for index, axis in enumerate(axis % x.rank for axis in listed):
        stride = strides[index] if strides else 1
        if stride == 1 and x.same(y, axis):
            continue  # all of it
        start, end = int(starts.known("starts")[index]), int(ends.known("ends")[index])
        (size,) = x.fixed(axis)
        g = _put_back(g, axis, size, np.arange(size)[_bounds(start, end, stride, size)])
    return g


def _bounds(start: int, end: int, stride: int, size: int) -> slice:
    """Start and end as Python's slices mean them. ONNX clamps: an end before the front stays there."""
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if stride > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), stride)
    return slice(min(max(start, 0), size - 1), None if end < 0 else min(end, size - 1), stride)


def _put_back(g: Value, axis: int, size: int, positions: np.ndarray) -> Value:
    """A tensor of ``size`` along an axis with slices at different positions and zeros elsewhere."""
    if positions.size and np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions))):
        return g.pad({axis: (int(positions[0]), size - int(positions[0]) - len(positions))})
    source = np.full(size, len(positions))  # one slice of zeros behind, which all other positions read
    source[positions] = np.arange(len(positions))
    return (g.pad({axis: (0, 1)}) if len(positions) < size else g).take(source, axis)


@rule("Gather", restrictions="constant indices")
def gather(g: Value, y: Value, x: Value, indices: Value, *, axis: int = 0) -> Value:
    """Each slice's gradient to where it was taken from; those of one taken twice add up."""
    if x.sizes is not None and x.sizes.takes_all(x.name, indices.name):
        return g.reshape_as(x)
    axis = x.axis(axis)
    (size,) = x.fixed(axis)
    positions = indices.known("indices").reshape(-1) % size
    if indices.rank != 1:
        g = g.reshape(*x.shape[:axis], len(positions), *x.shape[axis + 1 :])
    if len(np.unique(positions)) == len(positions):
        return _put_back(g, axis, size, positions)
    return g.along(axis, np.equal.outer(np.arange(size), positions).astype(float))


vjp(
    "GatherElements",
    "Each element's gradient to where it was taken from.",
    lambda g, y, x, indices, *, axis=0: x.zeros(g.lead).scatter(indices, g, axis, add=True),
    restrictions="from opset 16 on",
)


@rule("GatherND", restrictions="from opset 16 on, without batch_dims")
def gather_nd(g: Value, y: Value, x: Value, indices: Value, *, batch_dims: int = 0) -> Value:
    """Each slice's gradient to where it was taken from."""
    expect_scatter_adds(g.builder)
    if batch_dims:
        raise CamrtError(f"found batch_dims {batch_dims}, expected 0")
    return _last(x.zeros(g.lead)).op("ScatterND", indices, _last(g), reduction="add").lead_from(-1)


def _last(v: Value) -> Value:
    """The axis of cotangents behind the others, where ScatterND and GatherND take whole slices."""
    return v.lead_to(v.rank)


@rule("ScatterElements", restrictions="reduction none and add")
def scatter_elements(
    g: Value, y: Value, x: Value, indices: Value, updates: Value, *, axis: int = 0, reduction: str = "none"
) -> Cotangents:
    """The updates' from where they were put; of the data what was not overwritten."""
    kept = g.scatter(indices, updates.zeros(g.lead), axis) if _overwrites(reduction) else g
    taken = g.op("GatherElements", indices.stacked(g.lead), shape=updates.shape, axis=x.axis(axis) - x.rank)
    return kept, None, taken


@rule("ScatterND", restrictions="reduction none and add")
def scatter_nd(g: Value, y: Value, x: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Cotangents:
    """The updates' from where they were put; of the data what was not overwritten."""
    last = _last(g)
    kept = last.op("ScatterND", indices, _last(updates.zeros(g.lead))).lead_from(-1) if _overwrites(reduction) else g
    taken = last.op("GatherND", indices, shape=(*updates.shape, last.shape[-1]))
    return kept, None, taken.lead_from(-1)


def _overwrites(reduction: str) -> bool:
    """Whether updates take the place of data, and are not added to them."""
    if reduction not in ("none", "add"):
        raise CamrtError(f"found reduction {reduction!r}, expected none or add")
    return reduction == "none"


@rule("TopK", restrictions="of the values", several=True)
def top_k(g: list[Value], y: list[Value], x: Value, k: Value, *, axis: int = -1) -> Value:
    """Each value's gradient to where it stood."""
    if len(y) < 2:
        raise CamrtError("found TopK without its second output, the indices, which the gradient needs")
    return x.zeros(g[0].lead).scatter(y[1], g[0], axis)


vjp("Expand", "The sum over the axes along which the input was repeated.", lambda g, y, x, sizes: g)


@rule("Tile", restrictions="constant repeats")
def tile(g: Value, y: Value, x: Value, repeats: Value) -> Value:
    """The sum over the repetitions."""
    sizes: list[int | None] = []
    summed = []
    for times, size in zip(repeats.known("repeats").tolist(), x.shape, strict=True):
        if times != 1:
            summed.append(len(sizes))
            sizes.append(times)
        sizes.append(size)
    return g.reshape(*sizes).sum(*summed) if summed else g


@rule("Pad", restrictions="constant pads; of the padding's value no gradient")
def pad(
    g: Value, y: Value, x: Value, pads: Value, value: Value | None = None, axes: Value | None = None,
    *, mode: str = "constant",
) -> Cotangents:  # fmt: skip
    """What stood inside; with reflect, edge and wrap also what the borders repeat."""
    listed = axes.known("axes").tolist() if axes is not None else range(x.rank)
    borders = dict(zip(listed, zip(*pads.known("pads").reshape(2, -1).tolist(), strict=True), strict=True))
    if mode == "constant":
        g = g.pad({axis: (-before, -after) for axis, (before, after) in borders.items()})
    for axis, (before, after) in borders.items():
        if mode != "constant" and (before or after):
            (size,) = x.fixed(axis)
            source = np.pad(np.arange(size), (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]
            source = source[max(-before, 0) : len(source) - max(-after, 0)]
            g = g.along(axis, np.equal.outer(np.arange(size), source).astype(float))
    return g, None, unsupported("a gradient of the padding's value is not supported")


@rule("DepthToSpace")
def depth_to_space(g: Value, y: Value, x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    """SpaceToDepth, with the channels in the order that they had."""
    if mode == "DCR":
        return g.per_image(lambda g: g.op("SpaceToDepth", shape=x.shape, blocksize=blocksize))
    channels, height, width = y.fixed(1, 2, 3)
    apart = g.reshape(None, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return apart.transpose(0, 1, 3, 5, 2, 4).reshape_as(x)


vjp(
    "SpaceToDepth",
    "DepthToSpace.",
    lambda g, y, x, *, blocksize: g.per_image(
        lambda g: g.op("DepthToSpace", shape=x.shape, blocksize=blocksize, mode="DCR")
    ),
)
vjp(
    "Trilu",
    "The same triangle.",
    lambda g, y, x, k=None, *, upper=1: g.op("Trilu", *([k] if k is not None else []), upper=upper),
)

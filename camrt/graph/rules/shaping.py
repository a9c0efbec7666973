"""Operators that move, cut and join elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step

_END = int(np.iinfo(np.int64).max)


@rule("Identity", "Dropout", restrictions="Dropout not in training mode")
def identity(step: Step, gradient: str) -> str:
    """As it is."""
    training = step.value(2) if step.proto.op_type == "Dropout" else None
    if step.proto.op_type == "Dropout" and step.has(2) and (training is None or bool(training)):
        raise step.error("found Dropout in training mode, expected a model for inference: export it in eval mode")
    return gradient


@rule("Cast", "CastLike", restrictions="between floating-point types")
def cast(step: Step, gradient: str) -> str:
    """Back to the type of the input."""
    return step.builder.node("Cast", [gradient], to=step.kind(step.inputs[0]))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(step: Step, gradient: str) -> str:
    """Back to the shape of the input."""
    return step.reshape_as(gradient, step.inputs[0])


@rule("Transpose")
def transpose(step: Step, gradient: str) -> str:
    """The axes back to their places."""
    order = step.attributes.get("perm") or list(range(step.rank(step.inputs[0])))[::-1]
    return step.builder.node("Transpose", [gradient], perm=np.argsort(order).tolist())


@rule("Concat")
def concat(step: Step, gradient: str) -> Sequence[str | None]:
    """Each input's part."""
    axis = step.axis(step.attributes["axis"])
    if len(step.inputs) > 1 and _is_stack_of_batches(step, axis):
        parts = [step.builder.name("part") for _ in step.inputs]
        number = len(parts) if step.builder.opset >= 18 else None
        return step.builder.nodes_of("Split", [gradient], parts, axis=axis, num_outputs=number)
    step.apart([axis], step.output)
    if step.copies == 1 and any(step.shape(name)[axis] is None for name in step.inputs):
        lengths = [step.builder.slice(step.node("Shape", name), [axis], [axis + 1], [0]) for name in step.inputs]
        parts = [step.builder.name("part") for _ in lengths]
        return step.builder.nodes_of("Split", [gradient, step.node("Concat", *lengths, axis=0)], parts, axis=axis)
    sizes = [step.fixed(name, [axis])[0] for name in step.inputs]
    if all(step.wants(index) for index in range(len(sizes))):
        parts = [step.builder.name("part") for _ in sizes]
        return step.builder.nodes_of("Split", [gradient, step.builder.shape(*sizes)], parts, axis=axis)
    ends = np.cumsum(sizes).tolist()
    return [
        step.builder.slice(gradient, [end - size], [end], [axis]) if step.wants(index) else None
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _is_stack_of_batches(step: Step, axis: int) -> bool:
    """Whether each input holds all images along the axis, equally many rows: a network unrolled over time does that."""
    first, *others = step.inputs
    whole = [step.shape(name)[axis] is None for name in step.inputs]
    return all(whole) and all(step.sizes.same(first, axis, other, axis) for other in others)


@rule("Split", several=True)
def split(step: Step, gradient: str) -> str:
    """The parts' gradients joined; zeros for parts that nothing reads."""
    axis = step.axis(step.attributes.get("axis", 0))
    if any(step.shape(name)[axis] is not None for name in step.proto.output if name):
        step.apart([axis])
    parts = [step.gradient(index) for index, name in enumerate(step.proto.output) if name]
    return step.builder.node("Concat", parts, axis=axis)


@rule("Slice", restrictions="constant bounds, except where the whole axis is taken")
def slice_(step: Step, gradient: str) -> str:
    """Zeros for what was cut off."""
    x = step.inputs[0]
    steps = step.known(4, "steps").tolist() if step.has(4) else None
    rank = step.rank(x)
    axes = step.known(3, "axes").tolist() if step.has(3) else range(len(steps) if steps else rank)
    for index, axis in enumerate(axis % rank for axis in axes):
        stride = steps[index] if steps else 1
        if stride == 1 and step.sizes.same(x, axis, step.output, axis):
            continue  # all of it
        step.apart([axis])
        start, end = (int(step.known(place, what)[index]) for place, what in ((1, "starts"), (2, "ends")))
        (size,) = step.fixed(x, [axis])
        places = np.arange(size)[slice(*_bounds(start, end, stride, size), stride)]
        gradient = _put_back(step, gradient, axis, size, places)
    return gradient


def _bounds(start: int, end: int, stride: int, size: int) -> tuple[int, int | None]:
    """Start and end as Python's slices mean them. ONNX clamps: an end before the front stays there."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if stride > 0:
        return min(max(start, 0), size), min(max(end, 0), size)
    last = min(max(start, 0), size - 1)
    return last, None if end < 0 else min(end, size - 1)


def _put_back(step: Step, gradient: str, axis: int, size: int, places: np.ndarray) -> str:
    """A tensor of ``size`` along an axis with the gradient's slices at different places and zeros elsewhere."""
    if places.size and np.array_equal(places, np.arange(places[0], places[0] + len(places))):
        before, after = int(places[0]), size - int(places[0]) - len(places)
        return _padded(step, gradient, axis, before, after) if before or after else gradient
    source = np.full(size, len(places))
    source[places] = np.arange(len(places))
    if len(places) < size:  # one slice of zeros behind, which all other places read
        gradient = _padded(step, gradient, axis, 0, 1)
    return step.builder.node("Gather", [gradient, step.builder.shape(*source.tolist())], axis=axis)


def _padded(step: Step, gradient: str, axis: int, before: int, after: int) -> str:
    rank = step.rank(step.inputs[0])
    pads = [0] * 2 * rank
    pads[axis], pads[axis + rank] = before, after
    return step.builder.node("Pad", [gradient, step.builder.shape(*pads)])


@rule("Gather", restrictions="constant indices")
def gather(step: Step, gradient: str) -> Sequence[str | None]:
    """Each slice's gradient to where it was taken from; those of one taken twice add up."""
    x = step.inputs[0]
    if step.sizes.takes_all(step.proto):
        return [step.reshape_as(gradient, x)]
    axis = step.axis(step.attributes.get("axis", 0))
    step.apart([axis])
    (size,) = step.fixed(x, [axis])
    indices = step.known(1, "indices")
    places = indices.reshape(-1) % size
    shape: list[int | None] = [*step.shape(x)]
    shape[axis] = len(places)
    if indices.ndim != 1:
        gradient = _reshaped(step, gradient, shape)
    if len(np.unique(places)) == len(places):
        return [_put_back(step, gradient, axis, size, places)]
    matrix = np.zeros((size, len(places)))
    matrix[places, np.arange(len(places))] = 1
    return [step.along(gradient, shape, axis, matrix)]


def _reshaped(step: Step, tensor: str, shape: Sequence[int | None]) -> str:
    if list(shape).count(None) > 1:
        raise step.error(f"found a shape of {Step.describe(shape)}, expected one free size at most")
    return step.builder.reshape(tensor, *(-1 if size is None else size for size in shape))


@rule("GatherElements", restrictions="from opset 16 on")
def gather_elements(step: Step, gradient: str) -> Sequence[str | None]:
    """Each element's gradient to where it was taken from."""
    return [_scattered(step, gradient, step.inputs[1], step.attributes.get("axis", 0), "add")]


@rule("GatherND", restrictions="from opset 16 on, without batch_dims, one gradient an image")
def gather_nd(step: Step, gradient: str) -> Sequence[str | None]:
    """Each slice's gradient to where it was taken from."""
    x, indices = step.inputs
    step.alone(x)
    _expect_adding(step)
    if step.attributes.get("batch_dims", 0):
        raise step.error(f"found batch_dims {step.attributes['batch_dims']}, expected 0")
    return [step.builder.node("ScatterND", [step.zeros(x), indices, gradient], reduction="add")]


@rule("ScatterElements", restrictions="reduction none and add")
def scatter_elements(step: Step, gradient: str) -> Sequence[str | None]:
    """The updates' from where they were put; of the data what was not overwritten."""
    axis, indices = step.axis(step.attributes.get("axis", 0)), step.repeated(step.inputs[1])
    step.apart([axis])
    kept = gradient
    if _overwrites(step) and step.wants(0):
        kept = step.builder.node("ScatterElements", [gradient, indices, step.zeros(step.inputs[2])], axis=axis)
    return [kept, None, step.builder.node("GatherElements", [gradient, indices], axis=axis) if step.wants(2) else None]


@rule("ScatterND", restrictions="reduction none and add, one gradient an image")
def scatter_nd(step: Step, gradient: str) -> Sequence[str | None]:
    """The updates' from where they were put; of the data what was not overwritten."""
    _, indices, updates = step.inputs
    step.alone(step.output)
    kept = gradient
    if _overwrites(step) and step.wants(0):
        kept = step.builder.node("ScatterND", [gradient, indices, step.zeros(updates)])
    return [kept, None, step.builder.node("GatherND", [gradient, indices]) if step.wants(2) else None]


def _overwrites(step: Step) -> bool:
    """Whether updates take the place of data, and are not added to them."""
    reduction = step.attributes.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise step.error(f"found reduction {reduction!r}, expected none or add")
    return bool(reduction == "none")


def _expect_adding(step: Step) -> None:
    if step.builder.opset < 16:
        raise step.error(f"found opset {step.builder.opset}, expected 16 or later: export the model with a newer one")


@rule("TopK", restrictions="of the values")
def top_k(step: Step, gradient: str) -> Sequence[str | None]:
    """Each value's gradient to where it stood."""
    if len(step.proto.output) < 2 or not step.proto.output[1]:
        raise step.error("found TopK without its second output, the indices, which the gradient needs")
    return [_scattered(step, gradient, step.proto.output[1], step.attributes.get("axis", -1), None)]


def _scattered(step: Step, gradient: str, indices: str, axis: int, reduction: str | None) -> str:
    if reduction:
        _expect_adding(step)
    step.apart([axis])
    inputs = [step.zeros(step.inputs[0]), step.repeated(indices), gradient]
    return step.builder.node("ScatterElements", inputs, axis=axis, reduction=reduction)


@rule("Expand")
def expand(step: Step, gradient: str) -> str:
    """The sum over the axes along which the input was repeated."""
    return step.fit(gradient, step.inputs[0])


@rule("Tile", restrictions="constant repeats")
def tile(step: Step, gradient: str) -> str:
    """The sum over the repetitions."""
    repeats = step.known(1, "repeats").tolist()
    axes = [axis for axis, times in enumerate(repeats) if times != 1]
    if not axes:
        return gradient
    step.apart(axes)
    sizes: list[int] = []
    summed = []
    for axis, (times, size) in enumerate(zip(repeats, step.shape(step.inputs[0]), strict=True)):
        if times != 1:
            summed.append(len(sizes))
            sizes += [times, step.fixed(step.inputs[0], [axis])[0]]
        else:
            sizes.append(-1 if size is None else size)
    return step.builder.reduce("Sum", _reshaped(step, gradient, [None if n == -1 else n for n in sizes]), summed)


@rule("Pad", restrictions="constant pads; of the padding's value no gradient")
def pad(step: Step, gradient: str) -> str:
    """What stood inside; with reflect, edge and wrap also what the borders repeat."""
    if step.wants(2):
        raise step.error("a gradient of the padding's value is not supported")
    rank = step.rank(step.inputs[0])
    given = step.known(1, "pads").tolist()
    axes = step.known(3, "axes").tolist() if step.has(3) else list(range(rank))
    half = len(given) // 2
    pads = {step.axis(axis): (given[i], given[i + half]) for i, axis in enumerate(axes)}
    pads = {axis: both for axis, both in pads.items() if any(both)}
    step.apart(list(pads))
    mode = step.attributes.get("mode", "constant")
    if mode == "constant":
        return _unpadded(step, gradient, pads)
    shape = list(step.shape(step.output))
    for axis, (before, after) in pads.items():
        (size,) = step.fixed(step.inputs[0], [axis])
        source = np.pad(np.arange(size), (max(before, 0), max(after, 0)), mode=mode)
        source = source[max(-before, 0) : len(source) - max(-after, 0)]
        matrix = np.zeros((size, len(source)))
        np.add.at(matrix, (source, np.arange(len(source))), 1)
        gradient = step.along(gradient, shape, axis, matrix)
    return gradient


def _unpadded(step: Step, gradient: str, pads: dict[int, tuple[int, int]]) -> str:
    """Cut off what was added; put back zeros for what was cut off."""
    cut = {axis: (max(before, 0), max(after, 0)) for axis, (before, after) in pads.items()}
    cut = {axis: both for axis, both in cut.items() if any(both)}
    if cut:
        ends = [-after if after else _END for _, after in cut.values()]
        gradient = step.builder.slice(gradient, [before for before, _ in cut.values()], ends, list(cut))
    if any(min(both) < 0 for both in pads.values()):
        rank = step.rank(step.inputs[0])
        border = [0] * 2 * rank
        for axis, (before, after) in pads.items():
            border[axis], border[axis + rank] = max(-before, 0), max(-after, 0)
        gradient = step.builder.node("Pad", [gradient, step.builder.shape(*border)])
    return gradient


@rule("DepthToSpace")
def depth_to_space(step: Step, gradient: str) -> str:
    """SpaceToDepth, with the channels in the order that they had."""
    block = int(step.attributes["blocksize"])
    if step.attributes.get("mode", "DCR") == "DCR":
        return step.builder.node("SpaceToDepth", [gradient], blocksize=block)
    channels, height, width = step.fixed(step.output, [1, 2, 3])
    apart = step.builder.reshape(gradient, -1, channels, height // block, block, width // block, block)
    moved = step.builder.node("Transpose", [apart], perm=[0, 1, 3, 5, 2, 4])
    return step.builder.reshape(moved, -1, channels * block * block, height // block, width // block)


@rule("SpaceToDepth")
def space_to_depth(step: Step, gradient: str) -> str:
    """DepthToSpace."""
    return step.builder.node("DepthToSpace", [gradient], blocksize=int(step.attributes["blocksize"]), mode="DCR")


@rule("Trilu")
def trilu(step: Step, gradient: str) -> str:
    """The same triangle."""
    inputs: list[Any] = [gradient, *([step.inputs[1]] if step.has(1) else [])]
    step.apart([-1, -2])
    return step.builder.node("Trilu", inputs, upper=step.attributes.get("upper", 1))

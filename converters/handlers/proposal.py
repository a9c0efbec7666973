"""Region proposals of Faster R-CNN (Ren et al. 2015): its Python layer, and PVANET's in C++ (Kim et al. 2016)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from converters.graph import Graph
from converters.handlers.detection import LOWEST, counted, found_places, parts, suppressed
from converters.layer import Layer
from converters.registry import handles
from converters.shape import MAX_BLOB, show

MAX_ANCHORS = 10_000_000  # in the whole image: PVANET has 105,840 at 640 x 1056

# The modules from which projects import py-faster-rcnn's layer.
MODULES = ("rpn.proposal_layer", "lib.rpn.proposal_layer", "proposal_layer")
# py-faster-rcnn reads these from its configuration (lib/fast_rcnn/config.py), not from the layer.
CONFIGURATION = {"pre_nms_topn": 6000.0, "post_nms_topn": 300.0, "nms_thresh": 0.7, "min_size": 16.0}
_ANCHORS = {"base_size": [16.0], "ratios": [0.5, 1.0, 2.0], "scales": [8.0, 16.0, 32.0]}


@dataclass(frozen=True)
class Search:
    """The parameters of a proposal layer.

    Attributes:
        stride: The distance between positions of the feature map, in pixels.
        anchors: (A, 4): x1, y1, x2, y2 in pixels, around the first position, including their last pixels.
        candidates: How many of the best boxes enter non-maximum suppression; 0 for all.
        keep: How many proposals are kept; 0 for all.
        overlap: The largest overlap with a better box that is kept.
        least: The minimum height and width, in pixels of the original image.
    """

    stride: float
    anchors: np.ndarray
    candidates: int
    keep: int
    overlap: float
    least: float


_OPERATORS = (
    "Slice Transpose Reshape Split Mul Add Exp Sub Gather Min Max ReduceMin GreaterOrEqual Where Concat TopK "
    "NonMaxSuppression GatherND Shape ConstantOfShape ScatterND Greater NonZero Pad"
)
_ONE_IMAGE = "one image, as in the fork; equal scores are ordered by row, column and anchor"


# ------------------------------------------------------------------------------------------------------ Faster R-CNN


def python_proposal(layer: Layer, graph: Graph) -> None:
    """Faster R-CNN's proposals: predicted boxes after non-maximum suppression.

    The rows, (R, 5), are 0 (the image), x1, y1, x2, y2 in pixels; R is known only at run time. The second top holds
    the scores, (R, 1). Source: lib/rpn/proposal_layer.py of rbgirshick/py-faster-rcnn.
    """
    param = parameters(layer)
    if "feat_stride" not in param:
        raise layer.error(f"found no feat_stride in the param_str {_param_str(layer)!r}, expected one, such as 16")
    given = {name: values[0] for name, values in param.items() if name in CONFIGURATION}
    config = CONFIGURATION | given
    if len(given) < len(CONFIGURATION):
        taken = ", ".join(f"{name} {config[name]:g}" for name in CONFIGURATION if name not in given)
        graph.note(
            f"takes {taken} from py-faster-rcnn's test configuration; keys of these names in param_str override it"
        )
    stride = param["feat_stride"][0]
    base, ratios, scales = (param.get(name, default) for name, default in _ANCHORS.items())
    _check_sizes(layer, stride, base[0], ratios, scales)
    search = Search(
        stride,
        python_anchors(base[0], ratios, scales),
        int(config["pre_nms_topn"]),
        int(config["post_nms_topn"]),
        config["nms_thresh"],
        config["min_size"],
    )
    _check_search(layer, search)
    _propose(layer, graph, search, drops_small=True)


for _module in MODULES:
    handles(
        "Python",
        module=_module,
        layer="ProposalLayer",
        operators=_OPERATORS,
        restrictions=_ONE_IMAGE + "; py-faster-rcnn's test configuration, unless param_str has "
        "pre_nms_topn, post_nms_topn, nms_thresh or min_size",
        origin="Faster R-CNN",
        reads="python_param.param_str_",
    )(python_proposal)


def python_anchors(base: float, ratios: Sequence[float], scales: Sequence[float]) -> np.ndarray:
    """The boxes of each ratio (height over width) and scale around (0, 0, base - 1, base - 1), rounded like NumPy.

    Args:
        base: The side of the reference box, in pixels.
        ratios: Height / width.
        scales: Multiples of the reference box.

    Returns:
        (ratios * scales, 4) float64: x1, y1, x2, y2. Source: lib/rpn/generate_anchors.py of py-faster-rcnn.
    """
    ratio, scale = np.array(ratios, np.float64), np.array(scales, np.float64)
    widths = np.round(np.sqrt(base * base / ratio))
    heights = np.round(widths * ratio)
    return _centered(base, widths[:, None] * scale, heights[:, None] * scale)


def _centered(base: float, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Boxes of these sizes around the center of the reference box: (sizes, 4)."""
    half = np.stack([widths - 1, heights - 1], axis=-1).reshape(-1, 2) / 2
    center = (base - 1) / 2
    return np.concatenate([center - half, center + half], axis=1)


_PAIR = re.compile(
    r"""[\s,]*(?P<quote>['"]?)(?P<key>\w+)(?P=quote)\s*:\s*(?:!!python/tuple\s*)?"""
    r"""(?P<value>\[[^\]]*\]|\([^)]*\)|(?:\s*-\s+\S+)+|[^\s,]+)[\s,]*"""
)
_KNOWN = {"feat_stride", "num_classes", *_ANCHORS, *CONFIGURATION}


def _param_str(layer: Layer) -> str:
    """The parameters of the layer: `param_str`, or `param_str_` in some projects."""
    spelled = layer.extra.get("python_param", {})
    return layer.params.python_param.param_str or str(spelled.get("param_str_", ""))


def parameters(layer: Layer) -> Mapping[str, list[float]]:
    """Parse the numbers in a param_str, which is YAML: ``'feat_stride': 16``, or a dictionary with lists.

    Raises:
        ConversionError: It does not have that form, or has a key that the layer does not know.
    """
    text = _param_str(layer).strip()
    inner = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    found: dict[str, list[float]] = {}
    end = 0
    try:
        while end < len(inner):
            match = _PAIR.match(inner, end)
            if match is None:
                raise ValueError
            items = re.split(r"[\s,]+", re.sub(r"[\[\]()]|(?<!\S)-(?=\s)", " ", match["value"]).strip())
            found[match["key"].lower()] = [float(item) for item in items if item]
            end = match.end()
    except ValueError:
        raise layer.error(
            f"found the param_str {text!r}, expected numbers and lists, such as 'feat_stride': 16"
        ) from None
    unknown = found.keys() - _KNOWN
    if unknown or not all(found.values()):
        what = f"the key {min(unknown)!r}" if unknown else "a key without a value"
        raise layer.error(f"found {what} in the param_str {text!r}, expected some of {', '.join(sorted(_KNOWN))}")
    return found


# ------------------------------------------------------------------------------------------------------------ PVANET


@handles("Proposal", operators=_OPERATORS, restrictions=_ONE_IMAGE, origin="PVANET, and others in its form")
def proposal(layer: Layer, graph: Graph) -> None:
    """PVANET's proposals: like Faster R-CNN's, but boxes that are too small are kept with score 0.

    The rows are like Faster R-CNN's; the second top holds the scores, (R,). If im_info has four numbers, the third is
    the scale of the height and the fourth that of the width.
    """
    param = layer.params.proposal_param
    _check_sizes(layer, param.feat_stride, param.base_size, param.ratio, param.scale)
    search = Search(
        param.feat_stride,
        _native_anchors(param.base_size, list(param.ratio), list(param.scale)),
        param.pre_nms_topn,
        param.post_nms_topn,
        param.nms_thresh,
        param.min_size,
    )
    _check_search(layer, search)
    _propose(layer, graph, search, drops_small=False)


def _native_anchors(base: int, ratios: Sequence[float], scales: Sequence[float]) -> np.ndarray:
    """Like `python_anchors`, in single precision, with halves rounded up."""
    ratio, scale = np.array(ratios, np.float32), np.array(scales, np.float32)
    half = np.float32(0.5)
    widths = np.floor(np.sqrt(np.float32(base * base) / ratio) + half)
    heights = np.floor(widths * ratio + half)
    return _centered(base, widths[:, None] * scale, heights[:, None] * scale)


# -------------------------------------------------------------------------------------------------------------- both


def _check_sizes(layer: Layer, stride: float, base: float, ratios: Sequence[float], scales: Sequence[float]) -> None:
    sizes = [stride, base, *ratios, *scales]
    if not len(ratios) or not len(scales) or not all(0 < size < MAX_BLOB for size in sizes):  # also refuses NaN
        raise layer.error(
            f"found feat_stride {stride:g}, base_size {base:g}, the ratios {list(ratios)} and the scales "
            f"{list(scales)}, expected at least one of each, all positive"
        )


def _check_search(layer: Layer, search: Search) -> None:
    if not 0 <= search.overlap <= 1 or min(search.candidates, search.keep) < 0:
        raise layer.error(
            f"found nms_thresh {search.overlap:g}, pre_nms_topn {search.candidates} and post_nms_topn {search.keep}, "
            "expected a threshold from 0 to 1 and numbers of at least 0 (all)"
        )


def _propose(layer: Layer, graph: Graph, search: Search, *, drops_small: bool) -> None:
    """Add the nodes of a proposal layer; with ``drops_small``, drop boxes below the minimum size."""
    layer.expect(bottoms=3, tops=range(1, 3))
    scores = _scores(layer, graph, search)
    count = int(graph.shape(scores)[0])
    boxes, is_large = _boxes(layer, graph, search, count)
    small = graph.constant(LOWEST if drops_small else 0.0)
    scores = graph.node("Where", [is_large, scores, small], shape=(count,), dtype=np.float32)
    candidates = min(search.candidates or count, count)
    best, places = graph.new_name("scores"), graph.new_name("places")
    number = graph.constant([candidates], np.int64)
    graph.node("TopK", [scores, number], [best, places], shapes=[(candidates,)] * 2)
    graph.set_dtype(places, np.int64)
    boxes = graph.node("Gather", [boxes, places], shape=(candidates, 4), axis=0)
    kept = suppressed(
        graph,
        graph.reshape(_half_open(graph, boxes), (1, candidates, 4)),
        graph.reshape(best, (1, candidates)),
        overlap=search.overlap,
        threshold=LOWEST if drops_small else None,
        keep=search.keep,
    )
    # The rows of the first top: the index of the image, 0, and the box.
    rows = graph.pad(boxes, [0, 1], [0, 0], 0.0)
    found = counted(graph, "rois")
    at = graph.node("Gather", [found_places(graph, kept), graph.constant(1, np.int64)], shape=(found,), axis=1)
    graph.node("Gather", [rows, at], layer.tops[:1], shape=(found, 5), axis=0)
    if len(layer.tops) > 1:
        column = graph.reshape(best, (candidates, 1)) if drops_small else best
        graph.node("Gather", [column, at], layer.tops[1:], shape=(found, *graph.shape(column)[1:]), axis=0)


def _scores(layer: Layer, graph: Graph, search: Search) -> str:
    """The object scores in the order of `_boxes`: (n,) for n = H * W * A."""
    scores, deltas, info = layer.bottoms
    number = len(search.anchors)
    for blob, channels in ((scores, 2 * number), (deltas, 4 * number)):
        if graph.rank(blob) != 4 or graph.fixed(graph.shape(blob)[1], "the number of channels") != channels:
            raise layer.error(
                f"found {show(graph.shape(blob))} for the blob {blob!r}, expected 1 x {channels} x H x W for "
                f"{number} anchors"
            )
    if graph.shape(scores)[2:] != graph.shape(deltas)[2:]:
        raise layer.error(
            f"found {show(graph.shape(scores))} scores and {show(graph.shape(deltas))} boxes, expected one H x W"
        )
    for blob in (scores, deltas, info):
        images = graph.fixed(graph.shape(blob)[0], "a batch of 1, because it proposes the regions of a single image")
        if images != 1:
            raise layer.error(f"found {images} images in the blob {blob!r}, expected 1: give a batch of 1")
    height, width = graph.fixed_shape(scores, 2, "the image's size")
    if height * width * number > MAX_ANCHORS:
        raise layer.error(f"found {height * width * number:,} anchors, expected at most {MAX_ANCHORS:,}")
    # The first half of the channels is the background.
    objects = graph.transpose(graph.slice(scores, 1, number, 2 * number), (0, 2, 3, 1))
    return graph.reshape(objects, (height * width * number,))


def _boxes(layer: Layer, graph: Graph, search: Search, count: int) -> tuple[str, str]:
    """The predicted boxes clipped to the image, (n, 4), and whether each is large enough, (n,)."""
    deltas, info = layer.bottoms[1:]
    centers, sizes = _anchors_everywhere(search, graph.fixed_shape(deltas, 2, "the image's size"))
    by_anchor = graph.reshape(graph.transpose(deltas, (0, 2, 3, 1)), (count, 4))
    shift, stretch = parts(graph, by_anchor, 1, [2, 2])
    size = graph.constant(sizes)
    center = graph.node("Add", [graph.node("Mul", [shift, size]), graph.constant(centers)])
    half = graph.node("Mul", [graph.constant(0.5), graph.node("Mul", [graph.node("Exp", [stretch]), size])])
    last, least = _limits(layer, graph, search, info)
    low, high = (
        graph.node("Max", [graph.node("Min", [graph.node(op, [center, half]), last]), graph.constant(0.0)])
        for op in ("Sub", "Add")
    )
    extent = graph.node("Add", [graph.node("Sub", [high, low]), graph.constant(1.0)])
    room = graph.reduce("Min", graph.node("Sub", [extent, least]), [1], keepdims=False)
    is_large = graph.node("GreaterOrEqual", [room, graph.constant(0.0)], dtype=np.bool_)
    return graph.concat([low, high], 1), is_large


def _anchors_everywhere(search: Search, grid: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The anchors of every position by row, column and anchor: centers and sizes, (n, 2) float32 each, x first."""
    down, across = (np.arange(length) * search.stride for length in grid)
    shifts = np.stack(np.broadcast_arrays(across[None, :, None], down[:, None, None]), axis=-1)
    boxes = (np.tile(shifts, 2) + search.anchors).reshape(-1, 4).astype(np.float32)
    sizes = boxes[:, 2:] - boxes[:, :2] + np.float32(1)
    return boxes[:, :2] + np.float32(0.5) * sizes, sizes


def _limits(layer: Layer, graph: Graph, search: Search, info: str) -> tuple[str, str]:
    """The last pixel and the minimum size from im_info (height, width, scale, ...): (2,) each, x first."""
    numbers = 1
    for dim in graph.shape(info):
        numbers *= graph.fixed(dim, "the size of im_info")
    if numbers < 3:
        raise layer.error(
            f"found {show(graph.shape(info))} for the blob {info!r}, expected 1 x 3 or more: height, width, scale"
        )
    flat = graph.reshape(info, (numbers,))
    scales = [3, 2] if layer.type == "Proposal" and numbers > 3 else [2, 2]
    last, scale = (
        graph.node("Gather", [flat, graph.constant(order, np.int64)], shape=(2,), axis=0) for order in ([1, 0], scales)
    )
    return (
        graph.node("Sub", [last, graph.constant(1.0)]),
        graph.node("Mul", [graph.constant(search.least), scale]),
    )


def _half_open(graph: Graph, boxes: str) -> str:
    """Convert boxes that include their last pixels to ONNX's convention, which excludes them."""
    return graph.node("Add", [boxes, graph.constant([0, 0, 1, 1])])

"""Occlusion inside the graph: how far the score falls where a window of the image is covered."""

from __future__ import annotations

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.crops import black
from camrt.graph.methods import method
from camrt.graph.methods.context import MethodContext
from camrt.graph.values import Value

_TOGETHER = 16  # covered images that one run of the network gets, at most, for each image that is explained


@method(
    "occlusion", kind="pixels", title="Occlusion", rectified=False, layered=False, again=True, gradients=False, top=1
)
def occlusion(
    context: MethodContext,
    *,
    window: float = 0.2,
    stride: float = 0.1,
    baseline: str = "mean",
    values: str = "positive",
) -> Value:
    """What the score loses when a window around the pixel is covered.

    M(i, j) = mean of y_c(X) - y_c(X without W) over the windows W that cover the pixel. What is covered gets the values
    of the baseline. Windows begin at the top left; those at the right and at the bottom are cut off. Needs no
    gradients, but one run of the network for each window, 16 at a time.

    Source:
        Zeiler, Fergus: Visualizing and Understanding Convolutional Networks. ECCV 2014, section 4.2.

    Args:
        context: The image.
        window: The side of the window, as a fraction of the crop's.
        stride: From one window to the next, likewise; at most the window.
        baseline: ``"mean"``: the mean of the network's preprocessing, or ``"black"``.
        values: ``"positive"``, or ``"signed"``: where the score rises is negative.

    Example:
        >>> explainer = camrt.explain_graph(model, method="occlusion", settings={"window": 0.1})  # doctest: +SKIP
    """
    if values not in ("positive", "signed") or baseline not in ("black", "mean"):
        raise CamrtError(
            f"found occlusion's values {values!r} and baseline {baseline!r}, expected positive or signed, and black or "
            "mean"
        )
    if not 0.01 <= stride <= window <= 1:
        raise CamrtError(
            f"found occlusion's window {window} and stride {stride}, expected fractions from 0.01 to 1, and a stride "
            "that is not larger than the window"
        )
    spans = _spans(context.side, window, stride)
    lost = _lost(
        context, spans, black(context.preprocess, context.crops) if baseline == "black" else np.zeros((1,) * 4)
    )
    covered = spans.sum(0)
    found = lost.along(-2, spans.T).along(-1, spans.T) * (1 / np.outer(covered, covered)).astype(np.float32)
    found = found.lead_from(2)
    return found if values == "signed" else found.relu()


def _lost(context: MethodContext, spans: np.ndarray, empty: np.ndarray) -> Value:
    """What each class loses to each window: (N, crops, count, windows down, windows across).

    Args:
        context: The image.
        spans: The rows that a window covers, which are also the columns of one: (windows down, side).
        empty: What is under a window: (crops or 1, 3 or 1, side or 1, side or 1).
    """
    crops, side, number = len(context.crops), context.side, len(spans)
    runs = -(-(number**2) // max(1, _TOGETHER // crops))
    together = -(-(number**2) // runs)
    places = np.minimum(np.arange(runs * together), number**2 - 1).reshape(runs, together)  # the last one fills up
    builder = context.builder
    read, images = context.reader(together), context.images.unsqueeze(2)
    cover = empty[None, :, None].astype(np.float32) - images  # (N, crops, 1, 3, side, side)
    table = Value(builder, builder.constant(spans, "spans"), spans.shape)
    down, across = (
        Value(builder, builder.constant(one, "windows", np.int64), one.shape)
        for one in (places // number, places % number)
    )

    def scored(run: Value) -> Value:
        rows, columns = (
            table.op("Gather", one.op("Gather", run, shape=(together,), axis=0), shape=(together, side), axis=0)
            for one in (down, across)
        )
        masks = (rows.unsqueeze(2) * columns.unsqueeze(1)).unsqueeze(1)  # (together, 1, side, side)
        hidden = images + cover * masks
        return read(context.logits(context.again(hidden.reshape(-1, 3, side, side))))

    found = context.collected(runs, scored)  # (runs, N, crops, count, together)
    scores = found.transpose(1, 2, 3, 0, 4).reshape(-1, crops, context.count, runs * together)
    whole = context.reader(1)(context.logits(context.first))  # (N, crops, count, 1)
    return (whole - scores.slice(-1, 0, number**2)).reshape(-1, crops, context.count, number, number)


def _spans(side: int, window: float, stride: float) -> np.ndarray:
    """The pixels of a line that each window covers: (windows, side) of 0 and 1."""
    length, step = max(1, round(window * side)), max(1, round(stride * side))
    starts = step * np.arange(-(-max(0, side - length) // step) + 1)[:, None]
    pixels = np.arange(side)
    return ((pixels >= starts) & (pixels < starts + length)).astype(np.float32)

"""Occlusion: how far the score falls where a window is covered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from camrt.blackbox.methods import Attribution, Floats, Problem, black_box, check_range

_Window = tuple[slice, slice]


@black_box("blackbox-occlusion", title="Occlusion")
def occlusion(problem: Problem, *, window: float = 0.2, stride: float = 0.1) -> Attribution:
    """``f(I) - f(I without the window)``, averaged over the windows that cover a pixel.

    What is covered becomes the mean image. The windows begin at the top left; those at the right and bottom edges may
    be smaller.

    Source:
        Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2.

    Args:
        problem: The image and the scores.
        window: The side of the window, as a share of the image's.
        stride: From one window to the next, likewise; at most the window.

    Raises:
        CamrtError: A setting is out of range.
    """
    check_range("window", window, 0.01, 1)
    check_range("stride", stride, 0.01, window)
    windows = list(windows_of(problem.size, window, stride))
    whole = np.zeros(0)
    sums = counts = np.zeros((1, *problem.size))
    place = iter(windows)
    for some, scores in problem.scored(_covering(problem.size, windows), len(windows) + 1):
        if not whole.size:  # the first mask covers nothing
            whole, some, scores = scores[0], some[1:], scores[1:]
            sums, counts = np.zeros((len(whole), *problem.size)), np.zeros(problem.size)
        for row, _ in zip(scores, some, strict=True):
            rows, columns = next(place)
            sums[:, rows, columns] += (whole - row)[:, None, None]
            counts[rows, columns] += 1
    return Attribution((sums / counts).astype(np.float32))


def windows_of(size: tuple[int, int], window: float, stride: float) -> Iterator[_Window]:
    """List the windows, row by row. Together they cover the image.

    Args:
        size: Height and width in pixels.
        window: The side, as a share of the image's.
        stride: From one to the next, likewise.
    """
    starts, sides = [], []
    for pixels in size:
        side, step = max(1, round(window * pixels)), max(1, round(stride * pixels))
        count = -(-max(0, pixels - side) // step) + 1
        starts.append([step * n for n in range(count)])
        sides.append(side)
    for y in starts[0]:
        for x in starts[1]:
            yield slice(y, y + sides[0]), slice(x, x + sides[1])


def _covering(size: tuple[int, int], windows: list[_Window]) -> Iterator[Floats]:
    """A mask that keeps all, then one that covers each window."""
    yield np.ones(size, np.float32)
    for window in windows:
        mask = np.ones(size, np.float32)
        mask[window] = 0
        yield mask

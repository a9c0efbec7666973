"""Maps that know nothing of the network: what a method must be better than."""

from __future__ import annotations

import zlib

import cv2
import numpy as np

from camrt.blackbox.methods import Attribution, Floats, Problem, black_box, check_range


@black_box("baseline-random", title="Random map", top=1)
def random_map(problem: Problem, *, seed: int = 0) -> Attribution:
    """A random number for each pixel.

    Source:
        The control of Samek et al.: Evaluating the Visualization of What a Deep Neural Network has Learned, TNNLS 2017.

    Args:
        problem: The image. Each has other numbers, and the same ones in each run.
        seed: The seed.
    """
    draw = np.random.default_rng([zlib.crc32(problem.pixels.tobytes()), seed])
    return _for_each_class(problem, draw.random(problem.size, np.float32))


@black_box("baseline-center", title="Centered Gaussian", top=1)
def centered(problem: Problem, *, sigma: float = 0.25) -> Attribution:
    """``exp(-(x^2 + y^2) / (2 sigma^2))`` around the center: photographers put things there.

    Source:
        The center baseline of Choe et al.: Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020.

    Args:
        problem: The image.
        sigma: The standard deviation, as a share of the image's side.

    Raises:
        CamrtError: The standard deviation is out of range.
    """
    check_range("sigma", sigma, 0.01, 10)
    rows, columns = (np.exp(-(((np.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * sigma**2)) for n in problem.size)
    return _for_each_class(problem, np.outer(rows, columns).astype(np.float32))


@black_box("baseline-edges", title="Edge filter", top=1)
def edges(problem: Problem) -> Attribution:
    """The magnitude of Sobel's filter on the gray image. Maps of pixels often look like it.

    Source:
        The edge detector of Adebayo et al.: Sanity Checks for Saliency Maps, NeurIPS 2018.

    Args:
        problem: The image.
    """
    gray = cv2.cvtColor(problem.pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, down = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    return _for_each_class(problem, cv2.magnitude(across, down).astype(np.float32, copy=False))


def _for_each_class(problem: Problem, heatmap: Floats) -> Attribution:
    """The same map for each class that is explained."""
    return Attribution(np.repeat(heatmap[None], problem.count, axis=0))

"""D-RISE: RISE for detectors, where the score is how well the detections under a mask match one of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camrt.blackbox.methods import BATCH, Attribution, Floats, Problem, black_box
from camrt.blackbox.rise import rise
from camrt.errors import CamrtError


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector finds in an image, or what is to be explained of it.

    Attributes:
        boxes: (n, 4): left, top, right, bottom, in any unit.
        classes: (n, K): the probability of each class.
        objectness: (n,): how sure the detector is of an object; None where it does not tell, which counts as 1.
    """

    boxes: NDArray[np.floating]
    classes: NDArray[np.floating]
    objectness: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        shapes = self.boxes.shape, self.classes.shape[:1], None if self.objectness is None else self.objectness.shape
        if (
            shapes[0] != (count, 4)
            or self.classes.ndim != 2
            or shapes[1] != (count,)
            or shapes[2] not in (None, (count,))
        ):
            raise CamrtError(
                f"found boxes of shape {shapes[0]}, classes of {self.classes.shape} and objectness of {shapes[2]}, "
                "expected (n, 4), (n, K) and (n,)"
            )


Detect = Callable[[Floats], Sequence[Detections]]


def drise(
    image: Floats,
    detect: Detect,
    targets: Detections,
    *,
    masks: int = 2000,
    cells: int = 16,
    keep: float = 0.5,
    seed: int = 0,
    batch: int = BATCH,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Attribution:
    """Explain detections: a map for each target.

    Petsiuk et al.: Black-box Explanation of Object Detectors via Saliency Maps, CVPR 2021. The weight of a mask is the
    highest `similarity` of a detection under it to the target. The paper takes 5000 masks of 16 x 16 cells.

    Args:
        image: (C, h, w) float32: the network's input, where 0 is what hides a pixel.
        detect: Images (n, C, h, w) -> the detections in each: before non-maximum suppression, or after it.
        targets: The detections to explain, in the same unit and classes.
        masks: As for `camrt.blackbox.rise.rise`; so are the arguments below.
        cells: Of the grid of a mask, in each direction.
        keep: The probability that a cell is kept.
        seed: The seed of the masks.
        batch: How many images the detector gets at once.
        progress: Called with how many masks were scored, and of how many.

    Returns:
        Maps (targets, h, w), with their standard errors.

    Raises:
        CamrtError: A setting is out of range, or the classes of targets and detections differ in number.
    """
    pixels = np.zeros((*image.shape[1:], 3), np.uint8)  # which RISE does not look at
    score = likeness(detect, targets)
    problem = Problem(image, pixels, score, len(targets.boxes), batch, progress)
    return detector_rise(problem, masks=masks, cells=cells, keep=keep, seed=seed)


@black_box("drise", title="D-RISE", top=1, sampled=True)
def detector_rise(
    problem: Problem, *, masks: int = 2000, cells: int = 16, keep: float = 0.5, seed: int = 0
) -> Attribution:
    """RISE of a detection: a mask counts by how well the detections under it match that of the image.

    Source:
        Petsiuk, Jain, Manjunatha, Morariu, Mehra, Ordonez, Saenko: Black-box Explanation of Object Detectors via
        Saliency Maps, CVPR 2021.

    Args:
        problem: The image, and the `likeness` as its scores.
        masks: The number of masks; the paper takes 5000.
        cells: A mask is enlarged from so many cells in each direction.
        keep: The probability that a cell is kept.
        seed: The seed of the masks.

    Raises:
        CamrtError: A setting is out of range.
    """
    return rise(problem, masks=masks, cells=cells, keep=keep, seed=seed)


def likeness(detect: Detect, targets: Detections) -> Callable[[Floats], NDArray[np.float64]]:
    """Make a function to be explained: images -> the highest `similarity` to each target, (n, targets)."""

    def score(images: Floats) -> NDArray[np.float64]:
        return np.stack([similarity(targets, found).max(axis=1, initial=0) for found in detect(images)])

    return score


def similarity(targets: Detections, found: Detections) -> NDArray[np.float64]:
    """Compare detections with targets: IoU, times the cosine of their class probabilities, times objectness.

    This is the similarity metric of Petsiuk et al. 2021.

    Args:
        targets: (m) detections.
        found: (n) detections.

    Returns:
        (m, n), 0..1.

    Raises:
        CamrtError: The numbers of classes differ.
    """
    if targets.classes.shape[1] != found.classes.shape[1]:
        raise CamrtError(
            f"found detections of {found.classes.shape[1]} classes, expected {targets.classes.shape[1]}, as the targets"
        )
    one, other = (np.asarray(each.boxes, np.float64) for each in (targets, found))
    corners = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(corners[1] - corners[0], 0).prod(axis=2)
    areas = [np.maximum(each[:, 2:] - each[:, :2], 0).prod(axis=1) for each in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    rows = [np.asarray(each.classes, np.float64) for each in (targets, found)]
    norms = np.outer(*(np.linalg.norm(each, axis=1) for each in rows))
    products = rows[0] @ rows[1].T
    alike = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    sure = 1.0 if found.objectness is None else np.asarray(found.objectness, np.float64)
    scores: NDArray[np.float64] = overlap * alike * sure
    return scores

"""What detectors' layers compute, written out in NumPy and double precision from their papers and sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

F = np.float32


# ------------------------------------------------------------------------------------------------------------ proposals


@dataclass(frozen=True)
class Proposals:
    """The parameters of a proposal layer, and whether it is py-faster-rcnn's or PVANET's."""

    stride: float = 16
    base: float = 16
    ratios: Sequence[float] = (0.5, 1, 2)
    scales: Sequence[float] = (8, 16, 32)
    candidates: int = 6000
    keep: int = 300
    threshold: float = 0.7
    least: float = 16
    is_python: bool = True

    @property
    def anchors(self) -> int:
        return len(self.ratios) * len(self.scales)

    def rounded(self, value: float) -> float:
        """NumPy rounds halves to even numbers; PVANET rounds them up."""
        return float(np.round(value)) if self.is_python else math.floor(value + 0.5)

    def find(
        self, scores: np.ndarray, deltas: np.ndarray, info: np.ndarray, extra: float = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The proposals' boxes, (R, 4), and scores, (R,); a box is ``extra`` longer than its corners are apart."""
        height, width = scores.shape[2:]
        boxes, values = np.zeros((height, width, self.anchors, 4)), np.zeros((height, width, self.anchors))
        x0, y0 = (self.base / 2 + self.stride * index for index in np.meshgrid(np.arange(width), np.arange(height)))
        last = info[0, [1, 0, 1, 0]].astype(float) - 1
        least = self.least * info[0, [2, 2] if self.is_python or info.shape[1] < 4 else [3, 2]].astype(float)
        for index in range(self.anchors):
            ratio, scale = self.ratios[index // len(self.scales)], self.scales[index % len(self.scales)]
            narrow = self.rounded(math.sqrt(self.base**2 / ratio))
            w, h = narrow * scale, self.rounded(narrow * ratio) * scale
            dx, dy, dw, dh = deltas[0, 4 * index : 4 * index + 4].astype(float)
            x, y, w, h = x0 + dx * w, y0 + dy * h, np.exp(dw) * w, np.exp(dh) * h
            found = np.clip(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1), 0, last)
            is_small = (found[..., 2:] - found[..., :2] + 1 < least).any(axis=-1)
            boxes[:, :, index] = found
            values[:, :, index] = np.where(is_small, -1 if self.is_python else 0, scores[0, self.anchors + index])
        flat, order = values.ravel(), np.argsort(-values.ravel(), kind="stable")
        order = order[flat[order] >= 0][: self.candidates or None]
        kept = suppressed(boxes.reshape(-1, 4)[order], self.threshold, keep=self.keep, extra=extra)
        return boxes.reshape(-1, 4)[order][kept], flat[order][kept]


def suppressed(boxes: np.ndarray, threshold: float, *, keep: int = 0, extra: float = 0, at: bool = False) -> list[int]:
    """Which boxes, (n, 4) corners, best first, stay when those go that overlap a better one by more.

    Args:
        boxes: The boxes.
        threshold: Of intersection over union.
        keep: How many stay at most; 0 for all.
        extra: How much longer a box is than its corners are apart.
        at: Boxes that overlap by the threshold itself go, too.
    """
    left, kept = np.arange(len(boxes)), []
    areas = (boxes[:, 2:] - boxes[:, :2] + extra).prod(axis=1)
    while len(left) and not (keep and len(kept) == keep):
        best, left = left[0], left[1:]
        kept.append(int(best))
        inner = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2]) + extra
        both = np.maximum(inner, 0).prod(axis=1)
        overlap = both / (areas[best] + areas[left] - both)
        left = left[overlap < threshold if at else overlap <= threshold]
    return kept


# -------------------------------------------------------------------------------------------------------------- regions


def roi_pooled(x: np.ndarray, rois: np.ndarray, bins: tuple[int, int], scale: float) -> np.ndarray:
    """Fast R-CNN's pooling (R, C, *bins); C's round() goes away from zero at halves."""
    height, width = x.shape[2:]
    pooled = np.zeros((len(rois), x.shape[1], *bins), np.float32)
    for index, (image, *corners) in enumerate(rois):
        left, top, right, bottom = (int(math.copysign(math.floor(abs(c * scale) + 0.5), c)) for c in corners)
        size = (F(max(bottom - top + 1, 1)) / F(bins[0]), F(max(right - left + 1, 1)) / F(bins[1]))
        for row, column in np.ndindex(*bins):
            rows = [
                min(max(edge + top, 0), height)
                for edge in (math.floor(F(row) * size[0]), math.ceil(F(row + 1) * size[0]))
            ]
            columns = [
                min(max(edge + left, 0), width)
                for edge in (math.floor(F(column) * size[1]), math.ceil(F(column + 1) * size[1]))
            ]
            window = x[int(image), :, slice(*rows), slice(*columns)]
            if window.size:
                pooled[index, :, row, column] = window.max(axis=(1, 2))
    return pooled


def psroi_pooled(maps: np.ndarray, rois: np.ndarray, scale: float, outputs: int, group: int) -> np.ndarray:
    """R-FCN's averages, (R, outputs, group, group); the bins' edges in single precision, as the fork has them."""
    answer = np.zeros((len(rois), outputs, group, group))
    images, _, height, width = maps.shape
    split = maps.astype(float).reshape(images, outputs, group, group, height, width)
    for index, roi in enumerate(rois):
        bins = []
        for low, high, size in ((roi[1], roi[3], width), (roi[2], roi[4], height)):
            start = F(math.copysign(math.floor(abs(low) + 0.5), low)) * F(scale)
            end = F(math.copysign(math.floor(abs(high) + 0.5), high) + 1) * F(scale)
            one = max(end - start, F(0.1)) / F(group)
            begins = [min(max(math.floor(F(step) * one + start), 0), size) for step in range(group)]
            ends = [min(max(math.ceil(F(step + 1) * one + start), 0), size) for step in range(group)]
            bins.append(list(zip(begins, ends, strict=True)))
        for row, column in np.ndindex(group, group):
            (left, right), (top, bottom) = bins[0][column], bins[1][row]
            if top < bottom and left < right:
                cut = split[int(roi[0]), :, row, column, top:bottom, left:right]
                answer[index, :, row, column] = cut.mean(axis=(1, 2))
    return answer.astype(F)


# ----------------------------------------------------------------------------------------------------------------- YOLO


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def yolo_predictions(
    maps: np.ndarray, anchors: Sequence[tuple[float, float]], image: Sequence[float], threshold: float, version: int
) -> np.ndarray:
    """One image's boxes above the threshold, each class on its own: rows of score, label, x, y, width, height.

    Args:
        maps: (A * (5 + classes), H, W).
        anchors: Their widths and heights, in units of ``image``.
        image: Its width and height.
        threshold: Scores must be above, or for version 2 not below.
        version: 2 for softmax, 3 for sigmoids.
    """
    height, width = maps.shape[1:]
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    found = []
    for one, (anchor_width, anchor_height) in zip(
        maps.astype(float).reshape(len(anchors), -1, height, width), anchors, strict=True
    ):
        box = [
            (column + sigmoid(one[0])) / width,
            (row + sigmoid(one[1])) / height,
            np.exp(one[2]) * anchor_width / image[0],
            np.exp(one[3]) * anchor_height / image[1],
        ]
        classes = sigmoid(one[5:]) if version == 3 else np.exp(one[5:]) / np.exp(one[5:]).sum(axis=0)
        for label, score in enumerate(sigmoid(one[4]) * classes):
            is_found = score > threshold if version == 3 else (score >= threshold) & (classes.argmax(axis=0) == label)
            columns = [score, np.full_like(score, label + 1), *box]
            found.append(np.stack([values[is_found] for values in columns], axis=1))
    return np.concatenate(found)


def yolo_rows(by_image: Sequence[np.ndarray], overlap: float) -> np.ndarray:
    """The layer's rows, (1, 1, rows, 7), of each image's predictions: suppression does not ask for the class."""
    rows = []
    for image, found in enumerate(by_image):
        score, label, x, y, width, height = found[np.argsort(-found[:, 0], kind="stable")].T
        boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
        kept = suppressed(boxes, overlap, at=True)
        rows += [[image, label[index], score[index], *boxes[index]] for index in kept]
    return np.array(rows or [[image, *[-1] * 6] for image in range(len(by_image))], F)[None, None]

"""Losses and Accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.registry import Operation, Place, builds, in_full
from converters.schema.caffe_pb2 import HingeLossParameter, LossParameter
from converters.shape import show

_MOST = -math.log(torch.finfo(torch.float32).tiny)  # Caffe's largest loss of one value: probabilities stop at FLT_MIN
_LEAST_PROBABILITY = 1e-20  # MultinomialLogisticLoss's


@builds("SoftmaxWithLoss")
def softmax_with_loss(place: Place) -> Operation:
    """-log of the label's softmax probability, over the number of labels; a second top has the probabilities."""
    place.layer.expect(bottoms=2, tops=range(1, 3))
    axis = place.axis(place.layer.params.softmax_param.axis)
    _check_labels(place, axis)
    ignored = _ignored(place)
    mode = _mode(place, default=LossParameter.VALID)
    has_probabilities = len(place.layer.tops) == 2

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        scores, labels = _class_second(bottoms[0], axis), _labels(bottoms[1], bottoms[0], axis)
        each = functional.cross_entropy(in_full(scores), labels, reduction="none", ignore_index=ignored)
        # The value stops there, the gradient does not. Subtracting what is too much would lose it to rounding.
        each = each.where(each.detach() <= _MOST, each - each.detach() + _MOST)
        loss = each.sum() / _normalizer(mode, labels, ignored, bottoms[0].shape[:axis].numel())
        return [loss, functional.softmax(bottoms[0], axis)] if has_probabilities else [loss]

    return Operation(forward)


@builds("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy_loss(place: Place) -> Operation:
    """The cross entropy of sigmoid probabilities and targets from 0 to 1, over the batch's size."""
    place.layer.expect(bottoms=2, tops=1)
    _check_same(place)
    ignored = _ignored(place)
    mode = _mode(place, default=LossParameter.BATCH_SIZE)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        scores = in_full(bottoms[0])
        targets = in_full(bottoms[1]).detach().to(scores.dtype).reshape(scores.shape)
        each = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        kept = targets.long() != ignored
        return each.where(kept, 0).sum() / _count(mode, kept, each.shape[0])

    return Operation(forward)


@builds("EuclideanLoss")
def euclidean_loss(place: Place) -> Operation:
    """Half the sum of squared differences, over the batch's size. Both bottoms take a gradient."""
    place.layer.expect(bottoms=2, tops=1)
    _check_same(place)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        a, b = bottoms
        return (in_full(a) - in_full(b).reshape(a.shape)).square().sum() / (2 * a.shape[0])

    return Operation(forward)


@builds("HingeLoss")
def hinge_loss(place: Place) -> Operation:
    """The margins of a one-against-all classifier that are violated, or their squares, over the batch's size."""
    place.layer.expect(bottoms=2, tops=1)
    is_l2 = place.layer.params.hinge_loss_param.norm == HingeLossParameter.L2

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        scores, labels = in_full(bottoms[0]).flatten(1), bottoms[1].long().reshape(-1, 1)
        signs = torch.ones_like(scores).scatter_(1, labels, -1)
        margins = functional.relu(1 + signs * scores)
        return (margins.square() if is_l2 else margins).sum() / scores.shape[0]

    return Operation(forward)


@builds("MultinomialLogisticLoss")
def multinomial_logistic_loss(place: Place) -> Operation:
    """-log of the label's probability, over the batch's size."""
    place.layer.expect(bottoms=2, tops=1)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        probabilities, labels = in_full(bottoms[0]).flatten(1), bottoms[1].long().reshape(-1, 1)
        return -probabilities.gather(1, labels).clamp(min=_LEAST_PROBABILITY).log().mean()

    return Operation(forward)


@builds("ContrastiveLoss")
def contrastive_loss(place: Place) -> Operation:
    """Like pairs together, unlike pairs a margin apart (Hadsell et al. 2006), over twice the number of pairs."""
    place.layer.expect(bottoms=3, tops=1)
    param = place.layer.params.contrastive_loss_param

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        a, b, alike = bottoms
        squares = (in_full(a) - in_full(b)).square().flatten(1).sum(1)
        gaps = param.margin - squares if param.legacy_version else param.margin - _root(squares)
        unlike = functional.relu(gaps) if param.legacy_version else functional.relu(gaps).square()
        return torch.where(alike.reshape(-1).long() != 0, squares, unlike).sum() / (2 * a.shape[0])

    return Operation(forward)


def _root(squares: Tensor) -> Tensor:
    """The square root, without an infinite gradient at 0."""
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()


@builds("Accuracy")
def accuracy(place: Place) -> Operation:
    """The share of labels among the top_k classes; a second top has that of each class. No gradient.

    A class that scores as high as the label's counts as better.
    """
    place.layer.expect(bottoms=2, tops=range(1, 3))
    param = place.layer.params.accuracy_param
    axis = place.axis(param.axis)
    _check_labels(place, axis)
    ignored = param.ignore_label if param.HasField("ignore_label") else _NONE
    classes = place.shapes[0][axis]
    if not 1 <= param.top_k <= classes:
        raise place.error(f"found top_k {param.top_k}, expected 1 to {classes}, the number of classes")
    has_classes = len(place.layer.tops) == 2

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        scores = _class_second(bottoms[0].detach(), axis)
        labels = _labels(bottoms[1], bottoms[0], axis)
        counted = labels != ignored
        labels = labels.where(counted, 0)
        better = (scores >= scores.gather(1, labels.unsqueeze(1))).sum(1) - 1
        right = ((better < param.top_k) & counted).float()
        overall = right.sum() / counted.sum().clamp(min=1)
        if not has_classes:
            return [overall]
        found, total = (
            torch.zeros(classes, device=scores.device).index_add_(0, labels.flatten(), values.flatten())
            for values in (right, counted.float())
        )
        return [overall, found / total.clamp(min=1)]

    return Operation(forward)


# --------------------------------------------------------------------------------------------------------------- labels

_NONE = -(2**31)  # a label that nothing has


def _ignored(place: Place) -> int:
    param = place.layer.params.loss_param
    return param.ignore_label if param.HasField("ignore_label") else _NONE


def _class_second(scores: Tensor, axis: int) -> Tensor:
    """(N, classes, ...) of scores with their classes at an axis, where PyTorch wants them."""
    return scores if axis == 1 else scores.movedim(axis, 1) if axis > 1 else scores.unsqueeze(0)


def _labels(labels: Tensor, scores: Tensor, axis: int) -> Tensor:
    """The labels as whole numbers, in the shape of the scores without their classes."""
    before = scores.shape[:axis] or (1,)
    return labels.detach().long().reshape(*before, *scores.shape[axis + 1 :])


def _check_labels(place: Place, axis: int) -> None:
    scores, labels = place.shapes[:2]
    expected = math.prod(scores[:axis]) * math.prod(scores[axis + 1 :])
    if math.prod(labels) != expected:
        raise place.error(f"found labels of {show(labels)} for scores of {show(scores)}, expected {expected} of them")


def _check_same(place: Place) -> None:
    a, b = place.shapes
    if math.prod(a) != math.prod(b):
        raise place.error(f"found {show(a)} and {show(b)}, expected bottoms of the same size")


# -------------------------------------------------------------------------------------------------------- normalization


def _mode(place: Place, *, default: int) -> int:
    """What the sum is divided by: `normalization`, or its old form `normalize`."""
    param = place.layer.params.loss_param
    if param.HasField("normalization"):
        return param.normalization
    if param.HasField("normalize"):
        return LossParameter.VALID if param.normalize else LossParameter.BATCH_SIZE
    return default


def _normalizer(mode: int, labels: Tensor, ignored: int, batch: int) -> Tensor | int:
    if ignored == _NONE and mode == LossParameter.VALID:
        return max(1, labels.numel())
    return _count(mode, labels != ignored, batch)


def _count(mode: int, kept: Tensor, batch: int) -> Tensor | int:
    """How many values, at least 1: all, those that are not ignored, the batch's items, or 1."""
    if mode == LossParameter.VALID:
        return kept.sum().clamp(min=1)
    counts: dict[int, int] = {LossParameter.FULL: kept.numel(), LossParameter.BATCH_SIZE: batch}
    return max(1, counts.get(mode, 1))

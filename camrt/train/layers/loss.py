"""Losses and Accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.registry import LayerContext, Operation, builds, upcast
from converters.schema.caffe_pb2 import HingeLossParameter, LossParameter
from converters.shape import show

_LARGEST_LOSS = -math.log(torch.finfo(torch.float32).tiny)  # of one value: Caffe clips probabilities at FLT_MIN
_SMALLEST_PROBABILITY = 1e-20  # where MultinomialLogisticLoss clips probabilities


@builds("SoftmaxWithLoss")
def softmax_with_loss(context: LayerContext) -> Operation:
    """-log(softmax probability of the label), averaged over the labels. A second top holds the probabilities."""
    context.layer.expect(bottoms=2, tops=range(1, 3))
    axis = context.axis(context.layer.params.softmax_param.axis)
    _check_labels(context, axis)
    ignored = _ignored(context)
    mode = _mode(context, default=LossParameter.VALID)
    has_probabilities = len(context.layer.tops) == 2

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        scores, labels = _classes_second(bottoms[0], axis), _labels(bottoms[1], bottoms[0], axis)
        each = functional.cross_entropy(upcast(scores), labels, reduction="none", ignore_index=ignored)
        # Clip the value, but not the gradient. Subtracting the excess from the value would lose digits.
        each = each.where(each.detach() <= _LARGEST_LOSS, each - each.detach() + _LARGEST_LOSS)
        loss = each.sum() / _normalizer(mode, labels, ignored, bottoms[0].shape[:axis].numel())
        return [loss, functional.softmax(bottoms[0], axis)] if has_probabilities else [loss]

    return Operation(forward)


@builds("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy_loss(context: LayerContext) -> Operation:
    """Cross entropy of sigmoid probabilities and targets from 0 to 1, divided by the batch size."""
    context.layer.expect(bottoms=2, tops=1)
    _check_same(context)
    ignored = _ignored(context)
    mode = _mode(context, default=LossParameter.BATCH_SIZE)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        scores = upcast(bottoms[0])
        targets = upcast(bottoms[1]).detach().to(scores.dtype).reshape(scores.shape)
        each = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        kept = targets.long() != ignored
        return each.where(kept, 0).sum() / _count(mode, kept, each.shape[0])

    return Operation(forward)


@builds("EuclideanLoss")
def euclidean_loss(context: LayerContext) -> Operation:
    """Half the sum of squared differences, divided by the batch size. Both bottoms receive a gradient."""
    context.layer.expect(bottoms=2, tops=1)
    _check_same(context)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        a, b = bottoms
        return (upcast(a) - upcast(b).reshape(a.shape)).square().sum() / (2 * a.shape[0])

    return Operation(forward)


@builds("HingeLoss")
def hinge_loss(context: LayerContext) -> Operation:
    """Hinge loss of a one-vs-all classifier, or its square, divided by the batch size."""
    context.layer.expect(bottoms=2, tops=1)
    is_l2 = context.layer.params.hinge_loss_param.norm == HingeLossParameter.L2

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        scores, labels = upcast(bottoms[0]).flatten(1), bottoms[1].long().reshape(-1, 1)
        signs = torch.ones_like(scores).scatter_(1, labels, -1)
        margins = functional.relu(1 + signs * scores)
        return (margins.square() if is_l2 else margins).sum() / scores.shape[0]

    return Operation(forward)


@builds("MultinomialLogisticLoss")
def multinomial_logistic_loss(context: LayerContext) -> Operation:
    """-log(probability of the label), divided by the batch size."""
    context.layer.expect(bottoms=2, tops=1)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        probabilities, labels = upcast(bottoms[0]).flatten(1), bottoms[1].long().reshape(-1, 1)
        return -probabilities.gather(1, labels).clamp(min=_SMALLEST_PROBABILITY).log().mean()

    return Operation(forward)


@builds("ContrastiveLoss")
def contrastive_loss(context: LayerContext) -> Operation:
    """Contrastive loss of similar and dissimilar pairs (Hadsell et al. 2006), divided by twice the number of pairs."""
    context.layer.expect(bottoms=3, tops=1)
    param = context.layer.params.contrastive_loss_param

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        a, b, alike = bottoms
        squares = (upcast(a) - upcast(b)).square().flatten(1).sum(1)
        gaps = param.margin - squares if param.legacy_version else param.margin - _safe_sqrt(squares)
        unlike = functional.relu(gaps) if param.legacy_version else functional.relu(gaps).square()
        return torch.where(alike.reshape(-1).long() != 0, squares, unlike).sum() / (2 * a.shape[0])

    return Operation(forward)


def _safe_sqrt(squares: Tensor) -> Tensor:
    """Return the square root, without an infinite gradient at 0."""
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()


@builds("Accuracy")
def accuracy(context: LayerContext) -> Operation:
    """The fraction of labels among the top_k classes. A second top holds that of each class. No gradient.

    A class with the same score as the label's class ranks before it.
    """
    context.layer.expect(bottoms=2, tops=range(1, 3))
    param = context.layer.params.accuracy_param
    axis = context.axis(param.axis)
    _check_labels(context, axis)
    ignored = param.ignore_label if param.HasField("ignore_label") else _NO_LABEL
    classes = context.shapes[0][axis]
    if not 1 <= param.top_k <= classes:
        raise context.error(f"found top_k {param.top_k}, expected 1 to {classes}, the number of classes")
    has_classes = len(context.layer.tops) == 2

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        scores = _classes_second(bottoms[0].detach(), axis)
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

_NO_LABEL = -(2**31)  # a label that never occurs


def _ignored(context: LayerContext) -> int:
    param = context.layer.params.loss_param
    return param.ignore_label if param.HasField("ignore_label") else _NO_LABEL


def _classes_second(scores: Tensor, axis: int) -> Tensor:
    """Move the classes from an axis to the second one, where PyTorch expects them."""
    return scores if axis == 1 else scores.movedim(axis, 1) if axis > 1 else scores.unsqueeze(0)


def _labels(labels: Tensor, scores: Tensor, axis: int) -> Tensor:
    """Return the labels as integers, in the shape of the scores without the axis of the classes."""
    before = scores.shape[:axis] or (1,)
    return labels.detach().long().reshape(*before, *scores.shape[axis + 1 :])


def _check_labels(context: LayerContext, axis: int) -> None:
    scores, labels = context.shapes[:2]
    expected = math.prod(scores[:axis]) * math.prod(scores[axis + 1 :])
    if math.prod(labels) != expected:
        raise context.error(f"found labels of {show(labels)} for scores of {show(scores)}, expected {expected} labels")


def _check_same(context: LayerContext) -> None:
    a, b = context.shapes
    if math.prod(a) != math.prod(b):
        raise context.error(f"found {show(a)} and {show(b)}, expected bottoms of the same size")


# -------------------------------------------------------------------------------------------------------- normalization


def _mode(context: LayerContext, *, default: int) -> int:
    """Return the divisor of the sum: `normalization`, or its old form `normalize`."""
    param = context.layer.params.loss_param
    if param.HasField("normalization"):
        return param.normalization
    if param.HasField("normalize"):
        return LossParameter.VALID if param.normalize else LossParameter.BATCH_SIZE
    return default


def _normalizer(mode: int, labels: Tensor, ignored: int, batch: int) -> Tensor | int:
    if ignored == _NO_LABEL and mode == LossParameter.VALID:
        return max(1, labels.numel())
    return _count(mode, labels != ignored, batch)


def _count(mode: int, kept: Tensor, batch: int) -> Tensor | int:
    """Return the divisor, at least 1: the number of all values, of values that are not ignored, of items, or 1."""
    if mode == LossParameter.VALID:
        return kept.sum().clamp(min=1)
    counts: dict[int, int] = {LossParameter.FULL: kept.numel(), LossParameter.BATCH_SIZE: batch}
    return max(1, counts.get(mode, 1))

"""The scores that are explained, and the logits before their Softmax."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import TensorProto

from camrt.classes import alike
from camrt.errors import CamrtError
from camrt.graph.view import QUANTIZING, GraphView, Shape, attributes_of, control_flow, operator_of, quoted, type_name

# Operators between the last activation and the output that change neither the scores nor their order.
_SHAPING = {"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", *QUANTIZING}
_ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Scores:
    """A tensor with a score for each class.

    Attributes:
        output: The tensor: N rows of ``classes`` numbers; it may have more axes, of size 1.
        logits: The tensor that is differentiated: the one before the activation, or ``output`` if there is none.
        activation: The activation between ``logits`` and ``output``: ``"Softmax"``, ``"LogSoftmax"``, ``"Sigmoid"`` or
            ``""``.
        classes: The number of scores of an image.
    """

    output: str
    logits: str
    activation: str
    classes: int

    def describe(self) -> str:
        """Describe the choice in a sentence."""
        before = f" before their {self.activation}" if self.activation else ""
        return f"scores {self.output!r} of {self.classes} classes; explained is {self.logits!r}{before}"


def find_scores(view: GraphView, tensor: str | None = None) -> Scores:
    """Find the scores of a classifier.

    A score is differentiated before the Softmax, as Selvaraju et al. (2017, section 3) define y^c. After the Softmax,
    the gradient of a confident answer vanishes, and it depends on the other classes as well.

    Args:
        view: The model.
        tensor: The tensor that is explained; by default, the last output with one row of scores for each image.

    Raises:
        CamrtError: There is no such tensor, or it has no row of scores for an image.
    """
    if tensor is not None:
        check_tensor(view, tensor, "scores")
        classes = row_of(view.shapes.get(tensor))
        if classes is None:
            raise CamrtError(
                f"found the scores {tensor!r} of shape {shown(view.shapes.get(tensor))}, expected N x classes. To "
                "explain the sum of all its values, ask for the target 'sum'"
            )
        return scores_at(view, tensor, classes)
    for output in reversed(view.outputs):
        classes = row_of(view.shapes.get(output))
        if classes is not None and output in view.producers and view.types.get(output) in FLOATS:
            return scores_at(view, output, classes)
    found = ", ".join(f"{name!r} {shown(view.shapes.get(name))}" for name in view.outputs)
    hidden = control_flow(view.needed_for(view.outputs))
    raise CamrtError(
        f"the model has no output of scores, found {found}, expected N x classes, float32"
        f"{f'. Control flow may hide its shape: {hidden}' if hidden else ''}. Name the tensor: --scores, "
        "and --target sum where it is no row of classes. Of a segmentation: --target segment:CLASS; of a detector: "
        "--detections says what its outputs are (docs/detectors.md)"
    )


def find_segments(view: GraphView, tensor: str | None = None) -> Scores:
    """Find the scores of a network for segmentation: a row of scores for each pixel.

    Args:
        view: The model.
        tensor: The tensor that is explained; by default, the first output with scores for each pixel.

    Returns:
        Scores whose tensors are (N, classes, h, w).

    Raises:
        CamrtError: There is no such tensor, or it has another form.
    """
    if tensor is not None:
        check_tensor(view, tensor, "scores")
    for output in view.outputs if tensor is None else [tensor]:
        shape = view.shapes.get(output)
        if output not in view.producers or view.types.get(output) not in FLOATS or not _is_dense(shape):
            continue
        assert shape is not None
        assert isinstance(shape[1], int)
        found = scores_at(view, output, shape[1])
        same = view.shapes.get(found.logits, ())[1:] == shape[1:]
        return found if same else Scores(output, output, "", shape[1])
    listed = ", ".join(f"{name!r} {shown(view.shapes.get(name))}" for name in ([tensor] if tensor else view.outputs))
    raise CamrtError(
        f"found {listed}, expected scores for each pixel, N x classes x height x width in floating point. Where the "
        "model gives the number of the best class, name the tensor before that: --scores"
    )


def _is_dense(shape: Shape | None) -> bool:
    """Whether a shape is that of scores for each pixel: channels first, more than one pixel."""
    return shape is not None and len(shape) == 4 and isinstance(shape[1], int) and shape[2:] != (1, 1)


def row_of(shape: Shape | None) -> int | None:
    """The number of scores in a row, of a shape like N x K or N x K x 1 x 1; None where it has another form."""
    if shape is None or len(shape) < 2 or any(size != 1 for size in shape[2:]):
        return None
    return shape[1] if isinstance(shape[1], int) and shape[1] > 1 else None


def check_tensor(view: GraphView, tensor: str, role: str) -> None:
    """Check that a named tensor is one that the network computes in floating point.

    Raises:
        CamrtError: There is no such tensor (the text lists similar names), or it holds integers.
    """
    if tensor not in view.producers:
        raise CamrtError(
            f"found the {role} {quoted(tensor)}, expected a tensor of the model"
            f"{alike(tensor, list(view.producers)) or ': ' + few(view.producers)}"
        )
    kind = view.types.get(tensor, TensorProto.FLOAT)
    if kind not in FLOATS:
        raise CamrtError(
            f"found the {role} {tensor!r} of type {type_name(kind)}, expected floating point: "
            "integers have no gradient, and are no features"
        )


def few(names: Iterable[str], most: int = 6) -> str:
    """The last of many names: scores and features are near the end."""
    listed = list(names)
    return ("..., " if len(listed) > most else "") + ", ".join(listed[-most:])


def shown(shape: Shape | None) -> str:
    """A shape for people: ``N x 3 x 224 x 224``."""
    return (
        "unknown" if shape is None else " x ".join("?" if size is None else str(size) for size in shape) or "a number"
    )


def scores_at(view: GraphView, output: str, classes: int) -> Scores:
    """Find the logits before the activation of scores.

    Args:
        view: The model.
        output: The tensor of scores.
        classes: How many scores an image has.
    """
    tensor = output
    while (node := view.producers.get(tensor)) is not None and operator_of(node) in _SHAPING:
        tensor = node.input[0]
    if node is None or operator_of(node) not in _ACTIVATIONS or not _over_classes(view, tensor, attributes_of(node)):
        return Scores(output, output, "", classes)
    return Scores(output, node.input[0], node.op_type, classes)


def _over_classes(view: GraphView, tensor: str, attributes: dict[str, object]) -> bool:
    """Whether an activation works along the row of classes, as far as its axis tells."""
    shape, axis = view.shapes.get(tensor), attributes.get("axis", -1)
    if shape is None or not isinstance(axis, int) or len(shape) <= 2:
        return True
    return shape[axis % len(shape)] != 1

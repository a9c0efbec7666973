"""Check a network against reference outputs of another program.

The reference is one of

* what the authors of googlenetCAM released with their demo: its features on an image, the weights of its classifier,
  and its scores (`released`),
* a file of one's own, ``.mat`` as MATLAB writes it or ``.npz`` (`read_reference`),
* OpenCV 4's importer of Caffe networks, on random input (`converters.verification`), where there is neither.

Features, scores and maps are those of the ten crops of one image, as `prepare_image.m` cuts them. Some of the released
data have the crops in another order; `crop_order` finds that out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from converters import metadata
from converters.errors import install, printable

if TYPE_CHECKING:
    import onnx
    from rich.table import Table

    from camrt.engines.engine import Providers
    from converters.verification import Comparison

Verdict: TypeAlias = Literal["same", "close", "DIFFERS", "not compared"]

# Of the largest value. Networks on other libraries differ by 1e-5; a decoder of JPEG that rounds otherwise makes 1e-2.
SAME, CLOSE = 1e-4, 5e-2
SAME_DIRECTION, CLOSE_DIRECTION = 1 - 1e-6, 0.999  # cosine
RELEASED_FOR = ("googlenetCAM",)
TOP = 5

CropOrder: TypeAlias = Literal["prepare_image", "exchanged", "unknown"]
EXCHANGED = (0, 2, 1, 3, 4, 5, 7, 6, 8, 9)  # the top right corner before the bottom left one
CLEAR_ORDER = 0.2  # by how much the correlations must differ; it is 0.6 in the released features

_KEYS = {
    "features": ("features", "activation_lastconv"),
    "weights": ("weights", "weights_LR"),
    "scores": ("scores",),
    "cams": ("cams",),
    "top": ("top5", "classes", "top5_index0"),
    "sample_index": ("sample_index",),
    "sample_value": ("sample_value",),
}
_READ = ", ".join(dict.fromkeys(name for names in _KEYS.values() for name in names))


@dataclass(frozen=True, eq=False)
class Answers:
    """The outputs of a network for the ten crops of an image; None where they are not known.

    Attributes:
        source: Where it comes from, for people.
        features: (10, C, h, w): what its global pooling reads.
        weights: (K, C): its linear layer, without the bias.
        scores: (10, K): a row a crop.
        cams: (10, top, h, w): the class activation maps of ``top``.
        top: (top,): the classes that ``cams`` are of.
        sample_index: (S,): places in the flat features, where not all of them were kept.
        sample_value: (S,): the features there.
    """

    source: str
    features: NDArray[Any] | None = None
    weights: NDArray[Any] | None = None
    scores: NDArray[Any] | None = None
    cams: NDArray[Any] | None = None
    top: NDArray[Any] | None = None
    sample_index: NDArray[Any] | None = None
    sample_value: NDArray[Any] | None = None


@dataclass(frozen=True)
class Check:
    """The comparison of one array.

    Attributes:
        name: What was compared.
        shape: Its shape in the reference.
        largest: The largest magnitude in the reference.
        difference: The largest difference; infinite where the shapes differ or something is not a number.
        cosine: Of the angle between the two; None where it is not known.
        common: How many of the best classes are the same, and of how many; None where there are no classes.
        verdict: ``"same"``: as two libraries of linear algebra differ; ``"close"``: as two decoders of images do;
            ``"DIFFERS"``; or ``"not compared"``.
        remark: Why.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    difference: float
    cosine: float | None
    common: tuple[int, int] | None = None
    verdict: Verdict = "DIFFERS"
    remark: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "difference": self.difference if math.isfinite(self.difference) else None}


@dataclass(frozen=True)
class Report:
    """The comparison of a network with a reference.

    Attributes:
        name: The network.
        against: What it was compared with.
        checks: One a thing.
        order: The order of the reference's crops, as `crop_order` found it; None where it has no features.
    """

    name: str
    against: str
    checks: tuple[Check, ...]
    order: CropOrder | None = None

    @property
    def note(self) -> str:
        """A remark on the order of the reference's crops, or an empty string."""
        if self.order == "exchanged":
            return (
                "The reference has its crops in another order than prepare_image.m: 1 and 2 (bottom left and top "
                "right) are exchanged, and so are their mirror images 6 and 7. Each crop was compared with its "
                "counterpart."
            )
        if self.order == "unknown":
            return (
                "The order of the reference's crops cannot be told from its features. The order of prepare_image.m "
                "was assumed."
            )
        return ""

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing differs."""
        verdicts = {check.verdict for check in self.checks}
        return bool(verdicts & {"same", "close"}) and "DIFFERS" not in verdicts

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [check.as_dict() for check in self.checks]
        return {
            "name": self.name,
            "against": self.against,
            "passed": self.passed,
            "crop_order": self.order,
            "checks": checks,
        }

    def as_table(self) -> Table:
        """For a terminal."""
        from rich.table import Table

        columns = "", "shape", "largest value", "largest difference", "cosine", "top 5", "verdict"
        table = Table(*columns, box=None, pad_edge=False, caption=self.note or None, caption_justify="left")
        for check in self.checks:
            table.add_row(
                printable(check.name),
                " x ".join(map(str, check.shape)),
                f"{check.largest:.4g}",
                f"{check.difference:.2g}",
                "" if check.cosine is None else f"{check.cosine:.7f}",
                f"{check.common[0]} of {check.common[1]}" if check.common else "",
                printable(f"{check.verdict}: {check.remark}" if check.remark else check.verdict),
            )
        return table


# ---------------------------------------------------------------------------------------------------------- comparing


def compare(ours: Answers, reference: Answers, *, name: str = "") -> Report:
    """Compare the outputs of a network with a reference.

    Args:
        ours: The outputs of the network: features, weights and scores.
        reference: The expected outputs. If its crops are in another order, ours are put in that order.
        name: The network's name.

    Returns:
        A check for each of features, weights, scores and maps that the reference holds. The maps are made here, of our
        features and weights, for the reference's classes. The best classes are those of the mean scores.

    Raises:
        CamrtError: The reference holds nothing that ours has too.
    """
    order = None if reference.features is None else crop_order(reference.features)
    if order == "exchanged":
        ours = exchanged(ours)
    checks = list(_checks(ours, reference))
    if not checks:
        raise CamrtError(f"{reference.source} holds nothing to compare with, expected at least one of {_READ}")
    return Report(name or ours.source, reference.source, tuple(checks), order)


def crop_order(features: NDArray[Any]) -> CropOrder:
    """Find the order of the ten crops in the features of a network.

    The crops overlap, so that one corner's features are another's, moved. Moved down, those of the top left corner
    correlate with the bottom left one's (crop 1 of `prepare_image.m`); moved to the left, with the top right one's
    (crop 2). The released `data_img1.mat` has these two, and their mirror images, the other way round.

    Args:
        features: (10, C, h, w), real numbers.

    Returns:
        ``"prepare_image"``; ``"exchanged"`` if 1 and 2, and 6 and 7, are exchanged; ``"unknown"`` where the features do
        not tell: maps of fewer than 4 x 4 cells, or of nothing that moves.
    """
    if features.ndim != 4 or len(features) != 10 or min(features.shape[2:]) < 4:
        return "unknown"
    upright = features.astype(np.float64)
    upright[5:] = upright[5:, :, :, ::-1]
    pairs = [(start, start + 1, start + 2) for start in (0, 5)]
    as_cut = [_overlap(upright[a], upright[b], 0) + _overlap(upright[a], upright[c], 1) for a, b, c in pairs]
    swapped = [_overlap(upright[a], upright[c], 0) + _overlap(upright[a], upright[b], 1) for a, b, c in pairs]
    clear = (np.subtract(as_cut, swapped) / 2).tolist()
    if min(clear) > CLEAR_ORDER:
        return "prepare_image"
    return "exchanged" if max(clear) < -CLEAR_ORDER else "unknown"


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64], axis: int) -> float:
    """Correlate the features (C, h, w) of two crops, the second moved along an axis; the best of all distances."""
    first, second = (np.moveaxis(one, 1 + axis, 0) for one in (first, second))
    size = len(first)
    found = [0.0]
    for distance in range(1, size // 4 + 1):
        a, b = first[distance:].ravel(), second[: size - distance].ravel()
        a, b = a - a.mean(), b - b.mean()
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        found.append(float(a @ b) / lengths if 0 < lengths < math.inf else 0.0)
    return max(found)


def exchanged(found: Answers) -> Answers:
    """Exchange crops 1 and 2, and 6 and 7. Arrays that do not hold ten crops stay."""
    order = list(EXCHANGED)
    fields = {
        name: array[order]
        for name in ("features", "scores", "cams")
        if (array := getattr(found, name)) is not None and len(array) == len(order)
    }
    return dataclasses.replace(found, **fields)


def _checks(ours: Answers, reference: Answers) -> Iterator[Check]:
    if reference.features is not None and ours.features is not None:
        yield check("features", ours.features, reference.features)
    if reference.sample_value is not None and reference.sample_index is not None and ours.features is not None:
        yield _sample(ours.features, reference.sample_index.astype(np.int64).ravel(), reference.sample_value.ravel())
    if reference.weights is not None and ours.weights is not None:
        yield check("weights", ours.weights, reference.weights)
    if reference.scores is not None and ours.scores is not None:
        is_alike = ours.scores.shape == reference.scores.shape
        common = _common(ours.scores, reference.scores) if is_alike else None
        yield check("scores", ours.scores, reference.scores, common)
    if reference.cams is not None and ours.features is not None and ours.weights is not None:
        yield _maps(ours.features, ours.weights, reference.cams, _top(reference))


def _sample(features: NDArray[Any], places: NDArray[np.int64], values: NDArray[Any]) -> Check:
    if places.shape == values.shape and places.size and places.min() >= 0 and places.max() < features.size:
        return check("features, a sample", features.ravel()[places], values)
    remark = f"{places.size:,} places and {values.size:,} values do not fit our {features.size:,} features"
    return Check("features, a sample", values.shape, 0.0, math.inf, None, remark=remark)


def _maps(
    features: NDArray[Any], weights: NDArray[Any], reference: NDArray[Any], top: NDArray[np.int64] | None
) -> Check:
    from camrt.matlab import return_cam_map

    if top is None:
        remark = "the reference does not say of which classes (top5)"
        return Check("maps", reference.shape, 0.0, math.inf, None, verdict="not compared", remark=remark)
    if not top.size or top.min() < 0 or top.max() >= len(weights) or features.shape[1] != weights.shape[1]:
        remark = f"the reference's classes are {top.tolist()[:10]}, ours 0 to {len(weights) - 1}"
        return Check("maps", reference.shape, 0.0, math.inf, None, remark=remark)
    return check("maps", return_cam_map(features, weights[top]), reference)


def _top(reference: Answers) -> NDArray[np.int64] | None:
    """Return the classes of the reference's maps."""
    from camrt.matlab import top_classes

    if reference.top is not None:
        return reference.top.astype(np.int64).ravel()
    if reference.scores is not None and reference.cams is not None:
        return top_classes(reference.scores, reference.cams.shape[1])[0]
    return None


def check(name: str, ours: NDArray[Any], reference: NDArray[Any], common: tuple[int, int] | None = None) -> Check:
    """Compare two arrays.

    Args:
        name: What they are.
        ours: Any shape, real numbers.
        reference: The same shape.
        common: How many of the best classes are the same, and of how many, where they are scores.
    """
    largest = float(np.abs(reference).max(initial=0))
    if ours.shape != reference.shape:
        remark = f"found the shape {ours.shape}, expected {reference.shape}"
        return Check(name, reference.shape, largest, math.inf, None, remark=remark)
    a, b = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    worst = float(np.abs(a - b).max(initial=0))
    if not math.isfinite(worst) or not math.isfinite(largest):
        return Check(name, reference.shape, largest, math.inf, None, common, remark="not all are numbers")
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(np.clip(a @ b / lengths, -1, 1)) if lengths else 1.0 if not worst else 0.0
    return Check(name, reference.shape, largest, worst, cosine, common, _verdict(worst, largest, cosine, common))


def _verdict(worst: float, largest: float, cosine: float, common: tuple[int, int] | None) -> Verdict:
    if worst <= SAME * largest and cosine >= SAME_DIRECTION:
        return "same"
    # The last of the best five may change places with the sixth.
    is_alike = common is None or common[0] >= common[1] - 1
    return "close" if worst <= CLOSE * largest and cosine >= CLOSE_DIRECTION and is_alike else "DIFFERS"


def _common(ours: NDArray[Any], reference: NDArray[Any]) -> tuple[int, int]:
    """Count the best classes of the mean scores that are the same, in any order."""
    from camrt.matlab import top_classes

    top = min(TOP, ours.shape[-1])
    mine, theirs = (set(top_classes(scores, top)[0].tolist()) for scores in (ours, reference))
    return len(mine & theirs), top


# --------------------------------------------------------------------------------------------------------- references


def released(folder: Path, image: int = 1) -> Answers:
    """Read the outputs and the classifier that were released with the original demo.

    Args:
        folder: Where data_net.mat and data_img1.mat lie.
        image: 1 or 2. The features and scores of image 2 come from two different runs: take image 1 to check scores.

    Raises:
        CamrtError: A file is missing or cannot be read.
    """
    if image not in (1, 2):
        raise CamrtError(f"found image {image}, expected 1 or 2: the released features are of two images")
    cached = read_reference(folder / f"data_img{image}.mat")
    net = read_reference(folder / "data_net.mat")
    return dataclasses.replace(
        cached, weights=net.weights, source=f"the released features of img{image} and weights of data_net"
    )


def read_reference(path: Path) -> Answers:
    """Read a reference file.

    Args:
        path: ``.npz`` with features (10, C, h, w), weights (K, C), scores (10, K), cams (10, top, h, w) and top5
            (top,), or sample_index and sample_value: any of them. Or ``.mat`` with activation_lastconv, weights_LR,
            scores, as MATLAB stores what matcaffe gives: with the axes in the opposite order.

    Raises:
        CamrtError: The file cannot be read, or holds nothing of the kind.
    """
    if not path.is_file():
        raise CamrtError("there is no such file", file=str(path))
    is_mat = path.suffix == ".mat"
    try:
        arrays = _mat(path) if is_mat else _npz(path)
        found = {
            field: arrays[key] for field, keys in _KEYS.items() for key in keys[:: -1 if is_mat else 1] if key in arrays
        }
    except CamrtError:
        raise
    except Exception as error:  # of zipfile, zlib, pickle, scipy: whatever a broken file brings about
        raise CamrtError(f"cannot be read ({error}), expected .npz or .mat", file=str(path)) from error
    if not found:
        raise CamrtError(f"found {', '.join(sorted(arrays)) or 'nothing'}, expected any of {_READ}", file=str(path))
    wrong = [field for field, array in found.items() if array.dtype.kind not in "fiu"]
    if wrong:
        raise CamrtError(f"found {found[wrong[0]].dtype} in {wrong[0]}, expected numbers", file=str(path))
    if is_mat:
        found = {field: array.T for field, array in found.items()}
        if "scores" in found:  # 1 x 1 x K x 10 for a convolution, K x 10 for a linear layer
            found["scores"] = found["scores"].reshape(len(found["scores"]), -1)
    return Answers(source=str(path), **found)


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        wanted = {name for names in _KEYS.values() for name in names}
        return {name: archive[name] for name in archive.files if name in wanted}


def _mat(path: Path) -> Mapping[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise CamrtError(f"reading .mat files takes SciPy: {install('scipy')}", file=str(path)) from None
    return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}


# ------------------------------------------------------------------------------------------------------------ running


def answers(
    model: onnx.ModelProto,
    crops: NDArray[np.float32],
    *,
    source: str = "",
    providers: Providers | None = None,
) -> Answers:
    """Run a classifier on the crops of an image.

    Args:
        model: A classifier of any batch. Its features and linear layer are those that its metadata name, else they are
            found; where it has no head for class activation maps, only its scores are taken.
        crops: (10, 3, c, c) float32, as `crops_of` gives them.
        source: What to call it.
        providers: Where it runs; see `camrt.session.Session`.

    Raises:
        CamrtError: It does not run.
    """
    from onnx import TensorProto, helper

    from camrt.graph.head import find_head
    from camrt.graph.opening import open_model
    from camrt.graph.view import metadata_of
    from camrt.session import Session

    properties = metadata_of(model)
    is_named = metadata.FEATURES in properties
    try:
        head = find_head(open_model(model), properties.get(metadata.FEATURES), properties.get(metadata.CLASSIFIER))
    except CamrtError:
        if is_named:
            raise
        head = None
    if head is not None and head.features not in {output.name for output in model.graph.output}:
        extended = type(model)()
        extended.CopyFrom(model)
        extended.graph.output.append(helper.make_tensor_value_info(head.features, TensorProto.FLOAT, None))
        model = extended
    session = Session(model, providers=providers)
    found = session.run({next(iter(session.inputs)): crops})
    scores = found[head.scores if head is not None else list(session.outputs)[-1]].reshape(len(crops), -1)
    if head is None:
        return Answers(source, scores=scores)
    return Answers(source, features=found[head.features], weights=head.weights, scores=scores)


def crops_of(image: NDArray[np.uint8], mean: NDArray[Any], crop: int) -> NDArray[np.float32]:
    """Cut the ten crops of an image, as `demo.m` does.

    Args:
        image: (H, W, 3) uint8 RGB.
        mean: (256, 256, 3) BGR or (3,); see `camrt.matlab.prepare_image`.
        crop: Their side in pixels.

    Returns:
        (10, 3, crop, crop) float32.
    """
    from camrt.matlab import SIDE, imresize, prepare_image

    return prepare_image(imresize(image, (SIDE, SIDE)), mean, crop)


def against_opencv(name: str, prototxt: str, caffemodel: Path, folder: Path) -> Report:
    """Compare a Caffe network with OpenCV 4's own importer, on random input.

    Args:
        name: The network's name.
        prototxt: Its description, as text.
        caffemodel: Its weights.
        folder: Where the converted network is written.

    Raises:
        CamrtError: There is no OpenCV that can read it; the text says why.
        ConversionError: It cannot be converted.
    """
    from converters import conversion, model, verification
    from converters.net import read_net
    from converters.reader import parse_prototxt

    converted = conversion.build(read_net(parse_prototxt(prototxt, f"{name}.prototxt"), caffemodel))
    path = folder / f"{name}.onnx"
    model.write(converted.draft, path, dict)
    report = verification.against_opencv(path, converted.net, prototxt, caffemodel)
    if report.reason:
        raise CamrtError(f"there is nothing to compare {name} with: {report.reason}. Give --reference FILE")
    return Report(
        name, "OpenCV 4's importer of Caffe networks, on random input", tuple(map(_of_opencv, report.comparisons))
    )


def _of_opencv(one: Comparison) -> Check:
    """Its tolerance is its own: OpenCV fuses layers and reorders sums."""
    verdict: Verdict = "DIFFERS" if not one.agrees else "not compared" if one.remark else "same"
    return Check(one.output, (), one.largest, one.difference, None, None, verdict, one.remark)


def classifier(
    name: str, prototxt: str, caffemodel: Path, *, features: str | None = None, linear: str | None = None
) -> onnx.ModelProto:
    """Convert a Caffe network for `answers`.

    Args:
        name: The network's name.
        prototxt: Its description, as text.
        caffemodel: Its weights.
        features: The blob that its global pooling reads, where it is known.
        linear: The layer behind that pooling, likewise.

    Raises:
        ConversionError: It cannot be converted.
    """
    from onnx import helper

    from converters import convert
    from converters.net import read_net
    from converters.reader import parse_prototxt

    model = convert(read_net(parse_prototxt(prototxt, f"{name}.prototxt"), caffemodel))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if features and linear:
        properties |= {metadata.FEATURES: features, metadata.CLASSIFIER: linear}
    helper.set_model_props(model, properties)
    return model

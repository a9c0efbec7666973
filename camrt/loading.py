"""Resolve a model's name, path or message to a classifier, an explainer graph, or its preprocessing.

A name is that of a Caffe network of `converters.zoo`, whose weights are downloaded if need be (those of ``lenetCAM``
come with camrt), a plain name, or one with the prefix of a source (`camrt.catalog`). A text is a name where it has such
a prefix, or has no ending, leads through no folder, and no such file is there.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camrt import catalog
from camrt.errors import CamrtError
from converters import metadata
from converters.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from camrt.catalog import Entry
    from camrt.images import ImageLike
    from camrt.preprocess import Preprocess
    from converters.zoo import NamedModel

LENET = "lenetCAM"  # the named model that comes with its weights
_WEIGHTS = (".caffemodel", ".caffemodel.h5")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The arguments of an explainer; None for the default, or for what the model says itself.

    Attributes:
        method: How the maps are computed.
        protocol: What the network sees of an image.
        top: How many classes are explained.
        features: The tensor that the maps are made of.
        classifier: The linear layer behind it.
        preprocess: How the network wants its images.
        target: What is explained in place of the best classes.
        layer: The features that the maps are made of; one, or several.
        scores: The tensor that is explained.
        settings: The settings of the method.
        labels: The names of the classes.
        weights: The weights of a named model, in place of the cache and the download.
        smooth: How maps are smoothed: ``"augment"``, ``"eigen"`` or both.
        background: The images that expected-gradients compares with.
        detections: How a detector says what it finds.
    """

    method: str | None = None
    protocol: str | None = None
    top: int | None = None
    features: str | None = None
    classifier: str | None = None
    preprocess: Preprocess | str | None = None
    target: int | str | Sequence[int | str] | None = None
    layer: str | Sequence[str] | None = None
    scores: str | None = None
    settings: Mapping[str, Any] | None = None
    labels: Sequence[str] | None = None
    weights: Path | None = None
    smooth: str | Sequence[str] | None = None
    background: Sequence[ImageLike] | None = None
    detections: str | None = None

    def graph(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Make the explainer of a classifier.

        Raises:
            CamrtError: It cannot be made.
        """
        from camrt.graph import explain_graph

        return explain_graph(
            model,
            method=self.method,
            protocol=self.protocol,
            top=self.top,
            features=self.features,
            classifier=self.classifier,
            target=self.target,
            layer=self.layer,
            scores=self.scores,
            settings=self.settings,
            smooth=self.smooth,
            background=None if self.background is None else functools.partial(_squares, self.background),
            labels=self.labels,
            preprocess=self.preprocess,
            detections=self.detections,
        )

    def compare(self, stated: Mapping[str, Any]) -> None:
        """Check that an explainer graph does what was asked: it cannot do anything else.

        Args:
            stated: What the graph says of itself.

        Raises:
            CamrtError: It was asked to.
        """
        anew = "Make it anew from the classifier: camrt export"
        for key in ("method", "protocol", "top", "features", "classifier", "scores"):
            wanted = getattr(self, key)
            if wanted is not None and key in stated and stated[key] != wanted:
                raise CamrtError(f"found an explainer graph with {key} {stated[key]!r}, expected {wanted!r}. {anew}")
        layers = [self.layer] if isinstance(self.layer, str) else self.layer
        if layers is not None and list(layers) != stated.get("layer", [stated.get("features")]):
            found = stated.get("layer", stated.get("features"))
            raise CamrtError(f"found an explainer graph with layer {found!r}, expected {self.layer!r}. {anew}")
        smoothing = [self.smooth] if isinstance(self.smooth, str) else self.smooth
        if smoothing is not None and sorted(smoothing) != sorted(stated.get("smooth", [])):
            raise CamrtError(
                f"found an explainer graph with smooth {stated.get('smooth', [])}, expected {list(smoothing)}. {anew}"
            )
        if self.background is not None and len(self.background) != stated.get("background"):
            found = f"a background of {stated['background']} images" if "background" in stated else "no background"
            raise CamrtError(f"found an explainer graph with {found}, expected {len(self.background)} images. {anew}")
        for name, value in (self.settings or {}).items():
            if str(stated.get("settings", {}).get(name)) != str(value):
                raise CamrtError(
                    f"found an explainer graph with the settings {stated.get('settings', {})}, expected {name}={value}"
                    f". {anew}"
                )

    def compare_preprocess(self, properties: Mapping[str, str]) -> None:
        """Refuse another preprocessing than that of an explainer graph.

        Args:
            properties: The metadata of the graph.

        Raises:
            CamrtError: Another one was asked for.
        """
        from camrt.preprocess import preprocess_of

        if self.preprocess is None:
            return
        wanted, found = preprocess_of(self.preprocess, {}).as_json(), properties.get(metadata.PREPROCESS)
        if found != wanted:
            raise CamrtError(
                f"found an explainer graph with the preprocessing {found}, expected {wanted}. Make it anew "
                "from the classifier: camrt export --preprocess"
            )


def _squares(background: Sequence[ImageLike], size: int) -> NDArray[np.uint8]:
    """Decode images and resize them to squares: (B, size, size, 3) uint8 RGB.

    Raises:
        CamrtError: There are none, or one cannot be read.
    """
    import numpy as np

    from camrt import images

    if not background:
        raise CamrtError("found no images in the background, expected one or more (background=, --background)")
    return np.stack([images.load(image, size, max_side=size).square for image in background])


def is_name(model: str) -> bool:
    """Return whether a text is the name of a model, not a path."""
    return catalog.has_prefix(model) or not (Path(model).suffix or Path(model).exists() or len(Path(model).parts) != 1)


def named(name: str) -> NamedModel | Entry:
    """Find the network of a name: one of Caffe, or of another source.

    Args:
        name: A name of `converters.zoo`, a plain name, or one with a prefix.

    Raises:
        CamrtError: The source of the prefix has no such network.
        ConversionError: There is no model of that name.
    """
    from converters import zoo

    found = catalog.find(name)
    if found is not None:
        return found
    try:
        return zoo.find(name)
    except ConversionError as error:
        raise ConversionError(
            f"{error}, {', '.join(catalog.plain_names())}; and zoo:NAME, hf:OWNER/REPO, torchvision:NAME, timm:NAME. "
            f"camrt models {name} searches"
        ) from None


def title_of(model: str) -> str:
    """Return what a model is called in file names and URLs: its name without a prefix, or its file's without ending."""
    return catalog.title_of(model) if is_name(model) else Path(model).stem


def is_explainer(model: str) -> bool:
    """Return whether a model is the file of an explainer graph; what cannot be read is none."""
    if is_name(model):
        return False
    try:
        return metadata.EXPLAINER in metadata.of_file(Path(model))
    except (OSError, ValueError):
        return False


def explainer_graph(model: str | os.PathLike[str] | onnx.ModelProto, request: Request) -> onnx.ModelProto | Path:
    """Resolve a model name or path to an explainer graph.

    Args:
        model: A name; the path of an ONNX model, or a ModelProto: a classifier, or an explainer graph already.
        request: What the explainer is to do. An explainer graph is not compared with it: see `Request.compare`.

    Returns:
        The graph; the path, where the model is a file that holds one already: its weights are not read.

    Raises:
        CamrtError: There is no such file, it is no ONNX model, or no explainer can be made of it.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    if isinstance(model, str) and is_name(model):
        return _explainer_of_named(model, request)
    if request.weights is not None:
        named = str(model) if isinstance(model, (str, os.PathLike)) else "an ONNX model"
        raise CamrtError(
            f"found the weights {request.weights} beside {named}, expected the name of a named model: an ONNX model "
            "has its own weights"
        )
    if not isinstance(model, (str, os.PathLike)):
        properties = metadata.of_model(model)
        if metadata.EXPLAINER not in properties:
            return request.graph(model)
        request.compare_preprocess(properties)
        return model
    path = Path(model)
    if is_snapshot(path):
        return request.graph(snapshot_classifier(path))
    if path.suffix == ".prototxt":
        raise CamrtError(
            "found a Caffe network, expected an ONNX model: camrt convert deploy.prototxt net.caffemodel -o net.onnx",
            file=str(path),
        )
    if not path.is_file():
        raise CamrtError("there is no such file, expected an ONNX model or the name of a named model", file=str(path))
    try:
        properties = metadata.of_file(path)
        if metadata.EXPLAINER in properties:
            request.compare_preprocess(properties)
            return path
        import onnx

        return request.graph(onnx.load(path))
    except CamrtError as error:
        raise error.in_file(str(path)) from error.__cause__
    except Exception as error:  # what protobuf and onnx raise at a broken file has no common base
        raise CamrtError(f"is no ONNX model that can be read ({error})", file=str(path)) from error


def classifier_of(model: str, weights: Path | None = None) -> onnx.ModelProto:
    """Load the classifier that a name or path stands for.

    Args:
        model: The name of a named model, or the path of an ONNX classifier.
        weights: The weights of a named model, in place of the cache and the download.

    Raises:
        CamrtError: There is no such file, it is no ONNX model, or an explainer already.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    if is_name(model):
        return named_classifier(model, weights)
    if is_snapshot(Path(model)):
        return snapshot_classifier(Path(model))
    from camrt.graph.opening import read_model

    classifier = read_model(model)
    if metadata.EXPLAINER in metadata.of_model(classifier):
        raise CamrtError("is an explainer already, expected a classifier", file=model)
    return classifier


def is_snapshot(path: Path) -> bool:
    """Return whether a file has the name of a snapshot of `camrt train`, or of other weights of Caffe."""
    return path.name.endswith(_WEIGHTS)


def snapshot_classifier(path: Path) -> onnx.ModelProto:
    """Convert a snapshot of `camrt train`, with the network and the class names that are beside it.

    Args:
        path: The `.caffemodel` or `.caffemodel.h5`. ``net_iter_100.caffemodel`` belongs to ``net_net.prototxt`` and
            ``net_labels.txt``; class names are optional.

    Raises:
        CamrtError: There is no such file, or no description of its network.
        ConversionError: It cannot be converted.
    """
    from onnx import helper

    from converters import convert

    if not path.is_file():
        raise CamrtError("there is no such file, expected a snapshot of camrt train", file=str(path))
    prefix = re.sub(r"_(iter_\d+|best)\.caffemodel(\.h5)?$", "", path.name)
    prototxt, labels = (path.with_name(f"{prefix}{ending}") for ending in ("_net.prototxt", "_labels.txt"))
    if not prototxt.is_file():
        raise CamrtError(
            f"found weights of Caffe without {prototxt.name}, which camrt train writes beside them, expected an ONNX "
            f"model: camrt convert deploy.prototxt {path.name} -o net.onnx",
            file=str(path),
        )
    classifier = convert(prototxt, path)
    stated = metadata.of_model(classifier) | {metadata.NAME: prefix}
    if labels.is_file():
        names = labels.read_text(encoding="utf-8", errors="replace").splitlines()
        stated[metadata.LABELS] = metadata.labels_text(names)
    helper.set_model_props(classifier, stated)
    return classifier


def identity(model: str, weights: Path | None = None) -> dict[str, Any]:
    """Tell a model from another of the same name: by its file's size and time of change.

    Args:
        model: A name or a path, whether or not the file is there.
        weights: The weights of a named model, if they are not those of the cache.

    Raises:
        ConversionError: There is no model of that name.
    """
    from converters import zoo

    if not is_name(model):
        file, stated = Path(model), {"file": os.path.abspath(model)}  # noqa: PTH100 - links are not followed
    else:
        found = named(model)
        cached = found.file if isinstance(found, catalog.Entry) else zoo.weights_path(found)
        file, stated = weights or cached, {"name": found.name}
        if weights is not None:
            stated["weights"] = os.path.abspath(weights)  # noqa: PTH100
    status = file.stat() if file.exists() else None
    return {**stated, "size": status.st_size, "mtime_ns": status.st_mtime_ns} if status else dict(stated)


# ---------------------------------------------------------------------------------------------------- the named models


def named_classifier(name: str, weights: Path | None = None) -> onnx.ModelProto:
    """Load the network of a name, with what is known of it as metadata. One of Caffe is converted.

    Args:
        name: The name.
        weights: The weights, in place of the cache and the download.

    Raises:
        CamrtError: The source has no such network, or its file is not what is expected.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    from onnx import helper

    from converters import convert, zoo
    from converters.net import read_net
    from converters.reader import parse_prototxt

    model = named(name)
    if isinstance(model, catalog.Entry):
        return _classifier_of_source(model, weights)
    file = zoo.weights(model, weights)
    classifier = convert(read_net(parse_prototxt(model.prototxt(), f"{model.name}.prototxt"), file))
    helper.set_model_props(classifier, {**metadata.of_model(classifier), **zoo.metadata_of(model, note=_log.info)})
    return classifier


def _classifier_of_source(entry: Entry, weights: Path | None) -> onnx.ModelProto:
    """Load a network of `camrt.catalog`. What its file says itself goes before what the source says."""
    from onnx import helper

    from camrt.graph.opening import read_model

    file = entry.fetch(weights)
    model = read_model(file)
    stated = metadata.of_model(model)
    if metadata.EXPLAINER in stated:
        raise CamrtError(f"is an explainer already, expected the classifier {entry.name}", file=str(file))
    known = {metadata.NAME: entry.title, metadata.SOURCE: entry.source}
    if metadata.PREPROCESS not in stated and (preprocess := entry.preprocess()) is not None:
        if entry.note:
            _log.info(entry.note)
        side = _input_side(model)
        known[metadata.PREPROCESS] = (preprocess.cropped(side) if side else preprocess).as_json()
    if metadata.LABELS not in stated and (labels := entry.labels()) is not None:
        known[metadata.LABELS] = metadata.labels_text(labels)
    helper.set_model_props(model, known | stated)
    return model


def _input_side(model: onnx.ModelProto) -> int | None:
    """Return the side of the square that a network takes, where its file fixes it."""
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape for value in model.graph.input if value.name not in weights]
    sides = [dim.dim_value for dim in shapes[0].dim[2:]] if shapes else []
    return sides[0] if len(sides) == 2 and sides[0] == sides[1] and sides[0] > 0 else None


def _explainer_of_named(name: str, request: Request) -> onnx.ModelProto:
    classifier = named_classifier(name, request.weights)
    try:
        return request.graph(classifier)
    except CamrtError as error:
        own = metadata.of_model(classifier).get(metadata.NAME, name)
        raise error.in_file(own) from error.__cause__


# ------------------------------------------------------------------------------------------------------- preprocessing


def known_preprocess(model: str) -> Preprocess | None:
    """Return how a model is known to want its images.

    Args:
        model: A name, or the path of an ONNX model.

    Returns:
        Of a named model what the registry says, of a file what its metadata say; None where nothing does.

    Raises:
        CamrtError: The file is no ONNX model, or its metadata cannot be used.
        ConversionError: There is no model of that name.
    """
    from camrt.preprocess import preprocess_of

    found = named(model) if is_name(model) else None
    if found is not None and not isinstance(found, catalog.Entry):
        return preprocess_of_named(found)
    path = Path(model) if found is None else found.file
    properties: Mapping[str, str] = {}
    if path.is_file():
        try:
            properties = metadata.of_file(path)
        except ValueError as error:
            raise CamrtError(f"is no ONNX model that can be read ({error})", file=str(path)) from error
    if metadata.PREPROCESS in properties:
        return preprocess_of(None, properties)
    return None if found is None else found.preprocess()


def preprocess_of_named(model: NamedModel, reference: Path | None = None) -> Preprocess:
    """Return how a named model wants its images; with the mean image of the original demo, if it is there.

    Args:
        model: The model.
        reference: The folder of the mean image, in place of the cache.

    Raises:
        ConversionError: The mean image is there and cannot be read.
    """
    from camrt.preprocess import preprocess_of
    from converters import zoo

    return preprocess_of(None, zoo.metadata_of(model, reference, note=_log.info))

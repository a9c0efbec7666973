"""From what a model is called to what it is: a name, a path or a message -> classifier, explainer graph, preprocessing.

A name is that of a named model of `converters.zoo`, whose weights are downloaded if need be; those of ``lenetCAM`` come
with camrt. A text is a name where it has no ending, leads through no folder, and no such file is there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camrt.errors import CamrtError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from camrt.preprocess import Preprocess
    from converters.zoo import NamedModel

METHOD = "cam"
EXPLAINER, LABELS, NAME = "camrt.explainer", "camrt.labels", "camrt.name"
OWN_PROTOCOL = "camrt.protocol"  # what a classifier wants, where mirror images make no sense to it
LENET = "lenetCAM"  # the named model that comes with its weights
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is asked of an explainer; None where nothing is, for the default or what the model says itself.

    Attributes:
        method: How the maps come about.
        protocol: What the network sees of an image.
        top: How many classes are explained.
        features: The tensor that the maps are made of.
        classifier: The linear layer behind it.
        preprocess: What the network wants of an image.
        target: What is explained in place of the best classes.
        layer: The features that the maps are made of; one, or several.
        scores: The tensor that is explained.
        settings: What is set of the method.
        labels: The names of the classes.
        weights: The weights of a named model, in place of the cache and the download.
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

    def graph(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The explainer of a classifier.

        Raises:
            CamrtError: It cannot be made.
        """
        from camrt.graph import explain_graph

        return explain_graph(
            model,
            method=self.method or METHOD,
            protocol=self.protocol,
            top=self.top,
            features=self.features,
            classifier=self.classifier,
            target=self.target,
            layer=self.layer,
            scores=self.scores,
            settings=self.settings,
            labels=self.labels,
            preprocess=self.preprocess,
        )

    def compare(self, facts: Mapping[str, Any]) -> None:
        """An explainer graph cannot be made to do something else.

        Args:
            facts: What the graph says of itself.

        Raises:
            CamrtError: It was asked to.
        """
        anew = "Make it anew from the classifier: camrt export"
        for key in ("method", "protocol", "top", "features", "classifier", "scores"):
            wanted = getattr(self, key)
            if wanted is not None and key in facts and facts[key] != wanted:
                raise CamrtError(f"found an explainer graph with {key} {facts[key]!r}, expected {wanted!r}. {anew}")
        layers = [self.layer] if isinstance(self.layer, str) else self.layer
        if layers is not None and list(layers) != facts.get("layer", [facts.get("features")]):
            found = facts.get("layer", facts.get("features"))
            raise CamrtError(f"found an explainer graph with layer {found!r}, expected {self.layer!r}. {anew}")
        for name, value in (self.settings or {}).items():
            if str(facts.get("settings", {}).get(name)) != str(value):
                raise CamrtError(
                    f"found an explainer graph with the settings {facts.get('settings', {})}, expected {name}={value}. "
                    f"{anew}"
                )

    def compare_preprocess(self, metadata: Mapping[str, str]) -> None:
        """Refuse another preprocessing than that of an explainer graph.

        Args:
            metadata: The metadata of the graph.

        Raises:
            CamrtError: Another one was asked for.
        """
        from camrt.preprocess import KEY, preprocess_of

        if self.preprocess is None:
            return
        wanted = preprocess_of(self.preprocess, {}).as_json()
        if metadata.get(KEY) != wanted:
            raise CamrtError(
                f"found an explainer graph with the preprocessing {metadata.get(KEY)}, expected {wanted}. Make it anew "
                "from the classifier: camrt export --preprocess"
            )


def is_name(model: str) -> bool:
    """Whether a text is the name of a model, not a path."""
    return not (Path(model).suffix or Path(model).exists() or len(Path(model).parts) != 1)


def explainer_graph(model: str | os.PathLike[str] | onnx.ModelProto, request: Request) -> onnx.ModelProto | Path:
    """The explainer graph of a model.

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
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        if EXPLAINER not in metadata:
            return request.graph(model)
        request.compare_preprocess(metadata)
        return model
    path = Path(model)
    if path.suffix in (".prototxt", ".caffemodel"):
        raise CamrtError(
            "found a Caffe network, expected an ONNX model: camrt convert deploy.prototxt net.caffemodel -o net.onnx",
            file=str(path),
        )
    if not path.is_file():
        raise CamrtError("there is no such file, expected an ONNX model or the name of a named model", file=str(path))
    try:
        metadata = metadata_of_file(path)
        if EXPLAINER in metadata:
            request.compare_preprocess(metadata)
            return path
        import onnx

        return request.graph(onnx.load(path))
    except CamrtError as error:
        raise error.in_file(str(path)) from error.__cause__
    except Exception as error:  # what protobuf and onnx raise at a broken file has no common base
        raise CamrtError(f"is no ONNX model that can be read ({error})", file=str(path)) from error


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
        file, facts = Path(model), {"file": os.path.abspath(model)}  # noqa: PTH100 - links are not followed
    else:
        named = zoo.find(model)
        file, facts = weights or zoo.weights_path(named), {"name": named.name}
        if weights is not None:
            facts["weights"] = os.path.abspath(weights)  # noqa: PTH100
    found = file.stat() if file.exists() else None
    return {**facts, "size": found.st_size, "mtime_ns": found.st_mtime_ns} if found else dict(facts)


# ---------------------------------------------------------------------------------------------------- the named models


def named_classifier(name: str, weights: Path | None = None) -> onnx.ModelProto:
    """Convert a named model, with what is known of it as metadata.

    Args:
        name: The name.
        weights: The weights, in place of the cache and the download.

    Raises:
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    from onnx import helper

    from converters import convert, zoo
    from converters.net import read_net
    from converters.reader import parse_prototxt

    model = zoo.find(name)
    file = zoo.weights(model, weights)
    classifier = convert(read_net(parse_prototxt(model.prototxt(), f"{model.name}.prototxt"), file))
    properties = {entry.key: entry.value for entry in classifier.metadata_props}
    properties |= {NAME: model.name, "camrt.source": model.source}
    if model.features and model.classifier:
        properties |= {"camrt.features": model.features, "camrt.classifier": model.classifier}
    if model.protocol:
        properties[OWN_PROTOCOL] = model.protocol
    if (labels := zoo.labels(model)) is not None:
        properties[LABELS] = json.dumps(labels, ensure_ascii=False)
    helper.set_model_props(classifier, properties)
    return classifier


def _explainer_of_named(name: str, request: Request) -> onnx.ModelProto:
    classifier = named_classifier(name, request.weights)
    if request.preprocess is None:
        request = replace(request, preprocess=known_preprocess(name))
    try:
        return request.graph(classifier)
    except CamrtError as error:
        own = next((entry.value for entry in classifier.metadata_props if entry.key == NAME), name)
        raise error.in_file(own) from error.__cause__


# ------------------------------------------------------------------------------------------------------- preprocessing


def known_preprocess(model: str) -> Preprocess | None:
    """What a model is known to want of an image.

    Args:
        model: A name, or the path of an ONNX model.

    Returns:
        Of a named model what the registry says, of a file what its metadata say; None where nothing does.

    Raises:
        CamrtError: The file is no ONNX model, or its metadata cannot be used.
        ConversionError: There is no model of that name.
    """
    from camrt.preprocess import KEY, preprocess_of

    if is_name(model):
        from converters import zoo

        return preprocess_of_named(zoo.find(model))
    path = Path(model)
    if not path.is_file():
        return None
    try:
        metadata = metadata_of_file(path)
    except ValueError as error:
        raise CamrtError(f"is no ONNX model that can be read ({error})", file=model) from error
    return preprocess_of(None, metadata) if KEY in metadata else None


def preprocess_of_named(model: NamedModel, reference: Path | None = None) -> Preprocess:
    """What a named model wants of an image; with the mean image of the original demo, where that is there.

    Args:
        model: The model.
        reference: The folder of the mean image, if not the cache's.

    Raises:
        CamrtError: The mean image is there and cannot be read.
    """
    from camrt.preprocess import Preprocess
    from converters import zoo

    wants = model.preprocessing
    mean = None
    if wants.mean_image is not None:
        cached = zoo.cache_folder() / "reference" / wants.mean_image
        path = cached if reference is None else reference / cached.name
        if path.is_file():
            mean = mean_image(path)
        else:
            _log.info(
                "%s subtracts its mean pixel: the mean image of the original demo is not in the cache "
                "(camrt download --reference brings it)",
                model.name,
            )
    scale = (wants.scale, wants.scale, wants.scale)
    return Preprocess(wants.size, wants.crop, wants.mean, scale, wants.channels, mean)


def mean_image(path: Path) -> NDArray[np.float32]:
    """The mean image of a .mat file, width first there: (3, S, S) float32 BGR.

    Raises:
        CamrtError: It cannot be read.
    """
    import numpy as np
    from scipy.io import loadmat

    try:
        mean: NDArray[np.float32] = loadmat(path)["mean_data"].transpose(2, 1, 0).astype(np.float32)
    except Exception as error:  # scipy's reader raises what it comes across in a broken file
        raise CamrtError(f"no mean image can be read from it ({error!r})", file=str(path)) from error
    return mean


# ------------------------------------------------------------------------------------------------------------ metadata


def metadata_of_file(path: Path) -> dict[str, str]:
    """The metadata_props of an ONNX file, read without the graph.

    Args:
        path: The file. Of a large one, the graph with its weights is skipped.

    Raises:
        ValueError: It is no Protocol Buffers message.
    """
    import onnx

    from converters.mapping import mapped
    from converters.wire import Walk

    with path.open("rb") as stream:
        data = memoryview(mapped(stream))
    fields = Walk(data).fields(0, len(data))
    wanted = onnx.ModelProto.METADATA_PROPS_FIELD_NUMBER
    kept = b"".join(data[begin:end] for number, _, begin, _, end in fields if number == wanted)
    return {entry.key: entry.value for entry in onnx.ModelProto.FromString(kept).metadata_props}

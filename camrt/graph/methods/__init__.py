"""The methods, which define how a map is computed.

One idea, as in the family of class activation maps: a map is a weighted sum of features, ``ReLU(sum_k w_k A_k)``, and a
method says what the weights are. It is a function of a `camrt.graph.methods.context.Layer` (features, gradients) that
returns the sum, and `method` registers it. Methods of pixels return a map of the network's input in its place.

This module loads nothing but the standard library: the command line asks it for the names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from camrt.errors import CamrtError
from converters.registration import Registry

if TYPE_CHECKING:
    from camrt.graph.methods.context import Layer, MethodContext
    from camrt.graph.values import Value

# Method -> its module here. The order is that of the documentation.
FAMILIES = {
    "cam": "cam",
    "gradcam": "gradcam",
    "gradcam++": "gradcam",
    "hirescam": "gradcam",
    "xgradcam": "gradcam",
    "layercam": "gradcam",
    "shapleycam": "gradcam",
    "finercam": "gradcam",
    "refinecam": "gradcam",
    "eigencam": "eigencam",
    "eigengradcam": "eigencam",
    "segeigencam": "eigencam",
    "kpca-cam": "eigencam",
    "fem": "eigencam",
    "scorecam": "scorecam",
    "recipro-cam": "masking",
    "ablation-cam": "masking",
    "attention": "attention",
    "attention-rollout": "attention",
    "chefer": "attention",
    "transformer-attribution": "attention",
    "guided-backprop": "saliency",
    "guided-gradcam": "saliency",
    "input-gradient": "saliency",
    "smoothgrad": "saliency",
    "integrated-gradients": "saliency",
    "gradient-shap": "saliency",
    "expected-gradients": "saliency",
    "fullgrad": "fullgrad",
    "occlusion": "occlusion",
    "lrp": "relevance",
    "attnlrp": "relevance",
    "deeplift": "relevance",
}
METHODS = tuple(FAMILIES)
# Methods that only run the model, and are no part of a graph -> their modules in `camrt.blackbox`.
BLACK_BOX = {
    "rise": "rise",
    "blackbox-occlusion": "occlusion",
    "kernelshap": "kernelshap",
    "baseline-random": "baselines",
    "baseline-center": "baselines",
    "baseline-edges": "baselines",
}
# Methods that only run a detector, likewise.
OF_DETECTORS = {"drise": "drise"}
Kind = Literal["head", "features", "pixels"]
Maps = Callable[..., "Value"]
_Maps = TypeVar("_Maps", bound=Maps)


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: Its name.
        maps: The function.
        kind: What the map is of: ``"head"``: the features of a classifier that ends in global average pooling and a
            linear layer; ``"features"``: those of a layer; ``"pixels"``: the network's input.
        title: Its name in the papers.
        rectified: Whether negative values are cut off.
        layered: Whether it uses the features of a layer.
        again: Whether it runs the network again, on other images.
        gradients: Whether the network is differentiated.
        behind: Whether it runs the rest of the network again, on other features.
        multiplied: Whether the maps of several layers are multiplied, in place of their mean.
        tokens: Whether it reads the attention of a vision transformer.
        top: How many classes it explains by default.
        background: Whether it compares the image with others.
    """

    name: str
    maps: Maps
    kind: Kind
    title: str
    rectified: bool
    layered: bool
    again: bool
    gradients: bool
    behind: bool
    tokens: bool
    multiplied: bool
    top: int
    background: bool = False

    @property
    def takes_crops(self) -> bool:
        """Whether several crops of each image may be its default: not where a map takes many passes."""
        return self.kind != "pixels" and not self.again and not self.behind

    @property
    def source(self) -> str:
        """The paper, as the function's docstring names it in its section Source."""
        found = re.search(r"^Source:\n((?: +.*\n?)+)", inspect.getdoc(self.maps) or "", re.MULTILINE)
        return " ".join(found.group(1).split()) if found else ""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings, with their defaults."""
        parameters = list(inspect.signature(self.maps).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Check settings, and fill in the defaults.

        Args:
            settings: Name -> value; a text is converted to the type of the default.

        Raises:
            CamrtError: There is no such setting, or its value is of another type.
        """
        return check_settings(self.name, self.settings, settings)


_methods: Registry[str, Method] = Registry(
    "method", [f"{__name__}.{module}" for module in dict.fromkeys(FAMILIES.values())], CamrtError
)


def method(
    name: str,
    *,
    kind: Kind,
    title: str,
    rectified: bool = True,
    layered: bool = True,
    again: bool = False,
    gradients: bool = True,
    behind: bool = False,
    tokens: bool = False,
    multiplied: bool = False,
    top: int = 5,
    background: bool = False,
) -> Callable[[_Maps], _Maps]:
    """Register the decorated function as a method; see `Method` for the arguments.

    The function gets a `Layer` (``kind`` head and features) or a `MethodContext` (pixels). Keyword arguments with
    defaults (int, float or str) are what users may set. It returns the map before it is rectified, a
    `camrt.graph.values.Value` (N, crops, positions); of pixels (N, crops, side, side). It is written for one class:
    values that differ from class to class carry the others along.

    Raises:
        CamrtError: There is one of that name.

    Example:
        >>> @method("mean-activation", kind="features", title="Mean", gradients=False)  # doctest: +SKIP
        ... def mean_activation(layer):
        ...     return layer.features.mean(2)
    """

    def register(maps: _Maps) -> _Maps:
        entry = Method(
            name, maps, kind, title, rectified, layered, again, gradients, behind, tokens, multiplied, top, background
        )
        _methods.add([name], entry, maps)
        return maps

    return register


def find(name: str) -> Method:
    """Find a method by its name.

    Raises:
        CamrtError: There is none.
    """
    found = _methods.find(name)
    if found is None and name in (*BLACK_BOX, *OF_DETECTORS):
        raise CamrtError(
            f"found the method {name!r}, which runs the model many times and is no part of a graph: camrt explain, "
            f"compare and evaluate take it (camrt.Explainer). Methods for a graph are {', '.join(METHODS)}"
        )
    if found is None:
        names = ", ".join(dict.fromkeys([*METHODS, *_methods.keys()]))
        raise CamrtError(f"found the method {name!r}, expected one of {names}")
    return found


def check_settings(method: str, defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a method, and fill in the defaults.

    Args:
        method: Its name.
        defaults: Name -> default.
        settings: Name -> value; a text is converted to the type of the default.

    Raises:
        CamrtError: There is no such setting, or its value is of another type.
    """
    known = dict(defaults)
    for name, value in settings.items():
        if name not in known:
            listed = ", ".join(f"{key}={default!r}" for key, default in known.items())
            raise CamrtError(
                f"found the setting {name!r} of {method}, expected "
                + (f"one of {listed}" if listed else "none: it has nothing to set")
            )
        known[name] = _as(value, defaults[name], f"{method}'s {name}")
    return known


def _as(value: Any, default: Any, what: str) -> Any:
    """Convert a setting to the type of its default."""
    kind = type(default)
    try:
        if isinstance(value, bool) or (kind is not str and not isinstance(value, (int, float, str))):
            raise ValueError("no number")
        found = kind(value)
        if kind is int and not isinstance(value, str) and found != value:
            raise ValueError("no whole number")
    except (TypeError, ValueError):
        raise CamrtError(f"found {what} {value!r}, expected {kind.__name__} as {default!r} is") from None
    return found


__all__ = [
    "BLACK_BOX", "FAMILIES", "METHODS", "OF_DETECTORS", "Layer", "Method", "MethodContext", "check_settings", "find",
    "method",
]  # fmt: skip

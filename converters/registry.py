"""Which function converts which layer type.

A handler is a function of a layer and the graph under construction. `handles` registers it; so does a user's plugin.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.errors import ConversionError
from converters.registration import Registry
from converters.schema import caffe_pb2

if TYPE_CHECKING:
    from converters.graph import Graph
    from converters.layer import Layer

Handler = Callable[["Layer", "Graph"], None]

CONVOLUTIONS = ("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution")

FAMILIES = (
    "convolution", "pooling", "normalization", "activation", "elementwise", "shaping", "resampling", "reduction",
    "linear", "recurrent", "detection", "proposal", "region", "yolo", "detectnet", "mean_field", "volumetric", "flow",
    "sampling",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A registered handler.

    Attributes:
        types: The layer types, as in ``type: "Pooling"``.
        handler: The function.
        operators: The ONNX operators that it may emit.
        restrictions: What of the layer it does not do, or does its own way; for the table of layers.
        origin: Where layers of these types come from: ``"BVLC"`` or a fork.
        fork: The fork that gives the types this meaning, as ``--fork`` names it; empty where all forks agree.
        reads: The fields that it takes from ``Layer.extra``, as ``"upsample_param.stride"``; None for all of them.
    """

    types: tuple[str, ...]
    handler: Handler
    operators: tuple[str, ...]
    restrictions: str
    origin: str
    fork: str = ""
    reads: tuple[str, ...] | None = ()

    def reads_field(self, field: str) -> bool:
        """Whether the handler takes care of a field that the schema does not know."""
        return self.reads is None or field in self.reads

    @property
    def family(self) -> str:
        """The module that the handler stands in."""
        return self.handler.__module__.rpartition(".")[2]


# By (type, fork).
_handlers: Registry[tuple[str, str], Entry] = Registry(
    "handler for", [f"converters.handlers.{family}" for family in FAMILIES], ConversionError, named=lambda key: key[0]
)
_plugins: set[Path] = set()


def handles(
    *types: str,
    operators: str = "",
    restrictions: str = "",
    origin: str = "BVLC",
    module: str | None = None,
    layer: str | None = None,
    fork: str = "",
    reads: str | None = None,
    replace: bool = False,
) -> Callable[[Handler], Handler]:
    """Register the decorated function as the handler of layer types.

    Args:
        types: The types, as in the prototxt's ``type: "Pooling"``.
        operators: The ONNX operators that the handler may emit, separated by blanks; for the documentation.
        restrictions: What of the layer is not covered; for the documentation.
        origin: Where the layer comes from; for the documentation.
        module: With the type ``"Python"``: the layer's ``python_param.module``.
        layer: With the type ``"Python"``: the layer's ``python_param.layer``.
        fork: The fork that gives the type this meaning. The handler serves only networks read with this ``--fork``.
        reads: The fields that the handler takes from ``layer.extra``, as ``"gain_param.offset"``, separated by blanks.
            Any other unknown field of such a layer is an error. By default a plugin's handler takes care of them all.
        replace: Take the place of a handler that is there.

    Raises:
        ConversionError: A handler for one of the types is there already.

    Example:
        >>> @handles("Square")
        ... def square(layer, graph):
        ...     graph.node("Mul", [layer.bottoms[0], layer.bottoms[0]], layer.tops)
    """
    keys = types
    if module is not None or layer is not None:
        if types != ("Python",) or module is None or layer is None:
            raise ConversionError('found module or layer alone, expected handles("Python", module=..., layer=...)')
        keys = (_python_key(module, layer),)
    if not keys:
        raise ConversionError('found no layer type, expected one, as handles("Pooling")')

    def register(handler: Handler) -> Handler:
        is_plugin = not handler.__module__.startswith("converters.")
        fields = None if reads is None and is_plugin else tuple((reads or "").split())
        entry = Entry(keys, handler, tuple(operators.split()), restrictions, origin, fork, fields)
        places = [(key, fork) for key in keys]
        _handlers.add(places, entry, handler, replace=replace, hint="handles(..., replace=True) takes its place")
        return handler

    return register


def find(type: str, params: caffe_pb2.LayerParameter, fork: str = "") -> Entry | None:
    """The handler of a layer, or None.

    Args:
        type: The layer's type.
        params: Its message: Python layers are told apart by module and layer name.
        fork: The fork that the network is of: its own meaning of the type goes first.
    """
    key = describe(type, params)
    return _handlers.find((key, fork)) or _handlers.find((key, ""))


def entries() -> Iterator[Entry]:
    """All registered handlers, each once, in the order of registration."""
    return _handlers.entries()


def describe(type: str, params: caffe_pb2.LayerParameter) -> str:
    """A layer's type as it is registered: for Python layers with module and layer name."""
    return _python_key(params.python_param.module, params.python_param.layer) if type == "Python" else type


def load_plugin(path: str | Path) -> None:
    """Run a file of the user's that registers handlers. A file already loaded is not run again.

    Raises:
        ConversionError: No such file, or it fails.
    """
    _handlers.load()  # first: they must be there when a failing plugin's handlers are taken back
    file = Path(path).resolve()
    if file in _plugins:
        return
    spec = importlib.util.spec_from_file_location(f"converters_plugin_{len(_plugins)}_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ConversionError("is no Python file, expected one that calls converters.handles", file=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    restore = _handlers.snapshot()
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        restore()
        del sys.modules[spec.name]
        raise ConversionError(f"the plugin fails: {error.__class__.__name__}: {error}", file=str(path)) from error
    _plugins.add(file)


def _python_key(module: str, layer: str) -> str:
    return f"Python {module}.{layer}"

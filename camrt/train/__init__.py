"""Training of Caffe networks in PyTorch, from Caffe's own network and solver files.

Example:
    >>> import converters
    >>> from camrt import train
    >>> net = converters.read_net("train_val.prototxt", phase="TRAIN", training=True)  # doctest: +SKIP
    >>> network = train.network(net, seed=1)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from camrt.errors import CamrtError
from converters.errors import install

if TYPE_CHECKING:
    from camrt.train.networks import Blob, Network, network
    from camrt.train.solver import Solver, SolverFile, learning_rate, read_solver
    from camrt.train.weights import Report, load_caffemodel, save_caffemodel

__all__ = [
    "Blob",
    "Network",
    "Report",
    "Solver",
    "SolverFile",
    "learning_rate",
    "load_caffemodel",
    "network",
    "read_solver",
    "save_caffemodel",
]

# Loaded at first use, as in camrt: PyTorch takes seconds to import, and is an extra.
_HOMES = {
    "Blob": "networks",
    "Network": "networks",
    "Report": "weights",
    "Solver": "solver",
    "SolverFile": "solver",
    "learning_rate": "solver",
    "load_caffemodel": "weights",
    "network": "networks",
    "read_solver": "solver",
    "save_caffemodel": "weights",
}


def require_torch() -> None:
    """Check that PyTorch is installed.

    Raises:
        CamrtError: PyTorch is not installed.
    """
    try:
        importlib.import_module("torch")
    except ImportError as error:
        if getattr(error, "name", None) not in (None, "torch"):
            raise
        raise CamrtError(f"training needs PyTorch, which is not installed: {install('torch', 'matplotlib')}") from None


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_torch()
    return getattr(importlib.import_module(f"camrt.train.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

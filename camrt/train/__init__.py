"""Training of Caffe networks in PyTorch, from Caffe's own network and solver files.

Example:
    >>> import converters
    >>> from camrt import train
    >>> net = converters.read_net("train_val.prototxt", phase="TRAIN", training=True)  # doctest: +SKIP
    >>> network = train.network(net, seed=1)  # doctest: +SKIP
"""

import importlib
from typing import Any

import lazy_loader

from camrt.errors import CamrtError
from converters.errors import install

# Everything is imported on first use: PyTorch takes seconds to import, and is an extra. __init__.pyi has the same names
# for type checkers.
_attached, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "networks": ["Blob", "Network", "network"],
        "solver": ["Solver", "SolverFile", "learning_rate", "read_solver"],
        "weights": ["Report", "load_caffemodel", "load_weights", "save_caffemodel"],
    },
)


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
    if name in __all__:
        require_torch()
    return _attached(name)

"""Other people's implementations, on the same weights."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import pytest

from tests import fitting_torchvision


def grad_cam() -> Any:
    """pytorch-grad-cam, or the test skips.

    It imports torchvision, scikit-learn and matplotlib for what is not compared here. Where they are missing, modules
    without content stand in.
    """
    pytest.importorskip("torch", reason="PyTorch is not installed: methods are not compared with other libraries")
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        pytest.skip("pytorch-grad-cam is not installed (pip install --no-deps grad-cam ttach tqdm)")
    if "pytorch_grad_cam" in sys.modules:
        return sys.modules["pytorch_grad_cam"]
    missing = {name for name in ("torchvision", "sklearn", "matplotlib") if importlib.util.find_spec(name) is None}
    stand_ins = [name for name in _ONLY_IMPORTED if name.partition(".")[0] in missing]
    for name in stand_ins:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name].__dict__.update(dict.fromkeys(_ONLY_IMPORTED[name], object))
    fitting_torchvision.install()
    try:
        return importlib.import_module("pytorch_grad_cam")
    finally:
        for name in stand_ins:  # others, PyTorch's exporter among them, ask whether these are installed
            del sys.modules[name]


def torch_cam() -> Any:
    """torch-cam's methods, or the test skips."""
    pytest.importorskip("torch", reason="PyTorch is not installed: methods are not compared with other libraries")
    return pytest.importorskip("torchcam.methods", reason="torch-cam is not installed (pip install --no-deps torchcam)")


def lxt() -> tuple[Any, Any]:
    """The rules and patches of lxt, or the test skips. Its package imports transformers, which these do not need."""
    if importlib.util.find_spec("lxt") is None:
        pytest.skip("lxt is not installed (pip install --no-deps lxt)")
    import lxt as package

    name = "lxt.efficient"
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [f"{package.__path__[0]}/efficient"]
    return importlib.import_module(f"{name}.rules"), importlib.import_module(f"{name}.patches")


_ONLY_IMPORTED = {
    "torchvision": (),
    "torchvision.transforms": ("Compose", "Normalize", "ToTensor"),
    "torchvision.transforms.functional": ("resize",),
    "sklearn": (),
    "sklearn.decomposition": ("NMF", "KernelPCA"),
    "matplotlib": ("pyplot",),
    "matplotlib.lines": ("Line2D",),
}

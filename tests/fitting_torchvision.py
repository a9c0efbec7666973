"""torchvision from PyPI, whose operators are built for CUDA, beside a PyTorch for the CPU.

Its networks need none of those operators, but its import looks two of them up.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

OPERATORS = ("nms", "qnms")


class _BeforeImport(MetaPathFinder):
    """Declares the operators just before torchvision is imported; it never finds a module itself."""

    def __init__(self) -> None:
        self.library: Any = None  # what it declares lives as long as it

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self.library is None:
            with contextlib.suppress(ImportError, PackageNotFoundError):
                import torch

                if "+cpu" not in torch.__version__ or "+cpu" in version("torchvision"):
                    return None  # they fit
                self.library = torch.library.Library("torchvision", "FRAGMENT")
                for name in OPERATORS:
                    self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


def install() -> None:
    """Make `import torchvision` work from here on, whether its operators fit or not."""
    if not any(isinstance(finder, _BeforeImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeImport())

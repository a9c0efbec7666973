"""ONNX classifiers -> ONNX explainers: what a network sees in an image, and where.

Example:
    >>> import camrt
    >>> explainer = camrt.Explainer("googlenetCAM")  # doctest: +SKIP
    >>> explainer("img1.jpg").save("out")  # doctest: +SKIP
"""

import lazy_loader

from converters import __version__

# Everything is imported on first use: the command line prints its help before NumPy is loaded. __init__.pyi has the
# same names for type checkers.
__getattr__, _, __all__ = lazy_loader.attach(
    __name__,
    submodules=["evaluate", "graph", "localize", "train"],
    submod_attrs={
        "errors": ["CamrtError", "CamrtWarning"],
        "evaluate.comparison": ["compare"],
        "explainer": ["Explainer"],
        "explanation": ["Explanation"],
        "graph": ["differentiate", "explain_graph"],
        "graph.methods": ["METHODS"],
        "preprocess": ["Preprocess"],
        "render": ["Style"],
        "session": ["Session"],
    },
)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)

"""ONNX -> ONNX: a classifier becomes an explainer, a model gets its gradients.

Everything here takes a model or the path of one, and opens it by `open_model`.
"""

import lazy_loader

# Imported on first use: the command line asks camrt.graph.methods for names, and for nothing else.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["methods", "rules"],
    submod_attrs={
        "explain": ["explain_graph"],
        "gradient": ["differentiate"],
        "opening": ["open_model"],
        "static": ["cuda_graph_obstacles", "with_fixed_batch"],
        "view": ["GraphView"],
    },
)

"""ONNX -> ONNX: a classifier becomes an explainer."""

from camrt.graph.explain import explain_graph

__all__ = ["explain_graph"]

"""Backward rules, one function an operator, one module a family."""

from camrt.graph.rules.registry import rule

__all__ = ["rule"]

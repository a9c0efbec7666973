"""Which function differentiates which operator.

A rule is the formula of a vector-Jacobian product: a function ``(g, y, *inputs, **attributes)`` of the cotangent at a
node's output, that output, its inputs and attributes, which returns the cotangents at the inputs. `rule` registers it,
also for a user's module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import onnx

from camrt.errors import CamrtError
from camrt.graph.values import Value
from converters.registration import Registry

# A cotangent, a function that is called where it is wanted, or None for zeros everywhere.
Cotangent = Value | Callable[[], Value] | None
Cotangents = Cotangent | Sequence[Cotangent]
Rule = Callable[..., Cotangents]

FAMILIES = (
    "convolution", "pooling", "activation", "elementwise", "linear", "normalization", "shaping", "resampling",
    "reduction", "quantization",
)  # fmt: skip
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Entry:
    """A registered rule.

    Attributes:
        operators: The operators that it differentiates.
        rule: The function.
        restrictions: What of the operator it does not do; for the table of operators.
        domain: The operators' domain; empty for ONNX's own.
        several: Whether the rule takes all outputs and their cotangents, as lists.
    """

    operators: tuple[str, ...]
    rule: Rule
    restrictions: str
    domain: str
    several: bool

    @property
    def family(self) -> str:
        """The module that the rule stands in."""
        return self.rule.__module__.rpartition(".")[2]

    @cached_property
    def _named(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.rule).parameters

    def asked(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Those attributes of a node that the rule names."""
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in self._named.values()):
            return dict(attributes)
        return {name: value for name, value in attributes.items() if name in self._named}


# By (domain, operator).
_rules: Registry[tuple[str, str], Entry] = Registry(
    "rule for", [f"camrt.graph.rules.{family}" for family in FAMILIES], CamrtError, named=lambda key: key[1]
)


def rule(
    *operators: str, restrictions: str = "", domain: str = "", several: bool = False, replace: bool = False
) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of operators.

    The function gets the cotangent at the node's output, the output, the inputs (None for one that is left out), and by
    keyword those attributes that it names. It returns the cotangent at the first input, or one for each input: a
    `Value`; a function that makes one, and is called only where it is wanted; or None for zeros. It need not sum along
    axes where an input was broadcast, nor repeat along axes where the cotangent is the same.

    Args:
        operators: The operators, as in a node's ``op_type``.
        restrictions: What of the operator is not covered; for the documentation.
        domain: The operators' domain; empty for ONNX's own.
        several: The rule gets lists of all outputs and their cotangents. Without it, a cotangent at another output than
            the first is an error.
        replace: Take the place of a rule that is there.

    Raises:
        CamrtError: A rule for one of the operators is there already.

    Example:
        >>> @rule("Square", domain="com.example")
        ... def square(g, y, x):
        ...     return g * 2 * x
    """
    if not operators:
        raise CamrtError('found no operator, expected one, as @rule("Relu")')
    place = "" if domain in _STANDARD else domain

    def register(function: Rule) -> Rule:
        entry = Entry(operators, function, restrictions, place, several)
        positions = [(place, operator) for operator in operators]
        _rules.add(positions, entry, function, replace=replace, hint="rule(..., replace=True) takes its place")
        return function

    return register


def vjp(operators: str, what: str, formula: Rule, *, restrictions: str = "") -> None:
    """Register a rule that is one expression.

    Args:
        operators: The operators, separated by commas.
        what: What the rule does; for the documentation.
        formula: The rule.
        restrictions: As in `rule`.
    """
    names = operators.split(", ")
    formula.__doc__, formula.__qualname__ = what, names[0].lower()
    rule(*names, restrictions=restrictions)(formula)


def slope(operator: str, what: str, function: Callable[..., Value | float]) -> None:
    """Register the rule of an operator ``y = f(x)`` that works element by element.

    Args:
        operator: The operator.
        what: The slope f'(x) in words or as a formula; for the documentation.
        function: (y, x) and the operator's attributes -> the slope.
    """

    def formula(g: Value, y: Value, x: Value, **attributes: Any) -> Value:
        return g * function(y, x, **attributes)

    formula.__module__ = function.__module__
    vjp(operator, f"The slope is {what}.", formula)


def unsupported(message: str) -> Callable[[], NoReturn]:
    """In place of a cotangent that a rule does not have: an error where it is wanted."""

    def fail() -> NoReturn:
        raise CamrtError(message)

    return fail


def find(node: onnx.NodeProto) -> Entry | None:
    """The rule of a node's operator, or None."""
    return _rules.find(("" if node.domain in _STANDARD else node.domain, node.op_type))


def entries() -> Iterator[Entry]:
    """All registered rules, each once, in the order of registration."""
    return _rules.entries()

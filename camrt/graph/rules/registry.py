"""Which function differentiates which operator.

A rule is a function of a step of the backward pass and the gradient that comes in. `rule` registers it; so may a user's
module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from camrt.errors import CamrtError

if TYPE_CHECKING:
    from camrt.graph.step import Step

Gradients = str | None | Sequence[str | None]
Rule = Callable[["Step", str], Gradients]

FAMILIES = (
    "convolution", "pooling", "activation", "elementwise", "linear", "normalization", "shaping", "resampling",
    "reduction",
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
        several: Whether the rule takes gradients of other outputs than the first.
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


_entries: dict[tuple[str, str], Entry] = {}


def rule(
    *operators: str, restrictions: str = "", domain: str = "", several: bool = False, replace: bool = False
) -> Callable[[Rule], Rule]:
    """Register the decorated function as the backward rule of operators.

    Args:
        operators: The operators, as in a node's ``op_type``.
        restrictions: What of the operator is not covered; for the documentation.
        domain: The operators' domain; empty for ONNX's own.
        several: The rule reads ``step.gradients``, one for each output. Without it, a gradient that comes in at
            another output than the first is an error.
        replace: Take the place of a rule that is there.

    Raises:
        CamrtError: A rule for one of the operators is there already.

    Example:
        >>> @rule("Square", domain="com.example")
        ... def square(step, gradient):
        ...     twice = step.builder.node("Mul", [step.inputs[0], step.scalar(2)])
        ...     return step.times(gradient, twice)
    """
    if not operators:
        raise CamrtError('found no operator, expected one, as @rule("Relu")')
    place = "" if domain in _STANDARD else domain

    def register(function: Rule) -> Rule:
        if not (function.__module__ or "").startswith("camrt.graph.rules."):
            _load_families()  # first: so that a rule of the user's meets what is there
        entry = Entry(operators, function, restrictions, place, several)
        for operator in operators:
            if (place, operator) in _entries and not replace:
                other = _entries[place, operator].rule
                raise CamrtError(
                    f"found a second rule for {operator!r}, {function.__module__}.{function.__qualname__} beside "
                    f"{other.__module__}.{other.__qualname__}, expected one: rule(..., replace=True) takes its place"
                )
        _entries.update({(place, operator): entry for operator in operators})
        return function

    return register


def find(node: onnx.NodeProto) -> Entry | None:
    """The rule of a node's operator, or None."""
    _load_families()
    return _entries.get(("" if node.domain in _STANDARD else node.domain, node.op_type))


def entries() -> Iterator[Entry]:
    """All registered rules, each once, in the order of registration."""
    _load_families()
    yield from dict.fromkeys(_entries.values())


def _load_families() -> None:
    for family in FAMILIES:
        importlib.import_module(f"camrt.graph.rules.{family}")

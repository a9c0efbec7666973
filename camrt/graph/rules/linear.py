"""Matrix products."""

from __future__ import annotations

from camrt.errors import CamrtError
from camrt.graph.rules.registry import Cotangent, Cotangents, rule
from camrt.graph.values import Value


@rule("Gemm")
def gemm(
    g: Value, y: Value, a: Value, b: Value, c: Value | None = None,
    *, transA: int = 0, transB: int = 0, alpha: float = 1.0, beta: float = 1.0,
) -> Cotangents:  # fmt: skip
    """To A alpha g B^T, to B alpha A^T g, to C beta g, with the weights as they stand."""
    left, right = a.mT if transA else a, b.mT if transB else b
    to_a = right @ g.mT if transA else g @ right.mT
    to_b = g.mT @ left if transB else left.mT @ g
    return to_a * alpha, to_b * alpha, g * beta


@rule("MatMul")
def matmul(g: Value, y: Value, a: Value, b: Value) -> Cotangents:
    """To A g B^T, to B A^T g, summed over the axes along which one was broadcast."""
    is_row, is_column = a.rank == 1, b.rank == 1  # a vector is one row on the left, and one column on the right
    left, right = a.unsqueeze(0) if is_row else a, b.unsqueeze(1) if is_column else b
    g = g.unsqueeze(-1) if is_column else g
    g = g.unsqueeze(-2) if is_row else g

    def to_b() -> Value:
        u, v = left, g
        if right.rank == 2 < left.rank and None not in (u.shape[-1], v.shape[-1]):
            u, v = (one.reshape(-1, *one.fixed(-1)) for one in (u, v))  # one product for the whole stack
        found = u.mT @ v
        return found.squeeze(-1) if is_column else found

    to_a = g @ right.mT
    return to_a.squeeze(-2) if is_row else to_a, to_b


@rule("Einsum", restrictions="no index twice in a term, no ellipsis, none that is in one input alone and summed")
def einsum(g: Value, y: Value, *inputs: Value, equation: str) -> Cotangents:
    """The product of the gradient and the other inputs, with the indices of the one that is asked for."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))

    def to(place: int) -> Cotangent:
        term, others = terms[place], terms[:place] + terms[place + 1 :]
        if "." in left or len(set(term)) != len(term) or not set(term) <= set("".join([right, *others])):
            raise CamrtError(f"found the equation {equation!r}, whose gradient is not supported")
        return g.einsum(f"{','.join([right, *others])}->{term}", *inputs[:place], *inputs[place + 1 :])

    return [lambda place=place: to(place) for place in range(len(terms))]  # type: ignore[misc]

"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step


@rule("Gemm")
def gemm(step: Step, gradient: str) -> Sequence[str | None]:
    """To A alpha g B^T, to B alpha A^T g, to C beta g, with the weights as they stand."""
    a, b = step.inputs[:2]
    flip_a, flip_b = int(step.attributes.get("transA", 0)), int(step.attributes.get("transB", 0))
    alpha, beta = step.attributes.get("alpha", 1.0), step.attributes.get("beta", 1.0)
    found: list[str | None] = [None, None, None]
    if step.wants(0):
        step.alone(b)
        if flip_a:
            step.apart([1], a)
            found[0] = step.builder.node("Gemm", [b, gradient], alpha=alpha, transA=flip_b, transB=1)
        else:
            found[0] = step.builder.node("Gemm", [gradient, b], alpha=alpha, transB=1 - flip_b)
    if step.wants(1):
        step.alone(a)
        if flip_b:
            found[1] = step.builder.node("Gemm", [gradient, a], alpha=alpha, transA=1, transB=flip_a)
        else:
            found[1] = step.builder.node("Gemm", [a, gradient], alpha=alpha, transA=1 - flip_a)
    if step.wants(2):
        fitted = step.fit(gradient, step.inputs[2])
        found[2] = fitted if beta == 1 else step.node("Mul", fitted, beta)
    return found


@rule("MatMul")
def matmul(step: Step, gradient: str) -> Sequence[str | None]:
    """To A g B^T, to B A^T g, summed over the axes along which one was broadcast."""
    a, b = step.inputs
    ranks = step.rank(a), step.rank(b)
    if min(ranks) == 1:
        return _with_vectors(step, gradient)
    found: list[str | None] = [None, None]
    if step.wants(0):
        found[0] = _left(step, gradient, ranks)
    if step.wants(1):
        found[1] = _right(step, gradient, ranks)
    return found


def _left(step: Step, gradient: str, ranks: tuple[int, int]) -> str:
    a, b = step.inputs
    if ranks[1] == 2 and step.batch_of(b) is None:
        if ranks[0] == 2:
            return step.builder.node("Gemm", [gradient, b], transB=1)
        (width,) = step.fixed(b, [1])  # Gemm reads weights as they stand; a Transpose would be a copy of them
        product = step.builder.node("Gemm", [step.builder.reshape(gradient, -1, width), b], transB=1)
        return step.reshape_as(product, a)
    step.apart([-1, -2], b)
    product = step.node("MatMul", gradient, _swapped(step, step.repeated(b), ranks[1]))
    return _fit_stack(step, product, a)


def _right(step: Step, gradient: str, ranks: tuple[int, int]) -> str:
    a, b = step.inputs
    if ranks[1] == 2 and ranks[0] > 2:
        step.alone(a)
        (depth,), (width,) = step.fixed(b, [0]), step.fixed(b, [1])
        flat = [step.builder.reshape(a, -1, depth), step.builder.reshape(gradient, -1, width)]
        return step.builder.node("Gemm", flat, transA=1)
    step.apart([-1, -2], a)
    product = step.node("MatMul", _swapped(step, step.repeated(a), ranks[0]), gradient)
    return _fit_stack(step, product, b)


def _with_vectors(step: Step, gradient: str) -> Sequence[str | None]:
    """A vector is a matrix of one row (on the left) or one column (on the right)."""
    a, b = step.inputs
    ranks = step.rank(a), step.rank(b)
    for name in (a, b):
        step.alone(name)
    left = step.builder.unsqueeze(a, 0) if ranks[0] == 1 else a
    right = step.builder.unsqueeze(b, 1) if ranks[1] == 1 else b
    missing = [axis for axis, rank in ((-1, ranks[1]), (-2, ranks[0])) if rank == 1]
    for axis in missing:
        gradient = step.builder.unsqueeze(gradient, axis)
    found: list[str | None] = [None, None]
    if step.wants(0):
        product = step.node("MatMul", gradient, _swapped(step, right, max(2, ranks[1])))
        if ranks[0] == 1 and ranks[1] > 2:
            product = step.builder.reduce("Sum", product, range(ranks[1] - 2))
        found[0] = step.reshape_as(product, a)
    if step.wants(1):
        product = step.node("MatMul", _swapped(step, left, max(2, ranks[0])), gradient)
        if ranks[1] == 1 and ranks[0] > 2:
            product = step.builder.reduce("Sum", product, range(ranks[0] - 2))
        found[1] = step.reshape_as(product, b)
    return found


def _swapped(step: Step, tensor: str, rank: int) -> str:
    """The last two axes exchanged."""
    return step.builder.node("Transpose", [tensor], perm=[*range(rank - 2), rank - 1, rank - 2])


def _fit_stack(step: Step, product: str, tensor: str) -> str:
    """Sum over the axes along which a stack of matrices was repeated."""
    theirs, ours = step.shape(tensor), step.shape(step.output)
    extra = len(ours) - len(theirs)
    axes = list(range(extra))
    axes += [extra + axis for axis, size in enumerate(theirs[:-2]) if size == 1 and ours[extra + axis] != 1]
    if not axes:
        return product
    step.apart(axes, step.output)
    summed = step.builder.reduce("Sum", product, axes, keepdims=True)
    return step.builder.node("Squeeze", [summed, step.builder.shape(*range(extra))]) if extra else summed


@rule("Einsum", restrictions="no index twice in a term, no ellipsis, none that is in one input alone and summed")
def einsum(step: Step, gradient: str) -> Sequence[str | None]:
    """The product of the gradient and the other inputs, with the indices of the one that is asked for."""
    left, arrow, right = step.attributes["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    used = {letter for term in terms for letter in term}
    if not arrow:
        right = "".join(sorted(letter for letter in used if left.count(letter) == 1))
    found: list[str | None] = []
    for index, term in enumerate(terms):
        if not step.wants(index):
            found.append(None)
            continue
        others = [other for place, other in enumerate(terms) if place != index]
        if "." in left or len(set(term)) != len(term) or not set(term) <= set("".join([right, *others])):
            raise step.error(f"found the equation {step.attributes['equation']!r}, whose gradient is not supported")
        names = [name for place, name in enumerate(step.inputs) if place != index]
        for letters, name in zip(others, names, strict=True):
            batch = step.batch_of(name)
            if batch is not None and letters[batch.axis] not in term:
                step.alone(name)
        equation = f"{','.join([right, *others])}->{term}"
        found.append(step.node("Einsum", gradient, *(step.repeated(name) for name in names), equation=equation))
    return found

"""Learning rate policies. Caffe: SGDSolver::GetLearningRate in src/caffe/solvers/sgd_solver.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from camrt.errors import CamrtError
from converters.schema.caffe_pb2 import SolverParameter


@dataclass(frozen=True)
class Policy:
    """A learning rate policy.

    Attributes:
        rate: A function of the solver's parameters and the iteration, counted from 0.
        needs: The required fields, which have no meaningful default.
    """

    rate: Callable[[SolverParameter, int], float]
    needs: tuple[str, ...]


def _fixed(param: SolverParameter, iteration: int) -> float:
    return param.base_lr


def _step(param: SolverParameter, iteration: int) -> float:
    return param.base_lr * param.gamma ** (iteration // param.stepsize)


def _exp(param: SolverParameter, iteration: int) -> float:
    return param.base_lr * param.gamma**iteration


def _inv(param: SolverParameter, iteration: int) -> float:
    return param.base_lr * (1 + param.gamma * iteration) ** -param.power


def _multistep(param: SolverParameter, iteration: int) -> float:
    return param.base_lr * param.gamma ** sum(iteration >= step for step in param.stepvalue)


def _poly(param: SolverParameter, iteration: int) -> float:
    return param.base_lr * max(0.0, 1 - iteration / param.max_iter) ** param.power


def _sigmoid(param: SolverParameter, iteration: int) -> float:
    exponent = -param.gamma * (iteration - param.stepsize)
    return param.base_lr / (1 + math.exp(min(exponent, 700.0)))  # e^710 overflows


POLICIES = {
    "exp": Policy(_exp, ("gamma",)),
    "fixed": Policy(_fixed, ()),
    "inv": Policy(_inv, ("gamma", "power")),
    "multistep": Policy(_multistep, ("gamma", "stepvalue")),
    "poly": Policy(_poly, ("power", "max_iter")),
    "sigmoid": Policy(_sigmoid, ("gamma", "stepsize")),
    "step": Policy(_step, ("gamma", "stepsize")),
}


def learning_rate(param: SolverParameter, iteration: int) -> float:
    """Return the learning rate of an iteration, before `lr_mult`.

    Args:
        param: The solver's parameters, from `read_solver`.
        iteration: The number of updates done.

    Raises:
        CamrtError: The `lr_policy` is unknown.

    Example:
        >>> param = SolverParameter(base_lr=0.5, lr_policy="step", gamma=0.5, stepsize=10)
        >>> [learning_rate(param, iteration) for iteration in (0, 9, 10, 20)]
        [0.5, 0.5, 0.25, 0.125]
    """
    if param.lr_policy not in POLICIES:
        raise CamrtError(f"found the lr_policy {param.lr_policy!r}, expected one of {', '.join(POLICIES)}")
    return float(POLICIES[param.lr_policy].rate(param, iteration))

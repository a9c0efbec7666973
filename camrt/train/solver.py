"""Caffe's solvers, which update the weights. Caffe: src/caffe/solvers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camrt.errors import CamrtError
from camrt.train.networks import Blob, Network
from camrt.train.policies import learning_rate
from camrt.train.solverfile import SolverFile, check_updates, read_solver
from camrt.train.solverstate import SolverState, current_step, matched
from converters.schema.caffe_pb2 import SolverParameter
from converters.shape import show

__all__ = ["Solver", "SolverFile", "learning_rate", "read_solver"]

Tensors = list[Tensor]


@dataclass(frozen=True)
class Update:
    """The input of an update rule.

    Attributes:
        param: The solver's parameters.
        iteration: The number of updates done.
        rates: The learning rate of each blob.
        gradients: The gradients, including weight decay. The rule may modify them in place.
        history: The state of the rule: for each slot, a list of tensors of the same shapes as the gradients.
    """

    param: SolverParameter
    iteration: int
    rates: list[float]
    gradients: Tensors
    history: list[Tensors]


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
        update: Updates the history in place, and returns the values to subtract from the weights.
        slots: The number of tensors in the history of each blob.
    """

    update: Callable[[Update], Tensors]
    slots: int = 1


def _sgd(step: Update) -> Tensors:
    """v = momentum v + rate g; w -= v. The history includes the learning rates of past updates."""
    (velocity,) = step.history
    torch._foreach_mul_(velocity, step.param.momentum)
    torch._foreach_mul_(step.gradients, step.rates)
    torch._foreach_add_(velocity, step.gradients)
    return velocity


def _nesterov(step: Update) -> Tensors:
    """v' = momentum v + rate g; w -= (1 + momentum) v' - momentum v (Sutskever et al. 2013)."""
    (velocity,) = step.history
    momentum = step.param.momentum
    torch._foreach_mul_(step.gradients, step.rates)
    # (1 + m) (m v + r g) - m v  =  m (m v + r g) + r g
    torch._foreach_mul_(velocity, momentum)
    torch._foreach_add_(velocity, step.gradients)
    torch._foreach_add_(step.gradients, velocity, alpha=momentum)
    return step.gradients


def _adagrad(step: Update) -> Tensors:
    """h += g^2; w -= rate g / (sqrt(h) + delta) (Duchi et al. 2011)."""
    (squares,) = step.history
    torch._foreach_addcmul_(squares, step.gradients, step.gradients)
    return _divided(step, squares)


def _rmsprop(step: Update) -> Tensors:
    """h = rms_decay h + (1 - rms_decay) g^2; w -= rate g / (sqrt(h) + delta) (Tieleman and Hinton 2012)."""
    (squares,) = step.history
    torch._foreach_mul_(squares, step.param.rms_decay)
    torch._foreach_addcmul_(squares, step.gradients, step.gradients, value=1 - step.param.rms_decay)
    return _divided(step, squares)


def _divided(step: Update, squares: Tensors) -> Tensors:
    """rate g / (sqrt(h) + delta)."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, step.param.delta)
    torch._foreach_div_(step.gradients, roots)
    torch._foreach_mul_(step.gradients, step.rates)
    return step.gradients


def _adadelta(step: Update) -> Tensors:
    """u = g sqrt((d + delta) / (h + delta)); w -= rate u, with moving averages h of g^2 and d of u^2 (Zeiler 2012)."""
    squares, updates = step.history
    momentum, delta = step.param.momentum, step.param.delta
    torch._foreach_mul_(squares, momentum)
    torch._foreach_addcmul_(squares, step.gradients, step.gradients, value=1 - momentum)
    ratios = torch._foreach_add(updates, delta)
    torch._foreach_div_(ratios, torch._foreach_add(squares, delta))
    torch._foreach_sqrt_(ratios)
    torch._foreach_mul_(step.gradients, ratios)
    torch._foreach_mul_(updates, momentum)
    torch._foreach_addcmul_(updates, step.gradients, step.gradients, value=1 - momentum)
    torch._foreach_mul_(step.gradients, step.rates)
    return step.gradients


def _adam(step: Update) -> Tensors:
    """w -= rate c m / (sqrt(h) + delta), with moving averages m of g and h of g^2 (Kingma and Ba 2015).

    c corrects the bias of both averages. As in Caffe, delta is added to the root of the uncorrected h.
    """
    means, squares = step.history
    beta1, beta2, time = step.param.momentum, step.param.momentum2, step.iteration + 1
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, step.gradients, alpha=1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, step.gradients, step.gradients, value=1 - beta2)
    correction = math.sqrt(1 - beta2**time) / (1 - beta1**time)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, step.param.delta)
    changes = torch._foreach_div(means, roots)
    torch._foreach_mul_(changes, [rate * correction for rate in step.rates])
    return list(changes)


RULES = {
    "AdaDelta": Rule(_adadelta, slots=2),
    "AdaGrad": Rule(_adagrad),
    "Adam": Rule(_adam, slots=2),
    "Nesterov": Rule(_nesterov),
    "RMSProp": Rule(_rmsprop),
    "SGD": Rule(_sgd),
}


class Solver:
    """Updates the weights of a network by their gradients.

    All computations run on the network's device, and never wait for it.

    Args:
        param: The solver's parameters, from `read_solver`.
        network: The network to train, already on its device.

    Attributes:
        iteration: The number of updates done.

    Raises:
        CamrtError: A parameter is invalid, or the network has nothing to learn.

    Example:
        >>> solver = Solver(read_solver("solver.prototxt").param, network)  # doctest: +SKIP
        >>> network.loss(network({"data": images, "label": labels})).backward()  # doctest: +SKIP
        >>> solver.update()  # doctest: +SKIP
    """

    def __init__(self, param: SolverParameter, network: Network) -> None:
        self.param = SolverParameter()
        self.param.CopyFrom(param)
        check_updates(self.param)
        self.iteration = 0
        # A blob with lr_mult 0 never changes, and Caffe does not compute its gradient.
        self.blobs: list[Blob] = [blob for blob in network.blobs if blob.lr_mult]
        if not self.blobs:
            raise CamrtError(
                f"found nothing to learn in the network {network.name!r}, expected blobs with an lr_mult other than 0"
            )
        self._network = network
        self._rule = RULES[self.param.type]
        self._history: list[Tensors] = [
            [torch.zeros_like(blob.parameter, requires_grad=False) for blob in self.blobs]
            for _ in range(self._rule.slots)
        ]

    @property
    def rate(self) -> float:
        """The learning rate of the next update, before `lr_mult`."""
        return learning_rate(self.param, self.iteration)

    @torch.no_grad()
    def update(self) -> None:
        """Update the weights with the gradients, summed over `iter_size` passes, and reset the gradients to None.

        As in Caffe (SGDSolver::ApplyUpdate), the sum is clipped and divided by `iter_size`, weight decay is added, and
        the update rule is applied. Blobs that do not require a gradient are skipped, together with their history.
        """
        active = [index for index, blob in enumerate(self.blobs) if blob.parameter.requires_grad]
        blobs = [self.blobs[index] for index in active]
        weights: Tensors = [blob.parameter for blob in blobs]
        gradients: Tensors = [
            weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights
        ]
        self._clip(gradients)
        if self.param.iter_size > 1:
            torch._foreach_div_(gradients, self.param.iter_size)
        self._regularize(gradients, weights, blobs)
        rate = self.rate
        rates = [rate * blob.lr_mult for blob in blobs]
        history = [[slot[index] for index in active] for slot in self._history]
        changes = self._rule.update(Update(self.param, self.iteration, rates, gradients, history))
        torch._foreach_sub_(weights, changes)
        for blob in blobs:
            blob.parameter.grad = None
        self.iteration += 1

    def _clip(self, gradients: Tensors) -> None:
        """Scale all gradients so that their total L2 norm is at most `clip_gradients`."""
        if self.param.clip_gradients < 0:
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (self.param.clip_gradients / norm).clamp(max=1))

    def _regularize(self, gradients: Tensors, weights: Tensors, blobs: Sequence[Blob]) -> None:
        decays = [self.param.weight_decay * blob.decay_mult for blob in blobs]
        chosen = [index for index, decay in enumerate(decays) if decay]
        if not chosen:
            return
        held = [weights[index] for index in chosen]
        if self.param.regularization_type == "L1":
            held = torch._foreach_sign(held)
        pulls = torch._foreach_mul(held, [decays[index] for index in chosen])
        torch._foreach_add_([gradients[index] for index in chosen], pulls)

    def caffe_state(self, learned_net: str = "") -> SolverState:
        """Return the state as Caffe writes it.

        Blobs with ``lr_mult: 0`` have zeros as their history, which no update reads.

        Args:
            learned_net: The weights file of the same iteration.
        """
        blobs = [
            self._of_blob(blob, slot).detach().cpu().numpy()
            for slot in self._history
            for blob in self._network.learnable
        ]
        return SolverState(self.iteration, learned_net, tuple(blobs), current_step(self.param, self.iteration))

    def load_caffe_state(self, state: SolverState) -> None:
        """Load a state of Caffe.

        Raises:
            CamrtError: The state belongs to another network or another type of solver.
        """
        blobs = self._network.learnable * self._rule.slots
        found = matched(state.history, [tuple(blob.shape) for blob in blobs])
        slots = [slot for slot in self._history for _ in self._network.learnable]
        with torch.no_grad():
            for slot, blob, values in zip(slots, blobs, found, strict=True):
                self._of_blob(blob, slot).copy_(torch.from_numpy(np.array(values)))
        self.iteration = state.iteration

    def _of_blob(self, tensor: Tensor, slot: Tensors) -> Tensor:
        """Return the history of a blob of the network; zeros if it is not learned."""
        own = next((held for blob, held in zip(self.blobs, slot, strict=True) if blob.parameter is tensor), None)
        return torch.zeros_like(tensor) if own is None else own

    def state_dict(self) -> dict[str, Any]:
        """Return the state: the type, the iteration, and the history as a list of tensors for each slot of the rule."""
        return {
            "type": self.param.type,
            "iteration": self.iteration,
            "history": [[tensor.detach().clone() for tensor in slot] for slot in self._history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state from `state_dict`.

        Raises:
            CamrtError: The state is invalid, or belongs to another type of solver or another network.
        """
        try:
            kind, iteration, history = state["type"], int(state["iteration"]), list(state["history"])
        except (KeyError, TypeError, ValueError) as error:
            raise CamrtError(f"found no solver state, expected type, iteration and history: {error!r}") from None
        if kind != self.param.type:
            raise CamrtError(f"found the state of a solver of type {kind!r}, expected {self.param.type!r}")
        if iteration < 0:
            raise CamrtError(f"found the iteration {iteration} in a solver state, expected 0 or more")
        found = [[tuple(tensor.shape) for tensor in slot] for slot in history]
        expected = [[tuple(tensor.shape) for tensor in slot] for slot in self._history]
        if found != expected:
            counts = " and ".join(str(len(slot)) for slot in found) or "no"
            wrong = next(
                (
                    f"{show(one)} instead of {show(other)}"
                    for slots in zip(found, expected, strict=False)
                    for one, other in zip(*slots, strict=False)
                    if one != other
                ),
                f"expected {' and '.join(str(len(slot)) for slot in expected)}",
            )
            raise CamrtError(f"found a state with {counts} tensors, {wrong}: it belongs to another network")
        with torch.no_grad():
            for mine, theirs in zip(self._history, history, strict=True):
                for target, source in zip(mine, theirs, strict=True):
                    target.copy_(source)
        self.iteration = iteration

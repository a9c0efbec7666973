"""Layers with a state that goes from one time step to the next.

The blobs are (T, N, ...): T time steps of N streams. Each pass starts from a state of zeros, unless `expose_hidden`
hands the state in and out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.registry import Operation, Place, Weight, builds
from converters.handlers.recurrent import MAX_STEPS

State = tuple[Tensor, ...]
Unit = Callable[[Tensor, State], State]


@builds("LSTM")
def lstm(place: Place) -> Operation:
    """Long short-term memory without peepholes: c = f * c + i * g, h = o * tanh(c) (Zaremba and Sutskever 2014)."""
    units = place.layer.params.recurrent_param.num_output

    def unit(sums: Tensor, state: State) -> State:
        enter, keep, leave, candidate = sums.split(units, 1)
        cell = keep.sigmoid() * state[1] + enter.sigmoid() * candidate.tanh()
        return leave.sigmoid() * cell.tanh(), cell

    weights = _weights(place, 4 * units)
    return _unrolled(place, weights, unit, states=2, last=lambda hidden, blobs: hidden)


@builds("RNN")
def rnn(place: Place) -> Operation:
    """The plain recurrent network: h = tanh(W_hh h + W_xh x + b_h), o = tanh(W_ho h + b_o)."""
    param = place.layer.params.recurrent_param
    units = param.num_output
    weights = _weights(place, units)
    output = [Weight((units, units), param.weight_filler), Weight((units,), param.bias_filler)]
    return _unrolled(
        place,
        [*weights, *output],
        lambda sums, state: (sums.tanh(),),
        states=1,
        last=lambda hidden, blobs: functional.linear(hidden, *blobs[-2:]).tanh(),
    )


def _weights(place: Place, rows: int) -> list[Weight]:
    """Of the inputs with a bias, perhaps of the static input, and of the state."""
    param = place.layer.params.recurrent_param
    if not param.num_output:
        raise place.error("found no num_output, expected the number of hidden units, from 1 on")
    if len(place.shapes) < 2 or len(place.shapes[0]) < 3 or len(place.shapes[1]) != 2:
        raise place.error("found other bottoms, expected T x N x ... and T x N (time steps, streams)")
    if place.shapes[0][0] > MAX_STEPS:
        raise place.error(f"found {place.shapes[0][0]:,} time steps, expected at most {MAX_STEPS:,}")
    widths = [math.prod(place.shapes[0][2:])]
    weights = [Weight((rows, widths[0]), param.weight_filler), Weight((rows,), param.bias_filler)]
    if _has_static(place):
        weights.append(Weight((rows, math.prod(place.shapes[2][1:])), param.weight_filler))
    return [*weights, Weight((rows, param.num_output), param.weight_filler)]


def _has_static(place: Place) -> bool:
    exposed = len(place.layer.tops) - 1 if place.layer.params.recurrent_param.expose_hidden else 0
    return len(place.shapes) > 2 + exposed


def _unrolled(
    place: Place,
    weights: Sequence[Weight],
    unit: Unit,
    *,
    states: int,
    last: Callable[[Tensor, Sequence[Tensor]], Tensor],
) -> Operation:
    """Run ``unit`` step by step: it gets a step's weighted sums and the state before it, and gives that after it."""
    is_exposed = place.layer.params.recurrent_param.expose_hidden
    exposed = states if is_exposed else 0
    has_static = _has_static(place)
    place.layer.expect(bottoms=range(2 + exposed, 4 + exposed), tops=1 + exposed)
    units = place.layer.params.recurrent_param.num_output

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        inputs, continues, *others = bottoms
        weight, bias, *rest = blobs
        sums = functional.linear(inputs.flatten(2), weight, bias)
        if has_static:
            sums = sums + functional.linear(others.pop(0).flatten(1), rest.pop(0))
        state: State = tuple(one[0] for one in others) or (sums.new_zeros(sums.shape[1], units),) * states
        hidden = []
        for step, mark in zip(sums, continues.detach().to(sums.dtype).unsqueeze(2), strict=True):
            state = tuple(one * mark for one in state)
            state = unit(step + functional.linear(state[0], rest[0]), state)
            hidden.append(state[0])
        return [last(torch.stack(hidden), blobs), *(one.unsqueeze(0) for one in state[:exposed])]

    return Operation(forward, weights)

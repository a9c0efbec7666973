"""Recurrent layers.

The blobs are (T, N, ...): T time steps of N streams. Each pass starts from a state of zeros, unless `expose_hidden`
makes the initial and the final state bottoms and tops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.registry import LayerContext, Operation, Weight, builds
from converters.handlers.recurrent import MAX_STEPS
from converters.shape import show

State = tuple[Tensor, ...]
Unit = Callable[[Tensor, State], State]


@builds("LSTM")
def lstm(context: LayerContext) -> Operation:
    """Long short-term memory without peepholes: c = f * c + i * g, h = o * tanh(c) (Zaremba and Sutskever 2014)."""
    units = context.layer.params.recurrent_param.num_output

    def unit(sums: Tensor, state: State) -> State:
        input_gate, forget_gate, output_gate, candidate = sums.split(units, 1)
        cell = forget_gate.sigmoid() * state[1] + input_gate.sigmoid() * candidate.tanh()
        return output_gate.sigmoid() * cell.tanh(), cell

    weights = _weights(context, 4 * units)
    return _unrolled(context, weights, unit, states=2, last=lambda hidden, blobs: hidden)


@builds("RNN")
def rnn(context: LayerContext) -> Operation:
    """Plain recurrent network: h = tanh(W_hh h + W_xh x + b_h), o = tanh(W_ho h + b_o)."""
    param = context.layer.params.recurrent_param
    units = param.num_output
    weights = _weights(context, units)
    output = [Weight((units, units), param.weight_filler), Weight((units,), param.bias_filler)]
    return _unrolled(
        context,
        [*weights, *output],
        lambda sums, state: (sums.tanh(),),
        states=1,
        last=lambda hidden, blobs: functional.linear(hidden, *blobs[-2:]).tanh(),
    )


def _weights(context: LayerContext, rows: int) -> list[Weight]:
    """Return the weights and bias of the input, the weights of a static input if there is one, those of the state."""
    param = context.layer.params.recurrent_param
    if not param.num_output:
        raise context.error("found no num_output, expected the number of hidden units, 1 or more")
    if len(context.shapes) < 2 or len(context.shapes[0]) < 3 or len(context.shapes[1]) != 2:
        raise context.error(
            f"found bottoms of {', '.join(map(show, context.shapes)) or 'no shape'}, expected T x N x ... and T x N "
            "(time steps, streams)"
        )
    if context.shapes[0][0] > MAX_STEPS:
        raise context.error(f"found {context.shapes[0][0]:,} time steps, expected at most {MAX_STEPS:,}")
    widths = [math.prod(context.shapes[0][2:])]
    weights = [Weight((rows, widths[0]), param.weight_filler), Weight((rows,), param.bias_filler)]
    if _has_static(context):
        weights.append(Weight((rows, math.prod(context.shapes[2][1:])), param.weight_filler))
    return [*weights, Weight((rows, param.num_output), param.weight_filler)]


def _has_static(context: LayerContext) -> bool:
    exposed = len(context.layer.tops) - 1 if context.layer.params.recurrent_param.expose_hidden else 0
    return len(context.shapes) > 2 + exposed


def _unrolled(
    context: LayerContext,
    weights: Sequence[Weight],
    unit: Unit,
    *,
    states: int,
    last: Callable[[Tensor, Sequence[Tensor]], Tensor],
) -> Operation:
    """Unroll a unit over the time steps.

    Args:
        context: The layer.
        weights: Its blobs.
        unit: Computes the state after a step from the weighted sums of the step and the state before it.
        states: The number of tensors in a state.
        last: Computes the first top from all hidden states and the blobs.
    """
    is_exposed = context.layer.params.recurrent_param.expose_hidden
    exposed = states if is_exposed else 0
    has_static = _has_static(context)
    context.layer.expect(bottoms=range(2 + exposed, 4 + exposed), tops=1 + exposed)
    units = context.layer.params.recurrent_param.num_output

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

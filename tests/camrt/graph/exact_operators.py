"""Operators in float64 where onnx's reference evaluator has none, is wrong, or computes in float32: plain NumPy."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf


class Erf(OpRun):
    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (erf(x),)


class Gelu(OpRun):
    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + erf(x / np.sqrt(2))),)


class LRN(OpRun):
    def _run(self, x: np.ndarray, alpha: float, beta: float, bias: float, size: int) -> tuple[np.ndarray]:
        around = np.pad(x**2, [(0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)])
        total = sum(around[:, first : first + x.shape[1]] for first in range(size))
        return (x * (bias + alpha / size * total) ** -beta,)


class ConvTranspose(OpRun):
    def _run(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, **attributes: Any) -> tuple[np.ndarray]:
        kernel, axes = w.shape[2:], w.ndim - 2
        strides = attributes.get("strides") or [1] * axes
        dilations = attributes.get("dilations") or [1] * axes
        more = attributes.get("output_padding") or [0] * axes
        group = attributes.get("group") or 1
        full = [
            s * (n - 1) + d * (k - 1) + 1 + m
            for n, k, s, d, m in zip(x.shape[2:], kernel, strides, dilations, more, strict=True)
        ]
        y = np.zeros((x.shape[0], w.shape[1] * group, *full), x.dtype)
        parts = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        weights = w.reshape(group, -1, *w.shape[1:])
        for taps in product(*map(range, kernel)):
            term = np.einsum("ngc...,gcm->ngm...", parts, weights[(..., *taps)]).reshape(x.shape[0], -1, *x.shape[2:])
            places = [
                slice(t * d, t * d + s * n, s) for t, d, s, n in zip(taps, dilations, strides, x.shape[2:], strict=True)
            ]
            y[(slice(None), slice(None), *places)] += term
        pads = attributes.get("pads") or [0] * 2 * axes
        auto = attributes.get("auto_pad", "NOTSET")
        wanted = attributes.get("output_shape")
        if auto.startswith("SAME"):
            wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        if wanted:
            totals = [have - want for have, want in zip(full, wanted, strict=True)]
            less, more = [n // 2 for n in totals], [n - n // 2 for n in totals]
            pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
        inside = [slice(pads[a], full[a] - pads[a + axes]) for a in range(axes)]
        y = y[(slice(None), slice(None), *inside)]
        return (y if b is None else y + b.reshape(-1, *[1] * axes),)


class GlobalMaxPool(OpRun):
    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    def _run(self, x: np.ndarray, p: int = 2) -> tuple[np.ndarray]:
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class MeanVarianceNormalization(OpRun):
    def _run(self, x: np.ndarray, axes: list[int]) -> tuple[np.ndarray]:
        centred = x - x.mean(axis=tuple(axes), keepdims=True)
        return (centred / np.sqrt((centred**2).mean(axis=tuple(axes), keepdims=True) + 1e-9),)


class GroupNormalization(OpRun):
    def _run(
        self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float, num_groups: int, stash_type: int
    ) -> tuple[np.ndarray]:
        apart = x.reshape(x.shape[0], num_groups, -1)
        centred = apart - apart.mean(axis=2, keepdims=True)
        unit = (centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)).reshape(x.shape)
        return (unit * scale[:, None, None] + bias[:, None, None],)


class Pad(OpRun):
    def _run(
        self, x: np.ndarray, pads: np.ndarray, value: Any = None, axes: Any = None, mode: str = "constant"
    ) -> tuple[np.ndarray]:
        pairs = np.zeros((x.ndim, 2), int)
        pairs[range(x.ndim) if axes is None else axes] = pads.reshape(2, -1).T
        for axis, (before, after) in enumerate(pairs):
            x = x.take(np.arange(max(-before, 0), x.shape[axis] - max(-after, 0)), axis)
        constant = {"constant_values": 0.0 if value is None else float(value)} if mode == "constant" else {}
        return (np.pad(x, np.maximum(pairs, 0), mode, **constant),)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """onnx's, with these operators."""
    own = [Erf, Gelu, LRN, ConvTranspose, GlobalMaxPool, GlobalLpPool, MeanVarianceNormalization]
    own += [GroupNormalization, Pad]
    return ReferenceEvaluator(model, new_ops=own)

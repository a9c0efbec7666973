#!/usr/bin/env python3
"""Train a small vision transformer on cluttered digits, and write it as ONNX: a network for pictures of attention.

usage: python scripts/digit_transformer.py OUT.onnx [--steps 900]

It takes about a minute of one processor. The network has 64 tokens of 8 x 8 pixels, a class token and three blocks. It
is right on about three of four digits that it has not seen, which is enough to see what attention does, and no more.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt.preprocess import Preprocess
from camrt.train.clutter import Clutter, Digits

SIDE, WIDTH, HEADS, DEPTH = 64, 64, 4, 3
STEPS, BATCH, RATE = 900, 32, 2e-3
PREPROCESS = Preprocess(SIDE, SIDE, (128.0, 128.0, 128.0), (1 / 128, 1 / 128, 1 / 128), "RGB")


class Block(nn.Module):  # type: ignore[misc]
    """Attention and two linear layers, each behind a normalization and beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to tokens (N, tokens, WIDTH)."""
        count, tokens, _ = x.shape
        query, key, value = (
            self.qkv(self.norm1(x)).reshape(count, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        weights = torch.softmax(query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5, -1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(count, tokens, WIDTH))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):  # type: ignore[misc]
    """Three convolutions make the tokens, which train faster than patches (Xiao et al., NeurIPS 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(48, WIDTH, 3, 2, 1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1),
        )  # fmt: skip
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(1, 65, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(DEPTH)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> Any:
        """Score images (N, 3, SIDE, SIDE): (N, 10)."""
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


def batch(clutter: Clutter, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvases as the network wants them, and their digits."""
    canvases, labels, _ = clutter.batch(range(first, first + count))
    small: NDArray[np.uint8] = np.stack(
        [cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for canvas in canvases]
    )
    planes = (torch.from_numpy(small).float() - 128) / 128
    return planes[:, None].expand(-1, 3, -1, -1), torch.from_numpy(labels.astype(np.int64))


def trained(steps: int) -> Transformer:
    """Train the network."""
    torch.manual_seed(1)
    network, clutter = Transformer(), Clutter(Digits.drawn(1000, 1), seed=1)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for step in range(steps):
        planes, labels = batch(clutter, step * BATCH, BATCH)
        loss = nn.functional.cross_entropy(network(planes), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.2f}", file=sys.stderr)
    network.eval()
    return network


def accuracy(network: nn.Module, count: int = 512) -> float:
    """The share of digits, of other drawings, on which the network is right."""
    planes, labels = batch(Clutter(Digits.drawn(1000, 9), seed=5), 0, count)
    with torch.no_grad():
        return float((network(planes).argmax(1) == labels).float().mean())


def exported(network: nn.Module) -> onnx.ModelProto:
    """Export the network, with what it wants of an image."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(1, 3, SIDE, SIDE),), stream, dynamo=False, input_names=["data"],
            output_names=["logits"], dynamic_axes={"data": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip
    model = onnx.load_from_string(stream.getvalue())
    helper.set_model_props(model, {"camrt.preprocess": PREPROCESS.as_json()})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    network = trained(options.steps)
    onnx.save(exported(network), options.out)
    print(f"{options.out}: right on {accuracy(network):.0%} of 512 digits")


if __name__ == "__main__":
    main()

"""A dry run: shapes, memory, one iteration, and a picture of what the data look like."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from camrt import results
from camrt.render import png
from camrt.train.data.conversion import sheet
from camrt.train.data.loading import BatchLoader, DataLoaderSpec
from camrt.train.data.streams import derived_seed
from camrt.train.log import LINES
from camrt.train.networks import Network
from camrt.train.options import Reporter, TrainingOptions, TrainingResult, duration
from camrt.train.preparation import TrainingSetup
from camrt.train.snapshot import Snapshots
from converters.shape import show

PICTURE = "_data.png"
_MOST_IMAGES = 32
_FLOAT = 4  # bytes


def rehearse(setup: TrainingSetup, options: TrainingOptions, saved: Snapshots, reporter: Reporter) -> TrainingResult:
    """Run one iteration and one batch of each test net, and report what the training will be like.

    Only a picture of the first batch is written. Images are drawn as the network gets them, stretched to the range from
    black to white, where the data are images.

    Args:
        setup: The components of the training run.
        options: The options.
        saved: The snapshots, for the names of files.
        reporter: Receives the report.

    Returns:
        The loss of the iteration and the results of the test batches.

    Raises:
        CamrtError: The iteration fails, or the picture cannot be written.
    """
    for line in _layers(setup.network):
        reporter.say(line)
    inputs = _batch(setup.loader_specs[0], setup.device)
    picture = _write_picture(inputs, saved)
    torch.manual_seed(derived_seed(setup.seed, 0, 0))
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
    seconds, loss = _timed_iteration(setup, options, inputs)
    for line in _memory(setup):
        reporter.say(line)
    param, batch = setup.param, setup.loader_specs[0].batch_size
    total = seconds * param.iter_size * param.max_iter
    reporter.say(
        f"one iteration: loss = {loss:.6g}, {seconds * param.iter_size:.3g} s, {batch / seconds:.3g} images/s; "
        f"{param.max_iter:,} iterations take about {duration(total)}, without loading and tests"
    )
    tests = []
    for number, (net, spec) in enumerate(zip(setup.tests, setup.loader_specs[1:], strict=True)):
        with torch.no_grad():
            outputs = net(_batch(spec, setup.device))
        found = {name: float(blob.double().mean()) for name, blob in outputs.items()}
        values = ", ".join(f"{name} = {value:.6g}" for name, value in found.items())
        reporter.say(f"one batch of {spec.batch_size} of test net {number}: {values}")
        tests.append(found)
    if picture:
        reporter.say(f"the first batch: {saved.named(PICTURE)}")
    return TrainingResult(0, None, loss, tuple(tests), saved.named(LINES), None, seconds)


def _batch(spec: DataLoaderSpec, device: torch.device) -> dict[str, Tensor]:
    return next(iter(BatchLoader(spec, [0], workers=0, device=device)))


def _timed_iteration(
    setup: TrainingSetup, options: TrainingOptions, inputs: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Run two iterations, and return the seconds of the faster one and the loss of the first one."""
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.amp or "")
    seconds, losses = [], []
    for _ in range(2):
        began = time.perf_counter()
        with torch.autocast(setup.device.type, precision, enabled=precision is not None):
            loss = setup.network.loss(setup.network(inputs))
        loss.backward()
        setup.solver.update()
        losses.append(float(loss.detach()))  # waits for the device
        seconds.append(time.perf_counter() - began)
    return min(seconds), losses[0]


def _layers(network: Network) -> Iterator[str]:
    """Yield the shapes of all blobs, and the number of weights of each layer."""
    inverse: dict[str, tuple[int, ...]] = dict(network.shapes)
    for name, shape in network.inputs.items():
        yield f"input {name}: {show(shape)}"
    for layer in network.net.layers:
        weights = sum(blob.numel() for blob in network.stored.get(layer.name, ()))
        tops = ", ".join(f"{top} {show(inverse[top])}" for top in layer.params.top if top in inverse)
        yield f"{layer.name} ({layer.type}): {tops}" + (f"; {weights:,} weights" if weights else "")


def _memory(setup: TrainingSetup) -> Iterator[str]:
    """Yield how much memory the weights, the solver and the blobs need."""
    network = setup.network
    weights = sum(blob.numel() for blobs in network.stored.values() for blob in blobs)
    learned = sum(blob.parameter.numel() for blob in network.blobs if blob.lr_mult)
    history = sum(tensor.numel() for slot in setup.solver.state_dict()["history"] for tensor in slot)
    blobs = sum(int(np.prod(shape, dtype=object)) for shape in network.shapes.values())
    sizes = {"weights": weights, "gradients": learned, "history": history, "blobs": blobs}
    listed = ", ".join(f"{name} {_size(count)}" for name, count in sizes.items())
    yield f"memory: {listed}; in all at least {_size(sum(sizes.values()))}"
    if setup.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(setup.device)
        yield f"memory of the GPU in one iteration: {peak / 1e6:,.0f} MB"


def _size(count: int) -> str:
    """Return the memory of float32 numbers as text."""
    size = count * _FLOAT
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _write_picture(inputs: Mapping[str, Tensor], saved: Snapshots) -> bool:
    """Draw the images of a batch. Returns False if no input has the shape of images."""
    images = next((one for one in inputs.values() if one.dim() == 4 and min(one.shape[2:]) > 1), None)
    if images is None:
        return False
    pixels = images[:_MOST_IMAGES].float().cpu().numpy().transpose(0, 2, 3, 1)
    low, high = float(pixels.min()), float(pixels.max())
    stretched = ((pixels - low) * (255 / (high - low or 1))).round().astype(np.uint8)
    results.write(saved.named(PICTURE), png(sheet(list(stretched))))
    return True

"""The training loop: Caffe's `Solver::Solve`, with snapshots from which a killed run resumes.

An iteration depends only on the weights, the solver's history and the iteration number: images, crops and mirroring are
determined by the seed and the position in the data, dropout by the seed and the iteration. Therefore a run that is
killed and resumed from a snapshot gives bit-identical results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camrt import results
from camrt.errors import CamrtError
from camrt.train.data.loading import BatchLoader, DataLoaderSpec, default_workers
from camrt.train.data.streams import derived_seed
from camrt.train.description import NET, description
from camrt.train.log import LINES, Log
from camrt.train.networks import Network
from camrt.train.options import Best, Reporter, SilentReporter, TrainingOptions, TrainingResult, duration, metric_of
from camrt.train.parallel import Group, all_finite
from camrt.train.policies import learning_rate
from camrt.train.preparation import TrainingSetup, prefix_of, prepare
from camrt.train.rehearsal import rehearse
from camrt.train.snapshot import WEIGHTS, WEIGHTS_HDF5, Snapshots, packed
from camrt.train.solverfile import SolverFile, read_solver
from camrt.train.solverstate import STATE, STATE_HDF5, write_solverstate
from camrt.train.tensorboard import BOARD, Board
from camrt.train.weights import save_caffemodel
from converters.errors import install
from converters.schema.caffe_pb2 import SolverParameter

LABELS = "_labels.txt"
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CHECK_INTERVAL = 100  # most iterations between two checks of the losses: each check synchronizes with the device
_SYNC_INTERVAL = 10  # iterations between two exchanges of signals with the other processes
_REPEAT_SECONDS = 2.0  # time after which a second signal ends the training without a snapshot
_MAX_METRIC_SIZE = 100  # values of an output; larger outputs are scores rather than metrics


def train(options: TrainingOptions, *, group: Group | None = None, reporter: Reporter | None = None) -> TrainingResult:
    """Train a network according to a solver file.

    All output files share one prefix: snapshots, the log, its table, the curves, and the class names if they are
    known. SIGINT and SIGTERM stop the training after the current iteration, with a snapshot. SIGHUP takes a snapshot,
    and the training continues, as in Caffe.

    Args:
        options: The options.
        group: The processes that train together. The total batch size is that of the prototxt times their number.
        reporter: Receives the progress, from the first process only. By default, progress is discarded.

    Returns:
        The result.

    Raises:
        CamrtError: The files or options are invalid; the loss is NaN or infinite; or there are snapshots of an
            earlier run and no option says whether to resume from or to remove them.
    """
    group = group or Group()
    if reporter is None or not group.is_first:
        reporter = SilentReporter()
    file = read_solver(options.solver)
    saved = Snapshots(prefix_of(options, file.param.snapshot_prefix), _weights_ending(file))
    with saved.locked() if group.is_first else contextlib.nullcontext():
        try:
            setup = prepare(options, file, saved, group, reporter)
            if options.dry_run:
                return rehearse(setup, options, saved, reporter)
            return _Training(setup, options, saved, group, reporter).run()
        except torch.OutOfMemoryError as error:
            raise CamrtError(
                "the device is out of memory: lower batch_size and raise iter_size by the same factor, or use --amp",
                file=str(options.solver),
            ) from error


def _weights_ending(file: SolverFile) -> str:
    """Return the file name ending of weights in the solver's `snapshot_format`.

    Raises:
        CamrtError: The format is HDF5, and h5py is not installed.
    """
    if file.param.snapshot_format != SolverParameter.HDF5:
        return WEIGHTS
    if importlib.util.find_spec("h5py") is None:
        raise CamrtError(
            "found snapshot_format HDF5, which needs h5py. Install it with "
            f"{install('h5py')}, or use snapshot_format: BINARYPROTO",
            file=file.file,
        )
    return WEIGHTS_HDF5


class _Training:
    """The state of a training run."""

    def __init__(
        self, setup: TrainingSetup, options: TrainingOptions, saved: Snapshots, group: Group, reporter: Reporter
    ) -> None:
        self.setup, self.options, self.snapshots, self.group, self.reporter = setup, options, saved, group, reporter
        self.param, self.network, self.device = setup.param, setup.network, setup.device
        self.iteration = setup.start.iteration if setup.start is not None else 0
        self.saved = self.iteration if setup.start is not None else -1  # the iteration of the last snapshot
        self.weights = setup.start.weights if setup.start is not None else None
        # In the data, counted over all processes and epochs. A state of Caffe does not contain it.
        done = self.iteration * self.param.iter_size * self._total_batch_size()
        self.position = int(setup.metadata.get("position", done))
        self.earlier_seconds = float(setup.metadata.get("seconds", 0))
        self.recent: deque[float] = deque(setup.metadata.get("losses", ()), maxlen=max(1, self.param.average_loss))
        self.losses = _Losses(min(self.param.display or _CHECK_INTERVAL, _CHECK_INTERVAL), self.device)
        self.results: list[dict[str, float]] = [{} for _ in setup.tests]
        self.frozen = [  # parameters that are not trained in the first stage
            blob.parameter
            for blob in setup.network.blobs
            if setup.two_stage and blob.lr_mult and blob.layer in setup.loaded
        ]
        self.precision = _TYPES[options.amp] if options.amp else None
        self.scaler = torch.amp.GradScaler(self.device.type) if options.amp == "fp16" else None
        if self.scaler is not None and setup.metadata.get("scaler"):
            self.scaler.load_state_dict(setup.metadata["scaler"])
        best = setup.metadata.get("best")
        self.best = Best(**best) if best else None
        self.board: Board | None = None
        self.paused = 0.0  # seconds in tests and snapshots since the last display
        self.displayed = (self.iteration, 0.0)  # the iteration of the last display, and when it was
        self.signal = 0  # the signal that stops the training
        self.hangup = False  # whether a SIGHUP requested a snapshot
        self.stopped = self.stopped_early = False

    # ------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> TrainingResult:
        """Train to the last iteration or until a signal."""
        self.log = self._begin_log()
        self.began = time.perf_counter()
        self.displayed = (self.iteration, self.began)
        curves = None
        try:
            with self._handling_signals(), self._loading_ahead():
                self._solve()
        finally:
            seconds = self._seconds()
            if self.board is not None:
                self.board.close()
            if self.log is not None:
                self.log.write_table()
                try:
                    curves = self.log.draw()
                except ImportError:
                    self.reporter.say(f"note: no curves were drawn. Install matplotlib: {install('matplotlib')}")
        return TrainingResult(
            self.iteration,
            self.weights,
            self._smoothed(),
            tuple(self.results),
            self.snapshots.named(LINES),
            curves,
            seconds,
            self.signal if self.stopped and not self.stopped_early else 0,
            self.best,
            self.stopped_early,
        )

    def _begin_log(self) -> Log | None:
        """Create the log and the file of class names. All inputs have been checked by now."""
        if not self.group.is_first:
            return None
        if self.options.restart:
            self.snapshots.remove()
        classes = self.setup.loader_specs[0].first.classes
        if classes:
            names = "".join(f"{name}\n" for name in classes)
            results.write(self.snapshots.named(LABELS), names.encode(errors="replace"))
        tested = (self.setup.tests or (self.network,))[0]
        spec = self.setup.loader_specs[1 if self.setup.tests else 0]
        results.write(self.snapshots.named(NET), description(tested.net, spec).encode(errors="surrogateescape"))
        if self.options.tensorboard:
            self.board = Board(self.snapshots.named(BOARD), self.iteration)
        return Log(self.snapshots.prefix, self.iteration)

    def _record(self, record: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.add(record)
        if self.board is not None:
            self.board.add(record)

    def _solve(self) -> None:
        param = self.param
        self.reporter.begin(self.iteration, param.max_iter)
        self._set_stage()
        while self.iteration < param.max_iter:
            tests = self._is_due(param.test_interval) and (self.iteration > 0 or param.test_initialization)
            if self._must_stop() or (tests and not self._test()):
                self._stop()
                return
            if self._is_stale():
                self.stopped_early = True
                self._stop()
                return
            if self._must_snapshot() and self.iteration > max(0, self.saved):
                self._snapshot()
            if self.setup.two_stage and self.iteration == self.setup.two_stage:
                self._set_stage()
            self._iterate()
            if self._is_due(param.snapshot):
                self._snapshot()
        self._check_losses()
        if param.snapshot_after_train and self.iteration != self.saved:
            self._snapshot()
        self.stopped = not self._test()
        self._remove_others()

    def _stop(self) -> None:
        """Stop early, with a snapshot."""
        self.stopped = True
        reason = ""
        if self.stopped_early and self.best is not None:
            reason = f": {self.best.metric} has not improved in {self.best.stale} tests"
        self.reporter.say(f"stopping after iteration {self.iteration}{reason}")
        if self.iteration > max(0, self.saved):
            self._snapshot()

    def _is_stale(self) -> bool:
        """Return whether the tests have not improved for too long. All processes have the same results."""
        patience = self.options.patience
        return patience is not None and self.best is not None and self.best.stale >= patience

    def _compare(self) -> None:
        """Compare the results of the first test net with the best ones. An improvement is kept as a snapshot."""
        if not self.results or not self.results[0]:
            return
        metric = metric_of(self.results[0], self.options.metric)
        value = self.results[0][metric]
        if self.best is None or self.best.metric != metric:
            self.best = Best(metric, self.iteration, value, self.iteration)
        else:
            self.best = self.best.after(self.iteration, value)
        if self.options.keep and self.best.iteration == self.iteration and self.iteration not in (0, self.saved):
            self._snapshot()

    def _remove_others(self) -> None:
        """Keep only the best and the last snapshot, if wanted."""
        if self.options.keep and self.group.is_first:
            best = {self.best.iteration} if self.best is not None else set()
            self.snapshots.remove_others({self.saved, *best})

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.iteration % interval == 0

    def _iterate(self) -> None:
        """Run one iteration: sum the gradients of iter_size batches, and update the weights."""
        iteration = self.iteration
        torch.manual_seed(derived_seed(self.setup.seed, iteration, self.group.rank))
        total: Tensor | None = None
        for _ in range(self.param.iter_size):
            with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                blobs = self.network(next(self.batches))
                loss = self.network.loss(blobs)
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total = loss.detach() if total is None else total + loss.detach()
        self._update()
        self.position += self._total_batch_size() * self.param.iter_size
        self.iteration += 1
        assert total is not None
        self.losses.add(total / self.param.iter_size)
        displays = self.param.display > 0 and iteration % self.param.display == 0
        if displays or self.losses.is_full:
            self._check_losses()
        if displays:
            self._display(iteration)
        self.reporter.advance()

    def _update(self) -> None:
        learned = [blob.parameter for blob in self.network.blobs if blob.parameter.grad is not None]
        self.group.average([parameter.grad for parameter in learned if parameter.grad is not None])
        if self.scaler is None:
            self.setup.solver.update()
            return
        before = self.setup.solver.iteration
        step = _ScaledUpdate(learned, self.setup.solver.update)
        self.scaler.unscale_(step)
        self.scaler.step(step)
        self.scaler.update()
        if self.setup.solver.iteration == before:
            # The gradients overflowed float16. The scaler skipped the update and reduced its scale.
            self.setup.solver.iteration = before + 1
            for parameter in learned:
                parameter.grad = None

    def _set_stage(self) -> None:
        """Freeze the loaded layers in the first stage, and unfreeze them in the second."""
        is_first_stage = self.iteration < self.setup.two_stage
        for parameter in self.frozen:
            parameter.requires_grad_(not is_first_stage)
            parameter.grad = None
        if self.frozen:
            text = f"only new layers, up to iteration {self.setup.two_stage}" if is_first_stage else "all layers"
            self.reporter.say(f"iteration {self.iteration}: training {text}")

    @contextlib.contextmanager
    def _loading_ahead(self) -> Iterator[None]:
        """Create the loaders of the batches of this process, and close them at the end."""
        size, own = self._total_batch_size(), self.setup.loader_specs[0].batch_size
        left = max(0, self.param.max_iter - self.iteration) * self.param.iter_size
        first = self.position + self.group.rank * own
        train = self._loader(self.setup.loader_specs[0], range(first, self.position + left * size, size))
        self.test_batches = [
            self._loader(each, range(self.group.rank * own, count * own, self.group.world * own))
            for each, count in zip(self.setup.loader_specs[1:], self.param.test_iter, strict=True)
            for own in (each.batch_size,)
        ]
        self.batches = iter(train)
        try:
            yield
        finally:
            self.batches.close()
            for loader in (train, *self.test_batches):
                loader.close()

    def _loader(self, spec: DataLoaderSpec, positions: Sequence[int]) -> BatchLoader:
        workers = self.options.workers
        if workers is None:
            workers = default_workers(spec, self.group.world)

        def report(name: str, reason: str) -> None:
            self.reporter.say(f"warning: {name}: {reason}. The image was skipped")

        workers = min(workers, len(positions))
        return BatchLoader(spec, positions, workers=workers, device=self.device, on_unusable=report)

    def _total_batch_size(self) -> int:
        """Return the batch size of all processes together."""
        return self.setup.loader_specs[0].batch_size * self.group.world

    def _test(self) -> bool:
        """Run the test nets.

        Returns:
            Whether the tests were completed; False if a signal interrupted them.
        """
        self._check_losses()
        paused = time.perf_counter()
        self.group.average(list(self.network.buffers()))
        for number, (net, batches) in enumerate(zip(self.setup.tests, self.test_batches, strict=True)):
            began = time.perf_counter()
            found = self._mean_outputs(net, batches)
            if found is None:
                return False
            self.results[number] = found
            self._record(
                {
                    "iteration": self.iteration,
                    "phase": "test",
                    "seconds": round(self._seconds(), 3),
                    "net": number,
                    "outputs": found,
                }
            )
            values = ", ".join(f"{name} = {value:.6g}" for name, value in found.items())
            which = f"test net {number}" if len(self.setup.tests) > 1 else "test"
            took = time.perf_counter() - began
            self.reporter.say(f"iteration {self.iteration}, {which}: {values} ({took:.1f} s)")
        self._compare()
        self.paused += time.perf_counter() - paused
        return True

    @torch.no_grad()
    def _mean_outputs(self, net: Network, batches: BatchLoader) -> dict[str, float] | None:
        """Return the mean of each output over the batches of all processes; None if a signal interrupted the test."""
        sums: dict[str, Tensor] = {}
        count = 0
        for inputs in batches:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                blobs = net(inputs)
            for name, blob in blobs.items():
                if blob.numel() <= _MAX_METRIC_SIZE:
                    value = blob.float().reshape(-1)
                    sums[name] = sums[name] + value if name in sums else value.clone()
            count += 1
            if self.signal and self.group.world == 1:
                return None
        found = [({name: total.double().cpu() for name, total in sums.items()}, count)]
        parts = self.group.gather(found[0])
        batches_of_all = sum(each for _, each in parts)
        means = {name: sum(part[name] for part, _ in parts if name in part) / batches_of_all for name in parts[0][0]}
        return {
            name if mean.numel() == 1 else f"{name}[{index}]": float(value)
            for name, mean in means.items()
            for index, value in enumerate(mean)
        }

    # -------------------------------------------------------------------------------------------- losses and snapshots

    def _check_losses(self) -> None:
        """Read the losses from the device, and raise an error if one is NaN or infinite."""
        first = self.iteration - self.losses.count
        for offset, loss in enumerate(self.losses.read(self.group)):
            if not math.isfinite(loss):
                raise CamrtError(
                    f"the loss is {loss} at iteration {first + offset}. {self._last_good()}. Lower base_lr, set "
                    "clip_gradients, or check the labels and images",
                    file=str(self.options.solver),
                )
            self.recent.append(loss)

    def _last_good(self) -> str:
        return f"The last snapshot is {self.weights}" if self.weights else "There is no snapshot before it"

    def _smoothed(self) -> float | None:
        return sum(self.recent) / len(self.recent) if self.recent else None

    def _display(self, iteration: int) -> None:
        loss, smoothed, rate = self.recent[-1], self._smoothed(), learning_rate(self.param, iteration)
        assert smoothed is not None
        seconds = self._seconds()
        speed = self._images_per_second()
        self._record(
            {
                "iteration": iteration,
                "phase": "train",
                "seconds": round(seconds, 3),
                "rate": rate,
                "loss": loss,
                "smoothed_loss": smoothed,
                "images_per_second": round(speed, 1),
            }
        )
        self.reporter.show(smoothed, rate)
        left = (self.param.max_iter - self.iteration) * self._images_per_iteration() / speed if speed else 0.0
        self.reporter.say(
            f"iteration {iteration}: loss = {smoothed:.6g}, lr = {rate:.6g} ({seconds:.1f} s, {speed:.3g} images/s, "
            f"{duration(left)} left)"
        )

    def _images_per_iteration(self) -> int:
        return self._total_batch_size() * self.param.iter_size

    def _images_per_second(self) -> float:
        """Return the speed since the last display, without tests and snapshots."""
        (iteration, when), now = self.displayed, time.perf_counter()
        seconds, self.displayed = now - when - self.paused, (self.iteration, now)
        self.paused = 0.0
        return (self.displayed[0] - iteration) * self._images_per_iteration() / seconds if seconds > 0 else 0.0

    def _snapshot(self) -> None:
        """Take a snapshot, after checking that all weights are finite."""
        began = time.perf_counter()
        self._check_losses()
        self.group.average(list(self.network.buffers()))
        if not all_finite([*self.network.parameters(), *self.network.buffers()]):
            raise CamrtError(
                f"found NaN or infinite weights at iteration {self.iteration}. {self._last_good()}. Lower base_lr, or "
                "set clip_gradients",
                file=str(self.options.solver),
            )
        if self.group.is_first:
            arrays: dict[str, np.ndarray[Any, Any]] = {}
            metadata = self._metadata(packed(self.setup.solver.state_dict(), arrays))
            self.weights = self.snapshots.write(self.iteration, self._write_weights, arrays, metadata)
            if self.log is not None:
                self.log.write_table()
            self.reporter.say(f"snapshot {self.weights}")
        self.saved = self.iteration
        self._remove_others()
        self.paused += time.perf_counter() - began

    def _write_weights(self, file: Path) -> None:
        save_caffemodel(self.network, file)
        if self.options.solverstate:
            ending = STATE_HDF5 if self.snapshots.ending == WEIGHTS_HDF5 else STATE
            beside = file.with_name(file.name.removesuffix(self.snapshots.ending) + ending)
            write_solverstate(beside, self.setup.solver.caffe_state(str(file)))

    def _metadata(self, solver: Any) -> dict[str, Any]:
        source = self.setup.loader_specs[0].first
        return {
            "type": self.param.type,
            "solver": solver,
            "seed": self.setup.seed,
            "position": self.position,
            "seconds": self._seconds(),
            "losses": list(self.recent),
            "data": source.name,
            "images": source.count,
            "batch": self.setup.loader_specs[0].batch_size,
            "two_stage": self.setup.two_stage,
            "loaded": list(self.setup.loaded),
            "best": dataclasses.asdict(self.best) if self.best is not None else None,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.began

    # --------------------------------------------------------------------------------------------------------- signals

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Handle signals during training.

        SIGINT and SIGTERM stop the training after the current iteration; a second one stops it at once. SIGHUP, which a
        closed terminal sends, requests a snapshot.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        first = math.inf

        def on_signal(number: int, _: Any) -> None:
            nonlocal first
            first = min(first, time.monotonic())
            # The terminal sends Ctrl-C to all processes, and torchrun sends it to them once more.
            if self.signal and time.monotonic() - first > _REPEAT_SECONDS:
                raise KeyboardInterrupt
            self.signal = number

        def on_hangup(_: int, __: Any) -> None:
            self.hangup = True

        handlers: dict[int, Callable[[int, Any], None]] = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal}
        if hasattr(signal, "SIGHUP"):  # not on Windows
            handlers[signal.SIGHUP] = on_hangup
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _must_stop(self) -> bool:
        """Return whether a signal came. Several processes agree on it, since all must do the same iterations."""
        if self.group.world > 1 and self.iteration % _SYNC_INTERVAL == 0:
            self.signal = self.group.maximum(self.signal)
            return bool(self.signal)
        return bool(self.signal) and self.group.world == 1

    def _must_snapshot(self) -> bool:
        """Return whether any process received a SIGHUP. All processes take the snapshot together."""
        if self.group.world > 1:
            if self.iteration % _SYNC_INTERVAL:
                return False
            self.hangup = bool(self.group.maximum(int(self.hangup)))
        requested, self.hangup = self.hangup, False
        return requested


@dataclass
class _Losses:
    """The losses since the last check. They stay on the device, since reading them waits for it."""

    size: int
    device: torch.device
    count: int = 0
    values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.values = torch.zeros(self.size, device=self.device)

    @property
    def is_full(self) -> bool:
        return self.count == self.size

    def add(self, loss: Tensor) -> None:
        self.values[self.count] = loss
        self.count += 1

    def read(self, group: Group) -> list[float]:
        """Return the losses, averaged over the processes, and clear them."""
        values = self.values[: self.count].clone()
        group.average([values])
        self.count = 0
        return [float(value) for value in values.tolist()]


class _ScaledUpdate:
    """The solver's update with the interface of an optimizer, for PyTorch's GradScaler."""

    def __init__(self, parameters: Sequence[Tensor], step: Callable[[], Any]) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.step = step

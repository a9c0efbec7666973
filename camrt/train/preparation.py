"""Setup of a training run from its options. Everything is checked before the first iteration."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from camrt.errors import CamrtError
from camrt.train import snapshot as snapshots
from camrt.train.data.loading import DataLoaderSpec, LabelLimit, data_loader_spec
from camrt.train.data.sources import abbreviated, has_test_part
from camrt.train.networks import Network, network
from camrt.train.options import Reporter, TrainingOptions
from camrt.train.parallel import Group, choose_device
from camrt.train.snapshot import Snapshot, Snapshots
from camrt.train.solver import Solver
from camrt.train.solverfile import SolverFile
from camrt.train.weights import load_caffemodel, load_weights
from converters.net import Net
from converters.schema.caffe_pb2 import SolverParameter
from converters.transform import finder


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """The components of a training run.

    Attributes:
        param: The parameters of the solver file.
        device: The device.
        seed: The seed of all random numbers.
        start: The snapshot to resume from; None to start at iteration 0.
        network: The network to train, on its device.
        tests: The networks to test. They share the weights of the trained one.
        loader_specs: The data of the trained network, followed by the data of each test network.
        solver: The solver, with its history.
        loaded: The layers whose initial weights were loaded from files.
        two_stage: The iteration up to which the loaded layers are frozen.
    """

    param: SolverParameter
    device: torch.device
    seed: int
    start: Snapshot | None
    network: Network
    tests: tuple[Network, ...]
    loader_specs: tuple[DataLoaderSpec, ...]
    solver: Solver
    loaded: tuple[str, ...]
    two_stage: int

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of the snapshot; empty without one."""
        return self.start.metadata if self.start is not None else {}


def prefix_of(options: TrainingOptions, named: str) -> Path:
    """Return the prefix of the output files.

    As in Caffe, the name of the solver file is used if there is no prefix, and appended if the prefix is a folder.

    Args:
        options: The options.
        named: The solver's snapshot_prefix.
    """
    if options.out is None and not named:
        return options.solver.with_suffix("")
    prefix = options.out if options.out is not None else Path(named)
    is_folder = prefix.is_dir() or not prefix.name or (options.out is None and named.endswith("/"))
    return prefix / options.solver.stem if is_folder else prefix


def prepare(
    options: TrainingOptions, file: SolverFile, saved: Snapshots, group: Group, reporter: Reporter
) -> TrainingSetup:
    """Set up a training run. Nothing is written.

    Args:
        options: The options.
        file: The solver file.
        saved: The existing snapshots.
        group: The processes that train together.
        reporter: Receives notes.

    Raises:
        CamrtError: A file or an option is invalid.
    """
    _configure(options)
    param = file.param
    device = choose_device(options.device, group, param.device_id)
    start = _start(options, saved, group, reporter)
    seed = _seed(options, param, start, group)
    nets, loader_specs = _nets_and_data(options, file, seed)
    for note in dict.fromkeys(note for each in loader_specs for note in each.notes):
        reporter.say(f"note: {note}")
    shapes = [each.shapes() for each in loader_specs]
    trained = network(nets[0], input_shapes=shapes[0], seed=seed)
    tests = [
        network(net, input_shapes=shape, share=trained, seed=seed)
        for net, shape in zip(nets[1:], shapes[1:], strict=True)
    ]
    loader_specs = [_check_labels(each, spec) for each, spec in zip([trained, *tests], loader_specs, strict=True)]
    if options.patience is not None and not tests:
        raise CamrtError("found --patience without a test net, expected test_iter and test_interval", file=file.file)
    loaded = _load(options, param, trained, start, reporter)
    two_stage = _two_stage(options, start, trained, loaded)
    for each in [trained, *tests]:
        each.to(device)
    solver = Solver(param, trained)
    if start is not None:
        _restore(solver, start, loader_specs[0], reporter)
    return TrainingSetup(
        param, device, seed, start, trained, tuple(tests), tuple(loader_specs), solver, loaded, two_stage
    )


def _configure(options: TrainingOptions) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = not options.deterministic


# ----------------------------------------------------------------------------------------------------------- the start


def _start(options: TrainingOptions, saved: Snapshots, group: Group, reporter: Reporter) -> Snapshot | None:
    """Return the snapshot to resume from. The first process chooses it, and all processes read it."""
    chosen = _chosen_start(options, saved, reporter) if group.is_first else None
    file = group.broadcast(chosen.file if chosen is not None else None)
    return chosen if group.is_first or file is None else snapshots.read(file)


def _chosen_start(options: TrainingOptions, saved: Snapshots, reporter: Reporter) -> Snapshot | None:
    if options.snapshot is not None:
        return snapshots.read(options.snapshot)
    existing = saved.states()
    for file in options.weights if options.restart else ():
        removed = {
            state.with_name(state.stem + ending).resolve()
            for state in existing
            for ending in (snapshots.WEIGHTS, snapshots.WEIGHTS_HDF5)
        }
        if file.resolve() in removed:
            raise CamrtError(
                "belongs to a snapshot that --restart removes: choose another prefix with --out", file=str(file)
            )
    if options.resume:
        if not existing:
            reporter.say(f"found no snapshot of {saved.prefix}: starting at iteration 0")
        return saved.last()
    if existing and not options.restart and not options.dry_run:
        raise CamrtError(
            f"found {len(existing)} snapshot(s) of an earlier run, the last one {existing[-1].name}. Resume from it "
            "with --resume, remove the snapshots and start over with --restart, or choose another prefix with --out",
            file=str(saved.prefix),
        )
    return None


def _seed(options: TrainingOptions, param: SolverParameter, start: Snapshot | None, group: Group) -> int:
    """Return the seed of the resumed run, or else the given one, or else a random one."""
    given = options.seed
    if start is not None and start.caffe is None:
        previous = int(start.metadata["seed"])
        if given not in (None, previous):
            raise CamrtError(f"found --seed {given}, expected {previous}, the seed of the run", file=str(start.file))
        return previous
    if given is None and param.random_seed >= 0:
        given = param.random_seed
    return group.broadcast(secrets.randbelow(2**31) if given is None else given)


def _restore(solver: Solver, start: Snapshot, spec: DataLoaderSpec, reporter: Reporter) -> None:
    """Restore the solver's history, and report if the data differ from those of the snapshot."""
    try:
        if start.caffe is not None:
            solver.load_caffe_state(start.caffe)
            reporter.say(f"resuming from {start.file}, a state of Caffe")
            return
        solver.load_state_dict(snapshots.unpacked(start.metadata["solver"], start.arrays, torch.from_numpy))
    except CamrtError as error:
        raise error.in_file(str(start.file)) from None
    reporter.say(f"resuming from {start.file}")
    source, metadata = spec.first, start.metadata
    if (metadata["data"], metadata["images"]) != (source.name, source.count):
        reporter.say(
            f"note: the data have changed from {metadata['data']} ({_count(metadata['images'])} images) to "
            f"{source.name} ({_count(source.count)}): the results will differ from those of an uninterrupted run"
        )
    before = metadata.get("batch", spec.batch_size)
    if before != spec.batch_size:
        reporter.say(
            f"note: the batch size has changed from {before} to {spec.batch_size}: the results will differ from those "
            "of an uninterrupted run"
        )


# ------------------------------------------------------------------------------------------------------------ the data


def _nets_and_data(options: TrainingOptions, file: SolverFile, seed: int) -> tuple[list[Net], list[DataLoaderSpec]]:
    """Return the nets, the trained one first, and their data."""
    test_data = options.test_data
    if test_data is None and options.data is not None and has_test_part(options.data):
        test_data = options.data
    nets = [file.train_net(), *file.test_nets()]
    texts = [options.data, *([test_data] * (len(nets) - 1))]
    specs = [
        data_loader_spec(
            net,
            text,
            seed=seed,
            resize=options.resize,
            batch=options.batch,
            find=finder(Path(net.files[0]) if net.files else options.solver),
        )
        for net, text in zip(nets, texts, strict=True)
    ]
    if test_data is not None and len(nets) > 2:
        note = f"all {len(nets) - 1} test nets read {test_data}: --test-data replaces the data of each of them"
        specs[1] = replace(specs[1], notes=(*specs[1].notes, note))
    return nets, specs


def _check_labels(net: Network, spec: DataLoaderSpec) -> DataLoaderSpec:
    """Check that all labels are classes of the losses. On a GPU, a wrong label would abort the process.

    Returns:
        The data, with limits for the labels that are only known once they are loaded.
    """
    streams = {top: stream for stream in spec.streams for top in stream.shapes()}
    limits: dict[str, LabelLimit] = {}
    for layer in net.net.layers:
        shape = net.shapes.get(layer.bottoms[0]) if layer.bottoms else None
        stream = streams.get(layer.bottoms[1]) if len(layer.bottoms) > 1 else None
        if layer.type not in ("SoftmaxWithLoss", "Accuracy") or shape is None or stream is None:
            continue
        is_loss = layer.type == "SoftmaxWithLoss"
        axis = (layer.params.softmax_param if is_loss else layer.params.accuracy_param).axis
        param = layer.params.loss_param if is_loss else layer.params.accuracy_param
        ignored = param.ignore_label if param.HasField("ignore_label") else None
        largest = stream.largest_label
        if largest is None:
            limits[layer.bottoms[1]] = LabelLimit(shape[axis], ignored)
        elif largest >= shape[axis] and ignored != largest:
            raise CamrtError(
                f"found labels up to {largest}, expected 0 to {shape[axis] - 1}: the layer {layer.name!r} of "
                f"{net.name!r} has {shape[axis]} classes",
                file=stream.name,
            )
    return replace(spec, label_limits=limits)


# --------------------------------------------------------------------------------------------------------- the weights


def _load(
    options: TrainingOptions, param: SolverParameter, trained: Network, start: Snapshot | None, reporter: Reporter
) -> tuple[str, ...]:
    """Load the weights of the snapshot, or the initial weights.

    Returns:
        The layers whose initial weights were loaded.
    """
    if start is not None:
        report = load_caffemodel(trained, start.weights)
        if report.filled:
            raise CamrtError(
                f"found no weights for {abbreviated(report.filled)}: the snapshot belongs to another network",
                file=str(start.weights),
            )
        return tuple(start.metadata.get("loaded", ()))
    loaded: set[str] = set()
    for file in options.weights or [Path(one) for each in param.weights for one in each.split(",") if one]:
        report = load_weights(trained, file)
        parts = [f"{file}: loaded {len(report.loaded)} layer(s)"]
        parts += [f"not in the file: {abbreviated(report.filled)}"] if report.filled else []
        parts += [f"not in the network: {abbreviated(report.unused)}"] if report.unused else []
        reporter.say("; ".join(parts))
        for note in report.notes:
            reporter.say(f"note: {file}: {note}")
        loaded.update(report.loaded)
    return tuple(sorted(loaded))


def _two_stage(options: TrainingOptions, start: Snapshot | None, trained: Network, loaded: Sequence[str]) -> int:
    """Return the iteration up to which the loaded layers are frozen."""
    wanted = options.two_stage
    if start is not None:
        previous = int(start.metadata.get("two_stage", 0))
        if wanted not in (None, previous):
            raise CamrtError(
                f"found --two-stage {wanted}, expected {previous or 'none'}, the value of the run",
                file=str(start.file),
            )
        return previous
    if not wanted:
        return 0
    learning = [blob.layer in loaded for blob in trained.blobs if blob.lr_mult]
    if not any(learning):
        raise CamrtError(f"found --two-stage {wanted} but no layers from --weights, expected some to freeze at first")
    if all(learning):
        raise CamrtError(
            f"found --two-stage {wanted} but weights for all layers, expected new layers, which are trained first"
        )
    return wanted


def _count(count: int | None) -> str:
    return "endless" if count is None else f"{count:,}"

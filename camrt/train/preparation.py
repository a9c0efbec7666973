"""From options to all parts of a training, checked before the first iteration."""

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
from camrt.train.data.sources import has_test_part
from camrt.train.networks import Network, network
from camrt.train.options import Reporter, TrainingOptions
from camrt.train.parallel import Group, choose_device
from camrt.train.snapshot import Snapshot, Snapshots
from camrt.train.solver import Solver
from camrt.train.solverfile import SolverFile
from camrt.train.weights import load_caffemodel
from converters.net import Net
from converters.schema.caffe_pb2 import SolverParameter
from converters.transform import finder

_SHOWN = 8  # names that a message lists


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """All parts of a training.

    Attributes:
        param: What the solver file says.
        device: Where it runs.
        seed: Of all that is random.
        start: The snapshot that is gone on from.
        network: The network that is trained, on its device.
        tests: The networks that are tested. They have its weights.
        loader_specs: What they are fed with, the trained one first.
        solver: The solver, with its history.
        loaded: The layers whose weights came from files, at the beginning.
        two_stage: Until which iteration those wait.
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
    def facts(self) -> Mapping[str, Any]:
        """What the snapshot says; empty without one."""
        return self.start.facts if self.start is not None else {}


def prefix_of(options: TrainingOptions, named: str) -> Path:
    """Where files go. Without a prefix, and for a folder, the solver file's name completes it, as in Caffe.

    Args:
        options: What is asked.
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
    """Set up all parts. Nothing is written.

    Args:
        options: What is asked.
        file: The solver file.
        saved: The snapshots that are there.
        group: The processes that train together.
        reporter: Who is told of notes.

    Raises:
        CamrtError: Whatever is wrong with the files or options.
    """
    _configure(options)
    param = file.param
    device = choose_device(options.device, group, param.device_id)
    start = _start(options, saved, group, reporter)
    seed = _seed(options, param, start, group)
    nets, loader_specs = _fed(options, file, seed)
    for note in dict.fromkeys(note for each in loader_specs for note in each.notes):
        reporter.say(f"note: {note}")
    shapes = [each.shapes() for each in loader_specs]
    trained = network(nets[0], input_shapes=shapes[0], seed=seed)
    tests = [
        network(net, input_shapes=shape, share=trained, seed=seed)
        for net, shape in zip(nets[1:], shapes[1:], strict=True)
    ]
    loader_specs = [_check_labels(each, fed) for each, fed in zip([trained, *tests], loader_specs, strict=True)]
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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = not options.deterministic


# ----------------------------------------------------------------------------------------------------------- the start


def _start(options: TrainingOptions, saved: Snapshots, group: Group, reporter: Reporter) -> Snapshot | None:
    """The snapshot to go on from. The first process decides, all read it."""
    chosen = _chosen_start(options, saved, reporter) if group.is_first else None
    file = group.of_first(chosen.file if chosen is not None else None)
    return chosen if group.is_first or file is None else snapshots.read(file)


def _chosen_start(options: TrainingOptions, saved: Snapshots, reporter: Reporter) -> Snapshot | None:
    if options.snapshot is not None:
        return snapshots.read(options.snapshot)
    there = saved.states()
    for file in options.weights if options.restart else ():
        own = {
            state.with_name(state.stem + ending).resolve()
            for state in there
            for ending in (snapshots.WEIGHTS, snapshots.WEIGHTS_HDF5)
        }
        if file.resolve() in own:
            raise CamrtError("is of a snapshot that --restart removes: give another prefix with --out", file=str(file))
    if options.resume:
        if not there:
            reporter.say(f"no snapshot of {saved.prefix} is there: beginning at iteration 0")
        return saved.last()
    if there and not options.restart:
        raise CamrtError(
            f"found {len(there)} snapshot(s) of an earlier run, the last one {there[-1].name}. Go on from there with "
            "--resume, begin anew and remove them with --restart, or name another prefix with --out",
            file=str(saved.prefix),
        )
    return None


def _seed(options: TrainingOptions, param: SolverParameter, start: Snapshot | None, group: Group) -> int:
    """The seed of the run that is gone on with; else the one that was given, or any."""
    given = options.seed
    if start is not None:
        began = int(start.facts["seed"])
        if given not in (None, began):
            raise CamrtError(f"found --seed {given}, expected {began}, which the run began with", file=str(start.file))
        return began
    if given is None and param.random_seed >= 0:
        given = param.random_seed
    return group.of_first(secrets.randbelow(2**31) if given is None else given)


def _restore(solver: Solver, start: Snapshot, fed: DataLoaderSpec, reporter: Reporter) -> None:
    """The solver's history; and a note where the data is not that of the snapshot."""
    try:
        solver.load_state_dict(snapshots.unpacked(start.facts["solver"], start.arrays, torch.from_numpy))
    except CamrtError as error:
        raise error.in_file(str(start.file)) from None
    reporter.say(f"going on from {start.file}")
    source, facts = fed.first, start.facts
    if (facts["data"], facts["images"]) != (source.name, source.count):
        reporter.say(
            f"note: the data was {facts['data']} with {_count(facts['images'])} images, and is {source.name} with "
            f"{_count(source.count)}: from here on it is another run"
        )
    before = facts.get("batch", fed.batch_size)
    if before != fed.batch_size:
        reporter.say(f"note: a batch had {before} images, and has {fed.batch_size}: from here on it is another run")


# ------------------------------------------------------------------------------------------------------------ the data


def _fed(options: TrainingOptions, file: SolverFile, seed: int) -> tuple[list[Net], list[DataLoaderSpec]]:
    """The nets, the trained one first, and what they are fed with."""
    test_data = options.test_data
    if test_data is None and options.data is not None and has_test_part(options.data):
        test_data = options.data
    nets = [file.train_net(), *file.test_nets()]
    texts = [options.data, *([test_data] * (len(nets) - 1))]
    fed = [
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
        note = f"all {len(nets) - 1} test nets read the same images, {test_data}: --test-data replaces their own data"
        fed[1] = replace(fed[1], notes=(*fed[1].notes, note))
    return nets, fed


def _check_labels(net: Network, fed: DataLoaderSpec) -> DataLoaderSpec:
    """Labels must be classes that the losses know: on a GPU a wrong one ends the process without a word.

    Returns:
        The data; labels that only loading tells are checked as they come.
    """
    streams = {top: stream for stream in fed.streams for top in stream.shapes()}
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
    return replace(fed, label_limits=limits)


# --------------------------------------------------------------------------------------------------------- the weights


def _load(
    options: TrainingOptions, param: SolverParameter, trained: Network, start: Snapshot | None, reporter: Reporter
) -> tuple[str, ...]:
    """Load the snapshot's weights, or those to begin from.

    Returns:
        The layers that were loaded at the beginning of the run.
    """
    if start is not None:
        report = load_caffemodel(trained, start.weights)
        if report.filled:
            raise CamrtError(
                f"found no weights for {_few(report.filled)}: the snapshot is of another network",
                file=str(start.weights),
            )
        return tuple(start.facts["loaded"])
    loaded: set[str] = set()
    for file in options.weights or [Path(one) for each in param.weights for one in each.split(",") if one]:
        report = load_caffemodel(trained, file)
        said = [f"{file}: {len(report.loaded)} layer(s) loaded"]
        said += [f"not in it: {_few(report.filled)}"] if report.filled else []
        said += [f"not in the network: {_few(report.unused)}"] if report.unused else []
        reporter.say("; ".join(said))
        loaded.update(report.loaded)
    return tuple(sorted(loaded))


def _two_stage(options: TrainingOptions, start: Snapshot | None, trained: Network, loaded: Sequence[str]) -> int:
    """Until which iteration the loaded layers wait."""
    wanted = options.two_stage
    if start is not None:
        began = int(start.facts["two_stage"])
        if wanted not in (None, began):
            raise CamrtError(
                f"found --two-stage {wanted}, expected {began or 'none'}, which the run began with",
                file=str(start.file),
            )
        return began
    if not wanted:
        return 0
    learning = [blob.layer in loaded for blob in trained.blobs if blob.lr_mult]
    if not any(learning):
        raise CamrtError(f"found --two-stage {wanted} and no layer from --weights, expected some that wait")
    if all(learning):
        raise CamrtError(
            f"found --two-stage {wanted}, and all layers that learn in --weights: expected new ones, which learn first"
        )
    return wanted


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _count(count: int | None) -> str:
    return "endless" if count is None else f"{count:,}"

"""Every case in tests/data/caffe: the converted network answers on ONNX Runtime as real Caffe does."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from converters import ConversionError, ConversionWarning, Net, convert, read_net, registry
from converters.conversion import DEFAULT_OPSET, Converted, build
from converters.model import in_memory
from converters.reader import parse_prototxt
from converters.registry import Entry

DATA = Path(__file__).resolve().parents[1] / "data" / "caffe"
RTOL, ATOL = 1e-4, 1e-5

# Networks that Caffe takes and we do not: case -> what the error says.
REFUSED = {
    "v0_net": "V0 form of 2013",
    # Caffe fills weights that are missing with its fillers' numbers. In a network for inference that is a mistake.
    "model_missing_default_fillers": "found no weights",
    "model_missing_layer": "found no weights",
    "no_model_bilinear": "found no weights",
    # Each box kept lowers the threshold for the next: NonMaxSuppression cannot say that.
    "detection_eta": "found eta",
    # An ONNX model cannot return its own input.
    "only_input": "no layers left",
}
# Networks whose batch is not free: case -> what needs the size.
FIXED_BATCH = {
    # Caffe itself refuses another size.
    "bias_axis0": "a weight for each item",
    "conv_axis0": "the batch is the channels",
    "dummy_legacy": "joined with a constant",
    "dummy_no_filler": "joined with a constant",
    "dummy_several_fillers": "added to a constant",
    "ip_axis0": "a weight for each item",
    "parameter": "added to a learned blob",
    "reshape_scalar": "becomes a single number",
    "reshape_whole": "becomes a shape that is written out",
    "scale_bottoms_bias": "an offset for each item",
    "scale_from_axis0": "a weight for each item",
    "scale_num_axes_all_axis0": "a weight for each item",
    "slice_axis0": "the batch is cut apart",
    # Caffe would take one.
    "argmax_1d_axis0": "the largest of the batch's items",
    "argmax_axis0": "the largest of the batch's items",
    "concat_axis0": "batches of different sizes are joined",
    "concat_dim0": "batches of different sizes are joined",
    "crop_axis0": "the batch is cut to another's size",
    "dummy_shapes": "joined with a constant along the batch",
}
NEWEST_OF_TYPE = {"ROIPooling": 21}  # ONNX Runtime has no newer MaxRoiPool
OPSETS = (13, DEFAULT_OPSET, 18, onnx.defs.onnx_opset_version())  # where operators change their form
Providers = list[str | tuple[str, dict[str, str]]]
CPU: Providers = ["CPUExecutionProvider"]
CUDA: Providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), *CPU]  # the CPU for operators that CUDA has not
RECURRENT = {"LSTM", "RNN"}  # their axes are time, batch, ...
COUNTED = {"DetectionOutput"}  # how many values they give, only the data tell


@dataclass(frozen=True)
class Answer:
    """What Caffe gave for some inputs; ``batch`` is None for the case's own."""

    batch: int | None
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A folder with net.prototxt, io.npz and perhaps net.caffemodel."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def prototxt(self) -> Path:
        return self.folder / "net.prototxt"

    @property
    def caffemodel(self) -> Path | None:
        file = self.folder / "net.caffemodel"
        return file if file.exists() else None

    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "io.npz") as stored:
            return dict(stored)


@functools.cache
def answers_of(case: Case) -> tuple[Answer, ...]:
    """At the case's batch, and at 1 and 3 where there is one."""
    arrays, answers = case.arrays(), []
    for batch in (None, 1, 3):
        mark = f"@{batch}" if batch else ""
        inputs, outputs = (
            {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
            for start in (f"in{mark}:", f"out{mark}:")
        )
        if outputs:
            answers.append(Answer(batch, inputs, outputs))
    return tuple(answers)


CASES = {str(file.parent.relative_to(DATA)): Case(file.parent) for file in sorted(DATA.glob("*/*/net.prototxt"))}
CONVERTED = [name for name, case in CASES.items() if case.name not in REFUSED]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        yield


@functools.cache
def read(case: Case) -> Net:
    with silent():
        return read_net(case.prototxt, case.caffemodel)


@functools.cache
def built(case: Case) -> Converted:
    return build(read(case))


def converted(case: Case, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """What `convert` gives, without the digests of the files."""
    return in_memory(build(read(case), opset=opset).draft, {})


def session_of(model: onnx.ModelProto, providers: Providers = CPU) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads take longer to start than these networks to run
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def check(case: Case, opset: int = DEFAULT_OPSET, providers: Providers = CPU) -> None:
    """Convert, check and run a case at each of its batch sizes."""
    net, model = read(case), converted(case, opset)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    session = session_of(model, providers)
    inputs = {data.name for data in net.inputs}
    for answer in answers_of(case):
        if answer.batch and case.name in FIXED_BATCH:
            continue
        expected = {net.tensors[blob]: array for blob, array in answer.outputs.items()}
        expected = {name: array for name, array in expected.items() if name not in inputs}
        names = [output.name for output in session.get_outputs()]
        assert sorted(names) == sorted(expected)
        fed = {name: array for name, array in answer.inputs.items() if name in inputs}
        found = dict(zip(names, session.run(names, fed), strict=True))
        for name in names:
            where = f"{case.name}: {name} at batch {answer.batch or 'of the case'}, opset {opset}"
            compare(found[name], expected[name], where, exact=name in exact_tensors(net))


def compare(found: np.ndarray, expected: np.ndarray, where: str, *, exact: bool) -> None:
    assert found.dtype == np.float32, where
    assert found.shape == expected.shape, where
    rtol, atol = (0, 0) if exact else (RTOL, ATOL)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, equal_nan=True, err_msg=where)


def exact_tensors(net: Net) -> set[str]:
    """Tensors that hold indices or decisions: no tolerance there."""
    exact = set()
    for layer in net.layers:
        if layer.type == "Threshold" or (layer.type == "ArgMax" and not layer.params.argmax_param.out_max_val):
            exact.update(layer.tops)
        if layer.type == "Pooling":
            exact.update(layer.tops[1:])
    return exact


# ---------------------------------------------------------------------------------------------------------- the cases


@pytest.mark.parametrize("name", CONVERTED)
def test_answers_as_caffe(name: str) -> None:
    check(CASES[name])


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no CUDA here")
@pytest.mark.parametrize("name", CONVERTED)
def test_answers_as_caffe_on_cuda(name: str) -> None:
    check(CASES[name], providers=CUDA)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.name in REFUSED])
def test_refused(name: str) -> None:
    case = CASES[name]
    with pytest.raises(ConversionError, match=REFUSED[case.name]) as raised:
        convert(case.prototxt, case.caffemodel)
    assert raised.value.file == str(case.prototxt)


@pytest.mark.filterwarnings("ignore::converters.ConversionWarning")  # of the other inputs
@pytest.mark.parametrize("name", CONVERTED)
def test_batch_is_free(name: str) -> None:
    case = CASES[name]
    net, found = read(case), built(case)
    if not net.inputs or not any(net.inputs[0].name in layer.bottoms for layer in net.layers):
        return
    types = {layer.type for layer in net.layers}
    dims = found.draft.graph.shape(net.inputs[0].name)
    is_free = not isinstance(dims[1 if types & RECURRENT else 0], int)
    assert is_free == (case.name not in FIXED_BATCH)
    if not is_free:
        with pytest.warns(ConversionWarning, match=f"the input '{net.inputs[0].name}' of shape"):
            convert(net)


@pytest.mark.parametrize("name", CONVERTED)
def test_tensors_have_the_shapes_declared(name: str) -> None:
    """Also those within the network: runtimes plan their memory by them."""
    case = CASES[name]
    net, model = read(case), converted(case)
    infos = [*model.graph.output, *model.graph.value_info]
    model.graph.output.extend(model.graph.value_info)
    session = session_of(model)
    inputs = {data.name for data in net.inputs}
    for answer in answers_of(case):
        if answer.batch and case.name in FIXED_BATCH:
            continue
        fed = {name: array for name, array in answer.inputs.items() if name in inputs}
        free = {
            dim.dim_param: fed[info.name].shape[axis]
            for info in model.graph.input
            for axis, dim in enumerate(info.type.tensor_type.shape.dim)
            if dim.dim_param
        }
        for info, found in zip(infos, session.run([info.name for info in infos], fed), strict=True):
            kind = info.type.tensor_type
            assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == found.dtype, info.name
            assert len(kind.shape.dim) == found.ndim, info.name
            for dim, size in zip(kind.shape.dim, found.shape, strict=True):
                assert declared_size(dim, free, net) in (size, None), info.name


def declared_size(dim: onnx.TensorShapeProto.Dimension, free: dict[str, int], net: Net) -> int | None:
    """The size that is declared; None where only the data tell."""
    if not dim.dim_param:
        return dim.dim_value
    factor, name = re.fullmatch(r"(?:(\d+)\*)?(.+)", dim.dim_param).groups()
    if name in free:
        return int(factor or 1) * free[name]
    assert any(layer.type in COUNTED for layer in net.layers), dim.dim_param
    return None


def test_reference_layers(reference: Path) -> None:
    """The cases of the reference folder: ours are copies of them, or they are cases of their own."""
    folders = [file.parent for file in sorted((reference / "layers").glob("*/net.prototxt"))]
    assert folders
    for folder in folders:
        if not is_copy(CASES.get(f"bvlc/{folder.name}"), Case(folder)):
            check(Case(folder))


def is_copy(ours: Case | None, theirs: Case) -> bool:
    if ours is None or ours.prototxt.read_bytes() != theirs.prototxt.read_bytes():
        return False
    weights = [case.caffemodel.read_bytes() if case.caffemodel else b"" for case in (ours, theirs)]
    arrays = ours.arrays()
    return weights[0] == weights[1] and all(
        name in arrays and np.array_equal(arrays[name], array, equal_nan=True)
        for name, array in theirs.arrays().items()
    )


def test_exceptions_are_cases() -> None:
    assert {*REFUSED, *FIXED_BATCH} <= {case.name for case in CASES.values()}


# ------------------------------------------------------------------------------------------ what Caffe did not answer


def weighted(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Windows of a size side by side, each the mean of its values weighted by themselves."""
    windows = [
        [images[:, :, top : top + height, left : left + width] for left in range(0, images.shape[3], width)]
        for top in range(0, images.shape[2], height)
    ]
    pooled = [[np.square(one).sum(axis=(2, 3)) / one.sum(axis=(2, 3)) for one in row] for row in windows]
    return np.array(pooled).transpose(2, 3, 0, 1)


def weighted_pyramid(images: np.ndarray) -> np.ndarray:
    height, width = images.shape[2:]
    levels = [weighted(images, height, width), weighted(images, height // 2, width // 2)]
    return np.concatenate([level.reshape(len(images), -1) for level in levels], axis=1)


# Layers whose Caffe has no code for the CPU, or no public source: layer -> its formula for images of 2 x 3 x 4 x 6.
FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }': lambda x: weighted(x, 2, 2),
    'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 4 stride: 4 }': lambda x: weighted(x, 4, 4),
    'type: "SPP" spp_param { pool: STOCHASTIC pyramid_height: 2 }': weighted_pyramid,
    'type: "Upsample" upsample_param { scale: 3 }': lambda x: x.repeat(3, axis=2).repeat(3, axis=3),
    'type: "Upsample" upsample_param { stride: 2 }': lambda x: x.repeat(2, axis=2).repeat(2, axis=3),
    'type: "Flip"': lambda x: x[..., ::-1],
    'type: "Flip" flip_param { flip_height: true }': lambda x: x[:, :, ::-1, ::-1],
    'type: "Flip" flip_param { flip_width: false flip_height: true }': lambda x: x[:, :, ::-1],
    'type: "Flip" flip_param { flip_width: false }': lambda x: x,
}


def net_of(layer: str) -> Net:
    text = f'input: "data" input_shape {{ dim: 2 dim: 3 dim: 4 dim: 6 }} layer {{ bottom: "data" top: "out" {layer} }}'
    with silent():
        return read_net(parse_prototxt(text))


@pytest.mark.parametrize("layer", FORMULAS)
def test_answers_as_its_formula(layer: str) -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 6), dtype=np.float32)
    (found,) = session_of(convert(net_of(layer))).run(None, {"data": images})
    np.testing.assert_allclose(found, FORMULAS[layer](images), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- the registry


# Families of layers that BVLC's Caffe does not have: each has a test file of its own, which also checks its operators.
OF_FORKS = ("proposal", "region", "yolo", "detectnet")


def own_entries() -> dict[str, Entry]:
    """Layer type -> its entry. Handlers that other tests plugged in are left out, and the families of forks."""
    ours = [entry for entry in registry.entries() if entry.handler.__module__.startswith("converters.handlers.")]
    return {type: entry for entry in ours if entry.family not in OF_FORKS for type in entry.types}


@functools.cache
def emitted(opset: int) -> dict[str, set[str]]:
    """Layer type -> the ONNX operators of all cases' nodes."""
    operators: dict[str, set[str]] = {}
    nets = [*(read(CASES[name]) for name in CONVERTED), *map(net_of, FORMULAS)]
    for net in nets:
        if opset > min((NEWEST_OF_TYPE.get(layer.type, opset) for layer in net.layers), default=opset):
            continue
        found = build(net, opset=opset)
        layers = iter(found.net.layers)
        left: set[str] = set()  # tops that the current layer is still to write: its last node writes its last top
        for node in found.draft.graph.nodes:
            if not left:
                layer = next(layers)
                left = set(layer.tops)
            operators.setdefault(layer.type, set()).add(node.op)
            left -= set(node.outputs)
        assert not left
        assert next(layers, None) is None
    return operators


def test_every_type_has_a_case() -> None:
    nets = [*(read(CASES[name]) for name in CONVERTED), *map(net_of, FORMULAS)]
    assert set(own_entries()) <= {layer.type for net in nets for layer in net.layers}


@pytest.mark.parametrize("opset", OPSETS)
def test_operators_are_those_declared(opset: int) -> None:
    for type, entry in own_entries().items():
        assert emitted(opset).get(type, set()) <= set(entry.operators), type


def test_declared_operators_are_all_emitted() -> None:
    """One that no case emits is not tested, or not needed any more."""
    used = {(type, operator) for opset in OPSETS for type, all_ in emitted(opset).items() for operator in all_}
    unused = {
        f"{'/'.join(entry.types)}: {operator}"
        for entry in own_entries().values()
        for operator in entry.operators
        if not any((type, operator) in used for type in entry.types)
    }
    assert not unused, sorted(unused)

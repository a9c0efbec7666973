"""Every case in tests/data/caffe: the converted network answers on ONNX Runtime as real Caffe does."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from converters import ConversionError, ConversionWarning, Net, convert, read_net, registry
from converters.conversion import build
from converters.reader import parse_prototxt
from converters.registry import Entry
from tests.caffe_cases import CASES, Case, answers_of, read, silent
from tests.converters import (
    test_activation,
    test_convolution,
    test_flow,
    test_linear,
    test_mean_field,
    test_normalization,
    test_sampling,
    test_shaping,
    test_volumetric,
)
from tests.converters.agreement import (
    CONVERTED,
    COUNTED,
    CUDA,
    FIXED_BATCH,
    NEWEST_OF_TYPE,
    OLDEST_OF_TYPE,
    OPSETS,
    RECURRENT,
    REFUSED,
    built,
    check,
    converted,
    session_of,
)  # fmt: skip
from tests.converters.one_layer import OneLayer

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
        if not is_copy(CASES.get(f"bvlc/{folder.name}"), Case(folder.name, folder)):
            check(Case(folder.name, folder))


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


# Layers of forks whose Caffe does not run here, and what Caffe was not asked. Their modules compare them with their
# formulas and other libraries.
FORKS: tuple[OneLayer, ...] = tuple(
    one
    for module in (
        test_activation,
        test_convolution,
        test_flow,
        test_linear,
        test_mean_field,
        test_normalization,
        test_sampling,
        test_shaping,
        test_volumetric,
    )
    for one in module.CASES.values()
)


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
    nets = [*(read(CASES[name]) for name in CONVERTED), *map(net_of, FORMULAS), *(one.net() for one in FORKS)]
    for net in nets:
        if any(
            not OLDEST_OF_TYPE.get(layer.type, opset) <= opset <= NEWEST_OF_TYPE.get(layer.type, opset)
            for layer in net.layers
        ):
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
    nets = [*(read(CASES[name]) for name in CONVERTED), *map(net_of, FORMULAS), *(one.net() for one in FORKS)]
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

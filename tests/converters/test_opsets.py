"""The cases of test_layers at other opsets than the default."""

from __future__ import annotations

import functools

import onnx
import pytest
from onnx import TensorProto, helper

from converters import ConversionError, convert
from converters.conversion import DEFAULT_OPSET, OLDEST_OPSET
from tests.caffe_cases import CASES, Case, read
from tests.converters.agreement import CONVERTED, NEWEST_OF_TYPE, check, converted, session_of

NEWEST = onnx.defs.onnx_opset_version()
CHAIN = CASES["bvlc/conv_bn_scale_relu_inplace"]


@functools.cache
def newest_that_runs() -> int:
    """The newest opset that both onnx and the installed ONNX Runtime know."""
    for opset in range(NEWEST, DEFAULT_OPSET, -1):
        opsets = [helper.make_opsetid("", opset)]
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", infos[:1], infos[1:])
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
        try:
            session_of(model)
        except Exception:  # ONNX Runtime has no common class for what it raises
            continue
        return opset
    return DEFAULT_OPSET


# 18 moved the axes of the reductions to the inputs, and with it much else.
@pytest.mark.parametrize("opset", sorted({OLDEST_OPSET, 18, newest_that_runs()}))
@pytest.mark.parametrize("name", CONVERTED)
def test_answers_as_caffe(name: str, opset: int) -> None:
    if opset <= newest_of(CASES[name]):
        check(CASES[name], opset)
    else:
        refused(CASES[name], opset)


@pytest.mark.skipif(newest_that_runs() == NEWEST, reason="the newest opset is among those above")
@pytest.mark.parametrize("name", CONVERTED)
def test_newest_opset_passes_the_checker(name: str) -> None:
    if newest_of(CASES[name]) == NEWEST:
        onnx.checker.check_model(converted(CASES[name], NEWEST), full_check=True)
    else:
        refused(CASES[name], NEWEST)


def newest_of(case: Case) -> int:
    """The newest opset that all layers of a case have."""
    return min(NEWEST_OF_TYPE.get(layer.type, NEWEST) for layer in read(case).layers)


def refused(case: Case, opset: int) -> None:
    with pytest.raises(ConversionError, match=f"found opset {opset}, expected at most {newest_of(case)}"):
        converted(case, opset)


def test_every_opset_runs() -> None:
    for opset in range(OLDEST_OPSET, newest_that_runs() + 1):
        check(CHAIN, opset)


def test_default_is_17() -> None:
    model = convert(CHAIN.prototxt, CHAIN.caffemodel)
    assert [one.version for one in model.opset_import] == [DEFAULT_OPSET] == [17]


@pytest.mark.parametrize("opset", [-1, 0, 1, OLDEST_OPSET - 1, NEWEST + 1, 1000])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ConversionError, match=f"found opset {opset}, expected one from 13 to {NEWEST}"):
        convert(CHAIN.prototxt, CHAIN.caffemodel, opset=opset)


def test_ir_version_is_the_oldest_that_has_the_opset() -> None:
    """A newer one would shut out older runtimes for nothing."""
    for opset in range(OLDEST_OPSET, NEWEST + 1):
        model = converted(CHAIN, opset)
        assert model.ir_version == helper.find_min_ir_version_for(model.opset_import)
    assert converted(CHAIN).ir_version == 8

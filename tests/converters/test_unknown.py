"""What forks of Caffe add to a prototxt: what may change an answer is refused, what cannot is ignored."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from converters import ConversionError, ConversionWarning, Net, convert, read_net
from converters.forks import FORKS
from converters.reader import parse_prototxt
from converters.unknown import HARMLESS, Harmless
from tests.caffe_files import caffemodel, field, input_layer, layer, network, written
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

POOL = "pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad} {mode} }}"


def net_of(text: str, **options: object) -> Net:
    return read_net(parse_prototxt(text, "net.prototxt"), **options)


# --------------------------------------------------------------------------------------- ceil_mode and round_mode


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"), [(8, 3, 2, 0), (10, 3, 2, 1), (7, 2, 2, 0), (11, 4, 3, 1)]
)
def test_ceil_mode_against_opencv(method: str, size: int, kernel: int, stride: int, pad: int, tmp_path: Path) -> None:
    """OpenCV's importer reads `ceil_mode`. The windows are such that rounding up and down differ, or hang over."""
    x = np.random.default_rng(size).normal(size=(2, 3, size, size + 1)).astype(np.float32)
    floor = (size + 2 * pad - kernel) // stride + 1
    for mode in ("", "ceil_mode: true", "ceil_mode: false"):
        param = POOL.format(method=method, kernel=kernel, stride=stride, pad=pad, mode=mode)
        one = OneLayer(f'type: "Pooling" top: "y" {param}', {"x": x.shape})
        (found,) = one.run({"x": x})
        if mode == "ceil_mode: false":
            assert found.shape[2] == floor
        if method == "AVE" and (pad or mode != "ceil_mode: false"):
            continue  # OpenCV divides by another number at the border, so that only the shapes can be compared
        assert_close(found, one.opencv({"x": x}, tmp_path))


PADDED = {"method": "AVE", "kernel": 3, "stride": 2, "pad": 1}


def test_ceil_mode_and_round_mode_say_the_same() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 8, 8)).astype(np.float32)
    layers = {
        mode: OneLayer(f'type: "Pooling" top: "y" {POOL.format(**PADDED, mode=mode)}', {"x": x.shape})
        for mode in ("ceil_mode: false", "round_mode: FLOOR", "ceil_mode: true", "round_mode: CEIL")
    }
    down, floor, up, ceil = (layers[mode].run({"x": x})[0] for mode in layers)
    np.testing.assert_array_equal(down, floor)
    np.testing.assert_array_equal(up, ceil)
    assert (down.shape, up.shape) == ((1, 2, 4, 4), (1, 2, 5, 5))


def test_ceil_mode_against_round_mode_is_refused() -> None:
    for modes in ("ceil_mode: true round_mode: FLOOR", "ceil_mode: false round_mode: CEIL"):
        param = POOL.format(method="MAX", kernel=3, stride=2, pad=0, mode=modes)
        assert_error_names_layer(OneLayer(f'type: "Pooling" top: "y" {param}', {"x": (1, 1, 8, 8)}), "contradict")


def binary(tmp_path: Path, mode: str, size: int) -> Path:
    """A caffemodel with a network whose pooling has field 13."""
    param = POOL.format(method="MAX", kernel=3, stride=2, pad=0, mode=mode)
    text = input_layer("x", 1, 1, size, size) + layer("pool", "Pooling", "x", "y", param)
    return written(tmp_path / "net.caffemodel", caffemodel(network(text), {}))


@pytest.mark.parametrize("mode", ["CEIL", "FLOOR"])
def test_a_binary_file_has_two_meanings(mode: str, tmp_path: Path) -> None:
    """BVLC and NVIDIA number CEIL 0 and FLOOR 1; a fork with `ceil_mode` writes false as 0 and true as 1."""
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    path = binary(tmp_path, f"round_mode: {mode}", 8)
    with pytest.raises(ConversionError, match=r"layer pool \(Pooling\): found field 13 .*--fork bvlc or --fork caffe-"):
        convert(path)
    (bvlc,) = run(convert(path, fork="bvlc"), {"x": x})
    (other,) = run(convert(path, fork="caffe-model"), {"x": x})
    sizes = {"CEIL": (4, 3), "FLOOR": (3, 4)}[mode]
    assert (bvlc.shape[2], other.shape[2]) == sizes
    assert run(convert(binary(tmp_path, f"round_mode: {mode}", 9)), {"x": np.zeros((1, 1, 9, 9))})[0].shape[2] == 4


def test_a_text_has_one_meaning() -> None:
    """The name decides, whatever the fork."""
    for fork in ("", "bvlc", "caffe-model"):
        param = POOL.format(method="MAX", kernel=3, stride=2, pad=0, mode="round_mode: FLOOR")
        net = net_of(input_layer("x", 1, 1, 8, 8) + layer("pool", "Pooling", "x", "y", param), fork=fork)
        assert run(convert(net), {"x": np.zeros((1, 1, 8, 8))})[0].shape == (1, 1, 3, 3)


# ----------------------------------------------------------------------------------------------------- unknown fields


def with_field(line: Harmless, value: str) -> str:
    """A network whose layer has a field of this kind."""
    name = line.field.replace("*", "some_")
    message = {"*": "relu_param", "*filler": "relu_param { filler", "layer": ""}.get(line.message, line.message)
    opening = f"{message} {{" if message else ""
    closing = "}" * opening.count("{")
    return input_layer("x", 1, 3) + layer("relu", "ReLU", "x", "y", f"{opening} {name}: {value} {closing}")


@pytest.mark.parametrize("line", HARMLESS, ids=lambda line: f"{line.message}.{line.field}")
def test_harmless_fields_are_ignored(line: Harmless) -> None:
    with pytest.warns(ConversionWarning):
        model = convert(net_of(with_field(line, "STRANGE")))
    x = np.array([[-1, 0, 2]], np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})[0], [[0, 0, 2]])


@pytest.mark.parametrize("line", HARMLESS, ids=lambda line: f"{line.message}.{line.field}")
def test_others_beside_them_are_refused(line: Harmless) -> None:
    """A field of another name in the same message is not harmless, unless all of the message is."""
    if line.field == "*":
        line = Harmless("relu_param", "mode", "")
    else:
        line = Harmless(line.message, line.field.replace("*", "") + "_mode", "")
    with pytest.warns(ConversionWarning):
        net = net_of(with_field(line, "STRANGE"))
    with pytest.raises(ConversionError, match=r"net\.prototxt:2:\d+: .*_?mode: STRANGE, in layer relu \(ReLU\)"):
        convert(net)


def test_a_misspelt_field_is_told_its_name() -> None:
    text = input_layer("x", 1, 3) + layer("relu", "ReLU", "x", "y", "relu_param { negativ_slope: 0.1 }")
    with pytest.warns(ConversionWarning, match="'negativ_slope'"):
        net = net_of(text)
    with pytest.raises(ConversionError, match=r"relu_param\.negativ_slope: 0\.1.*did you mean 'negative_slope'\?"):
        convert(net)


def test_a_field_of_many_layers_is_told_once() -> None:
    text = input_layer("x", 1, 3) + "".join(
        layer(f"r{i}", "ReLU", f"r{i - 1}" if i else "x", params="relu_param { mode: 1 }") for i in range(50)
    )
    with pytest.warns(ConversionWarning) as caught:
        net = net_of(text)
    assert [str(one.message) for one in caught] == [
        "net.prototxt:2:68: the field 'mode' is not known and was left aside (50 times)"
    ]
    with pytest.raises(ConversionError, match=r"relu_param\.mode: 1, in layer r0 \(ReLU\) and 49 more"):
        convert(net)


def test_unknown_numbers_of_a_binary_file(tmp_path: Path) -> None:
    """A fork's field of a caffemodel alone is a number: refused in a layer that computes, unless ignored."""
    text = input_layer("x", 1, 3) + layer("relu", "ReLU", "x", "y", "relu_param { negative_slope: 0.5 }")
    net = network(text)
    net.layer[1].relu_param.MergeFromString(field(77, b"5"))
    path = written(tmp_path / "net.caffemodel", caffemodel(net, {}))
    with (
        pytest.warns(ConversionWarning, match="field 77"),
        pytest.raises(ConversionError, match=r"relu_param\.field 77.*\n.*Give the prototxt"),
    ):
        convert(path)
    with pytest.warns(ConversionWarning, match="field 77"):
        model = convert(path, ignore_unknown=["relu_param.field 77"])
    np.testing.assert_array_equal(run(model, {"x": np.array([[-2, 0, 2]])})[0], [[-1, 0, 2]])


def test_a_lost_layer_is_refused() -> None:
    text = input_layer("x", 1, 3) + layer("a", "ReLU", "x") + layer("b", "TanH", "x").replace("layer {", "Layer {")
    with pytest.warns(ConversionWarning), pytest.raises(ConversionError, match=r"net\.prototxt:3:1: found 'Layer'"):
        net_of(text)


# ----------------------------------------------------------------------------------------------- values of known fields

X = input_layer("x", 1, 3, 4, 4)
LOSS = layer("loss", "SoftmaxWithLoss", "x label", "loss", "loss_param { normalization: PRE_FIXED }")


def test_training_only_values_do_not_refuse_a_network() -> None:
    data = (
        'layer { name: "data" type: "Data" top: "x" top: "label" transform_param { crop_size: 4 force_color: true } }'
    )
    with pytest.warns(ConversionWarning, match=r"net\.prototxt:1:\d+: found 'PRE_FIXED' for normalization, .*training"):
        net = net_of(data + LOSS)
    assert [one.type for one in net.layers] == ["Softmax"]
    convert(net)


def test_training_values_matter_in_training() -> None:
    with pytest.warns(ConversionWarning), pytest.raises(ConversionError, match=r"3:\d+: .*PRE_FIXED"):
        net_of(X + input_layer("label", 1) + LOSS, training=True)


@pytest.mark.parametrize("engine", ["MKL2017", "MKLDNN"])
@pytest.mark.parametrize("type", ["ReLU", "Pooling"])
def test_engines_do_not_matter(type: str, engine: str) -> None:
    message = {"ReLU": "relu_param", "Pooling": "pooling_param"}[type]
    size = "kernel_size: 2" if type == "Pooling" else ""
    params = f"{message} {{ {size} engine: {engine} }} engine: '{engine}'"
    with pytest.warns(ConversionWarning, match="chooses the library that computes"):
        net = net_of(X + layer("l", type, "x", params=params))
    convert(net)


@pytest.mark.parametrize(
    ("params", "place", "problem"),
    [
        ("pooling_param { kernel_size: 2 pool: MEDIAN }", "2:93", "found 'MEDIAN' for pool, expected one of AVE, MAX"),
        ("pooling_param { kernel_size: 2 kernel_size: 3 }", "2:87", "found kernel_size a second time"),
        ("pooling_param { kernel_size: 2 } pooling_param { pool: AVE }", "2:89", "found pooling_param a second time"),
    ],
)
def test_wrong_values_of_a_layer_that_computes_are_refused(params: str, place: str, problem: str) -> None:
    with (
        pytest.warns(ConversionWarning),
        pytest.raises(ConversionError, match=rf"net\.prototxt:{place}: layer p \(Pooling\): {problem}"),
    ):
        net_of(X + layer("p", "Pooling", "x", params=params))
    kept = layer("r", "ReLU", "x") + layer("p", "Pooling", "x", params=f"include {{ phase: TRAIN }} {params}")
    with pytest.warns(ConversionWarning):
        assert [one.name for one in net_of(X + kept).layers] == ["r"]


def test_data_layers_may_give_a_field_twice() -> None:
    text = (
        'layer { name: "data" type: "AnnotatedData" top: "x" top: "label" transform_param { force_color: true\n'
        "  resize_param { height: 30 width: 40 } resize_param { height: 50 width: 60 } } data_param { batch_size: 2\n"
        "  backend: ROCKSDB } }" + layer("r", "ReLU", "x")
    )
    with pytest.warns(ConversionWarning) as caught:
        net = net_of(text)
    assert net.inputs[0].shape == (2, 3, 30, 40)
    assert {re.sub(r"^net\.prototxt:(\d+).*?found (\w+|'\w+').*", r"\1 \2", str(one.message)) for one in caught} == {
        "2 resize_param",
        "3 'ROCKSDB'",
    }


@pytest.mark.parametrize("rule", ["include { phase: TSET }", "include { phase: TEST phase: TRAIN }", "phase: TSET"])
def test_rules_must_be_right(rule: str) -> None:
    """They say whether there is a layer at all."""
    with pytest.raises(ConversionError, match=r"net\.prototxt:2:\d+: found"):
        net_of(X + layer("r", "ReLU", "x", params=rule))


# --------------------------------------------------------------------------------------------------------------- forks


def test_a_refused_network_is_told_its_fork() -> None:
    text = X + layer("p", "PSROIPoolingOfTomorrow", "x") + layer("b", "BoxAnnotatorOHEM", "x", "b")
    with pytest.raises(
        ConversionError, match=r"\nThe network seems to be of daijifeng001/R-FCN \(BoxAnnotatorOHEM\); "
    ):
        convert(net_of(text))


def test_a_network_without_marks_is_not_told_a_fork() -> None:
    with pytest.raises(ConversionError) as raised:
        convert(net_of(X + layer("p", "Unheard", "x")))
    assert "seems" not in str(raised.value)


def test_a_wrong_fork_is_told_the_names() -> None:
    with pytest.raises(ConversionError, match=r"found the fork 'segnett', expected one of bvlc.*did you mean 'segnet'"):
        net_of(X + layer("r", "ReLU", "x"), fork="segnett")


def test_forks_have_names_of_their_own() -> None:
    assert len({fork.name for fork in FORKS}) == len(FORKS)
    assert all(re.fullmatch(r"[a-z0-9-]+", fork.name) for fork in FORKS)

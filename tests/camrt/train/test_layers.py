"""Every layer that can be trained, forward and backward against real Caffe (tests/data/caffe), and its errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camrt import CamrtError
from converters import read_net
from converters import registry as handlers
from converters.reader import parse_prototxt
from tests.caffe_cases import CASES, Case, answers_of, read
from tests.caffe_files import input_layer, layer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing is trained")
from camrt import train  # noqa: E402
from camrt.train import registry  # noqa: E402

RNG = np.random.default_rng(0)
# Detection and segmentation layers of forks, for which there is no training; and what no Caffe network is.
UNTRAINED = re.compile(
    r"detection_|interp_|priorbox_|psp_|roipool_|segnet_|ssd_head|im2col_(1d|3d|axis2)$|v0_net$|only_input$"
)
TRAINED = [name for name, case in CASES.items() if not UNTRAINED.match(case.name)]
WITH_GRADIENT = [name for name, case in CASES.items() if case.has_gradients]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads take longer to start than these networks to run
    yield
    torch.set_num_threads(threads)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def network_of(case: Case) -> Any:
    return train.network(read(case), seed=0)


@pytest.mark.parametrize("name", TRAINED)
def test_forward_as_caffe(name: str) -> None:
    """At the case's batch, and at 1 and 3."""
    network = network_of(CASES[name])
    for answer in answers_of(CASES[name]):
        fed = {blob: array for blob, array in answer.inputs.items() if blob in network.inputs}
        found = network(tensors(fed), keep=list(answer.outputs))
        for blob, expected in answer.outputs.items():
            assert tuple(found[blob].shape) == expected.shape
            np.testing.assert_allclose(found[blob].detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_all_stored_gradients_are_compared() -> None:
    assert len(WITH_GRADIENT) == 69
    assert set(WITH_GRADIENT) <= set(TRAINED)


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_backward_as_caffe(name: str) -> None:
    case = CASES[name]
    gradients = case.gradients()
    inputs = tensors(answers_of(case)[0].inputs)
    for blob in inputs.values():
        blob.requires_grad_()
    found = network_of(case)(inputs)
    heads = [key.removeprefix("diff:") for key in gradients if key.startswith("diff:")]
    torch.autograd.backward(
        [found[head] for head in heads], [torch.tensor(gradients[f"diff:{head}"]) for head in heads]
    )
    for blob, tensor in inputs.items():
        if f"grad:{blob}" in gradients:
            expected = gradients[f"grad:{blob}"]
            computed = np.zeros_like(expected) if tensor.grad is None else tensor.grad.numpy()
            assert np.abs(computed - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-3), blob


@pytest.mark.parametrize("name", ["im2col_1d", "psp_module", "ssd_head"])
def test_what_cannot_be_trained_is_refused(name: str) -> None:
    case = next(one for one in CASES.values() if one.name == name)
    with pytest.raises(CamrtError, match=f"{name}.*(cannot be trained|expected 4: N x C x H x W)"):
        network_of(case)


# ------------------------------------------------------------------------------- gradients where Caffe's are not stored

SCORES = input_layer("scores", 4, 3)
LABELS = input_layer("label", 4)
PAIRS = input_layer("a", 4, 3) + input_layer("b", 4, 3)
IMAGE = input_layer("x", 2, 4, 5, 6)
# A network, and which inputs are labels.
DIFFERENTIABLE = {
    "softmax loss": SCORES + LABELS + layer("l", "SoftmaxWithLoss", "scores label"),
    "softmax loss, ignored": SCORES
    + LABELS
    + layer("l", "SoftmaxWithLoss", "scores label", params="loss_param { ignore_label: 1 }"),
    "sigmoid loss": PAIRS + layer("l", "SigmoidCrossEntropyLoss", "a b", params="propagate_down: 1 propagate_down: 0"),
    "euclidean loss": PAIRS + layer("l", "EuclideanLoss", "a b"),
    "hinge loss": SCORES + LABELS + layer("l", "HingeLoss", "scores label"),
    "squared hinge loss": SCORES
    + LABELS
    + layer("l", "HingeLoss", "scores label", params="hinge_loss_param { norm: L2 }"),
    "logistic loss": SCORES
    + LABELS
    + layer("p", "Softmax", "scores")
    + layer("l", "MultinomialLogisticLoss", "p label"),
    "contrastive loss": PAIRS + LABELS + layer("l", "ContrastiveLoss", "a b label"),
    "old contrastive loss": PAIRS
    + LABELS
    + layer("l", "ContrastiveLoss", "a b label", params="contrastive_loss_param { legacy_version: true margin: 9 }"),
    "max pooling, large pads": IMAGE
    + layer("l", "Pooling", "x", params="pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 2 }"),
    "average pooling, large pads": IMAGE
    + layer("l", "Pooling", "x", params="pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 2 }"),
    "average pooling, gaps": IMAGE
    + layer("l", "Pooling", "x", params="pooling_param { pool: MAX kernel_size: 1 stride: 4 }"),
    "lrn": IMAGE + layer("l", "LRN", "x", params="lrn_param { local_size: 7 alpha: 2 }"),
    "mvn": IMAGE + layer("l", "MVN", "x"),
    "rnn": input_layer("x", 3, 2, 4)
    + input_layer("continues", 3, 2)
    + layer("l", "RNN", "x continues", params='recurrent_param { num_output: 3 weight_filler { type: "xavier" } }'),
    "axpy": input_layer("f", 2, 3, 1, 1)
    + input_layer("x", 2, 3, 2, 2)
    + input_layer("y", 2, 3, 2, 2)
    + layer("l", "Axpy", "f x y"),
    "normalize": IMAGE + layer("l", "Normalize", "x", params="norm_param { across_spatial: false }"),
    "batch norm": IMAGE + layer("l", "BatchNorm", "x"),
    "batch norm and scale": IMAGE
    + layer("b", "BatchNorm", "x", "b")
    + layer("s", "Scale", "b", "b", "scale_param { bias_term: true }"),
}  # fmt: skip
LABEL_INPUTS = ("label", "continues")


@pytest.mark.parametrize("what", DIFFERENTIABLE)
def test_gradient_against_finite_differences(what: str) -> None:
    """In double precision, of all inputs and all blobs."""
    network = train.network(read_net(parse_prototxt(DIFFERENTIABLE[what]), phase="TRAIN", training=True), seed=3)
    network.double()
    values = {name: torch.tensor(RNG.normal(0, 0.5, shape)) for name, shape in network.inputs.items()}
    for name in LABEL_INPUTS:
        if name in values:
            values[name] = torch.tensor(RNG.integers(0, 2, network.inputs[name]))
    names = [name for name in values if name not in LABEL_INPUTS and (name, what) != ("b", "sigmoid loss")]
    for name in names:
        values[name].requires_grad_()
    blobs = [blob.parameter for blob in network.blobs]

    def run(*changed: Any) -> Any:
        found = network({**values, **dict(zip(names, changed, strict=False))})
        return [found[output] for output in network.outputs]

    assert torch.autograd.gradcheck(run, (*(values[name] for name in names), *blobs))


# ------------------------------------------------------------------------------------------------- losses, worked out


def run(text: str, keep: tuple[str, ...] = (), phase: str = "TRAIN", **inputs: Any) -> dict[str, Any]:
    network = train.network(read_net(parse_prototxt(text), phase=phase, training=True), seed=0)
    found = network({name: torch.tensor(value) for name, value in inputs.items()}, keep)
    return {name: value.detach().numpy() for name, value in found.items()}


def softmax(scores: np.ndarray, axis: int = 1) -> np.ndarray:
    exponents = np.exp(scores - scores.max(axis, keepdims=True))
    return exponents / exponents.sum(axis, keepdims=True)


MAPS = RNG.normal(0, 2, (2, 3, 2, 2)).astype(np.float32)
MAP_LABELS = np.array([[[0, 1], [2, 2]], [[1, 2], [0, 1]]], np.float32)
# -log of the label's probability: (2, 2, 2)
EACH = -np.log(np.take_along_axis(softmax(MAPS), MAP_LABELS[:, None].astype(int), 1))[:, 0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("", EACH.sum() / 8),
        ("loss_param { normalization: FULL }", EACH.sum() / 8),
        ("loss_param { normalization: BATCH_SIZE }", EACH.sum() / 2),
        ("loss_param { normalization: NONE }", EACH.sum()),
        ("loss_param { normalize: true }", EACH.sum() / 8),
        ("loss_param { normalize: false }", EACH.sum() / 2),
        ("loss_param { ignore_label: 2 }", EACH[MAP_LABELS != 2].sum() / 5),
        ("loss_param { ignore_label: 2 normalization: FULL }", EACH[MAP_LABELS != 2].sum() / 8),
        ("loss_param { ignore_label: 2 normalize: false }", EACH[MAP_LABELS != 2].sum() / 2),
    ],
)
def test_normalization_of_the_softmax_loss(params: str, expected: float) -> None:
    """After the comments at LossParameter in Caffe's schema."""
    text = input_layer("x", 2, 3, 2, 2) + input_layer("label", 2, 2, 2)
    found = run(text + layer("l", "SoftmaxWithLoss", "x label", params=params), x=MAPS, label=MAP_LABELS)
    np.testing.assert_allclose(found["l"], expected, rtol=1e-5)


def test_softmax_loss_over_another_axis() -> None:
    text = input_layer("x", 2, 2, 2, 3) + input_layer("label", 2, 2, 2)
    loss = layer("l", "SoftmaxWithLoss", "x label", "l p", "softmax_param { axis: -1 }")
    found = run(text + loss, x=MAPS.transpose(0, 2, 3, 1).copy(), label=MAP_LABELS)
    np.testing.assert_allclose(found["l"], EACH.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["p"], softmax(MAPS).transpose(0, 2, 3, 1), rtol=1e-5)


def test_softmax_loss_ends_where_caffes_ends() -> None:
    """Probabilities are no smaller than FLT_MIN: 87.3365 is the loss of a network that diverged."""
    text = input_layer("x", 1, 2) + input_layer("label", 1) + layer("l", "SoftmaxWithLoss", "x label")
    assert run(text, x=[[1000.0, 0.0]], label=[1])["l"] == pytest.approx(87.33654, abs=1e-4)


def test_all_labels_ignored() -> None:
    text = input_layer("x", 2, 2) + input_layer("label", 2)
    text += layer("l", "SoftmaxWithLoss", "x label", params="loss_param { ignore_label: 0 }")
    text += layer("acc", "Accuracy", "x label", params="accuracy_param { ignore_label: 0 }")
    found = run(text, x=[[1.0, 0.0]] * 2, label=[0, 0])
    assert found["l"] == 0
    assert found["acc"] == 0


def test_other_losses() -> None:
    a, b = RNG.normal(0, 1, (2, 4, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1])
    targets = (b > 0).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-a))
    signs = -np.ones((4, 3))
    signs[range(4), labels] = 1
    margins = np.maximum(0, 1 - signs * a)
    cross = -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
    text = PAIRS + input_layer("t", 4, 3) + LABELS
    text += layer("cross", "SigmoidCrossEntropyLoss", "a t") + layer("l2", "EuclideanLoss", "a b")
    text += layer("full", "SigmoidCrossEntropyLoss", "a t", params="loss_param { normalization: FULL }")
    text += layer(
        "some", "SigmoidCrossEntropyLoss", "a t", params="loss_param { ignore_label: 1 normalization: VALID }"
    )
    text += layer("hinge", "HingeLoss", "a label")
    text += layer("hinge2", "HingeLoss", "a label", params="hinge_loss_param { norm: L2 }")
    found = run(text, a=a, b=b, t=targets, label=labels)
    for name, expected in {
        "cross": cross.sum() / 4,
        "full": cross.mean(),
        "some": cross[targets == 0].mean(),
        "l2": ((a - b) ** 2).sum() / 8,
        "hinge": margins.sum() / 4,
        "hinge2": (margins**2).sum() / 4,
    }.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("", 2 / 4),
        ("accuracy_param { top_k: 2 }", 3 / 4),  # the tie counts against its label
        ("accuracy_param { top_k: 3 }", 4 / 4),
        ("accuracy_param { ignore_label: 1 }", 1 / 2),
    ],
)
def test_accuracy(params: str, expected: float) -> None:
    scores = [[3.0, 2, 1], [0, 5, 1], [2, 2, 2], [1, 2, 3]]
    text = SCORES + LABELS + layer("acc", "Accuracy", "scores label", params=params)
    assert run(text, scores=scores, label=[0, 1, 2, 1])["acc"] == pytest.approx(expected)


def test_accuracy_of_each_class() -> None:
    scores = [[3.0, 2, 1], [0, 5, 1], [9, 2, 2], [3, 2, 1]]
    text = SCORES + LABELS + layer("acc", "Accuracy", "scores label", "acc each")
    found = run(text, scores=scores, label=[0, 1, 1, 0])
    assert found["acc"] == 0.75
    assert found["each"].tolist() == [1, 0.5, 0]  # no label 2: 0, as with Caffe


# --------------------------------------------------------------------------------------------------- phases, statistics


def test_dropout_is_for_training_only() -> None:
    text = input_layer("x", 1, 10_000) + layer("l", "Dropout", "x", params="dropout_param { dropout_ratio: 0.3 }")
    ones = np.ones((1, 10_000), np.float32)
    np.testing.assert_array_equal(run(text, phase="TEST", x=ones)["l"], ones)
    dropped = run(text, phase="TRAIN", x=ones)["l"]
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    assert 0.27 < (dropped == 0).mean() < 0.33


@pytest.mark.parametrize("merged", [False, True])
def test_statistics_of_batch_norm(merged: bool) -> None:
    """Three batches, after batch_norm_layer.cpp: moving sums, the variance times m / (m - 1), and their weight."""
    text = IMAGE + layer("b", "BatchNorm", "x", "b", "batch_norm_param { moving_average_fraction: 0.9 }")
    if merged:
        text += layer("s", "Scale", "b", "b", "scale_param { bias_term: true }")
    network = train.network(read_net(parse_prototxt(text), phase="TRAIN", training=True))
    mean, variance, weight = np.zeros(4), np.zeros(4), 0.0
    for _ in range(3):
        x = RNG.normal(2, 3, (2, 4, 5, 6))
        found = network({"x": torch.tensor(x, dtype=torch.float32)})["b"].detach().numpy()
        own, spread = x.mean((0, 2, 3)), x.var((0, 2, 3))
        expected = (x - own[:, None, None]) / np.sqrt(spread + 1e-5)[:, None, None]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        mean, variance, weight = 0.9 * mean + own, 0.9 * variance + spread * 60 / 59, 0.9 * weight + 1
    stored = [blob.numpy() for blob in network.stored["b"]]
    for blob, values in zip(stored, (mean, variance, [weight]), strict=True):
        np.testing.assert_allclose(blob, values, rtol=1e-5)
    tested = train.network(read_net(parse_prototxt(text), phase="TEST", training=True), share=network)
    found = tested({"x": torch.tensor(x, dtype=torch.float32)})["b"].detach().numpy()
    expected = (x - (mean / weight)[:, None, None]) / np.sqrt(variance / weight + 1e-5)[:, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [blob.numpy().tolist() for blob in tested.stored["b"]] == [blob.tolist() for blob in stored]


@pytest.mark.parametrize(("phase", "param", "learns"), [
    ("TRAIN", "use_global_stats: true", False),
    ("TRAIN", "use_global_stats: false", True),
    ("TEST", "use_global_stats: false", False),
])  # fmt: skip
def test_statistics_that_stay(phase: str, param: str, learns: bool) -> None:
    text = IMAGE + layer("b", "BatchNorm", "x", params=f"batch_norm_param {{ {param} }}")
    network = train.network(read_net(parse_prototxt(text), phase=phase, training=True))
    network({"x": torch.randn(2, 4, 5, 6)})
    assert bool(network.stored["b"][2]) == learns


def test_a_single_value_a_channel_is_its_own_mean() -> None:
    """Caffe gives 0 for it, in training; PyTorch refuses it."""
    text = input_layer("x", 1, 3) + layer("b", "BatchNorm", "x")
    assert run(text, x=[[1.0, 2.0, 3.0]])["b"].tolist() == [[0, 0, 0]]


def test_ties_of_maxima_take_the_gradient_that_caffe_gives() -> None:
    """The first value of a window; of two bottoms the second, and a third only if it is larger."""
    text = input_layer("a", 1, 1, 2, 2) + input_layer("b", 1, 1, 2, 2) + input_layer("c", 1, 1, 2, 2)
    text += layer("e", "Eltwise", "a b c", params="eltwise_param { operation: MAX }")
    text += layer("p", "Pooling", "e", params="pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    network = train.network(read_net(parse_prototxt(text)))
    inputs = {name: torch.ones(1, 1, 2, 2, requires_grad=True) for name in "abc"}
    network(inputs)["p"].sum().backward()
    found = {name: tensor.grad.flatten().tolist() for name, tensor in inputs.items()}
    assert found == {"a": [0] * 4, "b": [1, 0, 0, 0], "c": [0] * 4}


# --------------------------------------------------------------------------------------------------------------- errors

WRONG = {
    "no num_output": (layer("l", "InnerProduct", "x"), r"found no num_output"),
    "groups": (
        layer("l", "Convolution", "x", params="convolution_param { num_output: 4 group: 3 kernel_size: 1 }"),
        r"found num_output 4 and group 3 for 4 channels",
    ),
    "kernel too large": (
        layer("l", "Convolution", "x", params="convolution_param { num_output: 4 kernel_size: 20 }"),
        r"found an input of 5 x 6",
    ),
    "stochastic": (
        layer("l", "Pooling", "x", params="pooling_param { pool: STOCHASTIC kernel_size: 2 }"),
        r"found STOCHASTIC pooling",
    ),
    "axis": (layer("l", "Softmax", "x", params="softmax_param { axis: 4 }"), r"found axis 4, expected one of the 4"),
    "labels": (layer("l", "SoftmaxWithLoss", "x x"), r"found labels of 2 x 4 x 5 x 6 .* expected 60 labels"),
    "top_k": (layer("l", "Accuracy", "x y", params="accuracy_param { top_k: 5 }"), r"found top_k 5, expected 1 to 4"),
    "tops": (layer("l", "Softmax", "x", "a b"), r"found 2 top\(s\)"),
    "too many param": (layer("l", "ReLU", "x", params="param { lr_mult: 1 }"), r"found 1 param, expected at most"),
    "statistics learned": (layer("l", "BatchNorm", "x", params="param { lr_mult: 1 }"), r"found lr_mult 1 for blob 0"),
    "propagate_down": (
        layer("l", "ReLU", "x", params="propagate_down: true propagate_down: true"),
        r"found 2 propagate_down",
    ),
    "loss_weight": (layer("l", "ReLU", "x", params="loss_weight: 1 loss_weight: 1"), r"found 2 loss_weight for 1 top"),
    "filler": (
        layer("l", "InnerProduct", "x", params='inner_product_param { num_output: 1 weight_filler { type: "he" } }'),
        r"blob 0: found the filler 'he', expected one of bilinear",
    ),
    "dropout": (layer("l", "Dropout", "x", params="dropout_param { dropout_ratio: 1 }"), r"found dropout_ratio 1"),
    "reshape": (
        layer("l", "Reshape", "x", params="reshape_param { shape { dim: 7 dim: -1 } }"),
        r"does not fit its bottoms \(x 2 x 4 x 5 x 6\)",
    ),
    "a top too large": (
        layer("l", "Deconvolution", "x", params="convolution_param { num_output: 4 kernel_size: 1 stride: 30000 }"),
        r"found a top of 2 x 4 x 120001 x 150001, expected at most 2,147,483,647 numbers",
    ),
    "a blob too large": (
        layer("l", "InnerProduct", "x", params="inner_product_param { num_output: 1000000000 }"),
        r"found the shape 1000000000 x 120 for blob 0, expected at most 2,147,483,647 numbers",
    ),
    "steps": (layer("l", "LSTM", "long marks", params="recurrent_param { num_output: 1 }"), r"found 3,000 time steps"),
    "shapes": (layer("l", "Eltwise", "x y"), r"found bottoms of different shapes"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_errors_name_the_layer(what: str) -> None:
    text, message = WRONG[what]
    with pytest.raises(CamrtError, match=message) as raised:
        run(
            IMAGE
            + input_layer("y", 2, 1, 5, 6)
            + input_layer("long", 3000, 1, 1)
            + input_layer("marks", 3000, 1)
            + text
        )
    assert re.search(r"net\.prototxt|<prototxt>", str(raised.value))
    assert "layer l (" in str(raised.value)


def test_a_layer_has_the_family_of_its_handler() -> None:
    families = {type: entry.family for entry in handlers.entries() for type in entry.types}
    trained = {type: registry.find(type).__module__.rpartition(".")[2] for type in registry.types()}
    assert trained == trained | {type: families[type] for type in trained.keys() & families.keys()}


def test_registering_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="second builder for 'ReLU'"):
        registry.builds("ReLU")(lambda context: registry.Operation(lambda blobs, bottoms: bottoms))


def test_the_layers_of_the_cam_networks_can_be_trained(reference: Path) -> None:
    for file in (reference / "nets" / "prototxt").glob("*CAM*.prototxt"):
        if not file.name.startswith("solver"):
            for phase in ("TRAIN", "TEST"):
                net = read_net(file, phase=phase, training=True)
                assert all(registry.find(one.type) for one in net.layers), file

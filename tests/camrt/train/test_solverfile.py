"""Solver files: what is read from them, and what is refused. Needs no PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from camrt import CamrtError
from camrt.train.solverfile import read_solver
from tests.caffe_files import input_layer, layer

GOOD = 'net: "train_val.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 10\n'
NET = (
    input_layer("data", 1, 3)
    + input_layer("label", 1)
    + layer("fc", "InnerProduct", "data", params="inner_product_param { num_output: 2 }")
    + layer("loss", "SoftmaxWithLoss", "fc label")
    + layer("acc", "Accuracy", "fc label", params="include { phase: TEST }")
    + layer("late", "Softmax", "fc", params='include { stage: "late" }')
    + layer("deep", "Softmax", "fc", params="include { min_level: 2 }")
)


def written(folder: Path, text: str, net: str | None = NET) -> Path:
    if net is not None:
        (folder / "train_val.prototxt").write_text(net)
    file = folder / "solver.prototxt"
    file.write_text(text)
    return file


def names(net: object) -> list[str]:
    return [one.name for one in net.layers]


def test_the_originals_solver(reference: Path) -> None:
    param = read_solver(reference / "nets" / "prototxt" / "solver_imagenet_googlenetCAM.prototxt").param
    assert (param.type, param.lr_policy, param.stepsize, param.max_iter) == ("SGD", "step", 40000, 160000)
    assert list(param.test_iter) == [1000]
    assert param.base_lr == pytest.approx(0.001)


def test_networks_beside_the_solver(tmp_path: Path) -> None:
    file = read_solver(written(tmp_path, GOOD + "test_iter: 3 test_interval: 2"))
    train = file.train_net()
    (test,) = file.test_nets()
    assert (train.phase, names(train)) == ("TRAIN", ["fc", "loss"])
    assert (test.phase, names(test)) == ("TEST", ["fc", "loss", "acc"])
    assert train.outputs == ("loss",)


def test_networks_of_the_current_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Caffe, whose paths are all from where it was started."""
    (tmp_path / "solvers").mkdir()
    file = written(tmp_path / "solvers", GOOD)
    (tmp_path / "train_val.prototxt").write_text(NET.replace('"fc"', '"classifier"'))
    monkeypatch.chdir(tmp_path)
    assert names(read_solver(file).train_net()) == ["classifier", "loss"]


def test_states(tmp_path: Path) -> None:
    more = (
        'test_iter: 1 test_iter: 1 test_interval: 1 train_state { stage: "late" } test_state {} test_state { level: 2 }'
    )
    file = read_solver(written(tmp_path, GOOD + more))
    assert names(file.train_net()) == ["fc", "loss", "late"]
    assert [names(net) for net in file.test_nets()] == [["fc", "loss", "acc"], ["fc", "loss", "acc", "deep"]]


def test_nets_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "test.prototxt").write_text(NET.replace('"acc"', '"tested"'))
    text = GOOD.replace("net:", "train_net:") + 'test_net: "test.prototxt" test_iter: 1 test_interval: 1'
    file = read_solver(written(tmp_path, text))
    assert names(file.train_net()) == ["fc", "loss"]
    assert [names(net) for net in file.test_nets()] == [["fc", "loss", "tested"]]


def test_net_in_the_file(tmp_path: Path) -> None:
    text = f'net_param {{ {NET} }} base_lr: 0.1 lr_policy: "fixed" max_iter: 10 test_iter: 1 test_interval: 5'
    file = read_solver(written(tmp_path, text, net=None))
    assert names(file.train_net()) == ["fc", "loss"]
    assert names(file.test_nets()[0]) == ["fc", "loss", "acc"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("SGD", "SGD"), ("NESTEROV", "Nesterov"), ("ADAGRAD", "AdaGrad"), ("RMSPROP", "RMSProp"), ("ADADELTA", "AdaDelta"),
     ("ADAM", "Adam"), ("5", "Adam")],
)  # fmt: skip
def test_old_types(old: str, new: str, tmp_path: Path) -> None:
    param = read_solver(written(tmp_path, GOOD + f"solver_type: {old}")).param
    assert param.type == new
    assert not param.HasField("solver_type")


REFUSED = {
    "no net": ('base_lr: 1 lr_policy: "fixed" max_iter: 1', "found no network to train, expected exactly one"),
    "two nets": (GOOD + 'train_net: "b"', "found train_net and net, expected exactly one of"),
    "no rate": (GOOD.replace("base_lr: 0.1", ""), "found no base_lr, expected a rate"),
    "a negative rate": (GOOD.replace("0.1", "-0.1"), "found base_lr -0.1"),
    "a rate that is none": (GOOD.replace("0.1", "nan"), "found base_lr nan"),
    "no policy": (GOOD.replace('lr_policy: "fixed"', ""), "found no lr_policy, expected one of exp, fixed"),
    "an unknown policy": (GOOD.replace("fixed", "cosine"), "found lr_policy 'cosine', expected one of"),
    "no gamma": (GOOD.replace("fixed", "exp"), "found no gamma, expected one, since lr_policy is 'exp'"),
    "no stepsize": (GOOD.replace("fixed", "step") + "gamma: 1", "found no stepsize"),
    "a stepsize of 0": (GOOD.replace("fixed", "step") + "gamma: 1 stepsize: 0", "found stepsize 0, expected 1"),
    "no stepvalue": (GOOD.replace("fixed", "multistep") + "gamma: 1", r"found stepvalue \[\]"),
    "falling stepvalues": (
        GOOD.replace("fixed", "multistep") + "gamma: 1 stepvalue: 5 stepvalue: 3",
        r"found stepvalue \[5, 3\] .* expected increasing",
    ),
    "no max_iter": (GOOD.replace("max_iter: 10", ""), "found no max_iter, expected 1 or more"),
    "an unknown type": (GOOD + 'type: "Lion"', "found type 'Lion', expected one of SGD, Nesterov"),
    "both types": (GOOD + 'type: "SGD" solver_type: SGD', "found type and its old form solver_type"),
    "an unknown old type": (GOOD + "solver_type: LION", "LION"),
    "momentum for none": (GOOD + 'type: "AdaGrad" momentum: 0.9', "expected 0 or none: AdaGrad has no momentum"),
    "momentum for RMSProp": (GOOD + 'type: "RMSProp" momentum: 0.9', "expected 0 or none: RMSProp has no momentum"),
    "momentum of 1": (GOOD + "momentum: 1", "found momentum 1.0, expected 0 or more, and less than 1"),
    "rms_decay of 1": (GOOD + 'type: "RMSProp" rms_decay: 1', "found rms_decay 1.0"),
    "regularization": (GOOD + 'regularization_type: "L3"', "found regularization_type 'L3', expected 'L1' or 'L2'"),
    "a negative decay": (GOOD + "weight_decay: -1", "found weight_decay -1.0"),
    "iter_size of 0": (GOOD + "iter_size: 0", "found iter_size 0, expected 1 or more"),
    "test_iter alone": (GOOD + "test_iter: 3", "found test_iter without test_interval"),
    "test_iter of 0": (GOOD + "test_iter: 0 test_interval: 1", r"found test_iter \[0\]"),
    "test_net without test_iter": (GOOD + 'test_net: "a"', "found 1 test_net and 0 test_iter, expected one each"),
    "test_state": (GOOD + "test_iter: 1 test_interval: 1 test_state {} test_state {}", "found 2 test_state and 1"),
    "a misspelt field": (GOOD + "weight_deacy: 1", r":2:1: .*unknown field 'weight_deacy'.*mean 'weight_decay'"),
    "a network": (NET, "is the prototxt of a network, expected that of a solver"),
    "a syntax error": (GOOD + "momentum: {", r"solver\.prototxt:2:11"),
    "a wrong kind": (GOOD + 'momentum: "much"', r"solver\.prototxt:2:11"),
    "nothing": ("", "found no network"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str, tmp_path: Path) -> None:
    text, message = REFUSED[what]
    file = written(tmp_path, text)
    with pytest.raises(CamrtError, match=message) as raised:
        read_solver(file)
    assert str(raised.value).startswith(str(file))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="does not exist"):
        read_solver(tmp_path / "nothing.prototxt")
    with pytest.raises(CamrtError, match="is not a regular file"):
        read_solver(tmp_path)
    binary = tmp_path / "net.caffemodel"
    binary.write_bytes(b"\x0a\x00\x01" * 50)
    with pytest.raises(CamrtError, match="is a binary file"):
        read_solver(binary)
    huge = tmp_path / "huge.prototxt"
    with huge.open("wb") as stream:
        stream.truncate(17 << 20)
    with pytest.raises(CamrtError, match="has more than"):
        read_solver(huge)


def test_a_missing_network_is_named(tmp_path: Path) -> None:
    file = read_solver(written(tmp_path, GOOD, net=None))
    with pytest.raises(CamrtError, match=r"train_val\.prototxt: does not exist"):
        file.train_net()


def test_an_old_network_in_the_file(tmp_path: Path) -> None:
    """V1 layers."""
    text = (
        'net_param { input: "x" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4 '
        'layers { name: "r" type: RELU bottom: "x" top: "r" } } base_lr: 0.1 lr_policy: "fixed" max_iter: 10'
    )
    assert read_solver(written(tmp_path, text, net=None)).train_net().layers[0].type == "ReLU"


def test_reading_needs_no_pytorch(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from camrt.train.solverfile import read_solver\n"
        f"print(read_solver({str(file)!r}).train_net().name == '')\n"
        "import camrt.train\n"
        "try:\n    camrt.train.network\n"
        "except camrt.CamrtError as error:\n    print(error)\n"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.splitlines() == [
        "True",
        f"training needs PyTorch, which is not installed: {sys.executable} -m pip install torch matplotlib",
    ]

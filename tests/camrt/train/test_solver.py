"""The solvers against ten steps of each by real Caffe (tests/data/solver); learning rates worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from camrt import CamrtError
from camrt.train.policies import learning_rate
from camrt.train.solverfile import read_solver
from converters import read_net
from converters.reader import parse_prototxt
from converters.schema.caffe_pb2 import SolverParameter
from tests.caffe_files import input_layer, layer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing is trained")
from camrt import train  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "data" / "solver"
CASES = sorted(file.stem for file in DATA.glob("*.npz"))
# A bias before a BatchNorm changes nothing but the mean that is subtracted again. Its gradient is 0, but for rounding;
# these rules divide it by its own size, so that the last bits of two sums decide where it goes.
DIVIDING = ("adagrad", "adam", "rmsprop")
BIAS, MEAN = "c1/1", "bn/0"
RATE = {"adagrad": 0.05, "adam": 0.01, "rmsprop": 0.01}


def parameters(text: str) -> SolverParameter:
    return text_format.Parse(f'base_lr: 0.5 lr_policy: "fixed" {text}', SolverParameter())


def blob_of(network: Any, key: str) -> Any:
    name, index = key.rsplit("/", 1)
    return network.stored[name][int(index)]


class Replay:
    """One of Caffe's runs, done again."""

    def __init__(self, case: str) -> None:
        self.file = read_solver(DATA / f"{case}.prototxt")
        with np.load(DATA / f"{case}.npz") as stored:
            self.stored = dict(stored)
        self.network = train.network(self.file.train_net(), seed=0)
        with torch.no_grad():
            for key, values in self.stored.items():
                if key.startswith("init:"):
                    blob_of(self.network, key.removeprefix("init:")).copy_(torch.from_numpy(values))
        self.solver = train.Solver(self.file.param, self.network)

    def step(self) -> float:
        """One update; the loss before it."""
        index, passes = self.solver.iteration, self.file.param.iter_size
        inputs = {name: torch.from_numpy(self.stored[name][index]) for name in ("data", "label")}
        total = 0.0
        for _ in range(passes):  # Caffe was fed the same batch each time
            loss = self.network.loss(self.network(inputs))
            loss.backward()
            total += loss.item() / passes
        self.solver.update()
        return total

    def expected(self, step: int) -> dict[str, np.ndarray]:
        start = f"after{step}:"
        return {key.removeprefix(start): values for key, values in self.stored.items() if key.startswith(start)}

    def found(self) -> dict[str, np.ndarray]:
        return {key: blob_of(self.network, key).detach().numpy().copy() for key in self.expected(1)}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value of the blob."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_all_of_caffes_runs_are_there() -> None:
    assert len(CASES) == 11
    assert {read_solver(DATA / f"{case}.prototxt").param.type for case in CASES} == {
        "SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam",
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_as_caffe(case: str) -> None:
    replay = Replay(case)
    losses = []
    for step in range(1, 11):
        losses.append(replay.step())
        if step not in (1, 5, 10):
            continue
        found, expected = replay.found(), replay.expected(step)
        assert len(expected) == 9
        for key in found:
            if case in DIVIDING and (key == BIAS or (key == MEAN and step > 1)):
                # No step moves it by more than about the rate (twice that of the weights), and neither Caffe's.
                most = 2 * RATE[case] * step * 2.1
                assert np.abs(found[key] - expected[key]).max() <= most * (1 if key == BIAS else step), key
            else:
                assert error(found[key], expected[key]) < 1e-4, (key, step)
    np.testing.assert_allclose(losses, replay.stored["loss"], rtol=1e-4)


@pytest.mark.parametrize("case", DIVIDING)
def test_what_is_not_compared_is_rounding(case: str) -> None:
    """The gradient of the bias before the BatchNorm: a ten millionth of that of the filters before it."""
    replay = Replay(case)
    inputs = {name: torch.from_numpy(replay.stored[name][0]) for name in ("data", "label")}
    replay.network.loss(replay.network(inputs)).backward()
    filters, bias = (blob_of(replay.network, key).grad.abs().max().item() for key in ("c1/0", BIAS))
    assert bias < 1e-6 * filters


# ------------------------------------------------------------------------------------------------------- learning rates


# policy, iteration -> what the comments at SolverParameter.lr_policy in Caffe's schema say
RATES = [
    ('lr_policy: "fixed"', {0: 0.5, 99: 0.5}),
    ('lr_policy: "step" gamma: 0.1 stepsize: 10', {0: 0.5, 9: 0.5, 10: 0.05, 25: 0.005}),
    ('lr_policy: "exp" gamma: 0.9', {0: 0.5, 1: 0.45, 3: 0.3645}),
    ('lr_policy: "inv" gamma: 0.5 power: 2', {0: 0.5, 2: 0.125, 6: 0.5 / 16}),
    ('lr_policy: "multistep" gamma: 0.1 stepvalue: 3 stepvalue: 5', {2: 0.5, 3: 0.05, 4: 0.05, 5: 0.005, 50: 0.005}),
    ('lr_policy: "poly" power: 2', {0: 0.5, 50: 0.125, 90: 0.005, 100: 0, 101: 0}),
    ('lr_policy: "sigmoid" gamma: -0.1 stepsize: 20', {20: 0.25, 0: 0.5 / (1 + math.exp(-2))}),
    ('lr_policy: "sigmoid" gamma: 100 stepsize: 50', {0: 0, 99: 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "rates"), RATES)
def test_learning_rate(policy: str, rates: dict[int, float]) -> None:
    text = f"base_lr: 0.5 max_iter: 100 {policy}"
    param = text_format.Parse(text, SolverParameter())
    for iteration, rate in rates.items():
        assert learning_rate(param, iteration) == pytest.approx(rate, rel=1e-6, abs=1e-12)


def test_unknown_policy() -> None:
    with pytest.raises(CamrtError, match="found the lr_policy 'cosine', expected one of exp, fixed"):
        learning_rate(SolverParameter(lr_policy="cosine"), 0)


# --------------------------------------------------------------------------------------------- one update, worked out

# y = w x + b, and its loss is the sum of y times the weights 1 and 2.
LINE = (
    input_layer("x", 1, 1)
    + layer(
        "fc", "InnerProduct", "x",
        params="param { lr_mult: 2 decay_mult: 3 } param { lr_mult: 1 decay_mult: 0 } "
        "inner_product_param { num_output: 2 weight_filler { value: 5 } } loss_weight: 1",
    )
)  # fmt: skip


def line(text: str = LINE) -> Any:
    return train.network(read_net(parse_prototxt(text), phase="TRAIN", training=True))


def after(network: Any, solver: Any, passes: int = 1, x: float = 3.0) -> tuple[list[float], list[float]]:
    for _ in range(passes):
        network.loss(network({"x": torch.tensor([[x]])})).backward()
    solver.update()
    weight, bias = network.stored["fc"]
    return weight.flatten().tolist(), bias.tolist()


def test_multipliers_and_decay() -> None:
    network = line()
    solver = train.Solver(parameters("weight_decay: 0.1"), network)
    weights, biases = after(network, solver)
    # w: 5 - 0.5 * 2 * (3 + 0.1 * 3 * 5), b: 0 - 0.5 * 1 * 1
    assert weights == pytest.approx([0.5, 0.5])
    assert biases == pytest.approx([-0.5, -0.5])
    assert solver.iteration == 1
    assert all(blob.parameter.grad is None for blob in network.blobs)


def test_l1_decay() -> None:
    network = line()
    weights, _ = after(network, train.Solver(parameters('weight_decay: 0.1 regularization_type: "L1"'), network))
    assert weights == pytest.approx([5 - (3 + 0.1 * 3)] * 2)


def test_the_sum_is_clipped_before_it_is_divided() -> None:
    """As in SGDSolver::ApplyUpdate: ClipGradients, then Normalize."""
    network = line()
    solver = train.Solver(parameters("iter_size: 4 clip_gradients: 2"), network)
    weights, biases = after(network, solver, passes=4)
    norm = math.sqrt(2 * 12**2 + 2 * 4**2)  # of four passes
    assert weights == pytest.approx([5 - 1 * 12 * 2 / norm / 4] * 2)
    assert biases == pytest.approx([-0.5 * 4 * 2 / norm / 4] * 2)


def test_adams_delta_is_added_before_the_correction() -> None:
    """Caffe's AdamSolver adds delta to the root of the raw mean square; PyTorch's Adam, to that of the corrected one.

    With a delta as large as the gradients, the two differ from the first step on.
    """
    network = line()
    solver = train.Solver(parameters('type: "Adam" momentum: 0.9 momentum2: 0.99 delta: 0.5'), network)
    gradient, mean, square, weight = 3.0, 0.0, 0.0, 5.0
    theirs = torch.nn.Parameter(torch.tensor(5.0))
    pytorch = torch.optim.Adam([theirs], lr=1.0, betas=(0.9, 0.99), eps=0.5)
    for time in (1, 2, 3):
        weights, _ = after(network, solver)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        weight -= 1.0 * math.sqrt(1 - 0.99**time) / (1 - 0.9**time) * mean / (math.sqrt(square) + 0.5)
        theirs.grad = torch.tensor(gradient)
        pytorch.step()
        assert weights == pytest.approx([weight] * 2, rel=1e-5)
        assert abs(weights[0] - theirs.item()) > 0.1


def test_small_gradients_are_not_clipped() -> None:
    network = line()
    weights, _ = after(network, train.Solver(parameters("clip_gradients: 1000"), network))
    assert weights == pytest.approx([2, 2])
    zero = line()
    weights, _ = after(zero, train.Solver(parameters("clip_gradients: 1"), zero), x=0.0)
    assert all(map(math.isfinite, weights))


def test_a_blob_without_a_rate_stays() -> None:
    text = LINE.replace("lr_mult: 2", "lr_mult: 0")
    network = line(text)
    assert [blob.parameter.requires_grad for blob in network.blobs] == [False, True]
    weights, biases = after(network, train.Solver(parameters("weight_decay: 1"), network))
    assert weights == [5, 5]
    assert biases != [0, 0]


def test_a_blob_without_a_gradient_decays() -> None:
    """A layer that no loss depends on: Caffe's gradient of it is 0, and its weights decay."""
    text = LINE + layer(
        "side", "InnerProduct", "x", params="inner_product_param { num_output: 1 weight_filler { value: 4 } }"
    )
    network = line(text)
    after(network, train.Solver(parameters("weight_decay: 0.5"), network))
    assert network.stored["side"][0].item() == pytest.approx(4 - 0.5 * 0.5 * 4)


def test_a_network_without_anything_to_learn() -> None:
    text = LINE.replace("lr_mult: 2", "lr_mult: 0").replace("lr_mult: 1", "lr_mult: 0")
    with pytest.raises(CamrtError, match="found nothing to learn"):
        train.Solver(parameters(""), line(text))


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_device(case: str) -> None:
    """On a device whose tensors hold no values: whoever asks for one fails. All of a step needs none."""
    replay = Replay(case)
    network = replay.network.to("meta")
    replay.file.param.clip_gradients = 0.5
    solver = train.Solver(replay.file.param, network)
    shapes = {"data": (8, 2, 9, 9), "label": (8,)}
    network.loss(network({name: torch.zeros(shape, device="meta") for name, shape in shapes.items()})).backward()
    solver.update()
    with pytest.raises(RuntimeError, match="meta"):
        network.blobs[0].parameter.sum().item()


# ---------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("case", ["adadelta", "adam", "nesterov_exp", "sgd_multistep_itersize"])
def test_going_on_from_a_state_is_exact(case: str, tmp_path: Path) -> None:
    unbroken = Replay(case)
    for _ in range(10):
        unbroken.step()
    first = Replay(case)
    for _ in range(4):
        first.step()
    torch.save({"solver": first.solver.state_dict(), "network": first.network.state_dict()}, tmp_path / "state.pt")
    for _ in range(3):  # what is saved is a copy
        first.step()
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    second = Replay(case)
    second.network.load_state_dict(stored["network"])
    second.solver.load_state_dict(stored["solver"])
    assert second.solver.iteration == 4
    for _ in range(6):
        second.step()
    for key, values in unbroken.found().items():
        np.testing.assert_array_equal(second.found()[key], values, err_msg=key)


def test_states_of_others_are_refused() -> None:
    network = line()
    adam = train.Solver(parameters('type: "Adam" momentum: 0.9'), network)
    sgd = train.Solver(parameters(""), network)
    with pytest.raises(CamrtError, match="found the state of a solver of type 'SGD', expected 'Adam'"):
        adam.load_state_dict(sgd.state_dict())
    other = train.Solver(parameters(""), line(LINE.replace("num_output: 2", "num_output: 7")))
    with pytest.raises(CamrtError, match=r"2 tensors, 7 x 1 instead of 2 x 1: it belongs to another network"):
        sgd.load_state_dict(other.state_dict())
    for broken in ({}, {"type": "SGD", "iteration": "x", "history": []}, {**sgd.state_dict(), "history": [[]]},
                   {**sgd.state_dict(), "iteration": -1}):  # fmt: skip
        with pytest.raises(CamrtError, match="found"):
            sgd.load_state_dict(broken)
    assert sgd.iteration == 0


def test_the_caller_keeps_its_parameters() -> None:
    param = parameters("solver_type: NESTEROV")
    solver = train.Solver(param, line())
    assert solver.param.type == "Nesterov"
    assert param.HasField("solver_type")

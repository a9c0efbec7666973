"""The cascading randomization test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from camrt import CamrtError, CamrtWarning
from camrt.cli import app
from camrt.evaluate.sanity import Checked, Stage, cascade, sanity, similarities, unchanged
from camrt.evaluate.sanity_page import page
from tests.tiny_models import photo, tiny_classifier

pytest.importorskip("skimage", reason="scikit-image is not installed")
SAMPLE = Path(__file__).parents[3] / "models" / "lenetCAM" / "sample.png"


def weights_of(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}


def test_layers_become_random_from_the_top() -> None:
    trained = weights_of(tiny_classifier())
    seen = [(count, layer, weights_of(model)) for count, layer, model in cascade(tiny_classifier(), 8, 0)]
    assert [(count, layer) for count, layer, _ in seen] == [(0, ""), (1, "fc"), (2, "conv")]
    changed = [{name for name in trained if (found[name] != trained[name]).any()} for _, _, found in seen]
    assert changed == [set(), {"fc_w", "fc_b"}, {"fc_w", "fc_b", "w", "b"}]
    np.testing.assert_array_equal(seen[1][2]["fc_w"], seen[2][2]["fc_w"])  # and stay as they became
    np.testing.assert_array_equal(np.sort(seen[2][2]["b"]), np.sort(trained["b"]))  # vectors are shuffled
    spread = [array["w"].std() for array in (trained, seen[2][2])]
    np.testing.assert_allclose(*spread, rtol=0.2)


def test_the_last_network_is_all_random() -> None:
    for stages, counts in ((1, [0, 2]), (2, [0, 1, 2]), (9, [0, 1, 2])):
        assert [count for count, _, _ in cascade(tiny_classifier(), stages, 0)] == counts


def test_the_seed_makes_the_weights() -> None:
    first, again, other = (weights_of([*cascade(tiny_classifier(), 1, seed)][-1][2]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["w"], again["w"])
    assert (first["w"] != other["w"]).any()


def test_weights_in_constants_and_behind_transposes_are_found() -> None:
    draw = np.random.default_rng(0)
    kernel = numpy_helper.from_array(draw.standard_normal((4, 3, 3, 3)).astype(np.float32), "k")
    nodes = [
        helper.make_node("Constant", [], ["k"], value=kernel),
        helper.make_node("Conv", ["data", "k"], ["c"], "first"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Transpose", ["m"], ["mt"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "mt"], ["scores"], "last"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(draw.standard_normal((5, 4)).astype(np.float32), "m")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = [(layer, network.graph.node[0].attribute[0].t.raw_data) for _, layer, network in cascade(model, 8, 0)]
    assert [layer for layer, _ in found] == ["", "last", "first"]
    assert found[0][1] == found[1][1] != found[2][1]


def test_a_network_without_weights() -> None:
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["data"], ["p"]), helper.make_node("Flatten", ["p"], ["scores"])], "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(CamrtError, match="no layer with weights"):
        list(cascade(model, 8, 0))


def test_similarities() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.random((2, 40, 40))
    ssim, rank, hog = similarities(other, one)
    order = [each.ravel().argsort().argsort() for each in (one, other)]
    np.testing.assert_allclose(rank, np.corrcoef(*order)[0, 1], atol=1e-9)
    assert abs(ssim) < 0.2
    assert abs(hog) < 0.5
    np.testing.assert_allclose(similarities(3 * one + 7, one), (1, 1, 1), atol=1e-6)
    np.testing.assert_allclose(similarities(-one, one)[1], -1, atol=1e-9)
    assert similarities(np.zeros((40, 40)), one)[1:] == (0.0, 0.0)


def test_what_adebayo_found_holds_for_a_trained_network() -> None:
    """Guided backpropagation shows the image's edges whatever the weights are; CAM and Grad-CAM do not."""
    methods = ["cam", "gradcam", "guided-backprop", "baseline-edges", "baseline-center"]
    found = sanity("lenetCAM", [SAMPLE], methods, stages=3, providers="cpu")
    assert unchanged(found) == ["guided-backprop", "baseline-edges", "baseline-center"]
    by_name = {each.method: each for each in found}
    np.testing.assert_allclose([stage.rank for stage in by_name["baseline-edges"].stages], 1)
    assert by_name["cam"].stages[-1].ssim < 0.3
    assert by_name["cam"].maps.shape == (4, 100, 100)
    html = page(found, model="<b>net")
    assert "<b>net" not in html
    assert html.count("<img") == 1 + 5 * 4
    assert "http" not in html


def test_bad_images_and_methods_are_left_out(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    told: list[str] = []
    found = sanity(
        tiny_classifier(), [bad, photo(30, 30, 1)], ["baseline-center", "gradcam"], stages=1, providers="cpu",
        settings={"gradcam": {"nothing": 1}}, on_error=lambda what, error: told.append(f"{what}: {error}"),
    )  # fmt: skip
    assert [each.method for each in found] == ["baseline-center"]
    assert len(told) == 2
    with pytest.warns(CamrtWarning), pytest.raises(CamrtError, match="no image that can be read"):
        sanity(tiny_classifier(), [bad], ["gradcam"], providers="cpu")


@pytest.mark.parametrize("arguments", [{"methods": []}, {"methods": "cam"}, {"stages": 0}, {"limit": 0.0}])
def test_wrong_arguments(arguments: Any) -> None:
    with pytest.raises(CamrtError, match="expected a list of names"):
        sanity(tiny_classifier(), [photo(30, 30, 1)], **{"methods": ["cam"], **arguments})


def test_a_reversed_map_is_unchanged_too() -> None:
    assert not Checked("x", (Stage(1, "a", 0.1, -0.9, 0.0),)).changes


def test_the_command(tmp_path: Path) -> None:
    arguments = ["evaluate", "sanity", "lenetCAM", "--methods", "cam,baseline-edges", "--stages", "2"]
    html = tmp_path / "sanity.html"
    result = CliRunner().invoke(app, [*arguments, "--provider", "cpu", "--html", str(html)])
    assert result.exit_code == 0, result.output
    assert "do not change when the weights are random: baseline-edges." in result.stdout
    assert html.exists()
    result = CliRunner().invoke(app, [*arguments, str(SAMPLE), "gone.png", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["unchanged"] == ["baseline-edges"]
    assert "gone.png" in result.stderr
    assert CliRunner().invoke(app, [*arguments[:3], "--methods", "nothing"]).exit_code == 2

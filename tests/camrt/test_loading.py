from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from camrt import CamrtError
from camrt.commands import options
from camrt.graph.explain import describe
from camrt.loading import (
    LENET,
    Request,
    explainer_graph,
    identity,
    is_name,
    known_preprocess,
    named_classifier,
    preprocess_of_named,
)
from camrt.preprocess import PRESETS
from converters import ConversionError, metadata, zoo
from tests.tiny_models import tiny_classifier, tiny_explainer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without weights, and no way to download any."""
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path))
    monkeypatch.setattr(zoo, "download", lambda *_, **__: pytest.fail("asked the network"))
    return tmp_path


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_bytes(b"")
    assert [is_name(text) for text in ("vgg16CAM", "net.onnx", "a/b", "here")] == [True, False, False, False]


def test_lenet_cam_is_a_name_and_needs_no_download(cache: Path) -> None:
    classifier = named_classifier(LENET)
    assert [output.name for output in classifier.graph.output] == ["prob"]
    graph = explainer_graph(LENET, Request(top=2))
    assert {output.name for output in graph.graph.output} == {"scores", "classes", "heatmaps"}
    with pytest.raises(CamrtError, match=r"lenetCAM: .*nothing"):
        explainer_graph(LENET, Request(features="nothing", classifier="CAM_fc"))


def test_a_model_says_its_own_protocol(cache: Path) -> None:
    """A digit's mirror image is no digit: lenetCAM is shown the image once, unless it is told otherwise."""

    def protocol(request: Request) -> str:
        graph = explainer_graph(LENET, request)
        return str(
            json.loads({entry.key: entry.value for entry in graph.metadata_props}[metadata.EXPLAINER])["protocol"]
        )

    assert protocol(Request()) == "center"
    assert protocol(Request(protocol="ten-crop")) == "ten-crop"


def test_an_explainer_is_left_as_it_is(tmp_path: Path) -> None:
    model = tiny_explainer()
    onnx.save(model, tmp_path / "explainer.onnx")
    assert explainer_graph(model, Request()) is model
    assert explainer_graph(tmp_path / "explainer.onnx", Request()) == tmp_path / "explainer.onnx"


def test_models_that_are_not_the_same(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert identity(str(path)) == {"file": str(path)}
    path.write_bytes(b"123")
    assert identity(str(path)) == {"file": str(path), "size": 3, "mtime_ns": path.stat().st_mtime_ns}
    assert identity("googlenet") == identity("bvlc_googlenet") == {"name": "bvlc_googlenet"}
    assert identity(LENET)["size"] < 500_000
    with pytest.raises(ConversionError, match="no model named"):
        identity("nothing")


def test_what_is_known_of_a_model(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = tiny_classifier()
    onnx.save(model, path)
    wants = known_preprocess(str(path))
    assert wants is not None
    assert (wants.size, wants.crop) == (32, 28)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert known_preprocess(str(path)) is None
    assert known_preprocess(str(tmp_path / "none.onnx")) is None
    assert known_preprocess(LENET).crop == 100
    assert known_preprocess("alexnetplusCAM").crop == 227
    path.write_bytes(b"\xff")
    with pytest.raises(CamrtError, match=r"net\.onnx: is no ONNX model"):
        known_preprocess(str(path))


def test_what_the_command_line_says_without_numpy() -> None:
    """The choices are those of the library."""
    assert [preset.value for preset in options.Preset] == [*PRESETS]
    for protocol in (each.value for each in options.ProtocolName):
        assert describe(Request(protocol=protocol, top=2).graph(tiny_classifier()))["protocol"] == protocol


def test_what_a_named_model_wants(cache: Path) -> None:
    wants = preprocess_of_named(zoo.find("alexnetplusCAM"))
    assert (wants.size, wants.crop, wants.mean, wants.channels) == (256, 227, (104, 117, 123), "BGR")
    assert wants.mean_image is None

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from camrt import CamrtError
from camrt.catalog.huggingface import _of_timm, _of_transformers
from camrt.loading import known_preprocess, named, named_classifier, title_of
from camrt.preprocess import PRESETS
from converters import ConversionError, ConversionWarning, download, metadata, zoo
from tests.camrt.catalog.test_modelzoo import bare_classifier
from tests.camrt.commands.command_line import run
from tests.web import Answer, Site, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = bare_classifier()
PROCESSOR = {
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "PAUSE_S", 0)
    return tmp_path / "home"


def listing(**files: bytes) -> Answer:
    """What Hugging Face says of a repository: the checksums of large files, the sizes of all."""
    siblings = [
        {"rfilename": path, "size": len(content)}
        | ({"lfs": {"sha256": hashlib.sha256(content).hexdigest()}} if path.endswith(".onnx") else {})
        for path, content in files.items()
    ]
    return Answer(json.dumps({"sha": COMMIT, "siblings": siblings}).encode())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A hub whose answers a test sets."""
    with serve() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url.rpartition("/")[0])
        yield site


def test_the_only_onnx_file_is_taken_and_pinned(hub: Site) -> None:
    processor, config = json.dumps(PROCESSOR).encode(), json.dumps({"id2label": {"0": "cat", "1": "dog"}}).encode()
    files = {"README.md": b"#", "onnx/model.onnx": MODEL, "preprocessor_config.json": processor, "config.json": config}
    hub.answers[:] = [listing(**files), Answer(MODEL), Answer(processor), Answer(config)]
    found = named("hf:owner/some.net")
    assert found.preprocess is not None
    model = named_classifier("hf:owner/some.net")
    assert hub.asked == 4
    properties = metadata.of_model(model)
    assert metadata.labels_of(properties) == ["cat", "dog"]
    assert properties[metadata.SOURCE] == "https://huggingface.co/owner/some.net"
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    assert metadata.preprocess_of(properties)["crop"] == side
    assert metadata.preprocess_of(properties)["mean"] == PRESETS["torchvision"].mean
    assert COMMIT[:12] in str(named("hf:owner/some.net").file)
    named_classifier("hf:owner/some.net")
    assert hub.asked == 4, "what was resolved once needs no network"
    assert "preprocessor_config.json" in (zoo.cache_folder() / zoo.LOCK_NAME).read_text(encoding="utf-8")


def test_one_of_several_files_is_named(hub: Site) -> None:
    hub.answers[:] = [listing(**{"a.onnx": MODEL, "b/c.onnx": MODEL})]
    with pytest.raises(CamrtError, match=r"found 2 .onnx files in hf:o/r@v1, expected one of hf:o/r@v1/a.onnx, "):
        named_classifier("hf:o/r@v1")
    with pytest.raises(CamrtError, match=r"found no file d.onnx .*, hf:o/r@v1/b/c.onnx"):
        named_classifier("hf:o/r@v1/d.onnx")
    hub.answers[:] = [Answer(MODEL)]
    assert named_classifier("hf:o/r@v1/b/c.onnx").graph.node


def test_a_repository_without_onnx(hub: Site) -> None:
    hub.answers[:] = [listing(**{"model.safetensors": b"x"})]
    with pytest.raises(CamrtError, match=r"hf:o/r holds no .onnx file.*timm:NAME"):
        named_classifier("hf:o/r")


def test_external_data_comes_too(hub: Site, tmp_path: Path) -> None:
    model = onnx.load_from_string(MODEL)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.onnx_data", size_threshold=0)
    graph, data = ((tmp_path / name).read_bytes() for name in ("net.onnx", "net.onnx_data"))
    hub.answers[:] = [listing(**{"net.onnx": graph, "net.onnx_data": data}), Answer(data), Answer(graph)]
    loaded = named_classifier("hf:o/r")
    ours, theirs = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in each.graph.initializer}
        for each in (loaded, model)
    )
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def test_a_file_with_another_checksum_is_refused(hub: Site) -> None:
    wrong = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    hub.answers[:] = [listing(**{"a.onnx": MODEL}), Answer(wrong)]
    with pytest.raises(ConversionError, match="its SHA-256 is") as caught:
        named_classifier("hf:o/r")
    assert hashlib.sha256(MODEL).hexdigest() in str(caught.value)
    assert not list(zoo.cache_folder().rglob("*.onnx"))


def test_a_changed_configuration_is_told(hub: Site) -> None:
    files = {"a.onnx": MODEL, "config.json": b"{}"}
    hub.answers[:] = [listing(**files), Answer(MODEL), Answer(b"{}")]
    named_classifier("hf:o/r")
    next(zoo.cache_folder().rglob("config.json")).unlink()
    hub.answers[:] = [Answer(b"[]")]
    with pytest.warns(ConversionWarning, match="not the file that was downloaded first"):
        assert known_preprocess("hf:o/r") is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(b"", 404), ["404", "--model FILE.onnx"]),
        (Answer(b"", 401), ["401", "HF_TOKEN"]),
        (Answer(b"<html>", 200), ["list of files"]),
        (Answer(b"[]"), ["list of files"]),
        (Answer(b'{"sha": "main", "siblings": []}'), ["list of files"]),
        (Answer(json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "../../x.onnx"}]}).encode()), ["../../x.onnx"]),
        (Answer(b"[" * 100_000), ["list of files"]),
    ],
)
def test_answers_that_cannot_be_used(hub: Site, answer: Answer, words: list[str]) -> None:
    hub.answers[:] = [answer]
    with pytest.raises(ConversionError) as caught:
        named_classifier("hf:o/r")
    assert all(word in str(caught.value) for word in [*words, "hf:o/r"]), caught.value
    assert not list(zoo.cache_folder().rglob("main.json"))


def test_the_token_is_sent_and_not_printed(hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.answers[:] = [listing(**{"a.onnx": MODEL}), Answer(b"", 403)]
    status, out, err = run("export", "hf:o/r", "-o", "explainer.onnx")
    assert status == 1
    assert [headers["Authorization"] for headers in hub.requests] == ["Bearer hf_secret"] * 2
    assert "hf_secret" not in out + err
    assert "HF_TOKEN" in err


@pytest.mark.parametrize(
    "name", ["", "net", "owner/", "o/r/x.pth", "o/r@", "o/r@a/b/../c.onnx", "../r", "o/../../x.onnx", "o/r@-/x.txt"]
)
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(CamrtError, match="expected hf:OWNER/REPO"):
        named(f"hf:{name}")


def test_weights_beside_a_file_with_its_own(hub: Site) -> None:
    status, _, err = run("export", "hf:o/r", "--weights", "net.onnx", "-o", "explainer.onnx")
    assert status == 1
    assert "--model net.onnx" in err
    assert hub.asked == 0


def test_titles() -> None:
    assert title_of("hf:onnx-community/resnet-50@v1/onnx/model.onnx") == "resnet-50"


CONVNEXT = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 224}, "crop_pct": 0.875}
TIMM = {"input_size": [3, 240, 240], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.mark.parametrize(
    ("config", "size", "crop", "mean", "scale"),
    [
        (PROCESSOR, 256, 224, 0.485 * 255, 1 / (0.229 * 255)),
        (CONVNEXT, 256, 224, 127.5, 1 / 127.5),
        (CONVNEXT | {"size": 384}, 384, 384, 127.5, 1 / 127.5),
        ({**PROCESSOR, "do_normalize": False}, 256, 224, 0, 1 / 255),
        ({**PROCESSOR, "do_rescale": False, "image_mean": [10] * 3, "image_std": [2] * 3}, 256, 224, 10, 0.5),
        (TIMM, 266, 240, 127.5, 4 / 255),
    ],
)
def test_configurations(config: dict[str, Any], size: int, crop: int, mean: float, scale: float) -> None:
    found = (_of_timm if "input_size" in config else _of_transformers)(config)
    assert found is not None
    assert (found.size, found.crop) == (size, crop)
    np.testing.assert_allclose((found.mean[0], found.scale[0]), (mean, scale))

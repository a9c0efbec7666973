"""The format of docs/metadata.md: what a model file says of itself."""

from __future__ import annotations

import ast
import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from converters import ConversionError, metadata, zoo
from tests.tiny_models import tiny_explainer


def test_the_page_documents_every_key_with_an_example_that_is_read(repository: Path) -> None:
    page = (repository / "docs" / "metadata.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(camrt\.\w+)` \| ([^|]+) \|", page, re.M)
    assert [key for key, _ in rows] == [*metadata.KEYS]
    sections = re.findall(r"^## (camrt\.\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    found = {key: re.findall(r"```json\n(.*?)```", text, re.S) for key, text in sections}
    examples = {key: json.loads(texts[0]) for key, texts in found.items() if texts}
    assert examples.keys() == {metadata.PREPROCESS, metadata.LABELS, metadata.DETECTIONS, metadata.EXPLAINER}
    texts = {key: json.dumps(value) for key, value in examples.items()}
    wants = metadata.preprocess_of(texts)
    assert (wants["size"], wants["crop"], wants["mean"], wants["scale"]) == (256, 224, (104, 117, 123), (1, 1, 1))
    assert metadata.labels_of(texts) == examples[metadata.LABELS]
    assert metadata.explainer_of(texts) == examples[metadata.EXPLAINER]


def test_keys_stand_in_one_module(repository: Path) -> None:
    """Everything else uses their names."""
    files = [file for package in ("converters", "camrt") for file in (repository / package).rglob("*.py")]
    assert len(files) > 100
    found = {
        str(file.relative_to(repository))
        for file in files
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Constant) and node.value in metadata.KEYS
    }
    assert found == {"converters/metadata.py"}


def test_metadata_are_read_without_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = tiny_explainer()
    expected = {entry.key: entry.value for entry in model.metadata_props}
    onnx.save(model, path)
    assert metadata.of_file(path) == metadata.of_model(model) == expected
    # As converters write it: the message in pieces, one after another.
    graph = onnx.ModelProto()
    graph.graph.CopyFrom(model.graph)
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + graph.SerializeToString() * 3)
    assert metadata.of_file(path) == expected


def test_a_mean_image_keeps_every_bit() -> None:
    """Written as the page says, and read by the page's own words: base64 of zlib of little-endian float32."""
    mean = np.random.default_rng(0).normal(110, 20, (3, 6, 6)).astype(np.float32)
    wants = {"size": 6, "crop": 4, "mean": (1, 2, 3), "scale": (1, 1, 1), "channels": "BGR"}
    text = metadata.mean_image_text(mean[:, ::-1])
    by_hand = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4").reshape(3, 6, 6)
    np.testing.assert_array_equal(by_hand, mean[:, ::-1])
    properties = {
        metadata.PREPROCESS: metadata.preprocess_text(**wants, has_mean_image=True),
        metadata.MEAN_IMAGE: text,
    }
    np.testing.assert_array_equal(metadata.preprocess_of(properties)["mean_image"], by_hand)
    without = {metadata.PREPROCESS: metadata.preprocess_text(**wants), metadata.MEAN_IMAGE: text}
    assert metadata.preprocess_of(without)["mean_image"] is None


BOMB = base64.b64encode(zlib.compress(bytes(1 << 24), 9)).decode()
BAD_MEANS = {
    "missing": (None, "is missing"),
    "no base64": ("?", "is broken"),
    "not compressed": (base64.b64encode(b"x" * 432).decode(), "is broken"),
    "too short": (metadata.mean_image_text(np.zeros((3, 5, 5), np.float32)), "another size"),
    "a bomb": (BOMB, "another size"),
}


@pytest.mark.parametrize("name", BAD_MEANS)
def test_a_mean_image_that_cannot_be_used(name: str) -> None:
    text, message = BAD_MEANS[name]
    wants = {"size": 6, "crop": 4, "mean": (1, 2, 3), "scale": (1, 1, 1), "channels": "BGR"}
    properties = {metadata.PREPROCESS: metadata.preprocess_text(**wants, has_mean_image=True)}
    with pytest.raises(ValueError, match=message):
        metadata.preprocess_of(properties | ({} if text is None else {metadata.MEAN_IMAGE: text}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "7", '{"size": 4}', '{"size": 4, "crop": 4, "mean": "x", "channels": "BGR"}', "[" * 100_000,
     '{"size": 4, "crop": 4, "mean": [NaN, 1, 2], "channels": "BGR"}',
     '{"size": 1e999, "crop": 4, "mean": 1, "channels": "BGR"}'],
)  # fmt: skip
def test_what_cannot_be_read_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        metadata.preprocess_of({metadata.PREPROCESS: text})
    with pytest.raises(ValueError, match=r".+"):
        metadata.explainer_of({metadata.EXPLAINER: text})
    if not text.startswith("[]"):
        with pytest.raises(ValueError, match=r".+"):
            metadata.labels_of({metadata.LABELS: text})


def test_what_is_not_there_is_none() -> None:
    assert metadata.labels_of({}) is None
    assert metadata.explainer_of({}) is None


def test_the_mean_image_is_turned_to_rows(reference: Path) -> None:
    mean = metadata.read_mean_image(reference / "matlab_demo" / "ilsvrc_2012_mean.mat")
    assert mean.shape == (3, 256, 256)
    assert mean.mean(axis=(1, 2)) == pytest.approx([104, 117, 123], abs=1)  # BGR


def test_a_broken_mean_image(tmp_path: Path) -> None:
    path = tmp_path / "mean.mat"
    path.write_bytes(b"nothing")
    with pytest.raises(ConversionError, match=r"mean\.mat: no mean image can be read"):
        metadata.read_mean_image(path)


def test_what_is_not_in_the_cache_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path))
    notes: list[str] = []
    properties = zoo.metadata_of(zoo.find("googlenetCAM"), note=notes.append)
    assert metadata.MEAN_IMAGE not in properties
    assert "mean_image" not in json.loads(properties[metadata.PREPROCESS])
    assert ["mean pixel" in note for note in notes] == [True, False]
    assert all("camrt download --reference" in note for note in notes)

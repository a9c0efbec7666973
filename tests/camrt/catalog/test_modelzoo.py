from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from camrt import CamrtError, Explainer, catalog, loading
from camrt.catalog import modelzoo
from camrt.catalog.entry import SOURCES
from camrt.evaluate.network import load_classifier
from camrt.loading import Request, classifier_of, identity, is_name, known_preprocess, named, named_classifier, title_of
from camrt.preprocess import PRESETS
from converters import ConversionError, download, metadata, zoo
from tests.camrt.classifiers import classifier
from tests.camrt.commands.command_line import run
from tests.tiny_models import photo
from tests.web import Answer, Site, serve

NAME = "squeezenet1_1_Opset18_torch_hub"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; downloads that do not wait between attempts."""
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "PAUSE_S", 0)
    return tmp_path / "home"


def bare_classifier() -> bytes:
    """A classifier that says nothing of itself."""
    model = classifier("gemm")
    del model.metadata_props[:]
    return bytes(model.SerializeToString())


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A zoo that published a small classifier under `NAME`, with what `NAME` wants of an image."""
    content = bare_classifier()
    row = dataclasses.replace(
        modelzoo.table()[NAME], size=len(content), sha256=hashlib.sha256(content).hexdigest(), classes=None
    )
    monkeypatch.setattr(modelzoo, "table", lambda: {NAME: row})
    return content


def at(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelzoo, "URL", f"{site.url}/{{name}}/{{file}}")


# ---------------------------------------------------------------------------------------------------------- the table


def test_the_table_is_what_the_zoo_published(reference: Path) -> None:
    lines = (reference / "model_zoo" / "classification.csv").read_text(encoding="utf-8").splitlines()[1:]
    published = {(sha256, int(size)) for _, sha256, size in (line.split(",") for line in lines)}
    assert len(modelzoo.table()) == len(lines) == 565
    assert {(row.sha256, row.size) for row in modelzoo.table().values()} == published
    files = {line.partition(",")[0].rpartition("/")[2] for line in lines}
    assert {row.file_name for row in modelzoo.table().values()} == files


def test_each_line_of_the_table_can_be_used() -> None:
    for row in modelzoo.table().values():
        wants = row.preprocess()
        assert (wants is None) == (not row.basis), row
        if wants is not None:
            assert 28 <= wants.crop <= wants.size <= 1100, row
            assert row.interpolation in ("bicubic", "bilinear"), row


def test_what_torchvisions_networks_want_is_the_preset() -> None:
    assert modelzoo.table()["resnet50_Opset18_torch_hub"].preprocess().as_json() == PRESETS["torchvision"].as_json()
    assert modelzoo.table()["caffenet-12"].preprocess().as_json() == PRESETS["caffe"].as_json()


@pytest.mark.parametrize(
    ("names", "channels", "prepared"),
    [
        (("efficientnet-lite4-11", "efficientnet-lite4-11-int8"), "RGB", lambda x: (x - 127.0) / 128.0),
        (("mnist-1", "mnist-12-int8"), "RGB", lambda x: x / 255),
        (("densenet-3", "densenet-12"), "BGR", lambda x: (x - [103.94, 116.78, 123.68]) * 0.017),
        (("inception-v1-12", "squeezenet1.0-3", "zfnet512-12-qdq", "vgg19-caffe2-9"), "BGR",
         lambda x: x - [103.939, 116.779, 123.68]),
        (("rcnn-ilsvrc13-9",), "BGR", lambda x: x - [104.0, 117.0, 123.0]),
    ],
)  # fmt: skip
def test_older_files(names: Sequence[str], channels: str, prepared: Callable[[Any], Any]) -> None:
    """A pixel, in the order of the channels, as the zoo's pages and the scripts of its networks prepare it."""
    pixel = np.array([10.0, 100.0, 250.0])
    for name in names:
        wants = modelzoo.table()[name].preprocess()
        assert wants is not None
        assert wants.channels == channels
        np.testing.assert_allclose((pixel - wants.mean) * wants.scale, prepared(pixel), rtol=1e-5)


def test_the_table_agrees_with_timm() -> None:
    """With timm's own function that says how to prepare images, on every network of timm that is sure."""
    timm = pytest.importorskip("timm")
    compared = 0
    for row in modelzoo.table().values():
        name = row.name.removesuffix("_Opset18_timm")
        config = timm.models.get_pretrained_cfg(name) if row.basis == "timm" else None
        if config is None:
            continue  # not of timm, or by an old name
        expected = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
        compared += 1
        wants = row.preprocess()
        assert (3, wants.crop, wants.crop) == expected["input_size"], name
        assert wants.size == math.floor(wants.crop / expected["crop_pct"]), name
        np.testing.assert_allclose(wants.mean, 255 * np.array(expected["mean"]), rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(wants.scale, 1 / (255 * np.array(expected["std"])), rtol=1e-6, err_msg=name)
    assert compared > 250


def test_class_names_are_those_of_imagenet(reference: Path) -> None:
    names = modelzoo.imagenet_labels()
    assert len(names) == 1000
    synsets = (reference / "squeezenet" / "labels.txt").read_text(encoding="utf-8").splitlines()
    alike = sum(name.casefold() in synset.casefold() for name, synset in zip(names, synsets, strict=True))
    assert alike > 950, "the order is the same; single names are spelt otherwise"


# ---------------------------------------------------------------------------------------------------------- plain names


@pytest.mark.parametrize("name", catalog.plain_names())
def test_a_plain_name_leads_to_a_file_with_a_checksum(name: str) -> None:
    target = catalog.plain_names()[name]
    found = catalog.find(name)
    assert found is not None
    assert found.name == target
    if target.startswith("zoo:"):
        row = modelzoo.table()[target.removeprefix("zoo:")]
        assert len(row.sha256) == 64
        assert row.basis in ("torchvision", "timm", "origin"), "it is sure what it wants of an image"
        assert row.classes == 1000


def test_plain_names_hide_none_of_caffes() -> None:
    known = {each for model in zoo.models().values() for each in (model.name, *model.aliases)}
    assert not known & catalog.plain_names().keys()
    assert isinstance(named("vgg16"), zoo.NamedModel)


def test_prefixes_are_those_of_the_sources() -> None:
    assert sorted(SOURCES.keys()) == sorted(catalog.PREFIXES)


def test_names_with_prefixes_are_no_paths() -> None:
    assert is_name(f"zoo:{NAME}")
    assert is_name("zoo:squeezenet1.1-7")
    assert is_name("resnet50")
    assert not is_name("c:net.onnx")
    assert not is_name("resnet50.onnx")
    assert title_of("zoo:squeezenet1.1-7") == "squeezenet1.1-7"
    assert title_of("a/net.onnx") == "net"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zoo:resnet50", ["no classifier 'resnet50'", "zoo:resnet50-v1-7", "camrt models TEXT"]),
        ("zoo:", ["no classifier ''"]),
        ("resnet5", ["no model named 'resnet5'", "resnet50", "timm:NAME", "camrt models resnet5"]),
    ],
)
def test_an_unknown_name(name: str, words: list[str]) -> None:
    with pytest.raises((CamrtError, ConversionError)) as caught:
        named(name)
    assert all(word in str(caught.value) for word in words), caught.value


# ---------------------------------------------------------------------------------------------------------- files


def test_a_download_is_kept_and_explained(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"zoo:{NAME}"
    with serve(Answer(published)) as site:
        at(site, monkeypatch)
        explainer = Explainer(name, top=2)
        assert Explainer(name, "gradcam", top=2).size == explainer.size
        assert site.asked == 1
    found = named(name)
    assert found.file.read_bytes() == published
    assert explainer.name == NAME
    assert explainer(photo(40, 48)).heatmaps.shape == (2, explainer.size, explainer.size)
    properties = metadata.of_model(named_classifier(name))
    assert properties[metadata.SOURCE] == f"https://huggingface.co/onnxmodelzoo/{NAME}"
    wants = metadata.preprocess_of(properties)
    assert wants["channels"] == "RGB"
    assert wants["mean"] == PRESETS["torchvision"].mean
    assert wants["crop"] == explainer.size, "the input's side of the file goes before the table's"
    assert identity(name)["size"] == len(published)


def test_another_file_is_refused(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = published[:-1] + bytes([published[-1] ^ 1])
    with serve(Answer(wrong)) as site:
        at(site, monkeypatch)
        with pytest.raises(ConversionError, match=r"not the file that was expected: its SHA-256") as caught:
            named_classifier(f"zoo:{NAME}")
        assert site.asked == 1
    message = str(caught.value)
    assert "--weights FILE" in message
    assert hashlib.sha256(published).hexdigest() in message
    assert not named(f"zoo:{NAME}").file.exists()


@pytest.mark.parametrize("change", [lambda file: file[: len(file) // 2], lambda file: file + b"x", lambda file: b""])
def test_a_file_of_another_size_is_refused(
    published: bytes, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    with serve(Answer(change(published))) as site:
        at(site, monkeypatch)
        with pytest.raises(ConversionError, match=r"truncated|at most"):
            named_classifier(f"zoo:{NAME}")


def test_a_missing_page_says_what_to_do(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Answer(b"", status=404)) as site:
        at(site, monkeypatch)
        status, out, err = run("export", f"zoo:{NAME}", "-o", "explainer.onnx")
    assert (status, out) == (1, "")
    assert "the server answers 404" in err
    assert "--weights FILE" in err
    assert not Path("explainer.onnx").exists()


def test_a_file_that_was_fetched_by_hand(published: bytes, home: Path) -> None:
    hand = Path("fetched.onnx")
    hand.write_bytes(published)
    status, _, err = run("export", f"zoo:{NAME}", "--weights", hand, "-o", "explainer.onnx", "--method", "gradcam")
    assert status == 0, err
    assert onnx.load("explainer.onnx").graph.output
    assert not home.exists()
    assert run("download", f"zoo:{NAME}", "--weights", hand)[0] == 0
    assert named(f"zoo:{NAME}").file.read_bytes() == published
    assert named_classifier(f"zoo:{NAME}")


@pytest.mark.parametrize("content", [b"", b"no model", b"as long"])
def test_a_wrong_file_that_was_fetched_by_hand(published: bytes, content: bytes) -> None:
    hand = Path("fetched.onnx")
    hand.write_bytes(content if content != b"as long" else bytes(len(published)))
    with pytest.raises(CamrtError, match=r"fetched.onnx: is not the file that the ONNX Model Zoo published .*SHA-256"):
        named_classifier(f"zoo:{NAME}", hand)
    with pytest.raises(CamrtError, match="there is no such file"):
        named_classifier(f"zoo:{NAME}", Path("missing.onnx"))


def test_a_cached_file_that_was_cut_off(published: bytes) -> None:
    file = named(f"zoo:{NAME}").file
    file.parent.mkdir(parents=True)
    file.write_bytes(published[:-5])
    with pytest.raises(CamrtError, match="Remove it, and it is downloaded again"):
        named_classifier(f"zoo:{NAME}")


def test_a_network_of_which_it_is_not_known_what_it_wants(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(modelzoo.table()[NAME], side=None, resize=None, statistics="", basis="")
    monkeypatch.setattr(modelzoo, "table", lambda: {NAME: row})
    hand = Path("fetched.onnx")
    hand.write_bytes(published)
    assert known_preprocess(f"zoo:{NAME}") is None
    with pytest.raises(CamrtError, match=r"does not say how it wants its images.*--preprocess caffe or torchvision"):
        loading.explainer_graph(f"zoo:{NAME}", Request(weights=hand))
    given = Request(weights=hand, preprocess=PRESETS["torchvision"].cropped(modelzoo_side(published)))
    assert loading.explainer_graph(f"zoo:{NAME}", given)


def modelzoo_side(content: bytes) -> int:
    model = onnx.load_from_string(content)
    return int(model.graph.input[0].type.tensor_type.shape.dim[2].dim_value)


# --------------------------------------------------------------------------------------------------------- camrt models


def test_models_are_searched() -> None:
    found = json.loads(run("models", "resnet50", "--json")[1])
    assert found[0]["name"] == "resnet50"
    assert found[0]["stands_for"] == "zoo:resnet50_Opset18_torch_hub"
    names = [one["name"] for one in found]
    assert "zoo:resnet50-v1-12" in names
    assert all("resnet50" in name for name in names)
    assert all(one["sha256"] for one in found)
    status, out, _ = run("models", "RESNET50")
    assert status == 0
    assert "ONNX Model Zoo" in out
    status, out, err = run("models", "no-such-thing")
    assert (status, out) == (1, "")
    assert "no name holds 'no-such-thing'" in err


@pytest.mark.parametrize("arguments", [("models", "[/bold]"), ("models", "")])
def test_hostile_searches(arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] in (0, 1)


# ---------------------------------------------------------------------------------------------------- other commands


def test_explain_takes_resnet50_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bare_classifier()
    listed = modelzoo.table()["resnet50_Opset18_torch_hub"]
    row = dataclasses.replace(listed, size=len(content), sha256=hashlib.sha256(content).hexdigest(), classes=None)
    monkeypatch.setattr(modelzoo, "table", lambda: {row.name: row})
    Image.fromarray(photo(40, 48)).save("photo.png")
    with serve(Answer(content)) as site:
        at(site, monkeypatch)
        first = run("explain", "photo.png", "--json")
        again = run("explain", "photo.png", "--json")
    assert first[0] == 0, first[2]
    assert json.loads(first[1])["explained"] == 1
    assert json.loads(again[1])["skipped"] == 1, "a download is no other model"
    assert site.asked == 1


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (["export", "--triton", "repository"], f"repository/{NAME}/1/model.onnx"),
        (["web", "--out", "site"], "site/site.json"),
    ],
)
def test_commands_take_names(published: bytes, arguments: list[str], result: str) -> None:
    hand = Path("fetched.onnx")
    hand.write_bytes(published)
    command, *options = arguments
    status, _, err = run(command, f"zoo:{NAME}", *options, "--weights", hand)
    assert status == 0, err
    assert Path(result).is_file()


def test_evaluation_takes_names(published: bytes) -> None:
    hand = Path("fetched.onnx")
    hand.write_bytes(published)
    assert load_classifier(f"zoo:{NAME}", hand).graph.node
    assert classifier_of(f"zoo:{NAME}", hand).graph.node


def test_validate_is_for_caffe() -> None:
    status, _, err = run("validate", "resnet50")
    assert status == 2
    assert "expected a network of Caffe" in err

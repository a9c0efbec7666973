from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt import CamrtError, Explainer
from camrt.catalog import pytorch
from camrt.loading import identity, known_preprocess, named, named_classifier
from converters import metadata, zoo
from tests.camrt.commands.command_line import run
from tests.tiny_models import photo

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

TINY = "test_resnet"  # timm's own network for tests


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def module_of(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name).eval()


def assert_same(model: onnx.ModelProto, module: Any, side: int) -> None:
    """The ONNX network's scores against the module's, for two sizes of batch."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = np.random.default_rng(count).normal(size=(count, 3, side, side)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(images)).numpy()
        (found,) = session.run(None, {session.get_inputs()[0].name: images})
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_own_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(TINY, 1)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": each for key, each in module.state_dict().items()}}, "w.pth"
    )
    model = named_classifier(f"timm:{TINY}", Path("w.pth"))
    config = timm.models.get_pretrained_cfg(TINY)
    assert_same(model, module, config.input_size[1])
    properties = metadata.of_model(model)
    assert (metadata.labels_of(properties) or [])[1].startswith("goldfish")
    assert properties[metadata.NAME] == TINY
    wants = metadata.preprocess_of(properties)
    assert wants["crop"] == config.input_size[1]
    np.testing.assert_allclose(wants["mean"], 255 * np.array(config.mean))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported again"))
    named_classifier(f"timm:{TINY}", Path("w.pth"))
    assert len(list((zoo.cache_folder() / "pytorch").iterdir())) == 1


@pytest.mark.slow
def test_tracing_takes_over_where_the_other_exporter_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    export = torch.onnx.export

    def failing(*arguments: Any, dynamo: bool, **options: Any) -> Any:
        if dynamo:
            raise RuntimeError("no\nreason")
        return export(*arguments, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", failing)
    module = module_of(TINY, 0)
    assert_same(pytorch.exported(module, 160, "it"), module, 160)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: failing(dynamo=True))
    with pytest.raises(CamrtError, match=r"cannot export it \(torch.export: RuntimeError: no; tracing: RuntimeError"):
        pytorch.exported(module, 160, "it")


@pytest.mark.slow
def test_fused_attention_that_cannot_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of Hiera, with five axes, for which the exporter has no operator."""
    torch.manual_seed(0)
    module = timm.create_model(
        "hiera_tiny_224", img_size=64, embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), num_classes=3
    ).eval()
    traced = []
    export = torch.onnx.export

    def counted(*arguments: Any, dynamo: bool, **options: Any) -> Any:
        traced.append(not dynamo)
        return export(*arguments, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", counted)
    assert_same(pytorch.exported(module, 64, "it"), module, 64)
    assert traced == [False, False]  # torch.export, in steps the second time


@pytest.mark.slow
def test_random_weights_are_explained_and_are_the_same_each_time() -> None:
    first = Explainer(f"timm:{TINY}@random", "gradcam", top=2)
    assert first.labels is None
    found = first(photo(60, 70))
    assert np.isfinite(found.heatmaps).all()
    named(f"timm:{TINY}@random").file.unlink()
    again = Explainer(f"timm:{TINY}@random", "gradcam", top=2)(photo(60, 70))
    np.testing.assert_array_equal(found.scores, again.scores)
    assert identity(f"timm:{TINY}@random")["size"] > 0


@pytest.mark.slow
def test_torchvision_with_safetensors() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(2)
    module = torchvision.models.get_model("squeezenet1_1", weights=None).eval()
    safetensors.save_file(module.state_dict(), "w.safetensors")
    status, _, err = run(
        "export", "torchvision:squeezenet1_1", "--weights", "w.safetensors", "-o", "e.onnx", "--method", "gradcam"
    )
    assert status == 0, err
    assert_same(named_classifier("torchvision:squeezenet1_1", Path("w.safetensors")), module, 224)
    wants = known_preprocess("torchvision:squeezenet1_1")
    assert wants is not None
    assert (wants.size, wants.crop) == (256, 224)


def test_what_the_libraries_say() -> None:
    vision, image_models = pytorch._Torchvision(), pytorch._Timm()
    assert vision.preprocess("resnet50", "IMAGENET1K_V2").size == 232
    assert vision.preprocess("inception_v3", None).crop == 299
    labels = vision.labels("resnet50", None)
    assert labels is not None
    assert labels[:2] == ["tench", "goldfish"]
    assert image_models.preprocess("resnet50.a1_in1k", None).size == 235
    named_classes = image_models.labels("resnet50", None)
    assert named_classes is not None
    assert len(named_classes) == 1000
    assert named_classes[1].startswith("goldfish")
    assert vision.build("googlenet", None, pretrained=False).transform_input


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CamrtError, match=r"cannot be downloaded \(OSError: no network\).*--weights FILE.pth") as caught:
        named_classifier("timm:resnet18")
    assert "timm:resnet18@random" in str(caught.value)
    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(CamrtError, match=r"torchvision:resnet18 cannot be downloaded"):
        named_classifier("torchvision:resnet18")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet5O", ["no classifier 'resnet5O'", "timm:resnet50"]),
        ("torchvision:vit", ["no classifier 'vit'", "torchvision:vit_b_16"]),
        ("torchvision:fasterrcnn_resnet50_fpn", ["no classifier"]),
        ("torchvision:resnet50@V7", ["no weights 'V7'", "IMAGENET1K_V2", "random"]),
        ("timm:resnet50@V1", ["timm:NAME@random"]),
        ("timm:a/b", ["expected timm:NAME"]),
        ("timm:", ["expected timm:NAME"]),
        ("timm:vit_small_patch14_dinov2@random", ["knows no classes"]),
    ],
)
def test_wrong_names(name: str, words: list[str]) -> None:
    with pytest.raises(CamrtError) as caught:
        named_classifier(name)
    assert all(word in str(caught.value) for word in words), caught.value


def test_weights_that_do_not_fit() -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (Path("owned").touch, ())

    torch.save(Code(), "code.pth")
    torch.save({"a": 1}, "numbers.pth")
    torch.save({"conv.weight": torch.zeros(1)}, "other.pth")
    Path("empty.pth").touch()
    Path("cut.safetensors").write_bytes(b"\xff" * 20)
    torch.save(module_of(TINY, 0).state_dict(), "cut.pth")
    Path("cut.pth").write_bytes(Path("cut.pth").read_bytes()[:1000])
    for file, words in {
        "code.pth": "cannot be read as weights",
        "numbers.pth": "found no state dict",
        "other.pth": "does not hold the weights of timm:test_resnet",
        "empty.pth": "cannot be read as weights",
        "cut.safetensors": "cannot be read as weights",
        "cut.pth": "cannot be read as weights",
        "missing.pth": "there is no such file",
    }.items():
        with pytest.raises(CamrtError, match=rf"{file}: .*{words}"):
            named_classifier(f"timm:{TINY}", Path(file))
    assert not Path("owned").exists()
    assert not list(zoo.cache_folder().rglob("*.onnx"))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CamrtError, match=r"timm is not installed: .*camrt\[pytorch\]"):
        named_classifier(f"timm:{TINY}@random")

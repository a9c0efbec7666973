"""The Python of README and docs runs.

A page's blocks run in order and share their names, in a folder with the files that they read. Networks whose weights
are not here are replaced by lenetCAM. A page with Python that is in neither table fails the test.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import camrt
from camrt.loading import LENET, Request, explainer_graph, named_classifier
from tests.tiny_models import photo

NOT_RUN = {
    "docs/batch.md": "tests/camrt/cluster reads such tables",
    "docs/from-pycaffe.md": "tests/test_from_pycaffe.py runs it",
    "docs/gradients.md": "tests/camrt/graph/test_gradient_docs.py runs it",
    "docs/ilsvrc.md": "its files are those of ImageNet; tests/camrt/evaluate/test_devkit.py calls the same functions",
    "docs/opencv5.md": "tests/test_opencv5.py runs it with OpenCV 5",
    "docs/serving.md": "tests/camrt/serve/test_serving_docs.py runs it against a server",
    "CONTRIBUTING.md": "tests/converters/test_docs.py runs it",
}
# Blocks that are neither Python nor commands (tests/test_shell_blocks.py).
OTHER_LANGUAGES = {
    ("docs/from-pycaffe.md", "text"): "output",
    ("docs/metadata.md", "json"): "tests/converters/test_metadata.py reads it",
    ("docs/opencv5.md", "text"): "output",
    ("docs/training.md", "text"): "output, a folder, and parts of prototxts; tests/camrt/train reads such",
    ("docs/run-anywhere.md", "js"): "a part of a page that loads a CDN; tests/camrt/web runs the module of camrt web",
    ("docs/serving.md", "dockerfile"): "there is no Docker in CI; tests/camrt/serve/test_serving_docs.py reads it",
    ("docs/serving.md", "yaml"): "there is no cluster in CI; tests/camrt/serve/test_serving_docs.py reads it",
}
OWN_METHOD = "@method("  # of docs/methods.md: tests/camrt/test_docs.py runs it, since it changes the registry


@dataclass(frozen=True)
class Page:
    """What the blocks of a page need.

    Attributes:
        names: What they take as given.
        replaced: Text of the page -> text that runs here.
        check: Gets the names after the last block.
    """

    check: Callable[[Mapping[str, Any]], Any]
    names: Callable[[Path], dict[str, Any]] = lambda folder: {}
    replaced: Mapping[str, str] = field(default_factory=dict)


def _explanation(folder: Path) -> dict[str, Any]:
    found = camrt.Explainer(LENET)(folder / "img1.jpg")
    return {"camrt": camrt, "explanation": found, "image": found.image, "heatmap": found.heatmaps[0]}


def _mean_image(folder: Path) -> dict[str, Any]:
    import base64
    import json
    import zlib

    import onnxruntime

    mean = np.arange(3 * 4 * 4, dtype="<f4")
    stated = {
        "camrt.preprocess": json.dumps({"size": 4}),
        "camrt.mean_image": base64.b64encode(zlib.compress(mean.tobytes())).decode(),
    }
    modules = {"onnx": onnx, "onnxruntime": onnxruntime, "json": json, "zlib": zlib, "base64": base64, "np": np}
    return {**modules, "metadata": stated}


class _Detector:
    """Finds one object, the surer the brighter the image."""

    def run(self, outputs: None, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        images = inputs["images"]
        score = images.mean(axis=(1, 2, 3))
        return [np.tile([[[8.0, 8, 40, 40]]], (len(images), 1, 1)), np.stack([score, 1 - score], axis=1)[:, None]]


def _labels(folder: Path) -> dict[str, Any]:
    lines = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    return {"labels": [line.split(",")[0] for line in lines]}


def _parquet(folder: Path) -> dict[str, Any]:
    """Rows as `camrt batch` writes them; tests/camrt/cluster writes and reads real ones."""
    pyarrow = pytest.importorskip("pyarrow", reason="docs/tutorials/folder.md reads Parquet")
    parquet = pytest.importorskip("pyarrow.parquet", reason="docs/tutorials/folder.md reads Parquet")
    rows = [
        {"path": "a.jpg", "labels": ["cat"], "scores": [0.9], "error": None},
        {"path": "b.jpg", "labels": ["cup"], "scores": [0.3], "error": None},
        {"path": "c.jpg", "labels": None, "scores": None, "error": "not an image"},
    ]
    (folder / "results").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "results" / "shard-0.parquet")
    return {}


# Pages that need what is not always installed, or take their time.
NEEDS = {
    "docs/concepts.md": ("sklearn",),
    "docs/drawing.md": ("matplotlib",),
    "docs/faq.md": ("torch",),
    "docs/training.md": ("skimage",),
    "docs/tutorials/keras.md": ("torch", "onnxscript", "keras"),
    "docs/tutorials/pytorch.md": ("torch", "torchvision", "onnxscript"),
    "docs/tutorials/scikit-learn.md": ("sklearn", "skl2onnx"),
    "docs/tutorials/vision-transformer.md": ("torch", "torchvision", "timm"),
}
SLOW = [name for name in NEEDS if name.startswith("docs/tutorials")]
RUN = {
    "README.md": Page(lambda names: (Path("out") / "explanations.jsonl").is_file()),
    "docs/blackbox.md": Page(
        lambda names: names["explanation"].standard_errors is not None and names["maps"].shape == (1, 48, 64),
        lambda folder: {"camrt": camrt, "session": _Detector(), "image": photo(48, 64).transpose(2, 0, 1) / 255},
        {'"masks": 4000': '"masks": 40', "masks=5000": "masks=50"},
    ),
    "docs/compare-methods.md": Page(
        lambda names: len(names["rows"]) == 6,
        lambda folder: {"camrt": camrt},
        {'"resnet50.onnx"': '"net.onnx"'},
    ),
    "docs/concepts.md": Page(lambda names: len(names["concepts"].vectors) == 5, replaced={'"resnet50"': f'"{LENET}"'}),
    "docs/converting.md": Page(
        lambda names: [one.name for one in names["model"].graph.output] == ["prob"],
        replaced={
            '"train_val.prototxt"': '"deploy.prototxt"',
            '"fc7"': '"prob"',
            "(1, 3, 256, 256)": "(1, 3, 100, 100)",
        },
    ),
    "docs/drawing.md": Page(
        lambda names: names["picture"].shape == names["image"].shape and Path("figure.pdf").is_file(), _explanation
    ),
    "docs/exactness.md": Page(lambda names: round(names["ratio"]) == 25 * 25 and 0.01 < names["difference"] < 0.03),
    "docs/faq.md": Page(lambda names: names["explainer"].top == 3),
    "docs/gallery.md": Page(lambda names: names["refined"].labels[0] == "espresso", _labels),
    "docs/metadata.md": Page(lambda names: names["mean"].tolist()[0][0] == [0, 1, 2, 3], _mean_image),
    "docs/methods.md": Page(
        lambda names: names["explainer"].method == "layercam" and isinstance(names["model"], onnx.ModelProto),
        lambda folder: {"camrt": camrt, "classifier": named_classifier(LENET)},
        {'"resnet50.onnx"': '"net.onnx"', 'preprocess="torchvision", ': "", '"cup"': '"3"'},
    ),
    "docs/refine.md": Page(
        lambda names: names["refined"].mask(0).any() and (Path("out") / "explanations.jsonl").is_file(),
        lambda folder: {"camrt": camrt},
        {"googlenetCAM": LENET},
    ),
    "docs/run-anywhere.md": Page(lambda names: names["heatmaps"].shape[:2] == names["classes"].shape),
    "docs/speed.md": Page(
        lambda names: names["explanation"].precision == "fp32",
        lambda folder: {"camrt": camrt},
        {"vgg16CAM": LENET, '"openvino"': '"cpu"', '"bf16"': '"fp32"'},
    ),
    "docs/training.md": Page(
        lambda names: (
            len(names["files"]) == 120
            and len(Path("train.txt").read_text().splitlines()) == 96
            and Path("both.jpg").is_file()
        )
    ),
    "docs/tutorials/first-explanation.md": Page(lambda names: names["explanation"].method == "layercam"),
    "docs/tutorials/folder.md": Page(lambda names: (len(names["failed"]), len(names["unsure"])) == (1, 1), _parquet),
    "docs/tutorials/keras.md": Page(lambda names: names["explanation"].heatmaps.any()),
    "docs/tutorials/pytorch.md": Page(
        lambda names: names["explanation"].heatmaps.shape[0] == 3, replaced={'weights="DEFAULT"': "weights=None"}
    ),
    "docs/tutorials/scikit-learn.md": Page(lambda names: (Path("out") / "explanations.jsonl").is_file()),
    "docs/tutorials/vision-transformer.md": Page(
        lambda names: all(heatmap.any() for heatmap in names["maps"].values()),
        replaced={"pretrained=True": "pretrained=False"},
    ),
}


def _blocks(repository: Path) -> dict[str, list[str]]:
    """The Python of each page that has some."""
    pages = [repository / "README.md", repository / "CONTRIBUTING.md", *sorted(repository.glob("docs/**/*.md"))]
    found = {}
    for page in pages:
        code = re.findall(r"^```(?:python|py)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        if code:
            found[page.relative_to(repository).as_posix()] = code
    return found


@pytest.fixture
def folder(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that pages read, in the current folder."""
    from PIL import Image

    models = repository / "models" / LENET
    (tmp_path / "models" / LENET).mkdir(parents=True)
    shutil.copy(models / "sample.png", tmp_path / "models" / LENET)
    shutil.copy(models / "deploy.prototxt", tmp_path)
    shutil.copy(models / "lenetCAM.caffemodel", tmp_path / "net.caffemodel")
    sample = Image.open(models / "sample.png").convert("RGB")
    for name in ("img1.jpg", "photo.jpg", "cat.jpg", "dog.jpg"):
        sample.save(tmp_path / name)
    Image.fromarray(photo(48, 64)).save(tmp_path / "coffee.png")
    for name in ("net.onnx", "my.onnx"):
        onnx.save(named_classifier(LENET), tmp_path / name)
    onnx.save(explainer_graph(LENET, Request()), tmp_path / "explainer.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_page_with_python_is_in_a_table(repository: Path) -> None:
    assert not RUN.keys() & NOT_RUN.keys()
    assert set(_blocks(repository)) == {*RUN, *NOT_RUN}


def test_other_blocks_have_a_reason(repository: Path) -> None:
    found = {
        (page.relative_to(repository).as_posix(), language)
        for page in (repository / "README.md", repository / "CONTRIBUTING.md", *repository.glob("docs/**/*.md"))
        for language in re.findall(r"^```(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    drawn = {one for one in found if one[1] in ("python", "py", "sh", "console", "mermaid")}
    assert found - drawn == OTHER_LANGUAGES.keys()


@pytest.mark.filterwarnings("ignore")  # of exporters and of training that is cut short
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RUN])
def test_python_of_a_page_runs(
    name: str, repository: Path, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = RUN[name]
    monkeypatch.setenv("KERAS_BACKEND", "torch")  # without it, import keras asks for TensorFlow
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package, reason=f"{name} needs {package}")
    if name == "docs/gallery.md":
        skimage = pytest.importorskip("skimage", reason="docs/gallery.md explains a photograph of scikit-image")
        squeezenet = request.getfixturevalue("reference") / "squeezenet"
        shutil.copy(Path(skimage.__file__).parent / "data" / "coffee.png", folder)
        for file in ("squeezenet1_1.onnx", "labels.txt"):
            shutil.copy(squeezenet / file, folder)
    code = "\n".join(block for block in _blocks(repository)[name] if OWN_METHOD not in block)
    for text, stands_in in page.replaced.items():
        assert text in code, f"{text} is no longer on the page"
        code = code.replace(text, stands_in)
    names = page.names(folder)
    exec(compile(code, name, "exec"), names)
    assert page.check(names)

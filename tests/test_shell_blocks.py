"""The commands of README and docs: each is parsed, and runs unless a table says why not.

The commands of a page run in order, in a folder with small stand-ins for the files that they name. So an option that is
gone, a path that an earlier command does not write, or a value that is refused fails here.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
import typer
from PIL import Image

from camrt.cli import app
from camrt.loading import LENET
from tests.camrt.commands.command_line import run
from tests.tiny_models import CLASSES, tiny_classifier

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(REPOSITORY.glob("docs/**/*.md")))
]
# Blocks without a language that hold no commands.
TEXTS = ("Cross-Origin-Opener-Policy:",)
# Programs other than camrt -> why their lines do not run here.
OTHERS = {
    "pip": "installs packages; .ci/package installs the wheel",
    "make": "sets up an environment; .ci/run calls it",
    "npm": "downloads packages",
    "node": "tests/camrt/web runs Node",
    "python": "scripts and benchmarks take minutes; tests/benchmarks runs them on less",
    "ray": "starts a cluster",
    "curl": "tests/camrt/serve asks a server",
    "docker": "there is no Docker in CI",
    "torchrun": "tests/camrt/train runs several processes",
    "scripts/download_models.sh": "downloads weights",
}
# Pages whose camrt commands are parsed only.
PAGES_PARSED = {
    "docs/batch.md": "starts Ray; tests/camrt/cluster runs it",
    "docs/detectors.md": "detectors are not at hand; tests/camrt/graph/test_detections.py has their heads",
    "docs/ilsvrc.md": "needs ImageNet; tests/camrt/evaluate runs it",
    "docs/models.md": "downloads weights; tests/camrt/catalog runs it",
    "docs/serving.md": "waits for requests; tests/camrt/serve runs it",
    "docs/training-reference.md": "trains for minutes; tests/camrt/train and docs/training.md train for seconds",
    "docs/validate.md": "needs released weights; tests/camrt/test_validate.py runs it",
    "docs/wsol.md": "needs a dataset; tests/camrt/evaluate runs it",
}
# The beginning of a camrt command -> why it is parsed only.
PARSED = {
    "camrt batch": "starts Ray; tests/camrt/cluster runs it",
    "camrt evaluate": "needs a dataset; tests/camrt/evaluate runs it",
    "camrt benchmark": "measures for a minute; tests/camrt/commands/test_benchmark.py runs it",
    "camrt explain street.jpg": "detectors are not at hand; tests/camrt/graph/test_detections.py has their heads",
    "camrt web lenetCAM --open": "opens a browser",
    "camrt web lenetCAM --out site --serve": "waits for requests",
    "camrt train solver.prototxt": "needs the reader's solver and weights; tests/camrt/train runs it",
    "camrt finetune timm:convnext_tiny": "trains for hours; tests/camrt/train/test_finetune.py runs it",
    "camrt bbox": "needs released files; tests/camrt/localize runs it",
    "camrt compare": "takes minutes; tests/camrt/evaluate runs it",
}
# What is too large for a test -> what runs in its place.
REPLACED = {
    "vgg16CAM": LENET,
    "googlenetCAM": LENET,
    "resnet50": "net.onnx",  # the plain name
    "masks=4000": "masks=20",
    "samples=2000": "samples=20",
    "segments=80": "segments=8",
    "torchvision:squeezenet1_1": "torchvision:squeezenet1_1@random",  # not downloaded
    "runs/digits_iter_2500.caffemodel": "runs/digits_iter_2.caffemodel",
    "runs/mine_iter_2500.caffemodel": "runs/mine_iter_2.caffemodel",
}
SLOW = ("docs/training.md", "docs/tutorials/cam-network.md")  # train for a few iterations
MODELS = ("resnet50.onnx", "resnet18.onnx", "squeezenet1_1.onnx", "squeezenet.onnx", "net.onnx", "my.onnx", "vit.onnx")
LABELS = ("space shuttle", "stethoscope", "flagpole", *(f"class {number}" for number in range(CLASSES - 3)))


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks, without comments, continued lines joined."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"^```(?:sh|console)?\n(.*?)^```$", _without_code(text), re.DOTALL | re.MULTILINE):
        if not block.startswith(TEXTS):
            joined = block.replace("\\\n", " ")
            lines = (re.sub(r"(^|\s)#.*", "", line) for line in joined.splitlines())
            found += [part.strip() for line in lines for part in line.split("&&") if part.strip()]
    return found


def _without_code(text: str) -> str:
    """The page without the blocks that name another language."""
    return re.sub(r"^```(?!sh\n|console\n)\w+\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def words_of(command: str) -> list[str]:
    """What the shell passes to a program, and the program's name, without variables and the environment's folder."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


CAMRT = {page: ours for page in PAGES if (ours := [one for one in commands(page) if words_of(one)[0] == "camrt"])}


def parsed_only(page: str, command: str) -> bool:
    return page in PAGES_PARSED or "..." in command or command.startswith(tuple(PARSED))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the files that the commands name."""
    shutil.copytree(REPOSITORY / "models" / LENET, tmp_path / "models" / LENET)
    shutil.copy(REPOSITORY / "models" / LENET / "deploy.prototxt", tmp_path)
    shutil.copy(REPOSITORY / "models" / LENET / "lenetCAM.caffemodel", tmp_path / "net.caffemodel")
    solver = tmp_path / "models" / LENET / "solver.prototxt"
    solver.write_text(re.sub(r"max_iter: \d+", "max_iter: 2 test_initialization: false", solver.read_text()))
    training = tmp_path / "models" / LENET / "train_val.prototxt"
    training.write_text(re.sub(r"batch_size: \d+", "batch_size: 4", training.read_text()))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for name in ("photo.jpg", "cat.jpg", "dog.jpg", "astronaut.png", "photos/a.jpg", "photos/b.jpg", "more/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    tiny = tiny_classifier(224, labels=False)
    for name in MODELS:
        onnx.save(tiny, tmp_path / name)
    for name in ("labels.txt", "imagenet.txt"):
        (tmp_path / name).write_text("\n".join(LABELS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _set_of_three_classes(folder: Path) -> None:
    """What the Python of docs/training.md makes, with 4 images of a class in place of 40."""
    generator = np.random.default_rng(0)
    lines = []
    for label, name in enumerate(("cat", "cup", "rocket")):
        for number in range(4):
            file = folder / "photos" / name / f"{number:02}.jpg"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file)
            lines.append(f"{file.relative_to(folder).as_posix()} {label}\n")
    (folder / "train.txt").write_text("".join(lines))
    (folder / "val.txt").write_text("".join(lines[::4]))
    for name in ("a.jpg", "b.jpg"):  # the stand-ins of other pages have no class
        (folder / "photos" / name).unlink()
    shutil.copy(folder / "photo.jpg", folder / "both.jpg")
    shutil.copy(REPOSITORY / "models" / "VGG_ILSVRC_16_layers.prototxt", folder / "models")


@pytest.mark.parametrize("page", PAGES)
def test_each_line_is_a_command_or_has_a_reason(page: str) -> None:
    programs = {words_of(command)[0] for command in commands(page)} - {"camrt", "cp"}
    assert programs <= set(OTHERS)


def test_the_tables_have_no_line_too_many() -> None:
    every = [command for page in PAGES for command in commands(page)]
    assert [one for one in PARSED if not any(command.startswith(one) for command in every)] == []
    assert PAGES_PARSED.keys() <= CAMRT.keys()
    assert OTHERS.keys() <= {words_of(command)[0] for command in every}


@pytest.mark.parametrize("page", CAMRT)
def test_the_options_exist(page: str) -> None:
    for command in CAMRT[page]:
        _parse([word for word in words_of(command)[1:] if word != "..."], command)


def _parse(words: list[str], command: str) -> None:
    """As click does, which stops at an unknown command or option and at a value of another type."""
    group: Any = typer.main.get_command(app)
    while hasattr(group, "commands"):
        assert words[0] in group.commands, f"{command}: there is no command {words[0]!r}"
        group, words = group.commands[words[0]], words[1:]
    parser = group.make_parser(click.Context(group))
    _, rest, _ = parser.parse_args(args=list(words))
    assert not rest or group.allow_extra_args, f"{command}: {rest}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())
        for page, ours in CAMRT.items()
        if not all(parsed_only(page, command) for command in ours)
    ],
)
def test_the_commands_run(page: str, folder: Path) -> None:
    if page == "docs/training.md":
        _set_of_three_classes(folder)
    for command in CAMRT[page]:
        if parsed_only(page, command):
            continue
        if " train " in command:
            pytest.importorskip("torch", reason="camrt train needs PyTorch")
        if " finetune " in command:
            pytest.importorskip("torchvision", reason="camrt finetune takes its networks from torchvision")
        if " data lmdb" in command:
            pytest.importorskip("lmdb", reason="camrt data needs lmdb")
        if " --tensorboard" in command:
            pytest.importorskip("tensorboard", reason="--tensorboard needs the package")
        if " concepts " in command:
            pytest.importorskip("sklearn", reason="camrt concepts needs scikit-learn")
        if " kernelshap" in command:
            pytest.importorskip("skimage", reason=f"{command} needs the segments of scikit-image")
        words = [REPLACED.get(word, word) for word in words_of(command)[1:]]
        if words[0] == "explain" and "--model" not in words:
            words += ["--model", "net.onnx"]  # in place of the default, which is downloaded
        if words[0] in ("finetune", "train"):
            words += ["--workers", "0"]  # starting processes takes longer than reading these images
        if words[0] == "finetune":
            words += ["--size", "64"]
        status, _, err = run(*words)
        assert status == 0, f"{command}\n{err}"

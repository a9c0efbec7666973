from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from camrt.cli import app
from converters import download, zoo
from converters.errors import ConversionError, ConversionWarning
from converters.reader import Network, parse_prototxt, read_prototxt
from converters.schema import caffe_pb2
from tests import caffe_files
from tests.caffe_files import weights_alone
from tests.released import RELEASED
from tests.web import Answer, Site, serve

NETWORK = caffe_files.input_layer("data", 1, 3, 32, 32) + caffe_files.layer(
    "fc", "InnerProduct", "data", "fc", "inner_product_param { num_output: 80 }"
)
WEIGHTS = {"fc": [np.arange(80 * 3072, dtype=np.float32).reshape(80, 3072), np.arange(80, dtype=np.float32)]}
LEAST = 4 * (80 * 3072 + 80)
CONTENT = weights_alone(WEIGHTS)  # about 1 MB: more than one chunk
DIGEST = hashlib.sha256(CONTENT).hexdigest()


# ------------------------------------------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", RELEASED)
def test_network_is_the_released_one(name: str, reference: Path) -> None:
    ours = parse_prototxt(zoo.find(name).prototxt(), name)
    theirs = read_prototxt(reference / "nets" / "prototxt" / RELEASED[name])
    assert deployed(ours) == deployed(theirs)
    assert not ours.unknown


def test_googlenet_table_is_the_whole_network() -> None:
    """Without the reference folder: the counts of the paper's table 1."""
    net = parse_prototxt(zoo.find("bvlc_googlenet").prototxt()).message
    types = [layer.type for layer in net.layer]
    assert (types.count("Convolution"), types.count("Concat"), types.count("InnerProduct")) == (57, 9, 1)
    assert net.layer[-4].name == "pool5/7x7_s1"
    assert net.layer[-4].bottom == ["inception_5b/output"]


@pytest.mark.parametrize("name", zoo.models())
def test_least_bytes_are_those_of_the_parameters(name: str) -> None:
    model = zoo.find(name)
    assert model.weights.least_bytes == 4 * parameter_count(parse_prototxt(model.prototxt()).message)


@pytest.mark.parametrize("name", zoo.models())
def test_facts_fit_the_network(name: str) -> None:
    model = zoo.find(name)
    net = parse_prototxt(model.prototxt()).message
    by_name = {layer.name: layer for layer in net.layer}
    assert list(net.input_shape[0].dim)[1:] == [3, model.preprocessing.crop, model.preprocessing.crop]
    assert (model.features is None) == (model.classifier is None)
    if model.features and model.classifier:
        assert by_name[model.classifier].type == "InnerProduct"
        pooling = next(layer for layer in net.layer if list(layer.top) == list(by_name[model.classifier].bottom))
        assert (pooling.type, list(pooling.bottom)) == ("Pooling", [model.features])
    if model.preprocessing.mean_image:
        assert model.preprocessing.mean_image in zoo.reference_files()


def test_aliases_find_the_model_and_are_unique() -> None:
    assert zoo.find("alexnetplusCAM").name == "alexnetplusCAM_imagenet"
    assert zoo.find("vgg16").name == "VGG_ILSVRC_16_layers"
    assert zoo.find("googlenet").name == "bvlc_googlenet"
    names = [each for model in zoo.models().values() for each in (model.name, *model.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("wrong", "close"), [("vgg16cam", "vgg16CAM"), ("googlenet_CAM", "googlenetCAM")])
def test_unknown_name_names_the_closest(wrong: str, close: str) -> None:
    with pytest.raises(ConversionError, match=f"{wrong}.*Did you mean '{close}'.*alexnetplusCAM_places205"):
        zoo.find(wrong)


def test_reference_files_are_the_ones_in_the_reference_folder(reference: Path) -> None:
    for name, file in zoo.reference_files().items():
        content = (reference / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256), name


def test_import_takes_no_network() -> None:
    code = "import sys, converters.zoo; print(*({'requests', 'urllib3', 'rich', 'platformdirs'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=zoo_root())
    assert done.stdout.split() == []


# ------------------------------------------------------------------------------------------------- packaging


@pytest.mark.slow
def test_wheel_holds_every_module_and_the_models(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools 77")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, tree)
    for name in ("converters", "camrt", "models"):
        if (repository / name).is_dir():
            shutil.copytree(repository / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    expected = {path.relative_to(tree).as_posix() for path in tree.rglob("*.py") if path.parent != tree}
    models = repository / "models"
    expected |= {f"converters/models/{path.relative_to(models)}" for path in models.rglob("*") if path.is_file()}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(tree)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        missing = expected - set(wheel.namelist())
    assert not missing


# ------------------------------------------------------------------------------------------------- what comes with it


def test_bundled_weights_need_neither_cache_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "download", lambda *_, **__: pytest.fail("asked the network"))
    model = zoo.find("lenetCAM")
    path = zoo.weights(model, cache=tmp_path)
    assert path == zoo.weights_path(model, cache=tmp_path) == zoo.models_folder() / "lenetCAM" / "lenetCAM.caffemodel"
    assert zoo.labels(model, cache=tmp_path) == list("0123456789")
    assert list(tmp_path.iterdir()) == []
    other = tmp_path / "other.caffemodel"
    other.write_bytes(bytes(model.weights.least_bytes))
    assert zoo.weights(model, other) == other


def test_bundled_weights_that_are_missing_or_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "models_folder", lambda: tmp_path)
    model = replace(zoo.find("lenetCAM"), weights=zoo.WeightsFile((), 100, bundled="net.caffemodel"))
    with pytest.raises(ConversionError, match="no such file"):
        zoo.weights(model)
    (tmp_path / "net.caffemodel").write_bytes(bytes(99))
    with pytest.raises(ConversionError, match=r"truncated: it has 99 bytes.*Install camrt again"):
        zoo.weights(model)


# ------------------------------------------------------------------------------------------------- downloading


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_S", 0)
    with serve(Answer(CONTENT)) as site:
        yield site


@pytest.fixture
def model(site: Site, tmp_path_factory: pytest.TempPathFactory) -> zoo.NamedModel:
    prototxt = tmp_path_factory.mktemp("network") / "deploy.prototxt"
    prototxt.write_text(NETWORK)
    released = zoo.WeightsFile((site.url,), least_bytes=LEAST)
    return replace(zoo.find("vgg16CAM"), network=str(prototxt), weights=released)


def test_download_lands_in_the_cache_once(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    path = zoo.weights(model, cache=tmp_path, progress=True)
    assert path == tmp_path / "weights" / "net.caffemodel" == zoo.weights_path(model, cache=tmp_path)
    assert path.read_bytes() == CONTENT
    assert zoo.weights(model, cache=tmp_path) == path
    assert site.asked == 1
    assert (tmp_path / "models.lock").read_text() == f"{DIGEST}  weights/net.caffemodel\n"
    assert_nothing_left(tmp_path)


def test_cache_folder_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    assert zoo.cache_folder() == tmp_path / "home"
    monkeypatch.delenv("CAMRT_HOME")
    assert zoo.cache_folder().name == "camrt"


def test_given_file_is_taken_and_nothing_downloaded(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    file = tmp_path / "mine.caffemodel"
    file.write_bytes(CONTENT)
    assert zoo.weights(model, file, cache=tmp_path) == file
    assert site.asked == 0


def test_missing_and_truncated_files_are_refused(model: zoo.NamedModel, tmp_path: Path) -> None:
    file = tmp_path / "mine.caffemodel"
    with pytest.raises(ConversionError, match=r"mine\.caffemodel: there is no such file"):
        zoo.weights(model, file)
    file.write_bytes(CONTENT[: LEAST - 1])
    with pytest.raises(ConversionError, match=r"truncated: it has 983,359 bytes.*983,360"):
        zoo.weights(model, file)


def test_truncated_file_in_the_cache_is_not_used(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    path = zoo.weights_path(model, cache=tmp_path)
    path.parent.mkdir()
    path.write_bytes(CONTENT[:100])
    with pytest.raises(ConversionError, match=r"truncated: it has 100 bytes"):
        zoo.weights(model, cache=tmp_path)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(Answer(CONTENT[:1000]), id="truncated-on-the-server"),
        pytest.param(Answer(CONTENT[:1000], headers={"Content-Length": str(len(CONTENT))}), id="cut-on-the-way"),
        pytest.param(Answer(b"", 503), id="server-error"),
    ],
)
def test_download_is_tried_again(broken: Answer, site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    site.answers = [broken, Answer(CONTENT)]
    assert zoo.weights(model, cache=tmp_path, progress=False).read_bytes() == CONTENT
    assert site.asked == 2

    site.answers = [broken]
    site.requests.clear()
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(ConversionError, match=re.escape(site.url)):
        zoo.weights(model, cache=tmp_path, progress=False)
    assert site.asked == download.ATTEMPTS
    assert list((tmp_path / "weights").iterdir()) == []


def test_gone_file_is_asked_for_once_and_the_error_says_how_to_go_on(
    site: Site, model: zoo.NamedModel, tmp_path: Path
) -> None:
    site.answers = [Answer(b"", 404)]
    place = re.escape(str(tmp_path / "weights" / "net.caffemodel"))
    with pytest.raises(ConversionError, match=rf"vgg16CAM.*404 Not Found.*--weights FILE or put it at {place}"):
        zoo.weights(model, cache=tmp_path, progress=False)
    assert site.asked == 1
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid"])
def test_gone_site(host: str, site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    gone = replace(model, weights=replace(model.weights, urls=(f"http://{host}/net.caffemodel",)))
    with pytest.raises(ConversionError, match="--weights FILE"):
        zoo.weights(gone, cache=tmp_path, progress=False)


def test_second_url_stands_in_for_the_first(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    site.answers = [Answer(b"", 404), Answer(CONTENT)]
    both = replace(model, weights=replace(model.weights, urls=(site.url, site.url)))
    assert zoo.weights(both, cache=tmp_path, progress=False).read_bytes() == CONTENT


def test_published_checksum_must_match(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    known = replace(model, weights=replace(model.weights, sha256="0" * 64))
    with pytest.raises(ConversionError, match=f"SHA-256 is {DIGEST}, not {'0' * 64}"):
        zoo.weights(known, cache=tmp_path, progress=False)
    assert list((tmp_path / "weights").iterdir()) == []

    known = replace(model, weights=replace(model.weights, sha256=DIGEST))
    assert zoo.weights(known, cache=tmp_path, progress=False).exists()
    assert not (tmp_path / "models.lock").exists()


def test_changed_download_is_said_aloud(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    path = zoo.weights(model, cache=tmp_path, progress=False)
    path.unlink()
    with warnings.catch_warnings(action="error"):  # the same again: not a word
        zoo.weights(model, cache=tmp_path, progress=False)

    path.unlink()
    changed = weights_alone({name: [-blob for blob in blobs] for name, blobs in WEIGHTS.items()})
    site.answers = [Answer(changed)]
    with pytest.warns(ConversionWarning, match=f"was {DIGEST} and is now {hashlib.sha256(changed).hexdigest()}"):
        zoo.weights(model, cache=tmp_path, progress=False)
    assert path.read_bytes() == changed
    assert (tmp_path / "models.lock").read_text().count("net.caffemodel") == 1


LOGIN = b"<!DOCTYPE html><html><body>Log in to the hotel's network</body></html>" + b" " * len(CONTENT)
OTHER_SHAPES = weights_alone({"fc": [np.ones((3072, 80), np.float32), np.ones(80, np.float32)]})
OTHER_LAYERS = weights_alone({"fc7": WEIGHTS["fc"]})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (LOGIN, "is an HTML or XML page"),
        (OTHER_SHAPES, r"layer fc \(InnerProduct\): found shape 3072 x 80 for blob 0"),
        (OTHER_LAYERS, "found no layer of the prototxt"),
        (bytes(len(CONTENT)), "net.caffemodel"),
    ],
    ids=["login-page", "other-shapes", "other-layers", "zeros"],
)
def test_what_came_must_be_the_networks_weights(
    wrong: bytes, said: str, site: Site, model: zoo.NamedModel, tmp_path: Path
) -> None:
    """It is large enough, and is refused before it is kept or its checksum is pinned; a mirror may still have it."""
    site.answers = [Answer(wrong)]
    with pytest.raises(ConversionError, match=rf"not the file that was expected: .*{said}"):
        zoo.weights(model, cache=tmp_path, progress=False)
    assert site.asked == 1
    assert list((tmp_path / "weights").iterdir()) == []
    assert not (tmp_path / "models.lock").exists()
    site.answers = [Answer(wrong), Answer(CONTENT)]
    site.requests.clear()
    both = replace(model, weights=replace(model.weights, urls=(site.url, f"{site.url}?mirror")))
    assert zoo.weights(both, cache=tmp_path, progress=False).read_bytes() == CONTENT


def test_weights_of_further_heads_are_no_reason_to_refuse(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    """As in bvlc_googlenet.caffemodel, which holds the heads of its training. There is a largest size all the same."""
    site.answers = [Answer(weights_alone({**WEIGHTS, "loss1/fc": [np.ones(80 * 3072, np.float32)]}))]
    with warnings.catch_warnings(action="error"):
        zoo.weights(model, cache=tmp_path, progress=False)
    zoo.weights_path(model, cache=tmp_path).unlink()
    site.answers = [Answer(weights_alone({**WEIGHTS, "loss1/fc": [np.ones(9 * 80 * 3072, np.float32)]}))]
    with pytest.raises(ConversionError, match="at most 3,998,656 were expected"):
        zoo.weights(model, cache=tmp_path, progress=False)


def test_checksums_that_cannot_be_noted_are_a_warning(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    (tmp_path / "models.lock").mkdir()
    with pytest.warns(ConversionWarning, match=r"models\.lock cannot be written or read"):
        assert zoo.weights(model, cache=tmp_path, progress=False).read_bytes() == CONTENT


def test_unwritable_cache_is_named(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file where the folder should be")
    with pytest.raises(ConversionError, match="CAMRT_HOME"):
        zoo.weights(model, cache=tmp_path, progress=False)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_killed_download_leaves_no_file(
    kill: signal.Signals, site: Site, model: zoo.NamedModel, tmp_path: Path
) -> None:
    site.answers = [Answer(CONTENT, pause_s=5)]
    child = downloader(model, tmp_path)
    wait_for(lambda: any(part.stat().st_size for part in tmp_path.glob("weights/.*.part/*")))
    child.send_signal(kill)
    child.wait()
    assert not zoo.weights_path(model, cache=tmp_path).exists()
    assert not (tmp_path / "models.lock").exists()
    leftovers = list(tmp_path.glob("weights/.*.part"))
    assert len(leftovers) == (kill == signal.SIGKILL)

    # The next download does not touch what may be another process's, but clears what has lain for an hour.
    site.answers = [Answer(CONTENT)]
    for left in leftovers:
        for entry in (*left.iterdir(), left):
            os.utime(entry, (1, 1))
    zoo.weights(model, cache=tmp_path, progress=False)
    assert_nothing_left(tmp_path)


def test_two_downloads_at_once(site: Site, model: zoo.NamedModel, tmp_path: Path) -> None:
    site.answers = [Answer(CONTENT, pause_s=0.3)]
    children = [downloader(model, tmp_path) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert zoo.weights_path(model, cache=tmp_path).read_bytes() == CONTENT
    assert_nothing_left(tmp_path)
    zoo.weights_path(model, cache=tmp_path).unlink()
    zoo.weights(model, cache=tmp_path, progress=False)  # the lock file is whole, too


# ------------------------------------------------------------------------------------------------- reference files


def test_reference_files_are_downloaded_and_repaired(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "matlab_demo/img1.jpg"
    files = {name: zoo.ReferenceFile(name, site.url, len(CONTENT), DIGEST)}
    monkeypatch.setattr(zoo, "reference_files", lambda: files)
    folder = zoo.download_reference(cache=tmp_path, progress=False)
    assert (folder / name).read_bytes() == CONTENT
    zoo.download_reference(cache=tmp_path, progress=False)
    assert site.asked == 1

    (folder / name).write_bytes(b"damaged")
    zoo.download_reference([name], cache=tmp_path, progress=False)
    assert (folder / name).read_bytes() == CONTENT

    (folder / name).unlink()
    site.answers = [Answer(b"", 404)]
    with pytest.raises(ConversionError, match=r"img1\.jpg cannot be downloaded.*github\.com/metalbubble/CAM"):
        zoo.download_reference(cache=tmp_path, progress=False)


def test_labels_come_from_the_reference_files(reference: Path, tmp_path: Path) -> None:
    imagenet, places = zoo.find("vgg16CAM"), zoo.find("googlenetCAM_places205")
    assert zoo.labels(imagenet, cache=tmp_path) is None
    folder = tmp_path / "reference" / "matlab_demo"
    folder.mkdir(parents=True)
    shutil.copy(reference / "matlab_demo" / "imagenet-simple-labels.json", folder)
    names = zoo.labels(imagenet, cache=tmp_path)
    assert names is not None
    assert (len(names), names[0], names[-1]) == (1000, "tench", "toilet paper")

    pytest.importorskip("scipy")
    shutil.copy(reference / "matlab_demo" / "categories_places205.mat", folder)
    names = zoo.labels(places, cache=tmp_path)
    assert names is not None
    assert (len(names), names[0]) == (205, "/a/abbey")


def test_mat_labels_need_scipy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "reference" / "matlab_demo"
    folder.mkdir(parents=True)
    (folder / "categories1000.mat").write_bytes(b"not looked at")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert zoo.labels(zoo.find("vgg16CAM"), cache=tmp_path) is None


def test_damaged_labels_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "reference" / "matlab_demo"
    folder.mkdir(parents=True)
    (folder / "imagenet-simple-labels.json").write_text("[")
    with pytest.raises(ConversionError, match=r"imagenet-simple-labels\.json: no class names"):
        zoo.labels(zoo.find("vgg16CAM"), cache=tmp_path)


# ------------------------------------------------------------------------------------------------- command line


def test_command_line_status(
    site: Site,
    model: zoo.NamedModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path))
    monkeypatch.setattr(zoo, "find", lambda _: model)
    done = CliRunner().invoke(app, ["download", "vgg16CAM"])
    assert (done.exit_code, done.stdout.strip()) == (0, str(zoo.weights_path(model)))

    zoo.weights_path(model).unlink()
    site.answers = [Answer(b"", 404)]
    done = CliRunner().invoke(app, ["download", "vgg16CAM"])
    assert done.exit_code == 1
    assert "--weights FILE" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 0, "googlenetCAM_places205"),
        (["--help"], 0, "CAMRT_HOME"),
        (["vgg16cam"], 2, "Did you mean 'vgg16CAM'"),
        (["--nonsense"], 2, "Usage:"),
    ],
)
def test_shell_script(arguments: list[str], status: int, said: str, repository: Path, tmp_path: Path) -> None:
    script = repository / "scripts" / "download_models.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(script), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "CAMRT_HOME": str(tmp_path)},
    )
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------- what they share


def deployed(network: Network) -> tuple[str, list[tuple[str, tuple[int, ...]]], list[caffe_pb2.LayerParameter]]:
    """Name, inputs and layers, without what only training reads."""
    net = network.message
    shapes = [tuple(shape.dim) for shape in net.input_shape]
    shapes += [tuple(net.input_dim[i : i + 4]) for i in range(0, len(net.input_dim), 4)]
    layers = []
    for layer in net.layer:
        stripped = caffe_pb2.LayerParameter()
        stripped.CopyFrom(layer)
        stripped.ClearField("param")
        for parameters in (stripped.convolution_param, stripped.inner_product_param):
            parameters.ClearField("weight_filler")
            parameters.ClearField("bias_filler")
        # Looking at a sub-message is not setting it, and clearing its field is: drop those that only clearing made.
        for name in ("convolution_param", "inner_product_param"):
            if not layer.HasField(name):
                stripped.ClearField(name)
        layers.append(stripped)
    return net.name, list(zip(net.input, shapes, strict=True)), layers


def parameter_count(net: caffe_pb2.NetParameter) -> int:
    """How many numbers the network's layers hold, from the shapes of its blobs."""
    shapes = {net.input[0]: tuple(net.input_shape[0].dim)[1:]}
    count = 0
    for layer in net.layer:
        channels, *sides = shapes[layer.bottom[0]]
        if layer.type == "Convolution":
            p = layer.convolution_param
            pad, stride, kernel = [*p.pad, 0][0], [*p.stride, 1][0], p.kernel_size[0]
            count += p.num_output * (channels // p.group * kernel**2 + p.bias_term)
            channels, sides = p.num_output, [(side + 2 * pad - kernel) // stride + 1 for side in sides]
        elif layer.type == "Pooling":
            q = layer.pooling_param
            sides = [-(-(side + 2 * q.pad - q.kernel_size) // q.stride) + 1 for side in sides]
        elif layer.type == "InnerProduct":
            units = layer.inner_product_param.num_output
            count += units * (int(np.prod([channels, *sides])) + 1)
            channels, sides = units, []
        elif layer.type == "BatchNorm":  # mean, variance, and what both are to be divided by
            count += 2 * channels + 1
        elif layer.type == "Scale":
            count += channels * (1 + layer.scale_param.bias_term)
        elif layer.type == "Concat":
            channels = sum(shapes[bottom][0] for bottom in layer.bottom)
        shapes[layer.top[0]] = (channels, *sides)
    return count


def downloader(model: zoo.NamedModel, cache: Path) -> subprocess.Popen[bytes]:
    """Another process that downloads the model, as the command line does."""
    code = (
        "import signal, sys; from dataclasses import replace; from pathlib import Path; from converters import zoo\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"weights = zoo.WeightsFile({model.weights.urls!r}, {model.weights.least_bytes})\n"
        f"model = replace(zoo.find({model.name!r}), network={model.network!r}, weights=weights)\n"
        f"zoo.weights(model, cache=Path({str(cache)!r}), progress=False)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=zoo_root())


def zoo_root() -> Path:
    """The folder to start Python in, so that it finds the code under test."""
    return Path(zoo.__file__).resolve().parent.parent


def wait_for(condition: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_nothing_left(cache: Path) -> None:
    assert [path.name for path in (cache / "weights").iterdir()] == ["net.caffemodel"]

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from PIL import Image

import camrt
from camrt import CamrtError, CamrtWarning, Explainer, Explanation, explainer, images
from camrt.preprocess import preprocess_of
from camrt.session import Session
from converters import ConversionError, zoo
from tests.seeded import SeededModel
from tests.tiny_models import CLASSES, LABELS, photo, tiny_classifier, tiny_explainer

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def tiny() -> Explainer:
    return Explainer(tiny_explainer(), providers="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of all sizes, of which 3.png is text and 7.png is cut off."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        Image.fromarray(photo(30 + 7 * number, 90 - 5 * number, number)).save(folder / f"{number}.png")
    (folder / "3.png").write_text("not an image")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:2000])
    return folder


def paths(folder: Path) -> list[Path]:
    return [folder / f"{number}.png" for number in range(12)]


GOOD = [number for number in range(12) if number not in (3, 7)]


def same(one: Explanation, other: Explanation) -> None:
    for name in ("image", "classes", "scores", "heatmaps", "all_scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.labels, one.source) == (other.labels, other.source)


# ------------------------------------------------------------------------------------------------------------ one image


def test_an_explanation_is_what_the_graph_answers(tiny: Explainer) -> None:
    image = photo(45, 61)
    found = tiny(image)
    session = onnxruntime.InferenceSession(tiny_explainer().SerializeToString(), providers=["CPUExecutionProvider"])
    scores, classes, heatmaps = session.run(None, {"image": images.prepare(image, 32)[None]})
    np.testing.assert_array_equal(found.all_scores, scores[0])
    np.testing.assert_array_equal(found.classes, classes[0])
    np.testing.assert_array_equal(found.scores, np.sort(scores[0])[::-1][:5])
    np.testing.assert_array_equal(found.heatmaps, heatmaps[0])
    np.testing.assert_array_equal(found.image, image)
    assert found.labels == tuple(LABELS[k] for k in classes[0])
    assert (found.classes.dtype, found.scores.dtype, found.heatmaps.dtype) == (np.int64, np.float32, np.float32)


def test_every_kind_of_input(tiny: Explainer, folder: Path) -> None:
    path = folder / "0.png"
    expected = tiny(path)
    assert expected.source == str(path)
    for given, name in (
        (str(path), str(path)),
        (path.read_bytes(), "<bytes>"),
        (np.asarray(Image.open(path)), "<array>"),
        (Image.open(path), str(path)),
        (Image.open(path).convert("RGB"), "<image>"),
    ):
        found = tiny(given)
        np.testing.assert_array_equal(found.heatmaps, expected.heatmaps)
        assert found.source == name


def test_what_it_says_of_itself(tiny: Explainer) -> None:
    facts = (tiny.name, tiny.method, tiny.protocol, tiny.top, tiny.size, tiny.labels, tiny.provider)
    assert facts == ("tiny", "cam", "center", 5, 32, LABELS, "CPUExecutionProvider")
    assert repr(tiny) == "Explainer('tiny', cam, center, top 5, on CPUExecutionProvider, fp32)"


def test_errors_name_the_image(tiny: Explainer, folder: Path) -> None:
    with pytest.raises(CamrtError, match=r"3\.png: is no image"):
        tiny(folder / "3.png")
    with pytest.raises(CamrtError, match="found an array of shape"):
        tiny(np.zeros((4, 4)))
    limited = Explainer(tiny_explainer(), max_pixels=1000)
    with pytest.raises(CamrtError, match=r"0\.png: is gigantic: found 90 x 30 = 2,700 pixels"):
        limited(folder / "0.png")


def test_threads(tiny: Explainer, folder: Path) -> None:
    alone = [tiny(folder / f"{number}.png") for number in GOOD]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: tiny(folder / f"{n}.png"), GOOD * 4))
    for number, found in enumerate(together):
        same(found, alone[number % len(GOOD)])


# ---------------------------------------------------------------------------------------------------------- many images


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_map_is_the_call_in_order(tiny: Explainer, folder: Path, batch: int, workers: int) -> None:
    refused: list[tuple[str, CamrtError]] = []
    found = list(
        tiny.map(
            paths(folder), batch=batch, workers=workers, on_error=lambda name, error: refused.append((name, error))
        )
    )
    assert [Path(one.source).stem for one in found] == [str(number) for number in GOOD]
    for one in found:
        same(one, tiny(one.source))
    assert [Path(name).name for name, _ in refused] == ["3.png", "7.png"]
    assert all(str(error).startswith(f"{name}: ") for name, error in refused)


def test_streams_are_under_way_at_once(tiny: Explainer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs meet inside of the session, and the results are those of one after the other, in order."""
    explainer = Explainer(tiny_explainer(), providers="cpu", streams=2)
    assert explainer.streams == 2
    meeting = threading.Barrier(2, timeout=30)
    run = explainer.session.run
    monkeypatch.setattr(explainer.session, "run", lambda feeds: (meeting.wait(), run(feeds))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamrtWarning)
        found = list(explainer.map(paths(folder)))
    assert len(found) == len(GOOD)
    for number, one in zip(GOOD, found, strict=True):
        same(one, tiny(folder / f"{number}.png"))


def test_one_stream_where_the_run_has_the_whole_machine() -> None:
    assert Explainer(tiny_explainer(), providers="cpu").streams == 1
    with pytest.raises(CamrtError, match="found 0 streams, expected at least 1"):
        Explainer(tiny_explainer(), streams=0)
    black_box = Explainer(tiny_classifier(), "rise", providers="cpu", streams=2, settings={"masks": 8})
    assert black_box.streams == 1


def test_map_warns_and_goes_on(tiny: Explainer, folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [one.source for one in tiny.map(paths(folder))]
    assert len(found) == len(GOOD)
    assert [one.category for one in caught] == [CamrtWarning, CamrtWarning]
    assert str(caught[0].message).startswith(f"left out: {folder / '3.png'}: is no image")
    assert caught[0].filename == __file__


def test_map_raises_when_told_to(tiny: Explainer, folder: Path) -> None:
    found = tiny.map(paths(folder), on_error="raise", batch=2)
    assert [Path(next(found).source).stem for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(CamrtError, match=r"3\.png"):
        next(found)
    assert list(found) == []


def test_map_of_nothing_and_of_nothing_good(tiny: Explainer, folder: Path) -> None:
    assert list(tiny.map([])) == []
    refused: list[str] = []
    bad = [folder / "3.png"] * 100
    assert list(tiny.map(bad, on_error=lambda name, _: refused.append(name))) == []
    assert len(refused) == 100


def test_map_asks_only_a_few_ahead(tiny: Explainer) -> None:
    """Endless input is no trouble; and what was asked for is bounded while the caller takes its time."""
    asked = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield photo(20, 20, asked)

    found = tiny.map(endless(), batch=2, workers=3)
    assert asked == 0
    for number, _ in enumerate(found, start=1):
        assert asked <= number + 3 * 2 + 3 + 2
        if number == 40:
            break
    found.close()


def test_map_bounds_the_bytes_that_wait(tiny: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large images, fewer are decoded ahead."""
    monkeypatch.setattr(explainer, "_WAITING_BYTES", 1)
    asked = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal asked
        for asked in range(1, 30):
            time.sleep(0.005)  # those before are decoded by now
            yield photo(20, 20, asked)

    found = tiny.map(source(), batch=1, workers=20)
    next(found)
    assert asked <= 8
    assert len(list(found)) == 28


def test_map_leaves_no_threads(tiny: Explainer, folder: Path) -> None:
    before = threading.active_count()
    found = tiny.map(paths(folder) * 3, on_error=lambda *_: None)
    next(found)
    assert threading.active_count() > before
    del found
    gc.collect()
    assert threading.active_count() == before


def test_maps_side_by_side(tiny: Explainer, folder: Path) -> None:
    """Two walks over one explainer do not disturb each other."""
    good = [folder / f"{number}.png" for number in GOOD]
    forward, backward = tiny.map(good, batch=3), tiny.map(good[::-1], batch=2)
    pairs = list(zip(forward, backward, strict=True))
    assert [Path(one.source) for one, _ in pairs] == good
    assert [Path(one.source) for _, one in pairs] == good[::-1]


def test_map_refuses_wrong_arguments_at_once(tiny: Explainer) -> None:
    for wrong, message in (
        ({"batch": 0}, "found batch 0"),
        ({"workers": 0}, "workers 0"),
        ({"on_error": "ignore"}, "found on_error='ignore'"),
    ):
        with pytest.raises(CamrtError, match=message):
            tiny.map([], **wrong)
    with pytest.raises(CamrtError, match="expected several"):
        tiny.map("cat.jpg")


def test_a_failing_source_is_the_callers(tiny: Explainer) -> None:
    def source() -> Iterator[np.ndarray]:
        yield photo(20, 20)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(tiny.map(source()))


MEMORY = """
import json, os, sys
from pathlib import Path
from camrt import Explainer
from tests.tiny_models import tiny_explainer
files, used = sys.argv[1:], []
tiny = Explainer(tiny_explainer(), providers="cpu")
for one in tiny.map((files[number % 11] for number in range(550)), batch=2, on_error=lambda *_: None):
    one.heatmap(0)
    used.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
print(json.dumps(used))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory in use")
def test_memory_does_not_grow(tmp_path: Path, repository: Path) -> None:
    """500 images of 0.2 to 0.6 MB: a single image that were kept for each of them would come to 100 MB.

    In a process of its own, whose memory no other test moves.
    """
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.{'jpg' if number % 2 else 'png'}")
        Image.fromarray(photo(300 + 20 * number, 400 - 20 * number, number)).save(files[-1])
    files.insert(5, tmp_path / "none.jpg")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, files)],
        cwd=repository, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)
    assert len(used) == 500
    early, late = np.mean(used[150:250]), np.mean(used[400:])
    assert late - early < 8, f"from {early:.1f} to {late:.1f} MB"


# ----------------------------------------------------------------------------------------------------------- the model


def test_a_classifier_becomes_an_explainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_classifier(), path)
    image = photo(45, 61)
    with caplog.at_level(logging.INFO):
        found = [Explainer(model, protocol="center", top=3) for model in (path, str(path), tiny_classifier())]
    for one in found:
        assert (one.method, one.protocol, one.top, one.size, one.labels) == ("cam", "center", 3, 32, LABELS)
        assert one(image).heatmaps.shape == (3, 32, 32)
        np.testing.assert_array_equal(one(image).heatmaps, found[0](image).heatmaps)
    whole = Explainer(tiny_classifier(24))
    assert (whole.protocol, whole.size, whole.top) == ("whole", 24, 5)
    graph = camrt.explain_graph(tiny_classifier(24))
    np.testing.assert_array_equal(Explainer(graph)(image).heatmaps, whole(image).heatmaps)


def test_an_explainer_on_disk_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "explainer.onnx"
    onnx.save(tiny_explainer(), path)
    monkeypatch.setattr(onnx, "load", lambda *_: pytest.fail("the weights were read"))
    one = Explainer(path, method="cam", protocol="center", top=5)
    assert one(photo(20, 20)).heatmaps.shape == (5, 32, 32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "gradcam"}, r"found an explainer graph with method 'cam', expected 'gradcam'.*camrt export"),
        ({"protocol": "ten-crop"}, "with protocol 'center', expected 'ten-crop'"),
        ({"top": 3}, "with top 5, expected 3"),
        ({"features": "conv"}, "with features 'features', expected 'conv'"),
    ],
)
def test_an_explainer_does_nothing_else(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(CamrtError, match=message):
        Explainer(tiny_explainer(), **asked)


def changed(**properties: str | None) -> onnx.ModelProto:
    model = tiny_explainer()
    kept = {entry.key: entry.value for entry in model.metadata_props}
    kept |= {f"camrt.{key}": value for key, value in properties.items() if value is not None}
    helper.set_model_props(model, kept)
    return model


def test_labels() -> None:
    image = photo(20, 20)
    nameless = Explainer(tiny_explainer(labels=False))
    assert nameless.labels is None
    found = nameless(image)
    assert found.labels == tuple(map(str, found.classes))
    given = Explainer(tiny_explainer(), labels=[f"mine {k}" for k in range(CLASSES)])
    assert given(image).labels[0] == f"mine {found.classes[0]}"
    with pytest.raises(CamrtError, match="found 3 labels, expected one for each of the 7 classes"):
        Explainer(tiny_explainer(), labels=["a", "b", "c"])
    with pytest.raises(CamrtError, match=r"found 1 names in the metadata camrt\.labels"):
        Explainer(changed(labels='["a"]'))
    for broken in ("{", '{"a": 1}'):
        with pytest.raises(CamrtError, match=r"found the metadata camrt\.labels"):
            Explainer(changed(labels=broken))


def test_explainers_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "explainer.onnx"
    for broken in ("{", "[]", "{}", '{"method": "cam"}'):
        onnx.save(changed(explainer=broken), path)
        with pytest.raises(CamrtError, match=r"explainer\.onnx: found the metadata camrt\.explainer"):
            Explainer(path)
    facts = {"method": "cam", "protocol": "center", "top": 5, "size": 64}
    with pytest.raises(CamrtError, match=r"found the input of shape \('N', 32, 32, 3\), expected \(N, 64, 64, 3\)"):
        Explainer(changed(explainer=json.dumps(facts)))
    classifier = tiny_classifier()
    helper.set_model_props(classifier, {"camrt.explainer": json.dumps(facts)})
    with pytest.raises(CamrtError, match=r"found the inputs \['data'\] and outputs \['prob'\]"):
        Explainer(classifier)


def test_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match=r"none\.onnx: there is no such file"):
        Explainer(tmp_path / "none.onnx")
    with pytest.raises(CamrtError, match="there is no such file"):
        Explainer("some/folder/net")
    (tmp_path / "deploy.prototxt").write_text("name: 'x'")
    with pytest.raises(CamrtError, match="found a Caffe network, expected an ONNX model: camrt convert"):
        Explainer(tmp_path / "deploy.prototxt")
    for content in (b"", b"\x08", b"not a model", b"\x3a\xff\xff\xff\x07abc", bytes(100), b"\x0b" * 20, b"\xff" * 20):
        path = tmp_path / "broken.onnx"
        path.write_bytes(content)
        with pytest.raises(CamrtError, match=r"broken\.onnx: "):
            Explainer(path)


def test_a_classifier_without_metadata_says_what_to_give(tmp_path: Path) -> None:
    model = tiny_classifier()
    del model.metadata_props[:]
    path = tmp_path / "bare.onnx"
    onnx.save(model, path)
    with pytest.raises(CamrtError, match=r"bare\.onnx: .*camrt\.preprocess.*--preprocess"):
        Explainer(path)
    wants = camrt.Preprocess(size=32, crop=28, mean=(104.0, 117.0, 123.0))
    found = Explainer(path, preprocess=wants)(photo(40, 40))
    np.testing.assert_allclose(found.heatmaps, Explainer(tiny_classifier())(photo(40, 40)).heatmaps, rtol=1e-6)


def test_an_explainer_has_its_own_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "explainer.onnx"
    graph = camrt.explain_graph(tiny_classifier(), protocol="center")
    onnx.save(graph, path)
    own = preprocess_of(None, {entry.key: entry.value for entry in tiny_classifier().metadata_props})
    for model in (graph, path):
        assert Explainer(model, preprocess=own).size == 32
        with pytest.raises(CamrtError, match=r"found an explainer graph with the preprocessing .*camrt export"):
            Explainer(model, preprocess="torchvision")


def test_weights_go_with_a_name(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(tiny_classifier(), path)
    for model in (path, str(path), tiny_classifier()):
        with pytest.raises(CamrtError, match=r"found the weights .*mine\.caffemodel beside .*expected the name"):
            Explainer(model, weights="mine.caffemodel")


def test_the_largest_side_does_not_change_the_answers(tiny: Explainer) -> None:
    """The network sees the whole image; only what is kept of it is smaller."""
    image = photo(300, 200)
    small = Explainer(tiny_explainer(), max_side=60)(image)
    whole = tiny(image)
    for field in ("classes", "scores", "heatmaps", "all_scores"):
        np.testing.assert_array_equal(getattr(small, field), getattr(whole, field))
    assert (small.image.shape, small.original_size) == ((60, 40, 3), (300, 200))
    assert (whole.image.shape, whole.original_size) == ((300, 200, 3), (300, 200))


def test_prepared_in_threads_and_explained_in_one_run(
    tiny: Explainer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(tiny.prepare, [folder / f"{number}.png" for number in GOOD]))
    runs: list[int] = []
    run = tiny.session.run
    monkeypatch.setattr(tiny.session, "run", lambda feeds: runs.append(len(feeds["image"])) or run(feeds))
    found = tiny.explain_prepared(prepared)
    assert runs == [len(GOOD)]
    for number, explanation in zip(GOOD, found, strict=True):
        assert isinstance(explanation, Explanation)
        assert explanation.source == str(folder / f"{number}.png")
        np.testing.assert_allclose(explanation.heatmaps, tiny(folder / f"{number}.png").heatmaps, atol=1e-5)
    assert prepared[0].nbytes == prepared[0].loaded.image.nbytes + 32 * 32 * 3
    assert tiny.explain_prepared([]) == []
    with pytest.raises(CamrtError, match=r"3\.png.*is no image"):
        tiny.prepare(folder / "3.png")


def test_a_prepared_image_that_fails_is_told_from_the_others(
    tiny: Explainer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = [tiny.prepare(folder / f"{number}.png") for number in GOOD[:3]]
    run = tiny.session.run
    bad = prepared[1].loaded.square

    def failing(feeds: dict[str, Any]) -> Any:
        if any(np.array_equal(square, bad) for square in feeds["image"]):
            raise CamrtError("does not fit into memory")
        return run(feeds)

    monkeypatch.setattr(tiny.session, "run", failing)
    first, second, third = tiny.explain_prepared(prepared)
    assert isinstance(first, Explanation)
    assert isinstance(third, Explanation)
    assert str(second) == f"{folder / '1.png'}: does not fit into memory"


def test_a_batch_that_fails_is_explained_image_by_image(
    tiny: Explainer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the memory of a GPU is enough for one image, but not for a batch."""
    run = Session.run

    def little_memory(session: Session, feeds: Any) -> Any:
        if len(feeds["image"]) > 1:
            raise CamrtError("ONNX Runtime failed: out of memory")
        return run(session, feeds)

    good = [folder / f"{number}.png" for number in GOOD]
    expected = [tiny(path) for path in good]
    monkeypatch.setattr(Session, "run", little_memory)
    for found, one in zip(tiny.map(good, batch=4, on_error="raise"), expected, strict=True):
        same(found, one)


# ---------------------------------------------------------------------------------------------------- the named models


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without weights, and no way to download any."""
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path))
    monkeypatch.setattr(zoo, "download", lambda *_, **__: pytest.fail("asked the network"))
    return tmp_path


def test_no_such_name(cache: Path) -> None:
    with pytest.raises(ConversionError, match=r"there is no model named 'googlenetCAN'\. Did you mean 'googlenetCAM'"):
        Explainer("googlenetCAN")


def test_weights_that_are_not_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConversionError("no route to host")

    monkeypatch.setattr(zoo, "download", offline)
    with pytest.raises(ConversionError, match="the weights of googlenetCAM cannot be downloaded: no route to host"):
        Explainer("googlenetCAM")


@pytest.mark.slow
def test_a_named_model(cache: Path, reference: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The whole way by name, with seeded weights in the cache."""
    from converters.reader import parse_prototxt

    model = zoo.find("googlenetCAM")
    (cache / "weights").mkdir()
    network = parse_prototxt(model.prototxt()).message
    SeededModel.of_network(network, seed=0).write(zoo.weights_path(model))
    with caplog.at_level(logging.INFO, "camrt"):
        one = Explainer("googlenetCAM", top=2)
    assert "subtracts its mean pixel" in caplog.text
    assert (one.name, one.protocol, one.size, one.labels) == ("googlenetCAM", "ten-crop", 256, None)
    image = reference / "matlab_demo" / "img1.jpg"
    with_pixel = one(image)
    assert with_pixel.heatmaps.shape == (2, 256, 256)

    for name in ("matlab_demo/ilsvrc_2012_mean.mat", "matlab_demo/imagenet-simple-labels.json"):
        target = cache / "reference" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((reference / name).read_bytes())
    other = Explainer("googlenetCAM", top=2)
    assert other.labels is not None
    assert len(other.labels) == 1000
    with_image = other(image)
    assert with_image.labels[0] == other.labels[with_image.classes[0]]
    # The mean image and the mean pixel are nearly the same.
    difference = np.abs(with_image.all_scores - with_pixel.all_scores).max()
    assert 0 < difference < 0.2 * with_pixel.scores[0]


# --------------------------------------------------------------------------------------------------------- the package


def test_import_is_light_and_fast() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import camrt; camrt.CamrtError; camrt.Preprocess\n"
        "print(time.perf_counter() - start, *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    seconds, *modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"onnxruntime", "cv2", "PIL", "scipy", "onnx", "torch"} & set(modules)
    assert float(seconds) < 2  # 0.2 s on an idle machine; tests share theirs


def test_public_names() -> None:
    for name in camrt.__all__:
        assert getattr(camrt, name) is not None
        assert name in dir(camrt)
    with pytest.raises(AttributeError, match="nothing"):
        camrt.nothing  # noqa: B018


# ------------------------------------------------------------------------------------------------------------------ gpu


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="ONNX Runtime has no CUDA here")
@pytest.mark.parametrize("protocol", ["center", "ten-crop", "full"])
def test_cuda_answers_as_the_cpu(protocol: str, folder: Path) -> None:
    one, other = (Explainer(tiny_classifier(), protocol=protocol, providers=each) for each in ("cuda", "cpu"))
    assert one.provider == "CUDAExecutionProvider"
    good = [folder / f"{number}.png" for number in GOOD]
    for found, expected in zip(one.map(good, batch=4), other.map(good), strict=True):
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
        np.testing.assert_allclose(found.heatmaps, expected.heatmaps, rtol=1e-3, atol=1e-4 * expected.heatmaps.max())

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
import requests
from PIL import Image
from typer.testing import CliRunner

import tests.camrt.serve.serving  # noqa: F401 - skips where the extra is not installed
from camrt import Explainer
from camrt.cli import app
from camrt.commands import serve
from tests.tiny_models import photo, tiny_classifier, tiny_explainer


@dataclass
class Command:
    """A server that runs as a command."""

    process: subprocess.Popen[str]
    lines: list[dict[str, object]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    url: str = ""

    def explain(self, image: bytes, **parameters: str) -> requests.Response:
        return requests.post(f"{self.url}/explain", files={"image": image}, params=parameters, timeout=30)


@contextmanager
def camrt_serve(*arguments: str) -> Iterator[Command]:
    """Run the command on a free port until the block is left."""
    command = [sys.executable, "-m", "camrt", "serve", "--port", "0", "--provider", "cpu", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    running, is_listening = Command(process), threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            running.text.append(line)
            if line.startswith("{"):
                running.lines.append(json.loads(line))
                if running.lines[-1]["event"] == "listening":
                    running.url = str(running.lines[-1]["url"])
                    is_listening.set()
        is_listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert is_listening.wait(60)
        until = time.monotonic() + 20  # it says so right before it listens
        while running.url and time.monotonic() < until:
            try:
                requests.get(f"{running.url}/v2/health/ready", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.02)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
        reader.join(10)


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo(60, 80, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(tiny_explainer(), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_model_is_served_until_it_is_told_to_stop(model: Path, number: signal.Signals) -> None:
    with camrt_serve("--model", str(model), "--model", f"other={model}") as command:
        assert command.url.startswith("http://127.0.0.1:")
        found = command.explain(png()).json()
        expected = Explainer(model, providers="cpu")(photo(60, 80, 0))
        assert [one["class"] for one in found["top"]] == expected.classes.tolist()
        assert command.explain(png(), model="other").json()["model"] == "other"
        command.process.send_signal(number)
        assert command.process.wait(30) == 0
    events = [line["event"] for line in command.lines]
    assert [event for event in events if event in ("listening", "stopping", "stopped")] == [
        "listening", "stopping", "stopped"
    ]  # fmt: skip
    assert events.count("request") == 2, "health is not logged"
    assert "Traceback" not in "".join(command.text)


def test_a_classifier_explains_any_class_and_an_explainer_its_own(tmp_path: Path, model: Path) -> None:
    onnx.save(tiny_classifier(), tmp_path / "classifier.onnx")
    models = ("--model", str(tmp_path / "classifier.onnx"), "--model", f"own={model}")
    with camrt_serve(*models, "--top", "5") as command:
        number = Explainer(tmp_path / "classifier.onnx", top=5, providers="cpu")(photo(60, 80, 0)).classes[-1]
        assert command.explain(png(), target=str(number)).json()["top"][0]["class"] == number
        site = requests.get(f"{command.url}/site.json", timeout=10).json()
        assert [one["target"] for one in site["models"]] == ["any", "top"]
        assert "found the target" in command.explain(png(), model="own", target=str(number)).json()["error"]


def test_what_is_under_way_is_finished_after_sigterm(tmp_path: Path) -> None:
    model = tmp_path / "slow.onnx"
    onnx.save(tiny_classifier(224), model)
    settings = ("--method", "smoothgrad", "--set", "samples=60", "--top", "1")
    with camrt_serve("--model", str(model), *settings) as command, ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(command.explain, png()) for _ in range(4)]
        metrics = ""
        until = time.monotonic() + 20
        while "camrt_requests_in_progress 5.0" not in metrics and time.monotonic() < until:
            metrics = requests.get(f"{command.url}/metrics", timeout=30).text
        assert not any(one.done() for one in asked), "too fast to be stopped on the way"
        command.process.send_signal(signal.SIGTERM)
        assert [one.result(60).status_code for one in asked] == [200] * 4
        assert command.process.wait(30) == 0
        with pytest.raises(requests.ConnectionError):
            command.explain(png())


def test_a_port_that_is_taken_is_told_at_once(model: Path) -> None:
    with camrt_serve("--model", str(model)) as command:
        port = command.url.rpartition(":")[2]
        again = subprocess.run(
            [sys.executable, "-m", "camrt", "serve", "--port", port, "--model", str(model)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert again.returncode == 1
    assert f"error: cannot serve at 127.0.0.1 port {port}: Address already in use" in again.stderr


def test_a_repository_is_served_as_triton_would(tmp_path: Path) -> None:
    client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    onnx.save(tiny_classifier(), tmp_path / "net.onnx")
    repository = tmp_path / "models"
    export = ["export", str(tmp_path / "net.onnx"), "--triton", str(repository), "--json"]
    for more in ([], ["--triton-name", "grad", "--method", "gradcam", "--triton-max-batch", "2"]):
        done = CliRunner().invoke(app, [*export, *more])
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["output"] == str(repository / "grad" / "1")
    with camrt_serve("--repository", str(repository)) as command:
        triton = client.InferenceServerClient(command.url.removeprefix("http://"))
        assert [one["name"] for one in triton.get_model_repository_index()] == ["grad", "net"]
        for name, method in (("net", "cam"), ("grad", "gradcam")):
            explainer = Explainer(tmp_path / "net.onnx", method, providers="cpu")
            pixels = explainer.prepare(photo(60, 80, 0)).loaded.square[None]
            image = client.InferInput("image", pixels.shape, "UINT8")
            image.set_data_from_numpy(pixels)
            result, expected = triton.infer(name, [image]), explainer(photo(60, 80, 0))
            np.testing.assert_array_equal(result.as_numpy("classes")[0], expected.classes)
            np.testing.assert_array_equal(result.as_numpy("heatmaps")[0], expected.heatmaps)
        three = np.zeros((3, *pixels.shape[1:]), np.uint8)
        image = client.InferInput("image", three.shape, "UINT8")
        image.set_data_from_numpy(three)
        with pytest.raises(Exception, match="expected at most 2"):
            triton.infer("grad", [image])
        triton.close()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "none.onnx"], 1, "there is no such file"),
        (["--model", "a b=tiny.onnx"], 2, "NAME=MODEL"),
        (["--model", "nonesuch"], 2, "nonesuch"),
        (["--model", "tiny.onnx", "--model", "tiny.onnx"], 1, "two models called 'tiny'"),
        (["--model", "tiny.onnx", "--weights", "x.caffemodel"], 2, "goes with a named model"),
        (["--repository", "none"], 1, "expected a model repository"),
        (["--host", "256.1.1.1"], 1, "cannot serve at 256.1.1.1"),
        (["--max-batch", "0"], 2, "max-batch"),
        (["--port", "70000"], 2, "port"),
    ],
)
def test_usage(model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str) -> None:
    monkeypatch.chdir(model.parent)
    done = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    assert done.exit_code == status, done.output
    assert message in words(done.output)


def test_without_the_extra_the_packages_are_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "python_multipart" else object())
    done = CliRunner().invoke(app, ["serve", "--model", str(model)])
    assert done.exit_code == 1
    assert "python-multipart cannot be imported, expected the extra serve: " in words(done.output)
    assert "pip install python-multipart" in words(done.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--triton-name", "x"], "expected --triton beside it"),
        (["--triton", "r", "-o", "x.onnx"], "goes without --triton"),
        (["--triton", "r", "--triton-accelerator", "tensorrt", "--triton-device", "cpu"], "on the other device"),
    ],
)
def test_triton_options_that_clash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny_classifier(), "net.onnx")
    done = CliRunner().invoke(app, ["export", "net.onnx", *arguments])
    assert done.exit_code in (1, 2)
    assert message in words(done.output)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def words(output: str) -> str:
    """A message without the frame that it is printed in."""
    return " ".join(output.replace("│", " ").split())

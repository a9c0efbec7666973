"""The files of the site, the command that writes them, and the server that shows them. No browser takes part."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import onnx
import pytest

from camrt.errors import CamrtError
from camrt.loading import LENET, Request
from camrt.web import runtime
from camrt.web.site import ANY, SITE, SiteModel, build, site_model
from converters import zoo
from tests.camrt.commands.command_line import command, run
from tests.camrt.web.conftest import served

SAMPLE = zoo.models_folder() / LENET / "sample.png"


def stated(folder: Path) -> dict:
    return json.loads((folder / SITE).read_text(encoding="utf-8"))


def test_the_command_writes_a_site_that_names_its_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "site"
    arguments = ["--method", "cam", "--method", "gradcam", "--top", 3, "--sample", SAMPLE, "--out", out, "--json"]
    status, said, _ = run("web", LENET, LENET, *arguments)  # the second one is the same, and left out
    assert status == 0
    record, site = json.loads(said), stated(out)
    assert [one["method"] for one in site["models"]] == ["cam", "gradcam"]
    assert record["bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    for model in site["models"]:
        content = (out / model["file"]).read_bytes()
        assert (model["bytes"], model["target"], model["top"]) == (len(content), "any", 3)
        assert len(model["labels"]) == model["classes"] == 10
        outputs = {value.name for value in onnx.load_from_string(content).graph.output}
        assert outputs == {"scores", "classes", "heatmaps"}
    assert (out / site["samples"][0]["file"]).read_bytes() == SAMPLE.read_bytes()
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "{{" not in page
    assert f"connect-src &#39;self&#39; blob: {runtime.CDN}" in page


def test_a_site_built_anew_leaves_nothing_of_the_old_one(tmp_path: Path, lenet: list[SiteModel]) -> None:
    build(lenet, tmp_path / "site", title="One", samples=[SAMPLE])
    (tmp_path / "site" / "CNAME").write_text("example.org")  # what a host asks for
    build(lenet[1:], tmp_path / "site", title="Two")
    files = {str(file.relative_to(tmp_path / "site")) for file in (tmp_path / "site").rglob("*") if file.is_file()}
    expected = {"CNAME", "index.html", "camrt.js", "camrt.css", SITE, f"models/{lenet[1].identity}.onnx"}
    assert files == expected


def test_names_in_the_old_site_lead_nowhere_else(tmp_path: Path, lenet: list[SiteModel]) -> None:
    kept = tmp_path / "kept.onnx"
    kept.touch()
    build(lenet[:1], tmp_path / "site", title="One")
    site = stated(tmp_path / "site")
    site["models"].append({"file": "models/../../kept.onnx"})
    site["samples"] = [{"file": str(kept)}, {"file": 3}, None]
    (tmp_path / "site" / SITE).write_text(json.dumps(site))
    build(lenet[:1], tmp_path / "site", title="One")
    assert kept.exists()


def test_other_folders_are_left_alone(tmp_path: Path, lenet: list[SiteModel]) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        CamrtError, match=r"holds files that are not a site of camrt web. Name another folder with --out"
    ):
        build(lenet, tmp_path, title="")
    with pytest.raises(CamrtError, match="is a file, expected a folder"):
        build(lenet, tmp_path / "thesis.tex", title="")
    (tmp_path / "stopped" / "models").mkdir(parents=True)  # by a kill, before site.json was written
    build(lenet, tmp_path / "stopped", title="")


def test_an_explainer_is_taken_as_it_is(tmp_path: Path) -> None:
    graph = tmp_path / "mine.onnx"
    run("export", LENET, "--method", "layercam", "-o", graph)
    found = site_model(str(graph), Request(None, target=ANY))
    assert (found.content, found.facts["method"], found.facts["target"]) == (graph.read_bytes(), "layercam", "top")
    with pytest.raises(CamrtError, match=r"mine.onnx.*with method 'layercam', expected 'gradcam'"):
        site_model(str(graph), Request("gradcam", target=ANY))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "name at least one model"),
        ([LENET, "--vendor", "--runtime", "x"], 2, "--vendor or --runtime, not both"),
        (["nosuch"], 2, "nosuch"),
        ([LENET, "--method", "grad-cam"], 2, "gradcam"),
        (["nosuch.onnx"], 1, "there is no such file"),
        ([LENET, "--sample", "nosuch.png"], 1, "nosuch.png: there is no such file"),
        ([LENET, "--runtime", "nosuch"], 1, "npm pack onnxruntime-web@"),
        ([LENET, "--top", "11"], 1, "found top 11, expected 1 to 10"),
        (["--serve"], 1, "holds no site, expected one of camrt web MODEL --out"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, said = run("web", *arguments)
    assert (found, words in " ".join(said.replace("│", " ").split())) == (status, True), said
    assert not (tmp_path / "site" / SITE).exists()


# ------------------------------------------------------------------------------------------------- onnxruntime-web


def test_the_pinned_files_are_those_of_npm(package: Path, tmp_path: Path, lenet: list[SiteModel]) -> None:
    """By the hashes that a browser checks, here computed by themselves."""
    for file in runtime.FILES:
        content = (package / "dist" / file.name).read_bytes()
        digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
        assert (len(content), f"sha384-{digest}") == (file.bytes, file.integrity)
    build(lenet[:1], tmp_path / "site", title="", package=package / "dist")
    site = stated(tmp_path / "site")
    for build_files in site["runtime"]["builds"].values():
        assert all((tmp_path / "site" / file["url"]).stat().st_size == file["bytes"] for file in build_files)
    assert runtime.CDN not in (tmp_path / "site" / "index.html").read_text()


def test_another_version_is_refused(tmp_path: Path) -> None:
    for file in runtime.FILES:
        (tmp_path / file.name).write_bytes(b"//")
    with pytest.raises(
        CamrtError, match=rf"ort.wasm.min.mjs: found the hash sha384-.*onnxruntime-web {runtime.VERSION}"
    ):
        runtime.vendored(tmp_path, tmp_path / "site")


def test_vendoring_downloads_once(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on this machine plays the registry of npm."""
    archive = tmp_path / "registry" / "onnxruntime-web.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for file in runtime.FILES:
            tar.add(package / "dist" / file.name, f"package/dist/{file.name}")
    content = archive.read_bytes()
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(runtime, "PACKAGE_BYTES", len(content))
    monkeypatch.setattr(runtime, "PACKAGE_SHA256", hashlib.sha256(content).hexdigest())
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(runtime, "PACKAGE", f"http://127.0.0.1:{server.server_address[1]}/{archive.name}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert run("web", LENET, "--vendor", "--out", tmp_path / "one")[0] == 0
        server.shutdown()
    assert run("web", LENET, "--vendor", "--out", tmp_path / "two")[0] == 0
    assert stated(tmp_path / "two")["runtime"]["vendored"]
    for file in runtime.FILES:
        assert (tmp_path / "two" / "runtime" / file.name).stat().st_size == file.bytes
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "other"))
    monkeypatch.setattr("converters.download.PAUSE_S", 0)
    status, _, said = run("web", LENET, "--vendor", "--out", tmp_path / "three")
    assert status == 1
    assert "name the folder with --runtime DIR" in " ".join(said.split())


# ------------------------------------------------------------------------------------------------- the server


def test_the_server_isolates_the_page_and_stays_in_its_folder(tmp_path: Path, lenet: list[SiteModel]) -> None:
    (tmp_path / "secret.txt").write_text("x")
    build(lenet[:1], tmp_path / "site", title="Digits")
    with served(tmp_path / "site") as url:
        with urllib.request.urlopen(url) as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        with urllib.request.urlopen(f"{url}camrt.js") as answer:
            assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        for path in ("models/", "nosuch", "../secret.txt", "%2e%2e/secret.txt"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url + path)


def test_a_page_that_is_closed_while_it_loads_is_no_error(
    tmp_path: Path, lenet: list[SiteModel], capsys: pytest.CaptureFixture[str]
) -> None:
    build(lenet[:1], tmp_path / "site", title="Digits")
    (tmp_path / "site" / "large").write_bytes(bytes(1 << 26))  # more than the system takes at once
    with served(tmp_path / "site") as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        with urllib.request.urlopen(url) as answer:  # and the next one is answered
            assert answer.status == 200
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_serving_until_interrupted(tmp_path: Path, lenet: list[SiteModel]) -> None:
    build(lenet[:1], tmp_path / "site", title="Digits")
    serving = command("web", "--serve", "--port", 0, "--out", tmp_path / "site")
    with subprocess.Popen(serving, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        url = said.split(" at ")[1].split(" ")[0]
        with urllib.request.urlopen(url) as answer:
            assert b"<title>Digits</title>" in answer.read()
        os.kill(process.pid, signal.SIGINT)
        assert process.stderr.read().strip().endswith("stopped")
        assert process.wait() == 0


def test_the_demo_opens_the_page(tmp_path: Path) -> None:
    """A program in place of the browser writes down what it is to open."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/part && mv {tmp_path}/part {tmp_path}/opened\n')
    browser.chmod(0o755)
    environment = {
        **os.environ,
        "BROWSER": f"{browser} %s",
        "TMPDIR": str(tmp_path),
        "CAMRT_HOME": str(tmp_path / "home"),
    }
    with subprocess.Popen(command("demo", "--web"), stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if " at http" in line).split(" at ")[1].split(" ")[0]
        with urllib.request.urlopen(f"{url}site.json") as answer:
            site = json.load(answer)
        assert [(one["title"], one["target"]) for one in site["models"]] == [(LENET, "any")]
        with urllib.request.urlopen(url + site["samples"][0]["file"]) as answer:
            assert answer.read() == SAMPLE.read_bytes()
        for _ in range(200):
            if (tmp_path / "opened").exists():
                break
            time.sleep(0.05)
        assert (tmp_path / "opened").read_text().strip() == url
        os.kill(process.pid, signal.SIGINT)
        assert process.wait() == 0
    assert not list(tmp_path.glob("camrt-demo-*"))


def test_a_port_that_is_taken_is_told(tmp_path: Path, lenet: list[SiteModel]) -> None:
    build(lenet[:1], tmp_path / "site", title="Digits")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, said = run("web", "--serve", "--port", port, "--out", tmp_path / "site")
    assert status == 1
    assert "Name another port with --port, or 0 for a free one" in " ".join(said.split())

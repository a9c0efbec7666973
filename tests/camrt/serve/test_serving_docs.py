"""docs/serving.md: its snippets run against a server, its manifests are YAML, its options exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from camrt.cli import app
from tests.camrt.serve.serving import Serving, serving  # skips where the extra is not installed
from tests.tiny_models import photo


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(photo(60, 80, 0)).save(tmp_path / "photo.jpg")
    return tmp_path


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_python_snippets_run(text: str, server: Serving, folder: Path) -> None:
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    snippets = blocks(text, "python")
    assert len(snippets) == 2
    checks = "assert heatmaps.ndim in (3, 4) and heatmaps.max() > 0\n"
    for snippet in snippets:
        script = snippet.replace("127.0.0.1:8000", server.place) + checks
        done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_curl_snippets_run(text: str, server: Serving, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (script,) = blocks(text, "sh")
    script = "set -e\n" + script.replace("127.0.0.1:8000", server.place).replace("curl ", "curl -sS --fail ")
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"top"' in done.stdout
    assert (Image.open(folder / "second.jpg").format, Image.open(folder / "best.png").format) == ("JPEG", "PNG")


def test_manifests_are_yaml_and_name_what_exists(text: str, server: Serving) -> None:
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    documents = [each for block in blocks(text, "yaml") for each in yaml.safe_load_all(block)]
    assert [each["kind"] for each in documents] == ["Deployment", "Service", "InferenceService"]
    assert all(each["apiVersion"] and each["metadata"]["name"] for each in documents)
    deployment, service, _ = documents
    pod = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    known = options("serve")
    assert {argument for argument in container["args"] if argument.startswith("--")} <= known
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server.get(container[probe]["httpGet"]["path"]).status_code == 200
    assert server.get(service["metadata"]["annotations"]["prometheus.io/path"]).status_code == 200
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_options_and_parameters_exist(text: str, server: Serving) -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", re.sub(r"(?m)^(docker|pip|    nvcr|RUN|FROM).*$", "", text)))
    known = options("serve") | options("export") | {"--seconds", "--rounds"}
    assert named - known == set()
    parameters = {one["name"] for one in server.get("/openapi.json").json()["paths"]["/explain"]["post"]["parameters"]}
    table = text[text.index("| parameter |") : text.index("`/docs` has")]
    assert (
        set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines() if "|" in row)))
        == parameters
    )


def options(command: str) -> set[str]:
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    return set(re.findall(r"--[a-z][a-z0-9-]+", done.stdout))

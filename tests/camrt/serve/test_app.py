from __future__ import annotations

import base64
import io
import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from camrt import CamrtError, Explainer
from camrt.loading import Request
from camrt.render import Style
from camrt.serve.limits import Limits
from camrt.serve.logs import JsonFormatter, json_logs
from camrt.serve.model import Loaded
from camrt.web import site
from tests.camrt.serve.serving import NAME, Serving, infer_body, serving  # skips where the extra is not installed
from tests.tiny_models import CLASSES, photo, tiny_classifier, tiny_explainer


def png(seed: int = 0, height: int = 60, width: int = 80) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo(height, width, seed)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as running:
        yield running


def squares(explainer: Explainer, count: int = 1, seed: int = 0) -> np.ndarray:
    return np.stack([explainer.prepare(png(seed + n)).loaded.square for n in range(count)])


# ------------------------------------------------------------------------------------------ the Open Inference Protocol


def test_metadata(server: Serving) -> None:
    size, top = server.explainer.size, server.explainer.top
    assert server.get("/v2").json()["name"] == "camrt"
    assert server.get("/v2/health/live").status_code == server.get("/v2/health/ready").status_code == 200
    found = server.get(f"/v2/models/{NAME}").json()
    assert found == server.get(f"/v2/models/{NAME}/versions/1").json()
    assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, size, size, 3]}]
    assert found["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [-1, CLASSES]},
        {"name": "classes", "datatype": "INT64", "shape": [-1, top]},
        {"name": "heatmaps", "datatype": "FP32", "shape": [-1, top, size, size]},
    ]
    assert server.get(f"/v2/models/{NAME}/ready").json() == {"name": NAME, "ready": True}
    assert server.post("/v2/repository/index").json() == [
        {"name": NAME, "version": "1", "state": "READY", "reason": ""}
    ]


@pytest.mark.parametrize(
    "path", ["/v2/models/no", f"/v2/models/{NAME}/versions/2", "/v2/models/no/ready", "/v3", "/a/b"]
)
def test_what_is_not_there(server: Serving, path: str) -> None:
    answer = server.get(path)
    assert answer.status_code == 404
    assert isinstance(answer.json()["error"], str)


def test_tritonclient_gets_what_the_explainer_gives(server: Serving) -> None:
    client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    triton = client.InferenceServerClient(server.place)
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(NAME)
    assert triton.get_model_metadata(NAME)["name"] == NAME
    pixels = squares(server.explainer, 3)
    expected = [server.explainer(png(n)) for n in range(3)]
    for is_binary in (True, False):
        image = client.InferInput("image", pixels.shape, "UINT8")
        image.set_data_from_numpy(pixels, binary_data=is_binary)
        asked = [client.InferRequestedOutput(name, binary_data=is_binary) for name in ("scores", "classes", "heatmaps")]
        for outputs in (asked, None):
            result = triton.infer(NAME, [image], outputs=outputs, request_id="r")
            assert result.get_response()["id"] == "r"
            for n, explanation in enumerate(expected):
                np.testing.assert_array_equal(result.as_numpy("classes")[n], explanation.classes)
                np.testing.assert_allclose(result.as_numpy("scores")[n], explanation.all_scores, rtol=1e-6)
                np.testing.assert_allclose(result.as_numpy("heatmaps")[n], explanation.heatmaps, rtol=1e-5, atol=1e-6)
    with pytest.raises(client.InferenceServerException if hasattr(client, "InferenceServerException") else Exception,
                       match="found the model 'other'"):  # fmt: skip
        triton.infer("other", [image])
    triton.close()


def test_classes_of_tritonclient(server: Serving) -> None:
    client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    triton = client.InferenceServerClient(server.place)
    pixels = squares(server.explainer)
    image = client.InferInput("image", pixels.shape, "UINT8")
    image.set_data_from_numpy(pixels)
    found = triton.infer(NAME, [image], outputs=[client.InferRequestedOutput("scores", class_count=1)])
    explanation = server.explainer(png())
    value, number, label = found.as_numpy("scores")[0][0].decode().split(":", 2)
    assert (int(number), label) == (explanation.classes[0], explanation.labels[0])
    assert float(value) == pytest.approx(explanation.scores[0], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [1, 3, 3, 3]}, "found the shape"),
        ({"datatype": "FP32"}, "found the datatype"),
        ({"name": "x"}, "found the input 'x'"),
    ],
)
def test_wrong_tensors_are_told_in_the_form_of_the_protocol(
    server: Serving, changes: dict[str, Any], message: str
) -> None:
    size = server.explainer.size
    body, headers = infer_body(
        [
            {
                "name": "image", "datatype": "UINT8", "shape": [1, size, size, 3],
                "parameters": {"binary_data_size": size * size * 3}, **changes,
            }
        ],
        bytes(size * size * 3),
    )  # fmt: skip
    answer = server.post(f"/v2/models/{NAME}/infer", data=body, headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_a_batch_that_is_too_large(server: Serving) -> None:
    size, rows = server.explainer.size, 9
    count = rows * size * size * 3
    tensor = {"name": "image", "datatype": "UINT8", "shape": [rows, size, size, 3]}
    body, headers = infer_body([{**tensor, "parameters": {"binary_data_size": count}}], bytes(count))
    answer = server.post(f"/v2/models/{NAME}/infer", data=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (
        400, "found a batch of 9, expected at most 8: send several requests"
    )  # fmt: skip


def test_classes_that_come_with_the_image() -> None:
    explainer = Explainer(tiny_classifier(), target="any", top=1, providers="cpu")
    with serving(explainer=explainer) as server:
        for number in (0, CLASSES - 1):
            found = server.explain(png(), target=str(number)).json()
            assert found["top"][0]["class"] == number
        best = server.explain(png()).json()["top"][0]["class"]
        assert best == explainer(png()).classes[0]
        assert "expected" in server.explain(png(), target=str(CLASSES)).json()["error"]
        size = explainer.size
        for number, status in ((1, 200), (-1, 200), (CLASSES, 400), (2**62, 400)):
            inputs = [
                {"name": "image", "datatype": "UINT8", "shape": [1, size, size, 3], "data": [0] * (size * size * 3)},
                {"name": "target", "datatype": "INT64", "shape": [1, 1], "data": [number]},
            ]
            answer = server.post(f"/v2/models/{NAME}/infer", json={"inputs": inputs, "outputs": [{"name": "classes"}]})
            assert answer.status_code == status, answer.text
            if number == 1:
                assert answer.json()["outputs"][0]["data"] == [1]
        answer = server.post(f"/v2/models/{NAME}/infer", json={"inputs": inputs[:1], "outputs": [{"name": "classes"}]})
        assert answer.json()["outputs"][0]["data"] == explainer(np.zeros((size, size, 3), np.uint8)).classes.tolist()


def test_a_graph_that_has_to_be_told_its_classes_refuses_a_request_without() -> None:
    explainer = Explainer(tiny_classifier(), target="input", top=1, providers="cpu")
    with serving(explainer=explainer) as server:
        size = explainer.size
        image = {"name": "image", "datatype": "UINT8", "shape": [1, size, size, 3], "data": [0] * (size * size * 3)}
        answer = server.post(f"/v2/models/{NAME}/infer", json={"inputs": [image]})
        assert (answer.status_code, answer.json()["error"]) == (400, "found no input target, expected image, target")


# ------------------------------------------------------------------------------------------------------- POST /explain


def test_a_precision_that_is_chosen_on_the_first_request() -> None:
    """Requests that come while it chooses wait, and are answered alike."""
    explainer = Explainer(tiny_explainer(), precision="auto")
    with serving(explainer=explainer) as running, ThreadPoolExecutor(4) as clients:
        answers = [answer.json() for answer in clients.map(lambda _: running.explain(png()), range(4))]
    assert len({answer["top"][0]["class"] for answer in answers}) == 1
    assert explainer.session.first_batch == 1  # it has chosen


def test_explain_answers_with_what_the_explainer_finds(server: Serving) -> None:
    found = server.explain(png(1), "street.png", heatmaps=True).json()
    expected = server.explainer(png(1))
    stated = expected.as_dict("best")
    assert found["source"] == "street.png"
    assert {name: found[name] for name in ("width", "height", "top")} == {
        name: stated[name] for name in ("width", "height", "top")
    }
    maps = np.frombuffer(base64.b64decode(found["heatmaps"]["base64"]), "<f4").reshape(found["heatmaps"]["shape"])
    np.testing.assert_array_equal(maps, expected.heatmaps)
    assert (found["model"], found["method"]) == (NAME, server.explainer.method)
    assert "boxes" not in server.explain(png(1), boxes="none").json()["top"][0]


def test_explain_answers_with_a_picture(server: Serving) -> None:
    expected = server.explainer(png(2))
    for rank in (1, 2):
        answer = server.explain(png(2), format="png", rank=rank, boxes="none")
        assert answer.headers["content-type"] == "image/png"
        drawn = np.asarray(Image.open(io.BytesIO(answer.content)))
        np.testing.assert_array_equal(drawn, expected.overlay(rank - 1))
    answer = server.explain(png(2), format="png")
    drawn = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(drawn, expected.overlay(0, Style(caption=False)))
    assert Image.open(io.BytesIO(server.explain(png(2), format="jpeg").content)).format == "JPEG"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/png"),
        ("image/avif, image/*;q=0.5, */*;q=0.8", "application/json"),
        ("image/png;q=0.5, image/jpeg", "image/jpeg"),
        ("application/json, image/png;q=0.9", "application/json"),
        ("text/html,application/xhtml+xml,image/avif,image/webp,image/png,*/*;q=0.8", "image/png"),
        ("image/png;q=x", "application/json"),
    ],
)
def test_accept(server: Serving, accept: str | None, kind: str) -> None:
    answer = server.post("/explain", files={"image": png()}, headers={"Accept": accept} if accept else {})
    assert answer.headers["content-type"] == kind


@pytest.mark.parametrize(
    ("content", "parameters", "status", "message"),
    [
        (b"", {}, 400, "found no bytes"),
        (b"not an image", {}, 400, "is no image"),
        (png()[:200], {}, 400, "broken or truncated"),
        (png(), {"model": "no"}, 404, "found the model 'no', expected one of tiny"),
        (png(), {"version": "9"}, 404, "found version '9'"),
        (png(), {"format": "gif"}, 400, "query.format"),
        (png(), {"rank": 0}, 400, "query.rank"),
        (png(), {"colormap": "pink"}, 400, "pink"),
        (png(), {"opacity": "nan"}, 400, "opacity"),
        (png(), {"rank": 99, "format": "png"}, 400, "found the rank 99, expected 1 to "),
        (png(), {"target": "cat"}, 400, "found the target 'cat', expected none: the model tiny takes no classes with"),
    ],
)
def test_what_cannot_be_explained(
    server: Serving, content: bytes, parameters: dict[str, Any], status: int, message: str
) -> None:
    answer = server.explain(content, **parameters)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_errors_are_for_clients(server: Serving) -> None:
    """No advice for those who call Python, or who have started the server."""
    floats = io.BytesIO()
    Image.fromarray(photo(20, 20, 0)[..., 0].astype(np.float32)).save(floats, "TIFF")
    with serving(explainer=Explainer(tiny_explainer(), providers="cpu", max_pixels=100)) as small:
        answers = [server.explain(b"text"), server.explain(floats.getvalue()), small.explain(png())]
        answers += [server.explain(png(), target="1")]
    for answer, said in zip(
        answers, ("Convert it to one of these", "save them so", "Send a smaller one", "it explains the best ones"),
        strict=True,
    ):  # fmt: skip
        error = answer.json()["error"]
        assert (answer.status_code, said in error) == (400, True), error
        assert not re.search(r"array|--|target=|max_pixels|Make one|uint8", error), error


def test_a_request_without_an_image(server: Serving) -> None:
    for arguments in ({"data": {"image": "text"}}, {"files": {"other": png()}}, {"json": {}}, {}):
        answer = server.post("/explain", **arguments)
        assert answer.status_code == 400, answer.text
        assert "image" in answer.json()["error"]


def test_names_of_files_are_names(server: Serving) -> None:
    assert server.explain(png(), "../../etc/passwd.png").json()["source"] == "passwd.png"
    assert server.explain(b"x", "C:\\a\\b.png").json()["error"].startswith("b.png: is no image")


# -------------------------------------------------------------------------------------------------- several at one time


@pytest.mark.parametrize("streams", [1, 2])
def test_32_clients_at_once_are_batched_and_answered(streams: int) -> None:
    limits = Limits(max_batch=8, max_queue=64)
    explainer = Explainer(tiny_explainer(), providers="cpu", streams=streams)
    with serving(limits=limits, explainer=explainer) as server, ThreadPoolExecutor(32) as clients:
        images = [png(seed) for seed in range(16)]
        expected = [server.explainer(image).as_dict()["top"] for image in images]
        batch = squares(server.explainer, 1)
        body, headers = infer_body(
            [
                {
                    "name": "image", "datatype": "UINT8", "shape": list(batch.shape),
                    "parameters": {"binary_data_size": batch.nbytes},
                }
            ],
            batch.tobytes(),
            parameters={"binary_data_output": True},
        )  # fmt: skip

        def ask(n: int) -> None:
            if n % 4 == 3:
                answer = server.post(f"/v2/models/{NAME}/infer", data=body, headers=headers)
                assert answer.status_code == 200
                return
            answer = server.explain(images[n % 16])
            assert answer.status_code == 200, answer.text
            assert [one["class"] for one in answer.json()["top"]] == [one["class"] for one in expected[n % 16]]

        list(clients.map(ask, range(256)))
        text = server.get("/metrics").text
    batches = float(re.search(r'camrt_batch_images_count\{model="tiny"\} (\S+)', text)[1])
    assert batches < 256, "no two requests were computed together"
    assert float(re.search(r'camrt_batch_images_sum\{model="tiny"\} (\S+)', text)[1]) == 256


class Slow:
    """Makes a server's session wait until it may go on, or fail."""

    def __init__(self, server: Serving) -> None:
        self.may_go, self.began = threading.Event(), threading.Event()
        self.failing = False
        session = server.explainer.session
        self._run, self._session = session.run, session

        def run(feeds: Any) -> Any:
            self.began.set()
            assert self.may_go.wait(20)
            if self.failing:
                raise CamrtError("the engine fails")
            return self._run(feeds)

        session.run = run  # type: ignore[method-assign]


def test_a_full_queue_answers_503_with_retry_after() -> None:
    with serving(limits=Limits(max_queue=2)) as server, ThreadPoolExecutor(8) as clients:
        slow = Slow(server)
        under_way = [clients.submit(server.explain, png(n)) for n in range(2)]
        assert slow.began.wait(10)
        until = time.monotonic() + 10
        while "camrt_requests_in_progress 3.0" not in server.get("/metrics").text and time.monotonic() < until:
            time.sleep(0.02)
        refused = server.explain(png(9))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"] == "found more requests at once than the limit of 2: try again later"
        assert server.is_alive(), "health is not part of the queue"
        slow.may_go.set()
        assert [one.result().status_code for one in under_way] == [200, 200]
        assert server.explain(png(9)).status_code == 200


def test_a_request_that_takes_too_long_is_told_and_the_next_one_answered() -> None:
    with serving(limits=Limits(timeout=0.3)) as server:
        slow = Slow(server)
        answer = server.explain(png())
        assert (answer.status_code, answer.json()["error"][:29]) == (504, "found no answer after 0.3 s: ")
        slow.may_go.set()
        assert server.explain(png()).status_code == 200


def test_an_engine_that_fails_is_told_and_the_server_goes_on() -> None:
    with serving() as server:
        slow = Slow(server)
        slow.may_go.set()
        slow.failing = True
        answer = server.explain(png())
        assert answer.status_code >= 400
        assert "the engine fails" in answer.json()["error"]
        slow.failing = False
        assert server.explain(png()).status_code == 200


# ------------------------------------------------------------------------------------------- limits, operation, models


def test_limits_of_bodies_and_pixels() -> None:
    explainer = Explainer(tiny_explainer(), providers="cpu", max_pixels=5000)
    with serving(limits=Limits(max_upload=20_000), explainer=explainer) as server:
        answer = server.explain(bytes(50_000))
        assert (answer.status_code, "at most 20,000 bytes" in answer.json()["error"]) == (413, True)
        whole = requests.Request("POST", server.url, files={"image": bytes(50_000)}).prepare()
        parts = iter([whole.body[start : start + 9000] for start in range(0, len(whole.body), 9000)])
        chunked = server.post("/explain", data=parts, headers={"Content-Type": whole.headers["Content-Type"]})
        assert chunked.status_code == 413
        answer = server.explain(png(0, 60, 90))
        assert (answer.status_code, "expected at most 5,000" in answer.json()["error"]) == (400, True)
        answer = server.post("/explain", data=b"x", headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 415
        assert server.explain(png(0, 50, 60)).status_code == 200


def test_cors_only_where_it_is_allowed() -> None:
    origin = {"Origin": "https://a.example"}
    with serving() as server:
        assert "access-control-allow-origin" not in server.get("/v2", headers=origin).headers
    with serving(origins=["https://a.example"]) as server:
        assert server.get("/v2", headers=origin).headers["access-control-allow-origin"] == "https://a.example"
        other = server.get("/v2", headers={"Origin": "https://b.example"}).headers
        assert "access-control-allow-origin" not in other


def test_metrics_are_prometheus_text(server: Serving) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    server.explain(png())
    families = {family.name: family for family in parser.text_string_to_metric_families(server.get("/metrics").text)}
    counts = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["camrt_requests"].samples
        if sample.name.endswith("_total")
    }
    assert counts["/explain", "200"] >= 1
    assert families["camrt_queue_images"].samples[0].labels == {"model": NAME, "version": "1"}
    server.get("/nothing/" + "x" * 50)
    assert "xxx" not in server.get("/metrics").text, "a client makes labels"


def test_logs_are_lines_of_json(server: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "camrt.serve"):
        server.explain(b"x")
        server.get("/\x1b[31mred")
        server.is_alive()
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "camrt.serve"]
    first, second = (line for line in lines if line["event"] == "request")
    assert {name: first[name] for name in ("method", "path", "status", "model")} == {
        "method": "POST", "path": "/explain", "status": 400, "model": NAME
    }  # fmt: skip
    assert first["received"] > 0
    assert (second["status"], "\x1b" in second["path"]) == (404, False)


def test_warnings_are_lines_of_the_log(server: Serving) -> None:
    frames = [Image.fromarray(photo(20, 30, n)) for n in range(3)]
    animation, stream = io.BytesIO(), io.StringIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings(), json_logs(stream):
        warnings.simplefilter("always")
        assert server.explain(animation.getvalue()).status_code == 200
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (warning,) = (line for line in lines if line["event"] == "warning")
    assert (warning["level"], warning["kind"]) == ("warning", "CamrtWarning")
    assert "several frames" in warning["text"]


def test_openapi_and_the_page(server: Serving) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/explain", "/v2/models/{model}/infer", "/v2/health/ready", "/metrics"} <= set(paths)
    assert server.get("/docs").status_code == 200
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'; " in page.headers["content-security-policy"]
    names = re.findall(r'(?:src|href)="([\w.]+)[?"]', page.text)
    assert {"camrt.js", "camrt.css", "docs"} <= set(names)
    for name in (*names, "site.json"):
        assert server.get(f"/{name}").status_code == 200, name
    assert server.get("/..%2fapp.py").status_code == 404


def test_a_site_of_camrt_web_takes_the_place_of_the_page(tmp_path: Path) -> None:
    site.build([site.site_model("lenetCAM", Request())], tmp_path / "site", title="A site")
    with serving(site=tmp_path / "site") as server:
        page = server.get("/")
        assert "<title>A site</title>" in page.text
        model = server.get("/site.json").json()["models"][0]["file"]
        for answer in (page, server.get(f"/{model}"), server.get("/camrt.js")):
            assert answer.status_code == 200
            assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
        assert "wasm-unsafe-eval" in page.headers["content-security-policy"]
        assert server.explain(png()).status_code == 200
    with pytest.raises(CamrtError, match="holds no site"), serving(site=tmp_path):
        pass


def test_several_models_and_versions() -> None:
    one = Explainer(tiny_explainer(), providers="cpu")
    other = Explainer(tiny_classifier(), top=1, providers="cpu")
    with serving(Loaded("a", "2", one), Loaded("b", "1", other), Loaded("a", "10", other)) as server:
        assert server.explain(png()).json()["version"] == "10", "the latest"
        assert server.explain(png(), version="2").json()["version"] == "2"
        assert server.explain(png(), model="b").json()["model"] == "b"
        assert server.get("/v2/models/a").json()["versions"] == ["2", "10"]
        assert len(server.post("/v2/repository/index").json()) == 3
    with (
        pytest.raises(CamrtError, match="two models called 'a'"),
        serving(Loaded("a", "1", one), Loaded("a", "1", one)),
    ):
        pass

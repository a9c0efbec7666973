"""The page of `camrt serve` in a real browser: the server computes, and what the page finds equals Python's answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camrt import Explainer
from camrt.loading import LENET
from camrt.render import overlay
from camrt.serve.limits import Limits
from camrt.serve.model import Loaded
from tests.camrt.serve.serving import Serving, serving  # skips where the extra serve is not installed
from tests.camrt.web.conftest import READY, explain, opened, result_of
from tests.tiny_models import tiny_classifier


@pytest.fixture(scope="module")
def digits() -> Iterator[Serving]:
    """lenetCAM by two methods; the second explains the best classes only."""
    models = [
        Loaded("lenet", "1", Explainer(LENET, target="any", providers="cpu")),
        Loaded("lenet-gradcam", "1", Explainer(LENET, method="gradcam", top=2, providers="cpu")),
    ]
    with serving(*models) as server:
        yield server


@pytest.fixture
def page(browser: Any, digits: Serving) -> Iterator[Any]:
    with opened(browser, digits.url) as found:
        yield found


def assert_equal(found: dict[str, np.ndarray], expected: Any) -> None:
    """The same graph, run by the same engine on the same square: only batches may differ."""
    assert found["classes"].tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found["scores"], expected.all_scores, atol=1e-6)
    np.testing.assert_allclose(found["heatmaps"], expected.heatmaps, atol=1e-5 * expected.heatmaps.max())


# ------------------------------------------------------------------------------------------------- what it finds


def test_classes_and_heatmaps_equal_pythons(page: Any, digits: Serving, canvas: Path) -> None:
    explain(page, canvas)
    expected = digits.explainer(canvas)
    assert_equal(result_of(page), expected)
    assert page.inner_text("#status").startswith(f"digit.png: {expected.labels[0]} ")
    assert page.inner_text("#engine") == "server"


def test_any_class_is_explained(page: Any, digits: Serving, canvas: Path) -> None:
    explain(page, canvas)
    last = int(np.argmin(digits.explainer(canvas).all_scores))
    page.fill("#search", str(last))
    page.click("#found button")
    page.wait_for_selector(f'.classes button[aria-pressed="true"][value="{last}"]')
    found = result_of(page)
    assert found["classes"][found["index"]] == last
    assert_equal(found, digits.explainer(canvas, target=last))


def test_models_side_by_side(page: Any, digits: Serving, canvas: Path) -> None:
    explain(page, canvas)
    page.check("#models input >> nth=1")
    page.wait_for_selector(".panel:nth-child(2) .classes button")
    second = digits.application.service.find("lenet-gradcam").explainer
    assert_equal(result_of(page, 1), second(canvas))
    assert page.locator(".panel:nth-child(2) .classes button:enabled").count() == 2  # this graph explains the best two


def test_nothing_else_is_loaded(browser: Any, digits: Serving, canvas: Path) -> None:
    """No onnxruntime-web, no graph, nothing from elsewhere; and of the image its square alone is sent."""
    asked: list[tuple[str, str, int]] = []
    context = browser.new_context()
    page = context.new_page()
    context.on("request", lambda one: asked.append((one.method, one.url, len(one.post_data_buffer or b""))))
    page.goto(digits.url)
    page.wait_for_selector(READY)
    explain(page, canvas)
    context.close()
    paths = {url.partition("?")[0].removeprefix(digits.url) for _, url, _ in asked if not url.startswith("data:")}
    assert paths == {"/", "/camrt.css", "/camrt.js", "/site.json", "/v2/models/lenet/versions/1/infer"}


def test_the_camera(page: Any) -> None:
    page.click("#camera")
    page.wait_for_selector('#rate:text-matches("frames/s")')
    page.wait_for_selector(".classes button")
    page.click("#camera")
    page.wait_for_selector("#rate", state="hidden")


def test_a_target_that_comes_with_the_image(browser: Any, tmp_path: Path) -> None:
    """A graph that has to be told its classes: the page asks for the best ones after it knows the scores."""
    model = tiny_classifier()
    told, best = (Explainer(model, target=target, top=2, providers="cpu") for target in ("input", None))
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    with serving(explainer=told) as server, opened(browser, server.url) as page:
        explain(page, tmp_path / "noise.png")
        assert_equal(result_of(page), best(tmp_path / "noise.png"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_nothing_sticks_out(browser: Any, digits: Serving, canvas: Path, width: int, scheme: str) -> None:
    viewport = {"width": width, "height": 800}
    with opened(browser, digits.url, viewport=viewport, color_scheme=scheme) as page:
        explain(page, canvas)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_the_drawn_map_is_that_of_the_servers_pictures(page: Any, digits: Serving, canvas: Path) -> None:
    """The colors that `POST /explain` draws, without the image: a map over black."""
    explain(page, canvas)
    drawn = page.evaluate(
        """() => {
            const { map } = camrt.panels.values().next().value.parts;
            return [...map.getContext("2d").getImageData(0, 0, map.width, map.height).data];
        }"""
    )
    pixels = np.reshape(drawn, (230, 320, 4)).astype(float)
    expected = overlay(np.zeros((230, 320, 3), np.uint8), digits.explainer(canvas).heatmaps[0])
    assert np.abs(0.7 * pixels[..., 3:] / 255 * pixels[..., :3] - expected).max() <= 6  # as in test_page.py


# ------------------------------------------------------------------------------------------------- what may go wrong


class Held:
    """Holds up a server's session until it is let go."""

    def __init__(self, server: Serving) -> None:
        self.may_go, self.began = threading.Event(), threading.Event()
        session = server.explainer.session
        run = session.run

        def held(feeds: Any) -> Any:
            self.began.set()
            assert self.may_go.wait(30)
            return run(feeds)

        session.run = held  # type: ignore[method-assign]


def lenet() -> Explainer:
    return Explainer(LENET, target="any", providers="cpu")


def test_a_busy_server_is_told_and_asked_again(browser: Any, canvas: Path) -> None:
    with (
        serving(explainer=lenet(), limits=Limits(max_queue=1)) as server,
        opened(browser, server.url, expected=("503",)) as page,
    ):
        held = Held(server)
        other = threading.Thread(target=server.explain, args=[canvas.read_bytes()])
        other.start()
        assert held.began.wait(10)
        page.set_input_files("#files", str(canvas))
        page.wait_for_selector("#problems li")
        told = page.inner_text("#problems li")
        assert "cannot explain this: the server is busy (503: found more requests at once than the limit of 1" in told
        held.may_go.set()
        other.join()
        page.click("#problems button:text-is('Try again')")
        page.wait_for_selector(".classes button")
        assert page.locator("#problems li").count() == 0
        assert_equal(result_of(page), server.explainer(canvas))


def test_a_server_that_takes_too_long_is_told(browser: Any, canvas: Path) -> None:
    with (
        serving(explainer=lenet(), limits=Limits(timeout=0.3)) as server,
        opened(browser, server.url, expected=("504",)) as page,
    ):
        held = Held(server)
        page.set_input_files("#files", str(canvas))
        page.wait_for_selector("#problems li")
        assert "the server took too long (504: found no answer after 0.3 s" in page.inner_text("#problems li")
        held.may_go.set()


def test_a_server_that_is_gone_is_told(browser: Any, canvas: Path) -> None:
    with serving(explainer=lenet()) as server, opened(browser, server.url, expected=("ERR_FAILED",)) as page:
        page.route("**/infer", lambda route: route.abort())
        page.set_input_files("#files", str(canvas))
        page.wait_for_selector("#problems li")
        assert "the server cannot be reached" in page.inner_text("#problems li")


def test_an_answer_that_is_cut_off_or_of_another_model_is_told(browser: Any, canvas: Path) -> None:
    with serving(explainer=lenet()) as server, opened(browser, server.url) as page:
        page.route("**/infer", lambda route: route.fulfill(body=b"<p>Sign in</p>", content_type="text/html"))
        page.set_input_files("#files", str(canvas))
        page.wait_for_selector("#problems li")
        assert "the server's answer cannot be read" in page.inner_text("#problems li")


def test_files_that_are_no_images_are_told_and_the_others_go_on(page: Any, canvas: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    explain(page, tmp_path / "text.png", canvas)
    assert page.inner_text("#problems li").startswith("text.png\nis no image that this browser can read")
    assert page.locator(".classes button").count()


def test_labels_are_text(browser: Any, canvas: Path) -> None:
    hostile = "<img src=x onerror='document.title=1'>"
    explainer = Explainer(LENET, labels=[f"{hostile}{number}" for number in range(10)], providers="cpu")
    with serving(explainer=explainer) as server, opened(browser, server.url) as page:
        explain(page, canvas)
        assert page.inner_text(".classes .label").startswith(hostile)
        assert page.locator(".classes img, #found img").count() == 0
        assert page.title() != "1"

"""The page in a real browser: what it finds equals Python's answers, and it tells what is wrong."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from camrt import Explainer, images
from camrt.loading import Request
from camrt.localize import best_box
from camrt.web.runtime import CDN
from camrt.web.site import ANY, SITE, SiteModel, build, site_model
from tests.camrt.web.conftest import READY, Site, explain, opened, result_of, served

TOLERANCE = 1e-3  # of the largest value of a map


def explainer(site: Site, place: int = 0) -> Explainer:
    """Python's, of the very graph of the page."""
    return Explainer(site.folder / json.loads((site.folder / SITE).read_text())["models"][place]["file"])


def assert_equal_to_python(found: dict[str, np.ndarray], expected: Any) -> None:
    assert found["classes"].tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found["scores"], expected.all_scores, atol=1e-4)
    np.testing.assert_allclose(found["heatmaps"], expected.heatmaps, atol=TOLERANCE * expected.heatmaps.max())


# ------------------------------------------------------------------------------------------------- what it finds


def test_classes_and_heatmaps_equal_pythons(explained: Any, site: Site, canvas: Path) -> None:
    assert "1 thread" not in explained.inner_text("#engine")  # the server isolates the page
    expected = explainer(site)(canvas)
    assert_equal_to_python(result_of(explained), expected)
    assert explained.inner_text("#status").startswith(f"digit.png: {expected.labels[0]} ")


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(300, 200, "RGB"), (40, 333, "RGB"), (64, 48, "L"), (100, 100, "RGB"), (77, 120, "RGBA"), (1, 3, "RGB")],
)
def test_squares_are_those_of_python(kept: Any, tmp_path: Path, width: int, height: int, mode: str) -> None:
    """To a gray level, whichever axis is resized first, smaller or larger; and colors below alpha count."""
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode).save(file)
    assert_square(kept, file, 1)


def test_gamma_is_ignored_and_orientation_applied(kept: Any, tmp_path: Path) -> None:
    """As Python does; a smooth image, as decoders of JPEG differ at edges."""
    smooth = np.stack(np.broadcast_arrays(np.arange(120), np.arange(200)[:, None], 100), axis=2).astype(np.uint8)
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))  # linear
    Image.fromarray(smooth).save(tmp_path / "linear.png", pnginfo=gamma)
    assert_square(kept, tmp_path / "linear.png", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    assert_square(kept, tmp_path / "turned.jpg", 3)


def assert_square(page: Any, file: Path, most: int) -> None:
    """The network's square is that of Python, to so many gray levels."""
    square = page.evaluate(
        """async (text) => {
            const { decoded, squareOf } = await import(document.scripts[0].src);
            const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
            const { data, width, height } = await decoded(new Blob([bytes]));
            return [...squareOf(data, width, height, 100)];
        }""",
        base64.b64encode(file.read_bytes()).decode(),
    )
    expected = images.prepare(images.decode(file), 100)
    assert np.abs(np.reshape(square, expected.shape).astype(int) - expected).max() <= most


@pytest.mark.slow
def test_photographs_by_an_imagenet_network(browser: Any, package: Path, reference: Path, tmp_path: Path) -> None:
    """SqueezeNet on a photograph: classes, heatmaps and the box that Python finds; then another class by its button."""
    folder = reference / "squeezenet"
    labels = (folder / "labels.txt").read_text().splitlines()
    photo = tmp_path / "cat.png"
    Image.open(folder / "cat.jpg").save(photo)  # browsers decode JPEG a little differently
    request = Request("gradcam", preprocess="torchvision", labels=labels, target=ANY)
    model = site_model(str(folder / "squeezenet1_1.onnx"), request)
    build([model], tmp_path / "site", title="Photographs", package=package)
    with served(tmp_path / "site") as url, opened(browser, f"{url}?backend=wasm") as page:
        explain(page, photo)
        site = Site(tmp_path / "site", url)
        python = explainer(site)
        expected = python(photo)
        found = result_of(page)
        assert_equal_to_python(found, expected)
        assert found["index"] == 0
        page.fill("#search", "beer bottle")
        page.click("#found button")
        page.wait_for_selector('.classes button[aria-pressed="true"][title^="beer bottle"]')
        found = result_of(page)
        again = python(photo, target="beer bottle")
        assert_equal_to_python(found, again)
        assert found["classes"][found["index"]] == labels.index("beer bottle")
        page.keyboard.press("Escape")
        page.click("#empty, h1", force=True)
        page.keyboard.press("0")
        page.wait_for_selector(f'.classes button[aria-pressed="true"][title^="{expected.labels[0]}"]')
        assert_equal_to_python(result_of(page), expected)


def test_the_box_is_pythons(explained: Any, site: Site, canvas: Path) -> None:
    left, top, width, height = best_box(explainer(site)(canvas).heatmaps[0])[0] * (320, 230, 320, 230)
    expected = np.rint([left, top, left + width, top + height])
    x, y, w, h = result_of(explained)["box"]
    assert np.abs(np.array([x, y, x + w, y + h]) - expected).max() <= 1


def test_the_drawn_map_is_that_of_python(explained: Any, site: Site, canvas: Path) -> None:
    """The colors that `camrt.render.overlay` mixes, without the image: a map over black."""
    from camrt import render

    drawn = explained.evaluate(
        """() => {
            const { map } = camrt.panels.values().next().value.parts;
            return [...map.getContext("2d").getImageData(0, 0, map.width, map.height).data];
        }"""
    )
    pixels = np.reshape(drawn, (230, 320, 4)).astype(float)
    ours = 0.7 * pixels[..., 3:] / 255 * pixels[..., :3]
    black = np.zeros((230, 320, 3), np.uint8)
    theirs = render.overlay(black, explainer(site)(canvas).heatmaps[0])
    assert np.abs(ours - theirs).max() <= 6  # gray levels: a browser keeps colors multiplied by alpha, in 8 bits


@pytest.mark.slow
def test_webgpu_equals_python(launch: Callable[..., Any], site: Site, canvas: Path) -> None:
    """On whatever adapter is there: SwiftShader, a program that comes with Chromium, if there is no GPU."""
    flags = ["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--ignore-gpu-blocklist"]
    browser = launch(*flags, "--use-webgpu-adapter=swiftshader")
    try:
        with opened(browser, f"{site.url}?backend=webgpu") as page:
            if page.get_attribute("#engine", "data-backend") != "webgpu":
                pytest.skip(f"Chromium has no WebGPU adapter: {page.inner_text('#status')}")
            explain(page, canvas)
            assert_equal_to_python(result_of(page), explainer(site)(canvas))
        with opened(browser, site.url) as page:
            assert page.inner_text("#status") == "There is no GPU but a program that acts as one; computing with wasm"
    finally:
        browser.close()


# ------------------------------------------------------------------------------------------------- how it is used


def test_models_side_by_side_and_a_class_for_both(page: Any, site: Site, canvas: Path) -> None:
    explain(page, canvas)
    assert page.locator(".panel").count() == 1
    page.locator("#models input").nth(1).check()
    page.wait_for_selector(".panel:nth-child(2) .classes button")
    for place in (0, 1):
        expected = explainer(site, place)(canvas)
        assert_equal_to_python(result_of(page, place), expected)
    worst = int(np.argmin(expected.all_scores))
    page.fill("#search", str(worst))
    page.press("#search", "Enter")
    for place in (0, 1):
        pressed = page.locator(f".panel:nth-child({place + 1}) .classes button[aria-pressed=true][value='{worst}']")
        pressed.wait_for()
        assert_equal_to_python(result_of(page, place), explainer(site, place)(canvas, target=worst))
    page.locator("#models input").nth(0).uncheck()
    assert page.locator(".panel h2").all_inner_texts() == ["lenetCAM"]
    page.locator("#models input").nth(1).click()  # the last one stays
    assert page.locator(".panel").count() == 1


def test_a_file_that_is_no_image_is_told_and_stops_no_other(page: Any, canvas: Path, tmp_path: Path) -> None:
    text, cut, empty = tmp_path / "notes.png", tmp_path / "cut.png", tmp_path / "empty.jpg"
    text.write_text("<script>alert(1)</script>")
    cut.write_bytes(canvas.read_bytes()[:300])
    empty.touch()
    explain(page, text, canvas, cut, empty)
    page.wait_for_selector("#problems li:nth-child(3)")
    assert page.locator("#problems strong").all_inner_texts() == ["notes.png", "cut.png", "empty.jpg"]
    problems = page.locator("#problems li").all_inner_texts()
    assert "is no image that this browser can read (image/png, 25 bytes), expected a whole JPEG, PNG" in problems[0]
    assert page.inner_text("#status").startswith("digit.png: ")
    page.locator("#problems button").first.click()
    assert page.locator("#problems li").count() == 2


def test_drop_and_paste(page: Any, canvas: Path) -> None:
    content = base64.b64encode(canvas.read_bytes()).decode()
    for kind, event in (("drop", "DragEvent"), ("paste", "ClipboardEvent")):
        page.evaluate(
            """([text, kind, event, type]) => {
                const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
                const how = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
                document.body.dispatchEvent(new globalThis[event](kind, how));
            }""",
            [content, kind, event, "image/png"],
        )
        page.wait_for_selector(f'#status:text-matches("^{kind}.png: ")')
    assert page.locator("#strip button").count() == 2
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector('#status:text-matches("^drop.png: ")')


def test_keys_slider_and_value_under_the_pointer(page: Any, site: Site, canvas: Path) -> None:
    explain(page, canvas)
    for key, wanted in (("b", {"boxes": False}), ("m", {"colormap": "inferno"}), ("+", {"opacity": 0.8})):
        page.keyboard.press(key)
        assert page.evaluate("() => camrt.settings").items() >= wanted.items()
    assert page.locator(".map").evaluate("(map) => map.style.opacity") == "0.8"
    assert page.input_value("#opacity") == "80"
    page.keyboard.press("2")
    second = page.locator(".classes li:nth-child(2) button[aria-pressed=true]")
    second.wait_for()
    heatmap = explainer(site)(canvas).heatmaps[1]
    frame = page.locator(".picture").bounding_box()
    page.mouse.move(frame["x"] + 0.505 * frame["width"], frame["y"] + 0.505 * frame["height"])
    value, _, x, y = page.inner_text(".value").replace(",", "").split()
    assert (x, y) == ("161", "116")
    assert abs(float(value) - heatmap[50, 50] / np.abs(heatmap).max()) < 0.01
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_save(explained: Any, canvas: Path, tmp_path: Path) -> None:
    with explained.expect_download() as waiting:
        explained.keyboard.press("s")
    assert waiting.value.suggested_filename.startswith("digit_")
    waiting.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved, Image.open(canvas) as image:
        assert saved.size[0] == 320
        assert saved.size[1] > 230
        kept, original = np.asarray(saved.convert("RGB"))[:230], np.asarray(image)
    assert (kept != original).any()  # the map is on it
    assert (kept == original).all(axis=2).mean() > 0.2  # and what is not hot is the image


@pytest.mark.slow
def test_camera(page: Any) -> None:
    """A made-up camera of Chromium: frames are explained one after the other, while the video plays."""
    page.click("#camera")
    page.wait_for_selector('#rate:text-matches("frames/s")')
    page.wait_for_selector(".classes button")
    assert page.locator(".video").evaluate("(video) => !video.paused && video.videoWidth > 0")
    page.evaluate(  # until a later frame is explained
        """async () => {
            const panel = camrt.panels.values().next().value;
            const first = panel.result;
            while (!panel.result || panel.result === first) await new Promise((resolve) => setTimeout(resolve, 20));
        }"""
    )
    page.keyboard.press("Space")  # the frame stays, as an image
    page.wait_for_selector('#status:text-matches("^camera-.*png: ")')
    page.wait_for_selector("#rate", state="hidden")
    assert page.get_attribute("#camera", "aria-pressed") == "false"
    page.click("#camera")
    page.wait_for_selector('#rate:text-matches("frames/s")')
    page.click("#camera")
    page.wait_for_selector("#rate", state="hidden")


def test_nothing_sticks_out(page: Any, canvas: Path) -> None:
    explain(page, canvas)
    red = "(name) => Number(getComputedStyle(document.body)[name].match(/[0-9]+/)[0])"
    for width, scheme in ((1280, "light"), (390, "dark"), (320, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, width
        is_light = page.evaluate(red, "color") < page.evaluate(red, "backgroundColor")
        assert is_light == (scheme == "light"), scheme


# ------------------------------------------------------------------------------------------------- what may go wrong


def test_labels_and_names_are_text(
    browser: Any, package: Path, lenet: list[SiteModel], canvas: Path, tmp_path: Path
) -> None:
    hostile = "<img src=x onerror='document.title=1'>"
    facts = {**lenet[0].facts, "labels": [f"{hostile}{number}" for number in range(lenet[0].facts["classes"])]}
    build([SiteModel(lenet[0].content, hostile, facts)], tmp_path / "site", title=hostile, package=package)
    with served(tmp_path / "site") as url, opened(browser, f"{url}?backend=wasm") as page:
        explain(page, canvas)
        assert page.title() == hostile
        assert page.inner_text(".panel h2") == hostile
        assert page.inner_text(".classes .label").startswith(hostile)
        page.fill("#search", "img")
        assert page.locator("#found img, .classes img").count() == 0


def test_a_graph_that_was_cut_off_is_told(browser: Any, site: Site, tmp_path: Path) -> None:
    folder = shutil.copytree(site.folder, tmp_path / "site")
    graph = next((folder / "models").glob("*-cam-*.onnx"))
    graph.write_bytes(graph.read_bytes()[:1000])
    with served(folder) as url, opened(browser, f"{url}?backend=wasm") as page:
        told = page.inner_text("#problems")
        assert "is not the file that belongs here: found 1000 bytes, expected" in told
        graph.unlink()
        page.reload()
        page.wait_for_selector("#problems li")


@pytest.mark.slow
@pytest.mark.parametrize("is_tampered", [False, True])
def test_the_runtime_from_the_cdn_is_checked(
    browser: Any, package: Path, lenet: list[SiteModel], canvas: Path, tmp_path: Path, is_tampered: bool
) -> None:
    """The CDN is played by the files of the npm package."""
    build(lenet[:1], tmp_path / "site", title="Digits")
    asked = []

    def answer(route: Any) -> None:
        name = route.request.url.removeprefix(CDN)
        asked.append(name)
        content = (package / "dist" / name).read_bytes()
        changed = (
            content.replace(b"function", b"funct1on", 1) if is_tampered and name == "ort.wasm.min.mjs" else content
        )
        kind = "application/wasm" if name.endswith(".wasm") else "text/javascript"
        route.fulfill(body=changed, content_type=kind, headers={"Access-Control-Allow-Origin": "*"})

    context = browser.new_context()
    context.route(f"{CDN}*", answer)
    page = context.new_page()
    page.set_default_timeout(60_000)
    with served(tmp_path / "site") as url:
        page.goto(f"{url}?backend=wasm")
        page.wait_for_selector(f"{READY}, #problems li", state="attached")
        if is_tampered:
            assert "ort.wasm.min.mjs is not the file that belongs here: its hash is sha384-" in page.inner_text(
                "#problems"
            )
        else:
            explain(page, canvas)
            assert sorted(asked) == ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.wasm.min.mjs"]
    context.close()


def test_without_internet_the_page_says_what_to_do(browser: Any, lenet: list[SiteModel], tmp_path: Path) -> None:
    build(lenet[:1], tmp_path / "site", title="Digits")
    context = browser.new_context()
    context.route(f"{CDN}*", lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(60_000)
    with served(tmp_path / "site") as url:
        page.goto(f"{url}?backend=wasm")
        page.wait_for_selector("#problems li")
        told = page.inner_text("#problems")
    context.close()
    assert "cannot be fetched from cdn.jsdelivr.net" in told
    assert "camrt web --vendor" in told


def test_a_page_without_gpu_says_so_and_computes_with_wasm(browser: Any, site: Site, canvas: Path) -> None:
    with opened(browser, site.url) as page:
        assert page.inner_text("#engine").startswith(("wasm", "WebGPU"))
        if page.get_attribute("#engine", "data-backend") == "wasm":
            assert "computing with wasm" in page.inner_text("#status")
        explain(page, canvas)
        assert_equal_to_python(result_of(page), explainer(site)(canvas))

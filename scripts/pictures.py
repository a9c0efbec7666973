"""Draws the photographs of README and docs into docs/pictures and docs/methods: ``make pictures``.

The photographs come with scikit-image (docs/credits.md). The classifier is SqueezeNet 1.1, trained on ImageNet; this
repository does not have it. It is found as ``squeezenet/squeezenet1_1.onnx``, with ``labels.txt`` beside it, in the
folder ``$CAMRT_REFERENCE`` or in ``../shared/reference``, or by ``--classifier``. Where it is missing, the committed
pictures stay as they are. Those of attention are drawn with ``--transformer FILE``, the network that
``scripts/digit_transformer.py FILE`` trains. The pictures of the two pages are taken in Chromium, by Playwright.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt import Explainer, Explanation, Style, captions, colors, images, render, report, results
from camrt.concepts import find_concepts
from camrt.docs import PICTURED, SAMPLE, SIDE
from camrt.graph.methods import BLACK_BOX, METHODS, find
from camrt.localize.crf import CRF

Image = NDArray[np.uint8]

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("CAMRT_REFERENCE", ROOT.parent / "shared" / "reference"))
CLASSIFIER = REFERENCE / "squeezenet" / "squeezenet1_1.onnx"
RUNTIME = ROOT / "build" / "node" / "node_modules" / "onnxruntime-web"
PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png")
SQUARE, COLUMNS = 188, 6  # pixels: a picture of a method; in the strip of all of them
WIDTH = 300  # pixels: a panel of a row
TEXT = 512  # pixels: captions are those of a picture of that size
QUALITY = 72
WINDOW = 1200  # pixels: of the window that the pages are shown in
NO_BOXES = Style(boxes=None)


@dataclasses.dataclass(frozen=True)
class Studio:
    """The photographs and the classifier.

    Attributes:
        classifier: An ONNX classifier in torchvision's preprocessing.
        labels: The first name of each class.
        folder: The photographs.
    """

    classifier: Path
    labels: tuple[str, ...]
    folder: Path

    def explainer(self, method: str = "cam", **arguments: Any) -> Explainer:
        """Return an explainer of the classifier."""
        return Explainer(self.classifier, method, preprocess="torchvision", labels=self.labels, **arguments)

    def explain(self, photograph: str, method: str = "cam", **arguments: Any) -> Explanation:
        """Explain a photograph, shrunk to the width of a panel."""
        return self.explainer(method, **arguments)(self.folder / photograph).fitted(WIDTH)


# ------------------------------------------------------------------------------------------------------------ pictures


def first(studio: Studio) -> Image:
    """A photograph, three classes, their maps."""
    return _row(studio.explain("coffee.png", target=["espresso", "chocolate sauce", "red wine"]), NO_BOXES)


def best(photograph: str, studio: Studio) -> Image:
    """A photograph and its three best classes, as the network itself saw images in training: the center crop."""
    return _row(studio.explain(photograph, protocol="center", top=3), Style())


def any_class(studio: Studio) -> Image:
    """Classes that are far from the best, but have a place in the photograph."""
    return _row(studio.explain("astronaut.png", target=["space shuttle", "stethoscope", "flagpole"]), Style())


def methods(studio: Studio) -> Image:
    """Each method on one photograph."""
    panels = []
    for name in PICTURED:
        panels.append(_named(_best_map(studio, "coffee.png", name), name))
    blank = np.full_like(panels[0], 255)
    panels += [blank] * (-len(panels) % COLUMNS)
    rows = [render.row(panels[i : i + COLUMNS]) for i in range(0, len(panels), COLUMNS)]
    return np.vstack(rows)


def method_on_photograph(name: str, studio: Studio) -> Image:
    """One method on the photographs of a cup and a cat, for docs/methods.md."""
    return render.row([_best_map(studio, photograph, name) for photograph in ("coffee.png", "chelsea.png")])


def black_box(studio: Studio) -> Image:
    """The methods that only run the model; what lowers the score is blue."""
    panels = []
    for name in (name for name in BLACK_BOX if not name.startswith("baseline-")):
        explained = studio.explainer(name, top=1)(studio.folder / "coffee.png")
        is_signed = bool((explained.heatmaps < 0).any())
        style = Style(colormap="bwr" if is_signed else colors.DEFAULT, boxes=None, caption=False)
        panels.append(_named(_square(explained.overlay(0, style)), name))
    return render.row(panels)


def concepts(studio: Studio) -> Image:
    """What the features of a cat are made of."""
    found = find_concepts(
        studio.classifier, [studio.folder / "chelsea.png"], preprocess="torchvision", labels=studio.labels
    )
    return found.picture(0)


def demo(studio: Studio) -> Image:
    """The picture of demo.m: ten crops, jet."""
    shown = studio.explainer(protocol="ten-crop", top=5)(studio.folder / "chelsea.png").demo_picture()
    return images.resize(shown, (round(len(shown) * 1200 / shown.shape[1]), 1200))


def boxes(studio: Studio) -> Image:
    """The best box, and the original's boxes."""
    explained = studio.explain("coffee.png", top=1)
    styles = ("none", Style(boxes=None)), ("best", Style()), ("all", Style(boxes="all"))
    return render.row([_named(explained.overlay(0, _plain(style)), f"boxes: {name}") for name, style in styles])


def crf(studio: Studio) -> Image:
    """A map, the map that a CRF refined, and what its mask cuts out."""
    explained = studio.explain("coffee.png", "gradcam", top=1)
    refined = explained.refine(crf=CRF(bilateral=(50, 13, 10), gaussian=(3, 3), iterations=10))
    cut = np.where(refined.mask(0)[..., None], explained.image, np.uint8(255))
    style = _plain(Style(colormap="viridis", boxes=None))
    panels = (
        (explained.image, "photograph"),
        (explained.overlay(0, style), "Grad-CAM: espresso"),
        (refined.overlay(0, style), "refined by a CRF"),
        (cut, "its mask"),
    )
    return render.row([_named(panel, name) for panel, name in panels])


def colormaps(studio: Studio) -> Image:
    """One map in each sequential color map, and a signed one."""
    explained = studio.explain("coffee.png", top=1)
    names = ("turbo", "inferno", "viridis", "jet")
    return render.row([_named(explained.overlay(0, _plain(Style(colormap=name, boxes=None))), name) for name in names])


def signed(studio: Studio) -> Image:
    """Integrated gradients: their magnitude, and their sign: red for the class, blue against it."""
    explain = functools.partial(studio.explain, "coffee.png", "integrated-gradients", top=1)
    magnitude, with_sign = explain(), explain(settings={"values": "signed"})
    panels = (
        (magnitude.image, "photograph"),
        (_alone(magnitude, "inferno"), "magnitude: inferno"),
        (_alone(with_sign, "bwr"), "signed: bwr"),
    )
    return render.row([_named(panel, name) for panel, name in panels])


def figure(studio: Studio) -> Image:
    """What Explanation.figure() draws."""
    drawn = studio.explain("rocket.jpg", protocol="center", top=3).figure(Style(colormap="inferno"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figure.png"
        drawn.savefig(file, dpi=110, bbox_inches="tight")
        return images.decode(file)


def page(studio: Studio, browser: Any) -> Image:
    """The page of camrt explain --html."""
    explainer = studio.explainer(top=5)
    found = [dataclasses.replace(explainer(studio.folder / name), source=name) for name in PHOTOGRAPHS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.html"
        file.write_text(report.html_page(found), encoding="utf-8")
        return _screenshot(browser, file.as_uri(), ".picture canvas", height=620)


def browser_page(studio: Studio, browser: Any) -> Image:
    """The page of camrt web, which computes in the browser."""
    from camrt.loading import Request
    from camrt.web.server import serving, url_of
    from camrt.web.site import ANY, build, site_model

    requests = [
        Request(method, target=ANY, top=5, preprocess="torchvision", labels=studio.labels)
        for method in ("cam", "layercam")
    ]
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        models = [site_model(str(studio.classifier), request) for request in requests]
        samples = [studio.folder / name for name in PHOTOGRAPHS]
        build(models, site, title="What does the network see?", samples=samples, package=RUNTIME)
        with serving(site, 0) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                return _screenshot(
                    browser, f"{url_of(server)}?backend=wasm", "body[data-ready=true] .panel .classes li", height=640
                )
            finally:
                server.shutdown()
                thread.join()


DRAWN: dict[str, Callable[[Studio], Image]] = {
    "first": first,
    "chelsea": functools.partial(best, "chelsea.png"),
    "rocket": functools.partial(best, "rocket.jpg"),
    "astronaut": functools.partial(best, "astronaut.png"),
    "any-class": any_class,
    "methods": methods,
    "black-box": black_box,
    "concepts": concepts,
    "demo": demo,
    "boxes": boxes,
    "crf": crf,
    "colormaps": colormaps,
    "signed": signed,
    "figure": figure,
}
# detectors: by scripts/detector_picture.py, whose detector is trained on the spot; training: by the commands of
# docs/training.md.
TRAINED = ("detectors", "training")
SHOWN: dict[str, Callable[[Studio, Any], Image]] = {"page": page, "browser": browser_page}


# ------------------------------------------------------------------------------------------------------------- drawing


@functools.cache
def _best_map(studio: Studio, photograph: str, method: str) -> Image:
    """The map of the best class as a square: over the photograph, or alone if it is one of pixels, which hide there."""
    explained = studio.explainer(method, top=1)(studio.folder / photograph)
    return _square(_alone(explained, "inferno") if find(method).kind == "pixels" else explained.overlay(0))


def _alone(explained: Explanation, colormap: str) -> Image:
    """The map of the best class, without the photograph."""
    height, width = explained.image.shape[:2]
    levels: NDArray[Any] = colors.levels(explained.heatmaps[0], colormap)
    return images.resize(colors.color_table(colormap)[levels], (height, width))


def _square(picture: Image) -> Image:
    """The middle of a picture."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images.resize(picture[top : top + side, left : left + side], (SQUARE, SQUARE))


def _named(picture: Image, name: str, score: str = "") -> Image:
    return np.vstack([picture, captions.caption(picture.shape[1], name, score, side=TEXT)])


def _plain(style: Style) -> Style:
    return dataclasses.replace(style, caption=False)


def _row(explained: Explanation, style: Style) -> Image:
    """The photograph and its maps. Captions are larger than Explanation.picture's: pages show the row small."""
    panels = [_named(explained.image, Path(explained.source).name)]
    for i, (label, score) in enumerate(zip(explained.labels, explained.scores.tolist(), strict=True)):
        panels.append(_named(explained.overlay(i, _plain(style)), label, captions.score_text(score)))
    return render.row(panels)


# --------------------------------------------------------------------------------------------------------------- files


def drawn(studio: Studio) -> Iterator[tuple[str, Image]]:
    """The paths below docs, and pictures, of all that needs no browser."""
    for name, draw in DRAWN.items():
        yield f"pictures/{name}.jpg", draw(studio)
    for name in PICTURED:
        yield f"methods/{name}.jpg", method_on_photograph(name, studio)


def of_attention(docs: Path, transformer: Path | None) -> None:
    """Write the pictures of the methods of attention: the digit, as a vision transformer sees it.

    Args:
        docs: Where they go.
        transformer: What scripts/digit_transformer.py wrote; without it, the committed pictures stay.
    """
    if transformer is None:
        print("note: the pictures of attention stay as they are: they need --transformer", file=sys.stderr)
        return
    for name in (name for name in METHODS if find(name).tokens):
        overlay = Explainer(transformer, name, top=1)(SAMPLE).overlay(0)
        picture = images.resize(overlay, (SIDE, SIDE))
        results.write(docs / "methods" / f"{name}.png", render.png(picture))


def write(docs: Path, studio: Studio) -> None:
    """Write all pictures. What cannot be drawn here is said, and the committed picture stays."""
    for name, picture in drawn(studio):
        _write(docs / name, picture)
    with _chromium() as browser:
        for name, show in SHOWN.items():
            if browser is None or (name == "browser" and not RUNTIME.is_dir()):
                needed = "Playwright and Chromium" if browser is None else f"onnxruntime-web in {RUNTIME}"
                print(f"note: docs/pictures/{name}.jpg stays as it is: it needs {needed}", file=sys.stderr)
            else:
                _write(docs / "pictures" / f"{name}.jpg", show(studio, browser))


def studio_of(classifier: Path) -> Studio | str:
    """The classifier and the photographs; or what is missing."""
    labels = classifier.parent / "labels.txt"
    for file in (classifier, labels):
        if not file.is_file():
            return f"found no {file}: name a classifier of photographs (--classifier FILE), with labels.txt beside it"
    try:
        import skimage
    except ImportError:
        return "found no scikit-image, which brings the photographs: pip install 'camrt[docs]'"
    names = labels.read_text(encoding="utf-8").splitlines()
    return Studio(classifier, tuple(name.split(",")[0] for name in names), Path(skimage.__file__).parent / "data")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER, metavar="FILE", help="by default %(default)s")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR", help="where pictures are written")
    parser.add_argument(
        "--transformer", type=Path, metavar="FILE", help="what scripts/digit_transformer.py wrote, for attention"
    )
    options = parser.parse_args(arguments)
    of_attention(options.docs, options.transformer)
    studio = studio_of(options.classifier)
    if isinstance(studio, str):
        print(f"note: the pictures stay as they are: {studio}", file=sys.stderr)
        return
    write(options.docs, studio)


def _write(file: Path, picture: Image) -> None:
    content = render.jpeg(picture, QUALITY)
    results.write(file, content)
    print(f"{file}  {picture.shape[1]} x {picture.shape[0]}  {len(content) / 1000:.0f} kB")


@contextmanager
def _chromium() -> Iterator[Any]:
    """A browser; None where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def _screenshot(browser: Any, url: str, ready: str, *, height: int) -> Image:
    """What the window shows of a page as soon as an element is there."""
    context = browser.new_context(viewport={"width": WINDOW, "height": height}, color_scheme="light")
    try:
        shown = context.new_page()
        shown.set_default_timeout(60_000)
        shown.goto(url)
        shown.wait_for_selector(ready)
        shown.wait_for_load_state("networkidle")
        shown.wait_for_timeout(1500)  # until pictures are decoded, and maps drawn over them
        return images.decode(shown.screenshot())
    finally:
        context.close()


if __name__ == "__main__":
    main()

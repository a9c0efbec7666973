"""The command `camrt demo`: what demo.m shows; and lenetCAM, which needs no download."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.batch import ENDINGS, MAX_SIDE
from camrt.catalog import Entry
from camrt.commands.options import (
    STATUS,
    Json,
    MaxPixels,
    Precision,
    PresetName,
    Provider,
    Weights,
    check_model,
    check_picture,
    is_same_file,
    named,
)
from camrt.commands.output import reporting, write_picture
from camrt.commands.reference import ReferenceDir, categories, hint_of_download, reference_folder
from camrt.errors import CamrtError
from camrt.loading import LENET, Request, is_name, title_of
from camrt.results import json_line
from converters import metadata
from converters.errors import ConversionError
from converters.terminal import echo, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from camrt.explanation import Explanation
    from camrt.images import ImageLike

_SCENES = "places205"
_CATEGORIES = {"imagenet": "categories1000.mat", _SCENES: "categories_places205.mat"}  # of the original, by label set
_SMALL, _SHOWN = 200, 400  # pixels: maps below that side are shown enlarged, to about this side

EXAMPLES = f"""Examples:

  camrt demo                                  a small trained network and its picture; nothing is downloaded

  camrt demo lenetCAM_mnist                   the same for handwriting

  camrt demo googlenetCAM photo.jpg

  camrt demo resnet50-explainer.onnx photo.jpg -o resnet50.png

  camrt demo --model googlenetCAM_places205 photo.jpg      the scene: its category, and where it shows

  camrt demo --cached 1                       the original's features of its image 1

  camrt demo --web                            a page in the browser, for your own images and the camera

{STATUS}
"""


def demo(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="A named model, or an ONNX model.", show_default=True)
    ] = LENET,
    image: Annotated[
        Path | None, typer.Argument(metavar="[IMAGE]", help="By default the original's img1.jpg, or a digit.")
    ] = None,
    model_option: Annotated[
        str | None, typer.Option("--model", help="The model, in place of MODEL; then IMAGE is the only argument.")
    ] = None,
    weights: Weights = None,
    preprocess: PresetName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write: .png, .jpg or .jpeg.")] = Path(
        "result.png"
    ),
    cached: Annotated[
        int | None,
        typer.Option(min=1, max=2, help="Take the features that were released of image 1 or 2; no network runs."),
    ] = None,
    reference_dir: ReferenceDir = None,
    max_pixels: MaxPixels = None,
    provider: Provider = None,
    precision: Precision = None,
    as_page: Annotated[
        bool, typer.Option("--web", help="Open a page that explains images in the browser, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what demo.m shows: the five best classes, and a picture of where the network sees them."""
    if model_option is not None:
        if image is not None:
            raise typer.BadParameter(f"found the model {model} too, expected it once", param_hint="--model")
        model, image = model_option, None if model == LENET else Path(model)
    if cached is not None and (model != LENET or (image, weights, preprocess) != (None, None, None)):
        raise typer.BadParameter(
            "goes without a model and an image: the features are of the original's", param_hint="--cached"
        )
    if image is None and Path(model).suffix.lower() in ENDINGS:
        raise typer.BadParameter(f"the model comes first: camrt demo {LENET} {model}", param_hint="MODEL")
    check_model(model, weights)
    check_picture(output, "--output")
    if is_same_file(output, image):
        raise typer.BadParameter(f"{output} is the image", param_hint="--output")
    if as_page and cached is not None:
        raise typer.BadParameter("goes without --cached: the page runs a network", param_hint="--web")
    is_first_look = (model, image, cached) == (LENET, None, None)
    began = time.perf_counter()
    with reporting():
        if as_page:
            request = Request(preprocess=preprocess.value if preprocess else None, weights=weights, target="any")
            _web_demo(model, request, _demo_image(model, image, reference_folder(reference_dir)))
            return
        if cached is not None:
            record, picture = _cached_demo(reference_folder(reference_dir), cached)
        else:
            explain = functools.partial(
                _explained,
                model,
                weights=weights,
                preprocess=preprocess.value if preprocess else None,
                providers=provider,
                precision=precision.value if precision else None,
                max_pixels=max_pixels,
            )
            reference = reference_folder(reference_dir)
            record, picture = _network_demo(model, image, reference, explain)
            if is_first_look:
                photo = _photo_demo(reference, max_pixels)
                record["photo"] = photo and photo.as_dict("best")
                picture = picture if photo is None else _stacked(picture, photo.picture())
        line = "".join(f" --top{rank}:{one['label']}" for rank, one in enumerate(record["top"], 1))
        write_picture(output, picture)
        record |= {"line": line, "picture": str(output.absolute()), "seconds": round(time.perf_counter() - began, 3)}
        if as_json:
            print(json_line(record))
        else:
            if is_first_look:
                say(*_explanation_of(record))
            echo(line, *_scene_lines(record), record["picture"])


def _explained(name: str, image: ImageLike, *, max_pixels: int | None, **arguments: Any) -> Explanation:
    from camrt.explainer import Explainer
    from camrt.images import MAX_PIXELS

    arguments |= {"protocol": _protocol(name), "max_side": MAX_SIDE, "max_pixels": max_pixels or MAX_PIXELS}
    return Explainer(name, **arguments)(image)


def _protocol(name: str) -> str | None:
    """The original's ten crops; None where the model states what it wants, or is none of Caffe's."""
    if is_name(name):
        found = named(name)
        return None if isinstance(found, Entry) else found.protocol or "ten-crop"
    try:
        stated = metadata.of_file(Path(name))
    except (OSError, ValueError):
        return None  # loading the file reports the error
    return None if {metadata.PROTOCOL, metadata.EXPLAINER} & stated.keys() else "ten-crop"


def _network_demo(
    name: str, image: Path | None, reference: Path, explain: Callable[[ImageLike], Explanation]
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    found = explain(_demo_image(name, image, reference))
    labels = _labels(name, found, reference)
    top = [{**one, "label": label} for one, label in zip(found.as_dict()["top"], labels, strict=True)]
    record: dict[str, Any] = {"model": name, "image": found.source, "top": top}
    if _label_set(name) == _SCENES:
        record["scene"] = {"category": scene(labels[0]), "score": top[0]["score"], "attributes": None}
    if found.heatmaps.shape[-1] < _SMALL:
        return record | {"boxes": found.boxes(0).tolist()}, _enlarged(found, name)
    return record, found.demo_picture()


def _web_demo(name: str, request: Request, sample: Path) -> None:
    """Serve a page of a model in a temporary folder, and open it."""
    from camrt.web import runtime
    from camrt.web.server import serve_site
    from camrt.web.site import build, site_model

    with tempfile.TemporaryDirectory(prefix="camrt-demo-") as folder:
        site = Path(folder) / "site"
        title = "What does the network see?"
        build([site_model(name, request)], site, title=title, samples=[sample], package=runtime.cached())
        serve_site(site, 0, is_opened=True)


def _enlarged(found: Explanation, name: str) -> NDArray[np.uint8]:
    """Draw a small image and its best class, with boxes and captions, large enough to look at."""
    import numpy as np

    from camrt import captions, images, render

    height, width = found.image.shape[:2]
    times = max(1, round(_SHOWN / max(height, width)))
    large = images.resize(found.image, (times * height, times * width))
    drawn = render.demo_overlay(large, found.resized(0, large.shape[:2]))
    boxes = np.rint(found.boxes(0) * (len(large) / found.original_size[0]))
    side = max(large.shape)
    given = captions.caption(
        large.shape[1],
        "the image",
        f"{found.original_size[1]} x {found.original_size[0]}",
        "what the network is given",
        side=side,
    )
    label = captions.drawable(found.labels[0], f"class {found.classes[0]}")
    seen = captions.caption(
        large.shape[1],
        f"{found.model or title_of(name)} sees: {label}",
        captions.score_text(float(found.scores[0])),
        "red: where it sees it; white: the boxes around that",
        side=side,
    )
    return render.row([np.vstack([large, given]), np.vstack([render.draw_boxes(drawn, boxes), seen])])


def _photo_demo(reference: Path, max_pixels: int | None) -> Explanation | None:
    """Explain a photograph, where one is here, and the weights of a network that knows photographs."""
    from converters import zoo

    photo = _photo(reference)
    known = [model for model in zoo.models().values() if model.labels == "imagenet" and model.features]
    name = next((model.name for model in known if zoo.weights_path(model).is_file()), None)
    if photo is None or name is None:
        return None
    try:
        return _explained(name, photo, max_pixels=max_pixels, top=2)
    except (CamrtError, ConversionError) as error:  # the demo is whole without it
        say(f"note: {name} shows no photograph: {error}")
        return None


def _photo(reference: Path) -> Any:
    """The original's photograph, or one of scikit-image's own."""
    if (reference / "img1.jpg").is_file():
        return reference / "img1.jpg"
    try:
        from skimage import data

        return data.coffee()
    except (ImportError, OSError):
        return None


def _stacked(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put a picture below another one, at the same width."""
    import numpy as np

    from camrt import images

    height = max(1, round(len(lower) * upper.shape[1] / lower.shape[1]))
    return np.vstack([upper, images.resize(lower, (height, upper.shape[1]))])


def _explanation_of(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """What was done, what the picture shows, and what to try next."""
    best = record["top"][0]
    also = f"; below it a photograph: {record['photo']['top'][0]['label']}" if record["photo"] else ""
    return (
        f"{LENET}, a small network for digits, was converted from Caffe's files to ONNX, and looked at an image.",
        f"It sees a {best['label']} ({best['score']:.1%}); red and the boxes in the picture show where{also}.",
        "Next, your own: camrt explain photo.jpg --model net.onnx --preprocess torchvision --method gradcam --html",
    )


def _demo_image(name: str, image: Path | None, reference: Path) -> Any:
    if image is not None:
        return image
    from converters.zoo import models_folder

    own = models_folder() / name / "sample.png"
    if is_name(name) and own.is_file():
        return own
    if (reference / "img1.jpg").is_file():
        return reference / "img1.jpg"
    say(f"note: no image is named, and img1.jpg is not in {reference}: it is shown a digit, which no class fits")
    return models_folder() / LENET / "sample.png"


def _labels(name: str, found: Explanation, reference: Path) -> Sequence[str]:
    """Return the names as the original prints them, with WordNet's numbers, where its list is there."""
    file = reference / _CATEGORIES.get(_label_set(name) or "", "none")
    if not file.is_file():
        return found.labels
    names = categories(file)
    return [names[number] for number in found.classes.tolist()]


def _label_set(name: str) -> str | None:
    """Return the set of class names of a named model: a key of the registry's ``labels``."""
    model = named(name) if is_name(name) else None
    return None if model is None or isinstance(model, Entry) else model.labels


def scene(category: str) -> str:
    """Return a category of Places205 in words: ``/a/apartment_building/outdoor`` is "apartment building, outdoor"."""
    letter, *words = category.strip("/").split("/")
    return ", ".join(words if words and len(letter) == 1 else [letter, *words]).replace("_", " ")


def _scene_lines(record: Mapping[str, Any]) -> Sequence[str]:
    """Say what the scene is, as the unified prediction of Places: categories, attributes, and what the map is of."""
    if "scene" not in record:
        return ()
    ranked = ", ".join(f"{float(one['score']):.3f} -> {scene(one['label'])}" for one in record["top"])
    return (
        f"scene categories: {ranked}",
        "scene attributes: none, as the released files of this network have none",
        f"class activation map: of {record['scene']['category']}, the first of the picture",
    )


def _cached_demo(folder: Path, number: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """demo.m with ``online = 0``. It differs in averaging image 1's scores over the crops, as it does for image 2."""
    from camrt import images, matlab, validate

    file = folder / f"img{number}.jpg"
    with hint_of_download():
        released = validate.released(folder, number)
        image = matlab.imresize(images.decode(file), (matlab.SIDE, matlab.SIDE))
        labels = categories(folder / "data_net.mat")
    if released.features is None or released.weights is None or released.scores is None:
        raise CamrtError("found no features, weights or scores, expected the original's data files", file=str(folder))
    classes, scores = matlab.top_classes(released.scores)
    maps = matlab.demo_maps(matlab.return_cam_map(released.features, released.weights[classes]))
    top = [
        {"class": int(k), "label": labels[k], "score": float(str(score))}
        for k, score in zip(classes, scores, strict=True)
    ]
    return {"model": "released features", "image": str(file), "top": top}, matlab.demo_result(image, maps)

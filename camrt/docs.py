"""Generate docs/methods.md and its images from the registry of methods: ``python -m camrt.docs docs``.

The images show the sample image of lenetCAM, which is included with camrt.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from camrt.graph.methods import METHODS, Method, find

MODEL, SAMPLE = "lenetCAM", Path(__file__).resolve().parent.parent / "models" / "lenetCAM" / "sample.png"
SIDE = 200  # size of an image in pixels
FOLDER = "methods"  # of the images, relative to the page

_HEAD = """\
# Methods

Generated from the registry of methods by `python -m camrt.docs docs`. A test fails if this page is out of date.

A map is a weighted sum of features, and a method defines the weights. Pixel methods compute a map of the image itself.
Every method is part of the ONNX graph, and uses standard operators only:

```
camrt export resnet50.onnx --method gradcam --preprocess torchvision -o resnet50_gradcam.onnx
camrt explain photos/ --model resnet50_gradcam.onnx
```

```python
explainer = camrt.Explainer("resnet50.onnx", "layercam", preprocess="torchvision", top=3)
model = camrt.explain_graph(classifier, "smoothgrad", "center", target="cup", settings={"samples": 50})
```

The images show a digit among clutter, which lenetCAM classifies. Since lenetCAM ends in global average pooling and a
linear layer, Grad-CAM, HiResCAM and XGrad-CAM are equal to CAM without its negative values.
"""

_REST = """\
## Targets
| `target` | explained classes | number |
|---|---|---|
| omitted | the classes with the best scores, after merging the crops, in the same run | `top` |
| `504`, `"cup"`, `["cup", 281]` | these classes, for every image; `--target` may be repeated | as many as given |
| `"input"` | classes for each image, from the second input of the graph, `target` (N x top, int64) | `top` |
| `"sum"` | the sum of all values of the tensor `scores` for an image, of any shape | one map |

`explainer(image, target="cup")` and `explainer.map(images, targets=...)` set the input `target`. A class that does not
exist is an error, also in the graph (except for negative numbers, which ONNX counts from the end).

The differentiated score is the one before the final Softmax (Sigmoid, LogSoftmax), of the last output with a row of
scores for each image. `scores="tensor"` (`--scores`) selects another tensor, which then becomes the output `scores`
unchanged.

## Features
By default, the features are the last ones with spatial positions, before the last pooling, on which all paths from the
image meet: for VGG16 `relu5_3`, 14 x 14, rather than `pool5`. The choice is logged, and stored in the metadata of the
model. `layer="relu4_3"` (`--layer`) selects others, by tensor or node.

Several layers (`layer=["relu4_3", "relu5_3"]`) are fused: for each crop and class, the maps of the layers are scaled to
0..1 and averaged, as in pytorch-grad-cam. It upsamples them bilinearly, camrt bicubically.

For vision transformers, the features are the normalized tokens at the input of the last attention, since only the class
token matters after it. Prefix tokens (a class token, the two of DeiT, registers) are omitted, and the others are
arranged as a square; it is an error if their number is not a square. Tokens before the normalization would not be
suitable for HiResCAM and XGrad-CAM: the score does not depend on the length of such a token, so its gradient is
orthogonal to it, and the maps would consist of rounding errors.

## Several crops
`protocol="ten-crop"` and `"full"` run and differentiate all crops in one pass. The best classes are those of the merged
scores. The map of each crop is mirrored back if necessary, pasted at the position of the crop, and the maps are added.
Feature maps are first upsampled bicubically, and maps of ten crops count three times, as in the original. Negative
values that result from upsampling are set to 0 for methods with a ReLU, while cam adds absolute values, as in the
original.

## Cost
A method with gradients takes one forward pass, and one backward pass to the layer: for VGG16, only through its linear
layers. All classes share the forward pass, and each has its own row in the backward pass. Pixel methods differentiate
the whole network for each class, and therefore explain one class by default. smoothgrad, integrated-gradients and
scorecam run the network repeatedly, in an ONNX Loop, whose memory does not depend on their settings; scorecam runs it
once for each channel, or only for the `channels` of largest variance. The file contains the weights only once.

## Differences from other libraries
Maps are compared with those of pytorch-grad-cam 1.5 and torch-cam 0.5, for the same weights, image and layer. They
agree to 1e-4 after the normalization of these libraries, with these exceptions:

- **gradcam++**: pytorch-grad-cam adds 1e-6 to the denominator, which matters for small derivatives (below 1e-2). camrt
  cancels g^2 in the fraction, and adds nothing. torch-cam omits the division: it divides a copy, and continues with
  g^2.
- **xgradcam**: both libraries add 1e-7 or 1e-8 to the sum of a map. camrt skips maps whose sum is 0.
- **eigencam**: the sign of a singular vector is arbitrary, and pytorch-grad-cam uses that of the decomposition. camrt
  chooses the sign that agrees with the sum of the features. Negative values are then set to 0, as in
  pytorch-grad-cam.
- **scorecam**: maps are scaled to 0..1 and upsampled as in torch-cam. pytorch-grad-cam aligns the corners of the map
  and the image, and scales to 0..1 after upsampling; its maps are similar but not equal.
- **layercam** of several layers: torch-cam uses the maximum of the tanh of the maps, camrt the mean of the maps.
- **Normalization**: other libraries scale the final map to 0..1 by its smallest and largest value. Heatmaps of camrt
  are not normalized, so that crops, classes and images can be compared; `Explanation.heatmap` divides by the largest
  value.
- **smoothgrad**: the noise is the same in each run, so that an image always has the same map.

## A method of your own
```python
from camrt.graph.methods import method


@method("mean-activation", kind="features", title="Mean activation", gradients=False, top=1)
def mean_activation(layer):
    return layer.repeated(layer.builder.reduce("Mean", layer.features, [2]))
```

`layer` has `features` (N, crops, channels, places), `gradients` (N, crops, classes, channels, places), `weighted(...)`
and the `builder` of nodes: see `camrt.graph.methods.scene`.
"""


def methods() -> str:
    """Return the page, as Markdown."""
    entries = [find(name) for name in METHODS]
    return "\n".join([_HEAD, _table(entries), *map(_section, entries), _REST])


def pictures() -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents (PNG) of the images: for each method, the map of the best class of the sample."""
    import cv2

    from camrt import Explainer, render

    for name in METHODS:
        overlay = Explainer(MODEL, name, top=1)(SAMPLE).overlay(0)
        yield f"{name}.png", render.png(cv2.resize(overlay, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))


def write(folder: Path) -> None:
    """Write the page and its images.

    Raises:
        CamrtError: A file cannot be written.
    """
    from camrt import results

    for name, content in pictures():
        results.write(folder / FOLDER / name, content)
    results.write(folder / "methods.md", methods().encode())


def _table(entries: Iterable[Method]) -> str:
    rows = ["| method | needs | classes by default | crops by default | settings |", "|---|---|---|---|---|"]
    seen: list[str] = []
    for entry in entries:
        anchor = _anchor(entry)
        repeats = f"-{seen.count(anchor)}" if anchor in seen else ""  # as Markdown numbers headings of one anchor
        seen.append(anchor)
        settings = ", ".join(f"`{name}={default}`" for name, default in entry.settings.items())
        top = f"the best {entry.top}" if entry.top > 1 else "the best"
        link = f"[`{entry.name}`](#{anchor}{repeats})"
        rows.append(f"| {link} | {_needs(entry)} | {top} | {entry.protocol} | {settings} |")
    return "\n".join(rows) + "\n"


def _needs(entry: Method) -> str:
    if entry.kind == "head":
        return "global average pooling and one linear layer"
    if entry.again and entry.gradients:
        return "a pass back to the image, again and again"
    if entry.again:
        return "passes forward, again and again"
    if not entry.gradients:
        return "features"
    return "a pass back to the image" if entry.kind == "pixels" else "a pass back to the features"


def _section(entry: Method) -> str:
    text = inspect.getdoc(entry.maps) or ""
    body = re.split(r"\n(?:Source|Args|Example):\n", text)[0].strip()
    first, _, rest = body.partition("\n")
    settings = _described_settings(text)
    picture = f"![{entry.name}]({FOLDER}/{entry.name}.png)"
    parts = [f"## {entry.title}", picture, f"`{entry.name}`: {first}", rest.strip()]
    return "\n\n".join([part for part in [*parts, settings, entry.source] if part]) + "\n"


def _described_settings(text: str) -> str:
    """Return the descriptions of the settings in a docstring, as a Markdown list."""
    found = re.search(r"\nArgs:\n(.*?)(?:\n\n|$)", text, re.DOTALL)
    lines = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", found.group(1), re.MULTILINE) if found else []
    return "\n".join(
        f"- `{name}`: {' '.join(words.split())}" for name, words in lines if name not in ("layer", "scene")
    )


def _anchor(entry: Method) -> str:
    """Return the anchor of a method's heading."""
    return re.sub(r"[^a-z0-9 -]", "", entry.title.lower()).replace(" ", "-")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))

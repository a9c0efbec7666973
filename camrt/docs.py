"""Writes docs/methods.md and its pictures from the registry: ``python -m camrt.docs docs``.

The pictures are of lenetCAM's sample image: small enough to be read, and always there.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from camrt.graph.methods import METHODS, Method, find

MODEL, SAMPLE = "lenetCAM", Path(__file__).resolve().parent.parent / "models" / "lenetCAM" / "sample.png"
SIDE = 200  # pixels of a picture
FOLDER = "methods"  # of the pictures, beside the page

_HEAD = """\
# Methods

Generated from the registry by `python -m camrt.docs docs`; a test fails when it is stale.

A map is a weighted sum of features, and a method says what the weights are. The methods of pixels give a map of the
image itself. All of them are part of the ONNX graph, in standard operators:

```
camrt export resnet50.onnx --method gradcam --preprocess torchvision -o resnet50_gradcam.onnx
camrt explain photos/ --model resnet50_gradcam.onnx
```

```python
explainer = camrt.Explainer("resnet50.onnx", "layercam", preprocess="torchvision", top=3)
model = camrt.explain_graph(classifier, "smoothgrad", "center", target="cup", settings={"samples": 50})
```

The pictures: the digit that lenetCAM finds among clutter. It ends in global average pooling and a linear layer, where
Grad-CAM, HiResCAM and XGrad-CAM are CAM less its negative values.
"""

_REST = """\
## What is explained
| `target` | what | classes |
|---|---|---|
| left out | the classes with the best scores, after the crops were merged: all in one run | `top` of them |
| `504`, `"cup"`, `["cup", 281]` | these classes, for each image; `--target` may be repeated | as many |
| `"input"` | those that come with each image: the graph's second input `target` (N x top, int64) | `top` |
| `"sum"` | the sum of all that the tensor `scores` holds for an image, whatever its shape | one map |

`explainer(image, target="cup")` and `explainer.map(images, targets=...)` feed the input of the third kind. A class that
does not exist is an error, in the graph too (but for negative numbers, which ONNX counts from the end).

What is differentiated is the score before the Softmax (Sigmoid, LogSoftmax) at the end, of the last output that has a
row of scores for an image. `scores="tensor"` (`--scores`) names another: then the output `scores` holds it as it is.

## Which features
By default, the features are the last ones with positions that everything in the image passes, before the last pooling:
in VGG16 `relu5_3`, 14 x 14, and not `pool5`. The choice is logged and written into the model's metadata. To choose
another layer, give the name of a tensor or a node: `layer="relu4_3"` (`--layer`).

The axis of the channels is found, not assumed. ConvNeXt, Swin and MambaOut work on N x height x width x channels in
between; the axes are followed along the graph to the nearest operator that tells, such as a convolution, a layer
normalization or a linear layer. Where no operator tells, or several contradict each other, the error names the
candidates.

Several layers (`layer=["relu4_3", "relu5_3"]`) are fused as in pytorch-grad-cam: each map, of each crop and class, is
scaled to 0..1, and their mean is taken. pytorch-grad-cam enlarges them bilinearly, camrt bicubically.

In a vision transformer the features are the tokens that the last attention gets, after their normalization: behind it,
only the class token counts. The prefix tokens (a class token, DeiT's two, registers) are left out, and the others form
a square; if they do not, that is an error. Before the normalization, HiResCAM and XGrad-CAM would give nothing but
rounding errors: the score does not change with the scale of a token there, so its derivative is orthogonal to it.

Where an If or a Loop lies between the features and the scores, there is no gradient, and the network cannot be run
again. `eigencam` needs neither. The error names the operator and what else works: scores before it (`--scores`), or a
layer behind it (`--layer`).

## Several crops
`protocol="ten-crop"` and `"full"` run all crops, and differentiate all of them, in one pass. The best classes are those
of the merged scores. Each crop's map is laid where the crop was, mirrored back, and they are added. Maps of features
are enlarged bicubically before; ten of them count three times, as in the original. What enlarging brings below 0 is cut
off where the method has a ReLU, while cam adds magnitudes, as the original does.

## What it costs
One pass forward, and one back to the layer: of VGG16 through its linear layers alone. All classes share the pass
forward, and each has a row of its own on the way back. The methods of pixels go back through the whole network for each
class, so they explain one if nothing is said. smoothgrad, integrated-gradients and scorecam run the network again and
again, in an ONNX Loop whose memory does not grow with their settings; scorecam once for each channel, unless
`channels` says less. Weights are in the file once.

## Where we differ from others
Maps are compared with those of pytorch-grad-cam 1.5 and torch-cam 0.5, on the same weights, image and layer: they agree
to 1e-4 after these libraries' own normalization, but for what follows.

- **gradcam++**: pytorch-grad-cam adds 1e-6 to the denominator, which matters where derivatives are small (below 1e-2);
  we divide g^2 out, and add nothing. torch-cam leaves the division out: it divides a copy, and goes on with g^2.
- **xgradcam**: both add 1e-7 or 1e-8 to the sum of a map; we leave out maps whose sum is 0.
- **eigencam**: the sign of a singular vector is open, and pytorch-grad-cam takes what the decomposition happens to
  give; we take that which goes with the sum of the features. Then what is below 0 is cut off, as it does.
- **scorecam**: maps are brought to 0..1 and enlarged as in torch-cam. pytorch-grad-cam aligns the corners of map and
  image, and brings to 0..1 after the enlarging: its maps are alike, not the same.
- **layercam** of several layers: torch-cam takes the largest of their tanh, we the mean.
- **Normalization**: others bring a finished map to 0..1, by its least and largest value. Our heatmaps are not
  normalized, so that crops, classes and images can be compared; `Explanation.heatmap` divides by the largest.
- **smoothgrad**: the noise is the same in each run, so that the same image has the same map.

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
    """The page, as Markdown."""
    entries = [find(name) for name in METHODS]
    return "\n".join([_HEAD, _table(entries), *map(_section, entries), _REST])


def pictures() -> Iterator[tuple[str, bytes]]:
    """The names and contents (PNG) of the pictures: the sample's best class, by each method."""
    import cv2

    from camrt import Explainer, render

    for name in METHODS:
        overlay = Explainer(MODEL, name, top=1)(SAMPLE).overlay(0)
        yield f"{name}.png", render.png(cv2.resize(overlay, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))


def write(folder: Path) -> None:
    """Write the page and its pictures.

    Raises:
        CamrtError: The folder cannot be written to.
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
    """What the docstring says of the settings, as a list."""
    found = re.search(r"\nArgs:\n(.*?)(?:\n\n|$)", text, re.DOTALL)
    lines = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", found.group(1), re.MULTILINE) if found else []
    return "\n".join(
        f"- `{name}`: {' '.join(words.split())}" for name, words in lines if name not in ("layer", "scene")
    )


def _anchor(entry: Method) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^a-z0-9 -]", "", entry.title.lower()).replace(" ", "-")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))

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

Generated from the registry by `python -m camrt.docs docs`. A test fails when this page is out of date.

A class activation map is a weighted sum of features, and a method defines the weights. Pixel methods give a map of the
image itself. Every method is part of the ONNX graph, in standard operators:

```
camrt export resnet50.onnx --method gradcam --preprocess torchvision -o resnet50_gradcam.onnx
camrt explain photos/ --model resnet50_gradcam.onnx
```

```python
explainer = camrt.Explainer("resnet50.onnx", "layercam", preprocess="torchvision", top=3)
model = camrt.explain_graph(classifier, "smoothgrad", "center", target="cup", settings={"samples": 50})
```

The pictures show the digit that lenetCAM finds among clutter. This network ends in global average pooling and a linear
layer, where Grad-CAM, HiResCAM and XGrad-CAM equal CAM without its negative values.
"""

_REST = """\
## What is explained
| `target` | what | classes |
|---|---|---|
| not given | the classes with the best scores, after the crops are merged; all in one run | `top` of them |
| `504`, `"cup"`, `["cup", 281]` | these classes, for each image; `--target` may be repeated | as many |
| `"input"` | the classes that come with each image: the graph's second input `target` (N x top, int64) | `top` |
| `"sum"` | the sum of all values of the tensor `scores` for an image, whatever its shape | one map |

`explainer(image, target="cup")` and `explainer.map(images, targets=...)` feed the input of the third kind. A class that
does not exist is an error, in the graph too (except for negative numbers, which ONNX counts from the end).

The score is differentiated before the final Softmax (Sigmoid, LogSoftmax). By default it belongs to the last output
with a row of scores for each image. `scores="tensor"` (`--scores`) names another tensor, and the output `scores` then
holds it unchanged.

## Which features
By default, a method uses the last features with positions that all of the image passes through, before the last
pooling: `relu5_3` (14 x 14) of VGG16, not `pool5`. The choice is logged and stored in the model's metadata.
`layer="relu4_3"` (`--layer`) names another, by tensor or node.

The axis of the channels is found, not assumed. ConvNeXt, Swin and MambaOut work on N x height x width x channels in
between; the axes are followed along the graph to the nearest operator that tells, such as a convolution, a layer
normalization or a linear layer. Where no operator tells, or several contradict each other, the error names the
candidates.

Several layers (`layer=["relu4_3", "relu5_3"]`) are fused: the map of each layer, crop and class is scaled to 0..1, and
the maps are averaged. pytorch-grad-cam does the same, but enlarges them bilinearly; camrt enlarges bicubically.

For a vision transformer, the features are the tokens that enter the last attention, after their normalization: behind
the attention only the class token counts. Prefix tokens (a class token, DeiT's two, registers) are left out, and the
others form a square; it is an error if they do not. Before the normalization, HiResCAM and XGrad-CAM would give
rounding errors only: there the score does not change with the length of a token, so its derivative is orthogonal to it.

Where an If or a Loop lies between the features and the scores, there is no gradient, and the network cannot be run
again. `eigencam` needs neither. The error names the operator and what else works: scores before it (`--scores`), or a
layer behind it (`--layer`).

## Several crops
`protocol="ten-crop"` and `"full"` run and differentiate all crops in one pass. The best classes are those of the merged
scores. Each crop's map is mirrored back, pasted where the crop was, and the maps are added. Feature maps are enlarged
bicubically first, and ten of them count three times, as in the original. Negative values from the enlargement are cut
off where the method has a ReLU; cam adds magnitudes, as the original does.

## Cost
A method of features takes one forward pass, and one backward pass to the layer: for VGG16, through its linear layers
alone. All classes share the forward pass, and one backward pass carries the cotangents of all of them. Pixel methods
go back through the whole network for each class, so they explain one class by default. smoothgrad,
integrated-gradients and scorecam run the network repeatedly, in an ONNX Loop whose memory does not grow with their
settings; scorecam runs it once for each channel, unless `channels` is smaller. The file holds the weights once.

## Differences from other libraries
Maps are compared with those of pytorch-grad-cam 1.5 and torch-cam 0.5, on the same weights, image and layer. They agree
to 1e-4 after these libraries' own normalization, with these exceptions:

- **gradcam++**: pytorch-grad-cam adds 1e-6 to the denominator, which matters where derivatives are small (below 1e-2);
  camrt cancels g^2 and adds nothing. torch-cam omits the division: it divides a copy, and continues with g^2.
- **xgradcam**: both add 1e-7 or 1e-8 to the sum of a map; camrt leaves out maps whose sum is 0.
- **eigencam**: the sign of a singular vector is arbitrary, and pytorch-grad-cam takes whatever the decomposition
  returns; camrt takes the sign that agrees with the sum of the features. Both cut off negative values.
- **scorecam**: maps are scaled to 0..1 and enlarged as in torch-cam. pytorch-grad-cam aligns the corners of map and
  image, and scales after the enlargement: its maps are similar, not equal.
- **layercam** of several layers: torch-cam takes the largest of their tanh, camrt the mean.
- **Normalization**: others scale a finished map to 0..1 by its smallest and largest value. camrt's heatmaps are not
  normalized, so that crops, classes and images can be compared; `Explanation.heatmap` divides by the largest value.
- **smoothgrad**: the noise is the same in each run, so that the same image has the same map.

## A method of your own
```python
from camrt.graph.methods import method


@method("mean-activation", kind="features", title="Mean activation", gradients=False, top=1)
def mean_activation(layer):
    return layer.features.mean(2)
```

`layer` has `features` and `gradients` (N, crops, channels, positions), and `weighted(...)`: see
`camrt.graph.methods.context`. They are values with the operators of NumPy arrays, which add nodes to the graph. A
method is written for one class: the gradients of all classes are computed in one pass (`camrt.graph.values`).
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
        f"- `{name}`: {' '.join(words.split())}" for name, words in lines if name not in ("layer", "context")
    )


def _anchor(entry: Method) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^a-z0-9 -]", "", entry.title.lower()).replace(" ", "-")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))

"""Writes docs/gradients.md from the registry: `python -m camrt.graph.rules.table`, or `make docs`."""

from __future__ import annotations

from camrt.graph.rules import registry
from camrt.graph.rules.registry import Entry

_HEAD = """\
# Gradients

Generated from the registry of rules by `make docs`; a test fails when it is stale.

`differentiate` adds the gradient of an output to an ONNX model. The result is an ONNX model of standard operators, with
the batch as free as it was:

```python
import numpy as np
from camrt.graph.gradient import differentiate

model = differentiate(classifier, "logits", "features", np.eye(1000, dtype=np.float32)[281])
logits, gradient = session.run(["logits", "gradient/features"], {"data": images})
```

## How it works
It is reverse mode. The nodes between the wanted tensors and the output are visited, last first. For each, the rule of
its operator writes nodes that turn the gradient at its output into those at its inputs; where a tensor is read several
times, they are added. The new nodes read the tensors of the forward pass, so that this runs once. Nothing else is
touched: the gradient of VGG16's scores at its last convolution reads three matrices and no convolution. Weights are
used as they stand; none is copied into the file.

- **What is differentiated**: any floating-point tensor, by any others: inputs, tensors inside, weights. Integers and
  truth values have no gradient, and nothing passes through them.
- **The seed** is what the output is multiplied by before it is summed: nothing for ones, an array (a row of the
  identity for one class), or a new input of the model.
- **Several gradients an image** (`backpropagate(..., copies=k)`): the gradients of k classes in one pass. They have k
  rows for each image, image by image; the forward pass has one, which they share. For that the images' axis is followed
  through Reshape and Transpose, also where it is one with another, as in attention over windows. A node that mixes
  images is an error then.
- **Sizes**: of an image, they should be fixed; where a rule can do without, they may be free.
- **Opset**: from 13 on; older models are upgraded to 17 first.
- **Errors**: a tensor that does not exist (with near names), that holds integers, or that the output does not depend
  on; a gradient that is zero everywhere; operators without a rule and what a rule cannot do, all of them at once.

## Where there is no slope
At a kink there are several subgradients, and programs differ. Here:

| where | what is taken |
|---|---|
| Relu, PRelu, LeakyRelu, Elu, Selu, Celu at 0 | the slope below 0, as Caffe and PyTorch do |
| Clip at a bound | 1, as Caffe and PyTorch's `clamp` do (PyTorch's ReLU6: 0) |
| Abs, ReduceL1 at 0 | 0 |
| MaxPool, GlobalMaxPool of equal maxima | the first gets all, as in Caffe and PyTorch |
| Max, Min, ReduceMax, ReduceMin of equal values | they share it, as in PyTorch's `maximum`; Caffe's Eltwise: one |
| Floor, Ceil, Round, Sign | 0; if nothing else is left, that is an error |

In a network of rectifiers and pooling, rounding has its say: where two values of a window are equal but for their last
bits, the gradient goes to one or the other, and that of a neighbourhood changes. On VGG16 with random weights that
concerns 1 value of 500 of the image's gradient; ONNX Runtime with and without its optimizations differs from itself as
much.

## Rectifiers
`relu="guided"` and `relu="deconvnet"` change the way back through rectifiers. With f the activation, x its input, g the
gradient that comes in:

| | the gradient at x | from |
|---|---|---|
| plain | f'(x) g | |
| guided | f'(x) max(g, 0) where x > 0, else 0 | Springenberg et al. 2015, section 3.4 |
| deconvnet | max(g, 0) | Zeiler & Fergus 2014, section 2.1 |

Both papers know Relu alone. We use the same formulas for LeakyRelu, PRelu, ThresholdedRelu, Elu, Selu, Celu, Gelu,
HardSwish, Swish, Mish and Clip from 0 on (ReLU6), and where exporters write out SiLU as x Sigmoid(x), HardSwish as
x HardSigmoid(x), and Gelu with Erf. Sigmoid and Tanh are no rectifiers and keep their gradient.

## Speed and memory
On a CPU the backward pass of a convolution takes as long as its forward pass: with stride 1 it is a convolution too,
whose kernels a runtime turns round once, when it loads the model. ONNX Runtime packs the matrices of linear layers for
each of their uses: 0.4 GB more for VGG16.

## A rule of your own
A rule is the formula of a vector-Jacobian product. It gets the cotangent `g` at the node's output, the output `y`, the
inputs, and by keyword the attributes that it names. It returns the cotangent at the first input, or a list, one for
each input. All of them are values with Python's operators, which add nodes to the graph.

```python
from camrt.graph.gradient import rule


@rule("Cube", domain="com.example")
def cube(g, y, x):
    return g * 3 * x * x
```

A second rule for an operator is an error, unless it says `replace=True`.

## Operators
Every rule is tested against PyTorch's autograd, where PyTorch has the operator, and against differences in float64.
"""

_TAIL = """\
## Not supported

| operator | why |
|---|---|
| If, Loop, Scan | control flow: export the model without it |
| ArgMax, NonZero, NonMaxSuppression, comparisons | their results are no floating-point numbers: nothing passes |
| all others | no rule yet: they are named in the error |
"""


def gradients() -> str:
    """The page, as Markdown."""
    sections: dict[str, list[Entry]] = {family: [] for family in registry.FAMILIES}
    for entry in registry.entries():
        if entry.rule.__module__.startswith("camrt."):  # not a user's
            sections[entry.family].append(entry)
    parts = [_HEAD]
    for family, entries in sections.items():
        parts.append(f"### {family.capitalize()}\n\n{_table(entries)}")
    return "\n".join([*parts, _TAIL])


def _table(entries: list[Entry]) -> str:
    rows = ["| operator | what the rule does | restrictions |\n|---|---|---|\n"]
    for entry in sorted(entries, key=lambda entry: entry.operators):
        operators = ", ".join(f"`{operator}`" for operator in entry.operators)
        what = (entry.rule.__doc__ or "").strip().splitlines()[0].rstrip(".")
        rows.append(f"| {operators} | {_escaped(what)} | {_escaped(entry.restrictions)} |\n")
    return "".join(rows)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    print(gradients(), end="")

"""Writes docs/layers.md from the registry: `python -m converters.docs > docs/layers.md`, or `make docs`."""

from __future__ import annotations

from collections.abc import Iterable

from converters import registry
from converters.deploy import COMPARISONS, DATA_LAYERS, LOSS_LAYERS, SAMPLERS
from converters.registry import Entry

_HEAD = """\
# Layers

Generated from the registry by `make docs`; a test fails when it is stale.

Each of these layer types becomes the ONNX operators named beside it. Every answer is tested against real Caffe's
or, for a fork whose Caffe does not run here, against its formula and another library.
A layer that is not here is refused, with all others like it, in one error;
[CONTRIBUTING](../CONTRIBUTING.md#add-a-layer) shows how to add one in ten lines, in this repository or in a file of
your own (`--plugin`).
"""

_TRAINING = """\
## Layers of training

A network as it was trained (`train_val.prototxt`) becomes the network as it is used.

| type | becomes |
|---|---|
"""

_CENSUS = """\
## Which networks convert

`scripts/census.py` converts every network of a folder of checkouts. On 2026-11-21 it was given the 791 different
prototxts of forty public repositories (BVLC, Intel's and NVIDIA's Caffe, py-faster-rcnn, R-FCN, PVANET, PSPNet, SegNet,
MobileNet-YOLO, C3D, caffe-model, SENet, TSN and others):

| networks | |
|---|---|
| 766 | convert (98.2 % of those for inference) |
| 11 | are not for inference: templates, the form of 2013, fragments of a training |
| 7 | have sizes that do not fit together, five of them by a mistake in the prototxt |
| 7 | have a layer that is missing: `MultiStageMeanfield` at full size, `AssistedExcitation`, training code in Python |

"""

_NOT_SUPPORTED = """\
## Not supported

| type | why |
|---|---|
| Filter | how many items it lets through depends on their values, in every blob behind it |
| Python | code: write a handler for its module and layer name |
"""


def layers() -> str:
    """The page, as Markdown."""
    sections: dict[str, list[Entry]] = {family: [] for family in registry.FAMILIES}
    for entry in registry.entries():
        if entry.handler.__module__.startswith("converters."):  # not a plugin's
            sections[entry.family].append(entry)
    parts = [_HEAD]
    for family, entries in sections.items():
        parts.append(f"## {family.replace('_', ' ').capitalize()}\n\n{_table(entries)}")
    parts += [_TRAINING + "".join(_training_rows()), _CENSUS + _NOT_SUPPORTED]
    return "\n".join(parts)


def _table(entries: Iterable[Entry]) -> str:
    rows = ["| type | what | ONNX operators | restrictions | from |\n|---|---|---|---|---|\n"]
    for entry in sorted(entries, key=lambda entry: entry.types):
        types = ", ".join(f"`{type}`" for type in entry.types)
        what = (entry.handler.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("|", "\\|")
        restrictions = entry.restrictions.replace("|", "\\|")
        rows.append(f"| {types} | {what} | {' '.join(entry.operators)} | {restrictions} | {entry.origin} |\n")
    return "".join(rows)


def _training_rows() -> Iterable[str]:
    yield "| `Input`, `input:` | an input |\n"
    yield (
        f"| {_types(DATA_LAYERS)} | an input; its size from `crop_size` or `--input-shape`, its channels from the "
        "first weights; the label goes |\n"
    )
    yield "| `DummyData` with random fillers | an input |\n"
    yield "| any layer of unknown type without bottoms | an input; its size from its fields, or `--input-shape` |\n"
    yield f"| `Python` {_types(SAMPLERS)} | the identity: all regions go on |\n"
    yield "| unknown layers that read a label, or whose type says that they measure | the network ends before them |\n"
    for loss, layer in LOSS_LAYERS.items():
        yield f"| `{loss}` | `{layer}` |\n"
    yield f"| {_types(COMPARISONS)} | nothing: gone, with the layers that only feed it |\n"
    yield "| `Silence` | nothing: its blobs are no outputs |\n"


def _types(types: Iterable[str]) -> str:
    return ", ".join(f"`{type}`" for type in sorted(types))


if __name__ == "__main__":
    print(layers(), end="")

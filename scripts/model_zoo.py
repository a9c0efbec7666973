"""Write models/model_zoo.csv, the classifiers of the ONNX Model Zoo, and models/imagenet.txt, their class names.

The zoo published a path, a SHA-256 and a size of each file. What a network wants of an image is derived here:

* of ``NAME_OpsetN_timm`` from timm's configuration of that name,
* of ``NAME_OpsetN_torch_hub`` from the first weights of torchvision's network of that name (``IMAGENET1K_V1``, which
  ``pretrained=True`` loads),
* of the older files from where the zoo took them (``origin``): MXNet's and torchvision's networks take RGB of 0 to 1,
  less ImageNet's mean, over its deviation; those of BVLC Caffe and VGG take BGR of 0 to 255, less the mean; DenseNet
  (whose output ``fc6`` of 1000 x 1 x 1 is that of shicai's DenseNet-Caffe) takes these times 0.017,
* of others from the zoo's own page (``page``): EfficientNet-Lite4 and MNIST,
* of networks that came by way of Caffe2 from the scripts with which the accuracies on the zoo's pages were measured
  (``measured``; Intel Neural Compressor, examples/onnxrt/image_recognition/onnx_model_zoo).

Where none of them says it, the fields are empty. ``basis`` says which one did; it is ``timm-default`` where timm has
several weights under that name with different means, and its default is taken.

    python scripts/model_zoo.py classification.csv

It takes timm and torchvision.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt.catalog.modelzoo import COLUMNS, STATISTICS

_EXPORTED = re.compile(r"(?P<name>.+)_Opset\d+_(?P<library>timm|torch_hub|torchvision)")
# Names of older files -> statistics, basis, classes, input, resize.
_OLD: dict[str, tuple[str, str, int, int, int]] = {
    r"resnet\d+-v[12]|mobilenetv2|vgg1[69]-(bn-)?\d|squeezenet1\.1|shufflenet-v2": (
        "imagenet",
        "origin",
        1000,
        224,
        256,
    ),
    r"(bvlcalexnet|caffenet|googlenet)-": ("caffe", "origin", 1000, 224, 256),
    r"vgg19-caffe2-": ("vgg", "origin", 1000, 224, 256),
    r"densenet-": ("densenet", "origin", 1000, 224, 256),
    r"rcnn-ilsvrc13-": ("caffe", "origin", 200, 224, 224),  # regions are warped to the input
    r"efficientnet-lite4-": ("lite", "page", 1000, 224, 256),
    r"mnist-": ("none", "page", 10, 28, 28),
    r"(inception-v1|squeezenet1\.0|zfnet512)-": ("vgg", "measured", 1000, 224, 224),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", type=Path, help="path, sha256 and bytes of each file, as the zoo published them")
    given = parser.parse_args()
    with given.table.open(encoding="utf-8", newline="") as stream:
        rows = sorted(map(row_of, csv.DictReader(stream)), key=lambda row: str(row["name"]).casefold())
    with (REPOSITORY / "models" / "model_zoo.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    (REPOSITORY / "models" / "imagenet.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(
        f"{len(rows)} networks; what they want of an image is not known of {sum(not row.get('basis') for row in rows)}"
    )


def row_of(published: Mapping[str, str]) -> dict[str, Any]:
    """Return the row of a file."""
    *_, folder, file = Path(published["path"]).parts
    exported = _EXPORTED.fullmatch(folder)
    name = folder if exported else Path(file).stem
    row: dict[str, Any] = {"name": name, "bytes": published["bytes"], "sha256": published["sha256"]}
    wants = {"timm": _timm, "torch_hub": _torchvision, "torchvision": _detector}
    return row | (wants[exported["library"]](exported["name"]) if exported else _old(name))


def _timm(name: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg, list_pretrained
    from timm.models._registry import _deprecated_models

    current = _deprecated_models.get(name) or name
    config = get_pretrained_cfg(current)
    others = [get_pretrained_cfg(each) for each in list_pretrained(f"{current.partition('.')[0]}.*")]
    is_sure = "." in current or all((each.mean, each.std) == (config.mean, config.std) for each in others if each)
    side = config.input_size[1]
    return {
        "classes": config.num_classes,
        "input": side,
        "resize": math.floor(side / config.crop_pct),
        "interpolation": config.interpolation,
        "statistics": _statistics(config.mean, config.std),
        "basis": "timm" if is_sure else "timm-default",
    }


def _torchvision(name: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["IMAGENET1K_V1"]
    wants = weights.transforms()
    return {
        "classes": len(weights.meta["categories"]),
        "input": wants.crop_size[0],
        "resize": wants.resize_size[0],
        "interpolation": wants.interpolation.value,
        "statistics": _statistics(wants.mean, wants.std),
        "basis": "torchvision",
    }


def _detector(name: str) -> dict[str, Any]:
    """A detector: it has no row of class scores, and scales images itself."""
    return {}


def _old(name: str) -> dict[str, Any]:
    for pattern, (statistics, basis, classes, side, resize) in _OLD.items():
        if re.match(pattern, name):
            return {
                "classes": classes, "input": side, "resize": resize, "interpolation": "bilinear",
                "statistics": statistics, "basis": basis,
            }  # fmt: skip
    return {}


def _statistics(mean: Any, std: Any) -> str:
    """Return the name of a mean and a deviation."""
    for name, (known_mean, known_std, channels) in STATISTICS.items():
        if channels == "RGB" and all(
            math.isclose(one, other, abs_tol=1e-6)
            for one, other in zip((*mean, *std), (*known_mean, *known_std), strict=True)
        ):
            return name
    raise SystemExit(f"no name for the mean {mean} and the deviation {std}: add one to camrt.catalog.modelzoo")


if __name__ == "__main__":
    main()

"""Initial weights from other formats: PyTorch's checkpoints, safetensors and ONNX, by a table of names.

A module of PyTorch becomes a layer of Caffe with the same name (dots, slashes and underscores are the same), or with
the name that Caffe's version of the architecture has: see `FAMILIES`. A BatchNorm fills Caffe's BatchNorm and the Scale
that follows. Networks of PyTorch expect RGB images that are normalized, those of Caffe BGR from 0 to 255 minus a mean:
the first convolution is converted accordingly.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.train.networks import Network
from converters.errors import ConversionError, install
from converters.transform import of_layer

if TYPE_CHECKING:
    import onnx

    from converters.layer import Layer

Array = NDArray[np.float32]
Module = Mapping[str, Array]
Find = Callable[[str, Mapping[str, Module]], str | None]

ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".onnx")
_ROLES = ("weight", "bias", "running_mean", "running_var")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Family:
    """The names of an architecture.

    Attributes:
        name: The name of the architecture.
        find: Returns the module for the name of a layer, or None.
        mean: The mean of each channel of RGB images from 0 to 1.
        deviation: The standard deviation of each channel.
    """

    name: str
    find: Find
    mean: tuple[float, float, float] = _IMAGENET[0]
    deviation: tuple[float, float, float] = _IMAGENET[1]


@dataclass(frozen=True)
class Pretrained:
    """The weights of a file, for the layers of a network.

    Attributes:
        family: The architecture whose names were found.
        layers: Layer -> its blobs, in Caffe's order.
        unused: The modules of the file that no layer uses.
        notes: Notes for the user.
    """

    family: str
    layers: Mapping[str, tuple[Array, ...]]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def is_pretrained(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the ending of one of these formats."""
    return Path(path).suffix.lower() in ENDINGS


def read_pretrained(network: Network, path: str | os.PathLike[str]) -> Pretrained:
    """Read the weights of the layers that a file and a network have in common.

    Args:
        network: The network.
        path: A file of a state dict (`.pth`, `.pt`, `.bin`, `.safetensors`) or an `.onnx` model.

    Raises:
        CamrtError: The file cannot be read, or has no layer in common with the network; or it is an ONNX model whose
            BatchNorms were merged into convolutions, and the network has them.
    """
    file = os.fspath(path)
    modules = _read(Path(file))
    layers = [layer for layer in network.net.layers if layer.name in network.stored]
    family, found = max(((each, _matched(each, layers, modules)) for each in FAMILIES), key=lambda pair: len(pair[1]))
    if not found:
        known = ", ".join(each.name for each in FAMILIES if each.find is not _same_name)
        raise CamrtError(
            f"found the modules {_shown(sorted(modules))}, and no name in common with the layers "
            f"{_shown([layer.name for layer in layers])}: expected a network of the families "
            f"{known}, or layers with the names of the modules",
            file=file,
        )
    if Path(file).suffix.lower() == ".onnx":
        _check_norms(layers, network.net.layers, found, modules, file)
    blobs = {}
    for layer in layers:
        if layer.name in found:
            shapes = [tuple(blob.shape) for blob in network.stored[layer.name]]
            blobs[layer.name] = _blobs(layer, modules[found[layer.name]], shapes, file)
    notes = _adapt_input(network, family, blobs)
    unused = tuple(sorted(modules.keys() - set(found.values())))
    return Pretrained(family.name, blobs, unused, tuple(notes))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# ------------------------------------------------------------------------------------------------------------ the files


def _read(file: Path) -> dict[str, dict[str, Array]]:
    """Return the modules of a file: name -> weight, bias, running_mean, running_var."""
    if not file.is_file():
        raise CamrtError("does not exist" if not file.exists() else "is not a file, expected weights", file=str(file))
    if file.suffix.lower() == ".onnx":
        return _of_onnx(file)
    tensors = _safetensors(file) if file.suffix.lower() == ".safetensors" else _checkpoint(file)
    modules: dict[str, dict[str, Array]] = {}
    for key, tensor in tensors.items():
        module, _, role = key.removeprefix("module.").rpartition(".")
        if role in _ROLES and torch.is_tensor(tensor):
            modules.setdefault(module, {})[role] = tensor.detach().float().cpu().numpy()
    if not modules:
        raise CamrtError("found no weights in it, expected a state dict of PyTorch", file=str(file))
    return modules


def _safetensors(file: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise CamrtError(f"needs the package safetensors: {install('safetensors')}", file=str(file)) from None
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CamrtError(f"cannot be read as safetensors: {error}", file=str(file)) from None


def _checkpoint(file: Path) -> Mapping[str, Any]:
    """Read a checkpoint. Only tensors are unpickled, so that a file cannot run code."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError,
            zipfile.BadZipFile) as error:  # fmt: skip
        reason = str(error).strip().partition("\n")[0][:200]
        raise CamrtError(
            f"cannot be read as a state dict of PyTorch: {reason}. Save one with torch.save(model.state_dict(), file)",
            file=str(file),
        ) from None
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise CamrtError(f"found {type(found).__name__}, expected a state dict of PyTorch", file=str(file))
    return found


def _of_onnx(file: Path) -> dict[str, dict[str, Array]]:
    """Return the modules of an ONNX model by the names of their weights, or else of their nodes."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        model = onnx.load(file)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise CamrtError(f"cannot be read as ONNX: {error}", file=str(file)) from None
    stored = {one.name: one for one in model.graph.initializer}
    modules: dict[str, dict[str, Array]] = {}
    for node in model.graph.node:
        roles = _onnx_roles(node)
        names = {role: node.input[index] for role, index in roles.items() if index < len(node.input)}
        if names.get("weight", "") not in stored:
            continue
        module = {
            role: np.asarray(numpy_helper.to_array(stored[name]), np.float32)
            for role, name in names.items()
            if name in stored
        }
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB")):
            module["weight"] = np.ascontiguousarray(module["weight"].T)
        modules[_onnx_name(node, names["weight"])] = module
    if not modules:
        raise CamrtError("found no convolutions or linear layers with stored weights", file=str(file))
    return modules


def _onnx_roles(node: onnx.NodeProto) -> dict[str, int]:
    if node.op_type == "BatchNormalization":
        return {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4}
    return {"weight": 1, "bias": 2} if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else {}


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), 0)


def _onnx_name(node: onnx.NodeProto, weight: str) -> str:
    """Return the module's name: from ``layer1.0.conv1.weight``, or from the node ``/layer1/layer1.0/conv1/Conv``."""
    stem, _, role = weight.replace("/", ".").rpartition(".")
    if role in _ROLES and stem:
        return stem
    name = ""
    for part in node.name.strip("/").split("/")[:-1]:
        name = part if not name or part.startswith(f"{name}.") else f"{name}.{part}"
    return name or node.name or node.output[0]


# ----------------------------------------------------------------------------------------------------------- the names


def _plain(name: str) -> str:
    return re.sub(r"[./_]+", ".", name)


def _same_name(layer: str, modules: Mapping[str, Module]) -> str | None:
    return next((module for module in modules if _plain(module) == _plain(layer)), None)


def _inception(layer: str, modules: Mapping[str, Module]) -> str | None:
    return _same_name(layer, modules) if "Conv2d_1a_3x3.conv" in modules else None


def _renamed(*rules: tuple[str, Callable[[re.Match[str]], str]]) -> Find:
    """Return a function that applies the first rule whose pattern matches the whole name of a layer."""
    compiled = [(re.compile(pattern), rename) for pattern, rename in rules]

    def find(layer: str, modules: Mapping[str, Module]) -> str | None:
        matches = ((pattern.fullmatch(layer), rename) for pattern, rename in compiled)
        found = next((rename(match) for match, rename in matches if match), None)
        return found if found in modules else None

    return find


def _block(text: str) -> int:
    """Return the number of a ResNet's block, which Caffe calls a, b, c, ... or a, b1, b2, ..."""
    return int(text[1:]) if text[1:] else ord(text) - ord("a")


def _stage(match: re.Match[str], module: str) -> str:
    return f"layer{int(match[1]) - 1}.{_block(match[2])}.{module}"


_BLOCK = r"([2-5])([a-z]\d*)"
_resnet = _renamed(
    (r"conv1", lambda _: "conv1"),
    (r"bn_conv1", lambda _: "bn1"),
    (rf"res{_BLOCK}_branch1", lambda m: _stage(m, "downsample.0")),
    (rf"bn{_BLOCK}_branch1", lambda m: _stage(m, "downsample.1")),
    (rf"res{_BLOCK}_branch2([abc])", lambda m: _stage(m, f"conv{'abc'.index(m[3]) + 1}")),
    (rf"bn{_BLOCK}_branch2([abc])", lambda m: _stage(m, f"bn{'abc'.index(m[3]) + 1}")),
    (r"fc\d*", lambda _: "fc"),
)
_alexnet = _renamed(
    (r"conv([1-5])", lambda m: f"features.{(0, 3, 6, 8, 10)[int(m[1]) - 1]}"),
    (r"fc([678])", lambda m: f"classifier.{(1, 4, 6)[int(m[1]) - 6]}"),
)
_densenet = _renamed(
    (r"conv1", lambda _: "features.conv0"),
    (r"conv1/bn", lambda _: "features.norm0"),
    (r"conv(\d)_(\d+)/x([12])", lambda m: f"features.denseblock{int(m[1]) - 1}.denselayer{m[2]}.conv{m[3]}"),
    (r"conv(\d)_(\d+)/x([12])/bn", lambda m: f"features.denseblock{int(m[1]) - 1}.denselayer{m[2]}.norm{m[3]}"),
    (r"conv5_blk/bn", lambda _: "features.norm5"),
    (r"conv(\d)_blk", lambda m: f"features.transition{int(m[1]) - 1}.conv"),
    (r"conv(\d)_blk/bn", lambda m: f"features.transition{int(m[1]) - 1}.norm"),
    (r"fc\d+", lambda _: "classifier"),
)
_VGG_LAYERS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_VGG_HEADS = {"6": ("classifier.0", "pre_logits.fc1"), "7": ("classifier.3", "pre_logits.fc2"),
              "8": ("classifier.6", "head.fc")}  # fmt: skip


def _numbered(modules: Mapping[str, Module], pattern: str) -> list[str]:
    """Return the modules that match, in the order of their numbers."""
    found = [(int(match[1]), name) for name in modules if (match := re.fullmatch(pattern, name))]
    return [name for _, name in sorted(found)]


def _vgg(layer: str, modules: Mapping[str, Module]) -> str | None:
    """conv4_2 is the convolution of this number among `features`, whose other modules have no weights of four axes."""
    if match := re.fullmatch(r"fc([678])", layer):
        return next((name for name in _VGG_HEADS[match[1]] if name in modules), None)
    names = [name for name in _numbered(modules, r"features\.(\d+)") if modules[name]["weight"].ndim == 4]
    counts = next((counts for counts in _VGG_LAYERS.values() if sum(counts) == len(names)), None)
    match = re.fullmatch(r"conv([1-5])_(\d)", layer)
    if counts is None or match is None or int(match[2]) > counts[int(match[1]) - 1]:
        return None
    return names[sum(counts[: int(match[1]) - 1]) + int(match[2]) - 1]


def _squeezenet(layer: str, modules: Mapping[str, Module]) -> str | None:
    fires = [name.removesuffix(".squeeze") for name in _numbered(modules, r"features\.(\d+)\.squeeze")]
    if match := re.fullmatch(r"fire(\d)/(squeeze|expand1x1|expand3x3)(?:1x1)?", layer):
        number = int(match[1]) - 2
        return f"{fires[number]}.{match[2]}" if 0 <= number < len(fires) else None
    return {"conv1": "features.0", "conv10": "classifier.1"}.get(layer) if fires else None


FAMILIES = (
    Family("Inception v3", _inception, *_HALVES),
    Family("the same names", _same_name),
    Family("ResNet", _resnet),
    Family("VGG", _vgg),
    Family("AlexNet", _alexnet),
    Family("SqueezeNet", _squeezenet),
    Family("DenseNet", _densenet),
)


def _matched(family: Family, layers: Sequence[Layer], modules: Mapping[str, Module]) -> dict[str, str]:
    """Return layer -> module. A Scale after a BatchNorm has the BatchNorm's module."""
    found: dict[str, str] = {}
    before: dict[str, str] = {}  # top of a BatchNorm -> its module
    for layer in layers:
        module = before.pop(layer.bottoms[0], None) if layer.type == "Scale" else family.find(layer.name, modules)
        if module is None or ("running_mean" in modules[module]) != (layer.type in ("BatchNorm", "Scale")):
            continue
        found[layer.name] = module
        if layer.type == "BatchNorm":
            before[layer.tops[0]] = module
    return found


def _check_norms(
    layers: Sequence[Layer],
    every: Sequence[Layer],
    found: Mapping[str, str],
    modules: Mapping[str, Module],
    file: str,
) -> None:
    """Refuse a file whose BatchNorms were merged into convolutions.

    The BatchNorm behind such a convolution would keep its initial statistics, and normalize a second time. Merging
    leaves a bias: a convolution without one is as it was trained.

    Args:
        layers: The layers with weights.
        every: All layers of the network, in order.
        found: Layer -> module of the file.
        modules: The modules of the file.
        file: Named in the error.
    """
    weighted = {layer.name for layer in layers}
    source: dict[str, Layer] = {}  # blob -> the layer that wrote it last
    merged = []
    for layer in every:
        before = source.get(layer.bottoms[0]) if layer.bottoms else None
        if layer.type == "BatchNorm" and layer.name in weighted and layer.name not in found and before is not None:
            module = modules.get(found.get(before.name, ""), {})
            if "bias" in module and "running_mean" not in module:
                merged.append((layer, before))
        source.update((top, layer) for top in layer.tops)
    if merged:
        norm, convolution = merged[0]
        more = f" (and {len(merged) - 1} more layer(s) as well)" if len(merged) > 1 else ""
        raise CamrtError(
            f"layer {norm.name} (BatchNorm): found no statistics for it{more}, and a bias in its convolution "
            f"{convolution.name}, expected a BatchNormalization: exporters merge it into the convolution. Pass the "
            "state dict in place of the ONNX model (torch.save(model.state_dict(), 'net.pth')), or export the model "
            "with torch.onnx.export(..., dynamo=False, training=torch.onnx.TrainingMode.PRESERVE). To train the layer "
            f"from scratch, rename {convolution.name} as well",
            file=file,
        )


# ----------------------------------------------------------------------------------------------------------- the blobs


def _blobs(layer: Layer, module: Module, shapes: Sequence[tuple[int, ...]], file: str) -> tuple[Array, ...]:
    """Return the blobs of a layer. A layer with a bias that the module lacks has a bias of 0."""
    if layer.type == "BatchNorm":
        return module["running_mean"], module["running_var"], np.ones(1, np.float32)
    weight, bias = module.get("weight"), module.get("bias")
    if layer.type == "Scale":
        channels = shapes[0]
        weight = np.ones(channels, np.float32) if weight is None else weight
    if weight is None:
        raise CamrtError(f"layer {layer.name}: found no weight in its module, expected one", file=file)
    if bias is not None and len(shapes) == 1 and np.any(bias):
        raise CamrtError(
            f"layer {layer.name}: found a bias in the file, expected none: give the layer bias_term: true", file=file
        )
    if weight.shape != shapes[0] and weight.size == np.prod(shapes[0], dtype=np.int64):
        weight = weight.reshape(shapes[0])  # a linear layer as a convolution over the whole image, or the reverse
    if len(shapes) == 1:
        return (weight,)
    return weight, np.zeros(shapes[1], np.float32) if bias is None else bias


def _adapt_input(network: Network, family: Family, blobs: dict[str, tuple[Array, ...]]) -> list[str]:
    """Convert the first convolution from normalized RGB to the images of the network's data layer.

    PyTorch's x = (RGB / 255 - m) / d and Caffe's y = scale (BGR - mean) give the same sums if the weights are reversed
    along the channels and divided by 255 d scale, and if the mean is 255 m.

    Returns:
        Notes.
    """
    images = {blob for blob, shape in network.inputs.items() if len(shape) == 4 and shape[1] == 3}
    first = [layer for layer in network.net.layers if layer.name in blobs and layer.bottoms[0] in images]
    if not first:
        return []
    data = next((layer for layer in network.net.data if set(layer.tops) & images), None)
    scale, source = 1.0, ""
    means: tuple[float, ...] = ()
    if data is not None and data.type != "Input":
        try:
            wanted = of_layer(data)
        except ConversionError as error:
            raise CamrtError(f"layer {data.name} ({data.type}): {error.message}") from None
        scale, means, source = wanted.scale, tuple(wanted.mean_values), wanted.mean_file
    deviations = np.array(family.deviation[::-1], np.float32).reshape(1, 3, 1, 1)
    names = []
    for layer in first:
        weight, *rest = blobs[layer.name]
        if weight.ndim == 4 and weight.shape[1] == 3:
            blobs[layer.name] = (np.ascontiguousarray(weight[:, ::-1] / (255 * deviations * scale)), *rest)
            names.append(layer.name)
    expected = [255 * value for value in family.mean[::-1]]
    notes = [f"{', '.join(names)}: converted from normalized RGB images to BGR from 0 to 255"] if names else []
    found = means * 3 if len(means) == 1 else means
    if names and not source and (len(found) != 3 or not np.allclose(found, expected, atol=1)):
        values = " ".join(f"mean_value: {value:.3f}" for value in expected)
        notes.append(f"the network was trained with another mean: expected {values} in transform_param")
    return notes

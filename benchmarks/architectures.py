#!/usr/bin/env python3
"""Which architectures are explained without a hint: a network of every module of timm, and torchvision's classifiers.

usage: python benchmarks/architectures.py [--exporter torchscript dynamo] [--only NETWORK...] [--again] [--csv FILE]

Each network has seeded random weights. It is exported to ONNX by PyTorch and explained with Grad-CAM, without naming a
layer. The same image then goes through PyTorch's own module. The module (or, where no module returns them, the
function) that returned camrt's features is looked for there by their values, and Grad-CAM is computed from autograd's
derivatives at that place. The error is the largest difference between the two maps of six classes, relative to the
largest value.

Each network runs in a process of its own, with a limit of time. A line of the CSV file is written when one is done, and
a second call goes on where the first was stopped; --again repeats those that failed. docs/architectures.md is written
from the CSV file. Needs torch, torchvision, timm and onnxscript.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camrt.graph import explain_graph
from camrt.graph.explain import MAPS, describe
from camrt.graph.layers import FeatureMap, feature_map_of
from camrt.graph.methods import find
from camrt.graph.opening import open_model
from camrt.graph.rules import registry
from camrt.preprocess import Preprocess
from tests import fitting_torchvision

CSV, PAGE = ROOT / "benchmarks" / "architectures.csv", ROOT / "docs" / "architectures.md"
CLASSES, TOP, SEED = 10, 6, 3
SIDES = (96, 128, None)  # None: the size that the network was published for
AGREES = 1e-3  # relative; single precision on both sides, through up to a hundred layers


# timm's modules, those that are used most first: the smallest variant that can be made without weights, or a usual one.
# Very large ones are made with fewer blocks; some cannot be exported, or have no positions, with small images.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {}),
    "vision_transformer": ("vit_tiny_patch16_224", {}),
    "efficientnet": ("efficientnet_b0", {}),
    "convnext": ("convnext_atto", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1)}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "deit": ("deit_tiny_distilled_patch16_224", {}),
    "eva": ("vit_small_patch16_dinov3", {"depth": 3}),
    "regnet": ("regnetx_002", {}),
    "densenet": ("densenet121", {}),
    "vgg": ("vgg11", {"side": 224}),
    "beit": ("beit_base_patch16_224", {"depth": 3}),
    "byobnet": ("repvgg_a0", {}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {"depths": (1, 1, 2, 1)}),
    "maxxvit": ("coatnet_nano_rw_224", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "resnetv2": ("resnetv2_18", {}),
    "inception_v3": ("inception_v3", {"side": 224}),
    "xcit": ("xcit_nano_12_p16_224", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "cait": ("cait_xxs24_224", {"depth": 4}),
    "mvitv2": ("mvitv2_tiny", {}),
    "hiera": ("hiera_tiny_224", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "fastvit": ("fastvit_t8", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "metaformer": ("poolformerv2_s12", {}),
    "mambaout": ("mambaout_femto", {}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "davit": ("davit_tiny", {"depths": (1, 1, 1, 1)}),
    "levit": ("levit_128s", {}),
    "repvit": ("repvit_m0_9", {}),
    "ghostnet": ("ghostnet_050", {}),
    "nfnet": ("eca_nfnet_l0", {}),
    "senet": ("legacy_seresnet18", {}),
    "res2net": ("res2net50_14w_8s", {}),
    "resnest": ("resnest14d", {}),
    "sknet": ("skresnet18", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "rexnet": ("rexnet_100", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
    "xception_aligned": ("xception41", {}),
    "inception_v4": ("inception_v4", {"side": 224}),
    "inception_resnet_v2": ("inception_resnet_v2", {"side": 224}),
    "inception_next": ("inception_next_atto", {}),
    "convmixer": ("convmixer_768_32", {}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "byoanet": ("eca_botnext26ts_256", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hardcorenas": ("hardcorenas_a", {}),
    "lcnetv2": ("lcnetv2_small", {}),
    "lowformer": ("lowformer_b0", {}),
    "iformer": ("iformer_t", {}),
    "fasternet": ("fasternet_t0", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "cpubone": ("cpubone_nano", {}),
    "csatv2": ("csatv2", {}),
    "mobilenetv5": ("mobilenetv5_base", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", {"depth": 3}),
    "nasnet": ("nasnetalarge", {}),
    "pnasnet": ("pnasnet5large", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "pit": ("pit_ti_224", {}),
    "rdnet": ("rdnet_tiny", {}),
    "repghost": ("repghostnet_050", {}),
    "selecsls": ("selecsls42", {}),
    "sequencer": ("sequencer2d_s", {}),
    "shvit": ("shvit_s1", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"depths": (1, 1, 2, 1)}),
    "tnt": ("tnt_s_patch16_224", {"depth": 3}),
    "tresnet": ("tresnet_m", {}),
    "twins": ("twins_svt_small", {}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", {"depth": 3}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"depth": 3}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "hieradet_sam2": ("sam2_hiera_tiny", {}),
    "deepseek_vit": ("deepseek_vit_412m", {"depth": 2}),
    "gemma4_vit": ("gemma4_vit_167m", {"depth": 2}),
    "qwen3_vit": ("qwen3_vit_88m", {"depth": 2}),
}
_SIDES = {"alexnet": 224, "vgg11": 224, "inception_v3": 299, "vit_b_16": 224, "maxvit_t": 224}
TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {"side": _SIDES[name]} if name in _SIDES else {})
    for name in (
        "resnet18", "alexnet", "vgg11", "densenet121", "squeezenet1_1", "inception_v3", "googlenet", "mobilenet_v2",
        "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s",
        "regnet_x_400mf", "resnext50_32x4d", "wide_resnet50_2", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t",
        "maxvit_t",
    )
}  # fmt: skip


PROSE = """# Architectures
camrt explains what PyTorch exports, without a hint: it finds the scores, the features and their axes in the graph. This
page says how, what is done with other inputs and with control flow, and which networks were measured.

## The layer by default
The maps are made of the last features with positions that all of the image goes through on its way to the scores.

| network | layer |
|---|---|
| convolutions, then pooling | the features before the last pooling |
| channels last (ConvNeXt, Swin, MambaOut) | the same; operators around it tell the axis of the channels |
| windows (Swin, MaxViT, Twins) | behind the last block, where the windows are one grid again |
| tokens, and a class token for the scores (ViT, DeiT) | the tokens before the last attention, normalized |
| tokens, and their mean for the scores | the tokens that are pooled |

Behind the last attention, the scores of a class token do not depend on the other tokens any more. Class and register
tokens are left out of the map.

What was taken is logged, and stands in the metadata of the explainer. `--layer` names another one. Where no
layer is passed by all, as in CrossViT with its two transformers, the error lists layers of each way, with the option to
give. Where all of the image passes a layer and the way parts behind it, as in CoaT (three sizes at once) and
EfficientViM (the scores of all stages are added), that layer is taken, and the log names the later ones. Where the axis
of the channels cannot be told, the error says which axes are possible.

## Scores and heads
The last output with one row of scores for each image is explained. `--scores TENSOR` chooses another output, or any
tensor inside.

## Inputs
| input | what is done |
|---|---|
| N x 3 x height x width, float32 | nothing |
| one channel | the network gets the brightness (ITU-R BT.601) |
| four channels | the network gets the image, and an opacity of 255 |
| N x height x width x channels | the image is transposed |
| float16 or bfloat16, also only inside | the weights become float32, and the network is computed in single precision |
| free height and width | they are fixed to what `--crop` says |

These are nodes in front of the network; derivatives by the image are those by its three channels.

## Control flow and recurrent layers
An If with a constant condition is replaced with its branch; a condition may depend on the size of the image. A Loop
with a constant count, whose condition stays true, and a Scan over an axis of known length are unrolled. For methods
that need the gradient, LSTM, GRU and RNN with ONNX's default activations are unrolled over sequences of known length.
Where that is not known before the model runs, an error names the operator and the methods that need no gradient.
"""


@dataclass(frozen=True)
class Row:
    """What was found of a network.

    Attributes:
        library: ``"timm"`` or ``"torchvision"``.
        family: timm's module, torchvision's network.
        network: The name of the network in its library.
        exporter: ``"torchscript"`` or ``"dynamo"``.
        side: Rows and columns of its image.
        layer: The features that camrt took, and their size.
        module: What returned them in PyTorch.
        error: The relative error of Grad-CAM.
        rounding: That of autograd itself, in single precision against double, where the error is above `AGREES`.
        seconds: How long camrt took to make the explainer.
        failure: What went wrong, and where.
    """

    library: str
    family: str
    network: str
    exporter: str
    side: str = ""
    layer: str = ""
    module: str = ""
    error: str = ""
    seconds: str = ""
    failure: str = ""
    rounding: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells rows apart."""
        return self.library, self.family, self.exporter

    @property
    def is_explained(self) -> bool:
        """Whether it was explained, and the map is that of autograd, up to what autograd itself rounds."""
        bound = AGREES + float(self.rounding or 0)
        return not self.failure and float(self.error or "inf") <= bound


# ------------------------------------------------------------------------------------------------------- networks


def network(library: str, name: str, options: Mapping[str, Any]) -> tuple[Any, int]:
    """A seeded network for inference and the side of its images: the first of `SIDES` that it takes."""
    import torch

    problem: Exception | None = None
    options = dict(options)
    asked = options.pop("side", None)
    for size in [asked] if asked else SIDES:
        torch.manual_seed(SEED)
        try:
            module, side = _made(library, name, options, size)
            _settle(module, side)
            return module, side
        except Exception as error:  # whatever a network raises at an image of a size that it does not take
            problem = error
    assert problem is not None
    raise problem


def _made(library: str, name: str, options: Mapping[str, Any], side: int | None) -> tuple[Any, int]:
    if library == "torchvision":
        import torchvision

        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **extra), side or 224
    import timm

    wanted = dict(options)
    config = timm.get_pretrained_cfg(name)
    if side is not None and config is not None and config.fixed_input_size:
        wanted["img_size"] = side
    module = timm.create_model(name, num_classes=CLASSES, **wanted)
    return module, side or module.pretrained_cfg["input_size"][-1]


def _settle(module: Any, side: int) -> None:
    """Give weights that let differences be seen: no zeros of an initialization, and statistics of a batch."""
    import torch

    for part in module.modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.normal_(part.weight, std=(1 / part.weight[0].numel()) ** 0.5)
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.momentum = None
        if hasattr(part, "inplace"):
            part.inplace = False  # a tensor that is overwritten cannot be compared
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                torch.nn.init.uniform_(parameter, 0.3, 0.7)
        module.train()
        for part in module.modules():
            if isinstance(part, (torch.nn.Dropout,)) or "DropPath" in type(part).__name__:
                part.eval()
        with contextlib.suppress(ValueError):  # a batch normalization of one position, in training
            module(torch.randn(2, 3, side, side))
        for part in module.modules():  # ended early, or without a batch: the statistics that it was made with
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_var is not None:
                part.running_var.clamp_(min=1e-2).nan_to_num_(1.0)
        scores = module.eval()(torch.randn(1, 3, side, side))
    if tuple(scores.shape) != (1, CLASSES) or not torch.isfinite(scores).all():
        raise ValueError(f"the network answers {tuple(scores.shape)}, expected (1, {CLASSES}) finite numbers")


def exported(module: Any, side: int, exporter: str) -> onnx.ModelProto:
    """The network as an exporter of PyTorch writes it, for any number of images."""
    try:
        return _exported(module, side, exporter)
    except Exception:  # neither exports every fused attention; timm has a switch for that
        fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
        if not fused:
            raise
        for part in fused:
            part.fused_attn = False
        return _exported(module, side, exporter)


def _exported(module: Any, side: int, exporter: str) -> onnx.ModelProto:
    import torch

    options: dict[str, Any] = {"input_names": ["data"], "output_names": ["logits"], "verbose": False}
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("n", min=1)},)
        images = torch.zeros(2, 3, side, side)
        program = torch.onnx.export(module, (images,), dynamo=True, dynamic_shapes=shapes, **options)
        found: onnx.ModelProto = program.model_proto
        onnx.checker.check_model(found)  # of Gemma 4 it writes a Clip whose bounds are nowhere
        return found
    stream, axes = io.BytesIO(), {"data": {0: "n"}, "logits": {0: "n"}}
    images = torch.zeros(1, 3, side, side)
    torch.onnx.export(module, (images,), stream, dynamo=False, dynamic_axes=axes, **options)
    return onnx.load_from_string(stream.getvalue())


# ------------------------------------------------------------------------------------------------------ comparison


def explained(module: Any, side: int, model: onnx.ModelProto, row: Row) -> Iterator[Row]:
    """Explain a network, and compare with autograd; the row is given again after each step."""
    start = time.perf_counter()
    wanted = Preprocess(side, side, (128.0, 128.0, 128.0), (1 / 64, 1 / 64, 1 / 64), "RGB")
    explainer = explain_graph(model, "gradcam", top=TOP, preprocess=wanted)
    tensor = describe(explainer)["layer"][0]  # type: ignore[index]
    row = replace(row, seconds=f"{time.perf_counter() - start:.1f}", layer=str(tensor))
    yield row
    features = feature_map_of(open_model(explainer), str(tensor))
    size = f"{features.height} x {features.width}, axis {features.channels_axis}"
    row = replace(row, layer=f"{tensor} ({size}{', tokens' if features.num_prefix_tokens is not None else ''})")
    yield row
    pixels = np.random.default_rng(1).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    classes, maps, values = _run(explainer, pixels, ["classes", MAPS, features.tensor])
    module_name, theirs = _gradcam(module, pixels, classes[0], features, values)
    if theirs.max() <= 0:
        raise ValueError("autograd's maps are zero everywhere")
    error = _relative(maps, theirs)
    row = replace(row, module=module_name, error=f"{error:.1e}")
    if error > AGREES:
        _, exact = _gradcam(module.double(), pixels, classes[0], features, values)
        row = replace(row, rounding=f"{_relative(theirs, exact):.1e}")
    yield row


def _relative(maps: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(maps.reshape(expected.shape) - expected).max() / expected.max())


def _run(model: onnx.ModelProto, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"image": pixels}))


def _gradcam(
    module: Any, pixels: np.ndarray, classes: np.ndarray, features: FeatureMap, values: np.ndarray
) -> tuple[str, np.ndarray]:
    """ReLU(sum_k mean(dy/dA_k) A_k) of classes at the place that returned A (Selvaraju et al. 2017, equations 1, 2)."""
    import torch

    prepared = torch.from_numpy(((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2).copy())
    inputs = prepared.to(next(module.parameters()).dtype).requires_grad_()
    seen, scores = _recorded(module, inputs)
    for name, tensor in seen:
        order = _order(tensor, values)
        if order is None or not tensor.requires_grad:
            continue
        found = [
            torch.autograd.grad(scores[0, int(each)], tensor, retain_graph=True, allow_unused=True)[0]
            for each in classes
        ]
        if any(one is None for one in found):
            continue
        maps = [_weighted(*(_planes(one, order, values.shape, features) for one in (tensor, grad))) for grad in found]
        return name, np.maximum(np.stack(maps), 0)
    raise ValueError(f"no module or function of the network returned the features {features.describe()}")


def _recorded(module: Any, inputs: Any) -> tuple[list[tuple[str, Any]], Any]:
    """All tensors that modules return, the outermost first, then those of functions in order: views come later."""
    import torch
    from torch.overrides import TorchFunctionMode

    modules, functions = list[tuple[str, Any]](), list[tuple[str, Any]]()

    class Recorder(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dim() in (3, 4, 5, 6):
                functions.append((f"the function {getattr(func, '__name__', func)}", result))
            return result

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, result: Any) -> None:
            results = result if isinstance(result, (tuple, list)) else [result]
            modules.extend((name, one) for one in results if isinstance(one, torch.Tensor) and one.dim() > 2)

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in module.named_modules() if name]
    with Recorder():
        scores = module(inputs)
    for handle in handles:
        handle.remove()
    return sorted(modules, key=lambda one: one[0].count(".")) + functions, scores


def _order(tensor: Any, values: np.ndarray) -> tuple[int, ...] | None:
    """How the axes of a tensor are permuted so that it becomes these values; None where none of the ways does."""
    if tensor.numel() != values.size:
        return None
    plain = tensor.detach()
    bound = 1e-2 * max(float(np.abs(values).max()), 1e-12)  # rounding grows through a deep network of random weights
    others: dict[int, list[tuple[int, ...]]] = {3: [(0, 2, 1)], 4: [(0, 2, 3, 1), (0, 3, 1, 2)]}
    for way in [tuple(range(plain.dim())), *others.get(plain.dim(), [])]:
        if np.abs(plain.permute(way).reshape(values.shape).numpy() - values).max() <= bound:
            return way
    return None


def _planes(tensor: Any, order: tuple[int, ...], shape: tuple[int, ...], features: FeatureMap) -> np.ndarray:
    """(channels, positions) of a tensor, as camrt reads its own."""
    array = tensor.detach().permute(order).reshape(shape).numpy()[0].astype(np.float64)
    array = np.moveaxis(array, features.channels_axis - 1, 0).reshape(features.channels, -1)
    return np.asarray(array[:, features.num_prefix_tokens or 0 :])


def _weighted(values: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return np.asarray((gradient.mean(1, keepdims=True) * values).sum(0))


# ------------------------------------------------------------------------------------------------------------ runs


def row_of(start: Row, options: Mapping[str, Any], results: Any) -> None:
    """Do all for a network, and send its row after each step: the last one that arrives counts."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the exporters print whole graphs, from C++ too
        os.dup2(nowhere, stream)
    row, step = start, "PyTorch"
    try:
        results.send(replace(row, failure="PyTorch: out of time"))
        module, side = network(row.library, row.network, options)
        row, step = replace(row, side=str(side)), "export"
        results.send(replace(row, failure="export: out of time"))
        model = exported(module, side, row.exporter)
        step = "camrt"
        results.send(replace(row, failure="camrt: out of time"))
        for found in explained(module, side, model, row):
            results.send(replace(found, failure="" if found.error else "comparison: out of time"))
            row, step = found, "comparison"
    except Exception as error:  # of whatever library: it is what the table says of the network
        results.send(replace(row, failure=f"{step}: {said(error)}"))


def said(error: Exception) -> str:
    """What an error says, on one line. PyTorch's exporters put advice before the reason, and paths behind it."""
    kind, text = type(error).__name__, str(error)
    found = re.search(r"## Exception summary\s+<class '(?:\w+\.)*(\w+)'>:(.*)", text, re.DOTALL)
    if found:
        kind, text = found[1], re.split('\u2b06|While executing|Original traceback|File "', found[2])[0]
    return f"{kind}: {' '.join(text.split())[:600]}"


def measured(row: Row, options: Mapping[str, Any], limit: float) -> Row:
    """The row of a network, from a process of its own."""
    context = multiprocessing.get_context("fork")  # the libraries are loaded once
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=row_of, args=(row, options, there))
    process.start()
    there.close()
    end, last = time.monotonic() + limit, row
    with contextlib.suppress(EOFError):
        while here.poll(max(0.0, end - time.monotonic())):
            last = here.recv()
    process.join(0.5)
    if process.is_alive():
        process.kill()
        process.join()
    elif process.exitcode:
        last = replace(last, failure=f"{last.failure.partition(':')[0]}: the process ended with {process.exitcode}")
    return last


def read(path: Path) -> dict[tuple[str, str, str], Row]:
    """The rows of a CSV file, the last one of each network."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [Row(**entry) for entry in csv.DictReader(file)]
    return {row.key: row for row in rows}


def write(path: Path, rows: Mapping[tuple[str, str, str], Row]) -> None:
    """Write the rows, one of each network, at once."""
    partial = path.with_suffix(".part")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [one.name for one in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({one.name: getattr(row, one.name) for one in fields(Row)} for row in rows.values())
    partial.replace(path)


# ------------------------------------------------------------------------------------------------------------ page


def page(rows: Sequence[Row]) -> str:
    """docs/architectures.md."""
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("timm", "torchvision", "torch"))
    counts, tables, failures = list[str](), list[str](), list[str]()
    for library in ("timm", "torchvision"):
        for exporter in ("torchscript", "dynamo"):
            some = [row for row in rows if (row.library, row.exporter) == (library, exporter)]
            if some:
                counts.append(_counted(library, exporter, some))
        some = [row for row in rows if row.library == library]
        tables.append(f"### {library}\n\n{_table([row for row in some if not row.failure])}")
        failures += [f"| {row.network} | {row.exporter} | {_shortened(row.failure)} |" for row in some if row.failure]
    listed = "\n".join(failures) or "| none | | |"
    return f"""{PROSE}
## Measured
`python benchmarks/architectures.py` runs a network of every module of timm, and torchvision's classifiers ({versions}),
with random weights and small images, and writes this page. Nothing is named but how the images are prepared. The layer
is looked for in PyTorch by its values; the error is that of Grad-CAM against autograd at the module that returned them,
relative to the largest value of the map. Seconds are those of making the explainer, on a busy machine with two cores.
Not every network has been run with both exporters: the script goes on where it was stopped.

| library | exporter | networks | refused by PyTorch's exporter | explained, and equal to autograd | of those exported |
|---|---|---|---|---|---|
{chr(10).join(counts)}

A network counts as equal up to a relative error of {AGREES}{_rounded(rows)}.
Networks that PyTorch does not export never reach camrt.

{chr(10).join(tables)}
### Not explained

| network | exporter | why |
|---|---|---|
{listed}
"""


def _rounded(rows: Sequence[Row]) -> str:
    """What autograd itself rounds, where that matters."""
    known = [f"{row.network} {row.rounding}" for row in rows if row.rounding and row.is_explained]
    return f", plus what autograd rounds in single precision, against double ({', '.join(known)})" if known else ""


def _counted(library: str, exporter: str, rows: Sequence[Row]) -> str:
    refused = [row for row in rows if row.failure.startswith("export:") and "out of time" not in row.failure]
    good = sum(row.is_explained for row in rows)
    share = f"{100 * good / max(1, len(rows) - len(refused)):.1f} %"
    return f"| {library} | {exporter} | {len(rows)} | {len(refused)} | {good} | {share} |"


def _table(rows: Sequence[Row]) -> str:
    lines = [
        f"| {row.network} | {row.exporter} | `{row.layer.partition(' (')[0]}` | {row.layer.partition(' (')[2][:-1]} "
        f"| {row.module} | {row.error} | {row.seconds} |\n"
        for row in sorted(rows, key=lambda row: (row.network, row.exporter))
    ]
    titles = ("network", "exporter", "layer", "positions, channels", "in PyTorch", "error", "seconds")
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}\n" + "".join(lines)


def _shortened(failure: str) -> str:
    text = failure.replace("|", "\\|").partition(" Please feel free")[0]
    return text if len(text) <= 300 else f"{text[:300]}..."


def wanted_rows(exporters: Sequence[str], only: Sequence[str]) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """The networks that were asked for, the families that are used most first."""
    for exporter in exporters:
        for library, table in (("timm", TIMM), ("torchvision", TORCHVISION)):
            for family, (name, options) in table.items():
                if not only or family in only or name in only:
                    yield Row(library, family, name, exporter), options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exporter", nargs="+", default=["torchscript", "dynamo"], choices=["torchscript", "dynamo"])
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK", help="families or networks")
    parser.add_argument("--again", action="store_true", help="repeat what failed")
    parser.add_argument("--limit", type=float, default=150, metavar="SECONDS", help="of each network (default: 150)")
    parser.add_argument("--csv", type=Path, default=CSV, metavar="FILE")
    arguments = parser.parse_args()
    fitting_torchvision.install()
    import timm  # noqa: F401 (before the processes, which share it)

    find("gradcam"), registry.entries()  # likewise: what is registered is imported when it is first looked up

    rows = read(arguments.csv)
    for row, options in wanted_rows(arguments.exporter, arguments.only):
        known = rows.get(row.key)
        if known is not None and not (arguments.again and not known.is_explained):
            continue
        rows[row.key] = measured(row, options, arguments.limit)
        write(arguments.csv, rows)
        found = rows[row.key]
        print(f"{found.family:26} {found.exporter:12} {found.error:8} {found.seconds:6} {found.layer}", end=" ")
        print(f"= {found.module}" if found.module else "", found.failure, flush=True)
    if arguments.csv == CSV:
        PAGE.write_text(page(list(rows.values())))


if __name__ == "__main__":
    main()

"""A small network on cluttered digits, and how it is trained in seconds."""

from __future__ import annotations

from pathlib import Path

DATA = "clutter:drawn,count=200,size=40,distractors=2"
TEST_DATA = "clutter:drawn,count=100,size=40,distractors=2,seed=1"

_HEAD = """
name: "toy"
layer {
  name: "data" type: "MemoryData" top: "data" top: "label" include { phase: TRAIN }
  memory_data_param { batch_size: %(batch)d channels: 1 height: 40 width: 40 }
  transform_param { scale: 0.00390625 mirror: %(mirror)s }
}
layer {
  name: "data" type: "MemoryData" top: "data" top: "label" include { phase: TEST }
  memory_data_param { batch_size: 25 channels: 1 height: 40 width: 40 }
  transform_param { scale: 0.00390625 }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 8 kernel_size: 5 stride: 2 weight_filler { type: "msra" } }
}
"""
_NORM = """
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" batch_norm_param { moving_average_fraction: 0.9 } }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
"""
_TAIL = """
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 16 kernel_size: 3 stride: 2 weight_filler { type: "msra" } }
}
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool" type: "Pooling" bottom: "conv2" top: "pool" pooling_param { pool: AVE global_pooling: true } }
%(dropout)s
layer {
  name: "%(head)s" type: "InnerProduct" bottom: "pool" top: "scores"
  inner_product_param { num_output: %(classes)d weight_filler { type: "xavier" } }
}
layer {
  name: "accuracy" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy" include { phase: TEST }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }
"""
_DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" dropout_param { dropout_ratio: 0.2 } }'
_SOLVER = """
net: "net.prototxt" base_lr: 0.1 momentum: 0.9 weight_decay: 0.0005 lr_policy: "step" stepsize: 20 gamma: 0.5
test_iter: 2 test_interval: 10 display: 5 average_loss: 3 snapshot: 10 max_iter: 30 random_seed: 7
snapshot_prefix: "%s" solver_mode: CPU
"""


def write(
    folder: Path,
    *,
    solver: str = "",
    batch: int = 8,
    norm: bool = True,
    dropout: bool = True,
    mirror: bool = False,
    classes: int = 10,
    head: str = "fc",
) -> Path:
    """Write the network and its solver file; fields in ``solver`` replace those of the file.

    Returns:
        The solver file. Snapshots go to ``out/toy`` beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "batch": batch,
        "mirror": str(mirror).lower(),
        "dropout": _DROPOUT if dropout else "",
        "classes": classes,
        "head": head,
    }
    net = (_HEAD + (_NORM if norm else "") + _TAIL) % values
    (folder / "net.prototxt").write_text(net)
    fields = dict(zip(*[iter((_SOLVER % (folder / "out" / "toy")).split())] * 2, strict=True))
    fields |= dict(zip(*[iter(solver.split())] * 2, strict=True))
    file = folder / "solver.prototxt"
    file.write_text("".join(f"{name} {value}\n" for name, value in fields.items() if value != "none"))
    return file

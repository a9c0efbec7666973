"""Solvers with the structures of BVLC's examples, described anew; and the real ones, from a checkout in CAMRT_CAFFE."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")
pytest.importorskip("lmdb", reason="lmdb is not installed")
pytest.importorskip("plyvel", reason="plyvel is not installed")

from benchmarks import bvlc  # noqa: E402
from camrt.train.networks import network  # noqa: E402
from camrt.train.solverfile import read_solver  # noqa: E402

SGD = 'base_lr: 0.01 momentum: 0.9 lr_policy: "inv" gamma: 0.0001 power: 0.75 max_iter: 3 display: 1 random_seed: 4'
FILLER = 'weight_filler { type: "xavier" }'

# Pairs of digits as two channels of a LevelDB database; two branches that share their weights by name.
SIAMESE = (
    """
layer { name: "pairs" type: "Data" top: "pairs" top: "same"
  data_param { source: "pairs" backend: LEVELDB batch_size: 8 } transform_param { scale: 0.00390625 } }
layer { name: "split" type: "Slice" bottom: "pairs" top: "one" top: "two" slice_param { slice_dim: 1 slice_point: 1 } }
"""
    + "".join(
        f"""
layer {{ name: "features_{side}" type: "InnerProduct" bottom: "{side}" top: "features_{side}"
  param {{ name: "w" lr_mult: 1 }} param {{ name: "b" lr_mult: 2 }}
  inner_product_param {{ num_output: 2 {FILLER} }} }}
"""
        for side in ("one", "two")
    )
    + """
layer { name: "loss" type: "ContrastiveLoss" bottom: "features_one" bottom: "features_two" bottom: "same" top: "loss"
  contrastive_loss_param { margin: 1 } }
"""
)

# Two test nets on the training and the test digits by stages; one loss that counts, and one that is only reported.
AUTOENCODER = (
    "".join(
        f"""
layer {{ name: "digits" type: "Data" top: "digits" include {{ phase: {phase} {stage} }}
  data_param {{ source: "{source}" backend: LMDB batch_size: {batch} }} transform_param {{ scale: 0.00390625 }} }}
"""
        for phase, stage, source, batch in (
            ("TRAIN", "", "train", 10),
            ("TEST", 'stage: "on-train"', "train", 5),
            ("TEST", 'stage: "on-test"', "test", 4),
        )
    )
    + f"""
layer {{ name: "flat" type: "Flatten" bottom: "digits" top: "flat" }}
layer {{ name: "encode" type: "InnerProduct" bottom: "digits" top: "code"
  inner_product_param {{ num_output: 20 weight_filler {{ type: "gaussian" std: 1 sparse: 15 }} }} }}
layer {{ name: "squash" type: "Sigmoid" bottom: "code" top: "squashed" }}
layer {{ name: "decode" type: "InnerProduct" bottom: "squashed" top: "decoded"
  inner_product_param {{ num_output: 784 {FILLER} }} }}
layer {{ name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "decoded" bottom: "flat" top: "cross_entropy"
  loss_weight: 1 }}
layer {{ name: "output" type: "Sigmoid" bottom: "decoded" top: "output" }}
layer {{ name: "error" type: "EuclideanLoss" bottom: "output" bottom: "flat" top: "l2_error" loss_weight: 0 }}
"""
)

# The network inside the solver file, in the format from before 2015.
CONSOLIDATED = (
    f"""
{SGD} test_iter: 2 test_interval: 500 test_state {{ stage: "on-test" }}
test_iter: 3 test_state {{ stage: "on-train" }}
net_param {{
"""
    + "".join(
        f"""
layers {{ name: "digits" type: DATA top: "data" top: "label"
  include: {{ phase: {phase} {stage} }}
  data_param {{ source: "{source}" backend: LMDB batch_size: {batch} }} transform_param {{ scale: 0.00390625 }} }}
"""
        for phase, stage, source, batch in (
            ("TRAIN", "", "train", 10),
            ("TEST", 'stage: "on-test"', "test", 4),
            ("TEST", 'stage: "on-train"', "train", 5),
        )
    )
    + f"""
layers {{ name: "ip" type: INNER_PRODUCT bottom: "data" top: "ip" blobs_lr: 1 blobs_lr: 2
  inner_product_param {{ num_output: 10 {FILLER} }} }}
layers {{ name: "accuracy" type: ACCURACY bottom: "ip" bottom: "label" top: "accuracy" include: {{ phase: TEST }} }}
layers {{ name: "loss" type: SOFTMAX_LOSS bottom: "ip" bottom: "label" top: "loss" }}
}}
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        bvlc.database(tmp_path / part, rng.integers(0, 256, (30, 1, 28, 28), np.uint8), [n % 10 for n in range(30)])
    bvlc.leveldb(tmp_path / "pairs", rng.integers(0, 256, (30, 2, 28, 28), np.uint8), [n % 2 for n in range(30)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pairs_of_digits(folder):
    (folder / "net.prototxt").write_text(SIAMESE)
    (folder / "solver.prototxt").write_text(f'net: "net.prototxt" {SGD}')
    row = bvlc.run(folder, Path("solver.prototxt"), threads=1)
    assert row.succeeded, row.error
    assert (row.data, row.batches) == ("Data (LEVELDB)", "8")
    built = network(read_solver("solver.prototxt").train_net(), input_shapes={"pairs": (8, 2, 28, 28), "same": (8,)})
    assert [tuple(blob.parameter.shape) for blob in built.blobs] == [(2, 784), (2,)]  # of both branches


def test_two_test_nets_by_stages(folder):
    (folder / "net.prototxt").write_text(AUTOENCODER)
    states = (
        'test_interval: 500 test_state { stage: "on-train" } test_iter: 2 test_state { stage: "on-test" } test_iter: 3'
    )
    (folder / "solver.prototxt").write_text(f'net: "net.prototxt" {SGD} {states}')
    row = bvlc.run(folder, Path("solver.prototxt"), threads=1)
    assert row.succeeded, row.error
    assert (row.batches, row.tests) == ("10 / 5 / 4", 2)
    assert row.losses[0] == pytest.approx(
        784 * np.log(2), rel=0.4
    )  # cross entropy of unsure sigmoids; no l2_error in it
    assert row.losses[2] < row.losses[0]


def test_a_network_in_its_solver_file(folder):
    (folder / "solver.prototxt").write_text(CONSOLIDATED)
    row = bvlc.run(folder, Path("solver.prototxt"), threads=1)
    assert row.succeeded, row.error
    assert (row.batches, row.tests) == ("10 / 4 / 5", 2)


def test_a_solver_that_fails_has_its_error_in_the_table(folder):
    (folder / "solver.prototxt").write_text(f'net: "nowhere.prototxt" {SGD}')
    row = bvlc.run(folder, Path("solver.prototxt"))
    assert not row.succeeded
    assert "failed: nowhere.prototxt: does not exist" in bvlc.table([row])


@pytest.mark.slow
@pytest.mark.skipif("CAMRT_CAFFE" not in os.environ, reason="no checkout of BVLC Caffe (set CAMRT_CAFFE)")
def test_all_solvers_of_bvlc(tmp_path, capsys):
    """Takes minutes: batches of 256 images through AlexNet and CaffeNet."""
    solvers = bvlc.copied(Path(os.environ["CAMRT_CAFFE"]), tmp_path)
    assert len(solvers) == bvlc.SOLVERS
    rows = [bvlc.run(tmp_path, solver) for solver in solvers]
    with capsys.disabled():
        print(f"\n{bvlc.table(rows)}")
    assert all(row.succeeded for row in rows), [row.error for row in rows if not row.succeeded]

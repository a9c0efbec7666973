"""scripts/digit_transformer.py trains a network that methods of attention explain."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from camrt import Explainer
from camrt.graph.methods import METHODS, find
from tests.camrt.graph.explainers import run

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing is trained")


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    sys.path.insert(0, str(repository / "scripts"))
    try:
        import digit_transformer
    finally:
        sys.path.remove(str(repository / "scripts"))
    return digit_transformer


def test_a_few_steps_and_all_methods_of_attention(script: ModuleType, repository: Path) -> None:
    network = script.trained(2)
    model = script.exported(network)
    planes, labels = script.batch(script.Clutter(script.Digits.drawn(20, 3), seed=2), 0, 4)
    assert planes.shape == (4, 3, script.SIDE, script.SIDE)
    assert set(labels.tolist()) <= set(range(10))
    with torch.no_grad():
        wanted = network(planes).numpy()
    np.testing.assert_allclose(run(model, {"data": planes.numpy()})[0], wanted, atol=1e-4)
    for name in METHODS:
        if find(name).tokens:
            heatmap = Explainer(model, name, top=1)(repository / "models" / "lenetCAM" / "sample.png").heatmaps[0]
            assert heatmap.shape == (script.SIDE, script.SIDE)
            assert heatmap.max() > 0, name
    assert 0 <= script.accuracy(network, 20) <= 1

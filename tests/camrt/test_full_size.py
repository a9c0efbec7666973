"""The explainer graph of the CAM networks at full size, against real Caffe's answers in the reference folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from scipy.io import loadmat

from camrt import matlab
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.preprocess import Preprocess
from camrt.session import Session
from converters import zoo
from tests.released import seeded


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16CAM", "alexnetplusCAM"])
@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_graph_gives_caffes_maps(name: str, provider: str, reference: Path, tmp_path: Path) -> None:
    if provider == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    facts, expected = zoo.find(name), np.load(reference / "nets" / name / "expected.npz")
    mean = loadmat(reference / "matlab_demo" / "ilsvrc_2012_mean.mat")["mean_data"].astype(np.float32)
    crop = facts.preprocessing.crop
    preprocess = Preprocess(256, crop, (104.0, 117.0, 123.0), mean_image=mean.transpose(2, 1, 0).copy())
    explainer = explain_graph(
        seeded(name, reference, tmp_path), protocol="ten-crop", features=facts.features, classifier=facts.classifier,
        preprocess=preprocess,
    )  # fmt: skip
    explainer.graph.output.append(onnx.ValueInfoProto(name=MAPS))
    image = np.asarray(Image.open(reference / "matlab_demo" / "img1.jpg").convert("RGB"))
    image = matlab.imresize(image, (256, 256))
    found = Session(explainer, providers=provider).run({"image": image[None]})
    scores, classes, heatmaps, maps = (found[each] for each in ("scores", "classes", "heatmaps", MAPS))

    assert classes[0].tolist() == expected["top5"].tolist()
    np.testing.assert_allclose(maps[0], expected["cams"], atol=1e-4 * np.abs(expected["cams"]).max())
    np.testing.assert_allclose(scores[0], expected["scores"].mean(axis=0), rtol=1e-3, atol=1e-6)
    for rank in range(5):
        large = np.stack([matlab.imresize(cam.astype(np.float64), (crop, crop)) for cam in expected["cams"][:, rank]])
        merged = matlab.merge_ten_crops(large)
        np.testing.assert_allclose(heatmaps[0, rank], merged, atol=1e-4 * merged.max())

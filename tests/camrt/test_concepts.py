"""Concepts against pytorch-grad-cam's deep feature factorization, and against PyTorch's head."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from camrt.cli import app
from camrt.concepts import Concepts, concept_colors, factorized, find_concepts
from camrt.errors import CamrtError
from tests.camrt.classifiers import CHANNELS, classifier
from tests.camrt.graph import peers
from tests.camrt.graph.explainers import PREPROCESS as SMALL
from tests.camrt.graph.explainers import images as small_images
from tests.camrt.graph.torch_networks import PREPROCESS, exported, images, network, tensor_of, transformer

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'camrt[concepts]'")


@pytest.mark.parametrize("kind", ["gap", "vgg", "residual"])
def test_concepts_of_pytorch_grad_cam(kind: str) -> None:
    """Of two images at once. The factorization begins at the same random numbers."""
    import torch

    module, library = network(kind), peers.grad_cam()
    found = find_concepts(exported(module), list(images()), 3, preprocess=PREPROCESS)
    with torch.no_grad():
        features = module.features(tensor_of(images()))
    vectors, strengths = library.feature_factorization.deep_feature_factorization.dff(features.numpy(), 3)
    np.testing.assert_allclose(found.vectors.T, vectors, atol=2e-3 * np.abs(vectors).max())
    np.testing.assert_allclose(found.maps, strengths, atol=2e-3 * strengths.max())
    assert found.maps.shape == (2, 3, *features.shape[2:])
    everywhere = torch.from_numpy(found.vectors)[..., None, None].expand(-1, -1, *features.shape[2:])
    with torch.no_grad():
        wanted = torch.softmax(module.head(everywhere.contiguous()), 1).numpy()
    np.testing.assert_allclose(found.scores, wanted, atol=1e-4)
    assert 0 < found.error < 1


def test_concepts_of_tokens() -> None:
    """The class token is not factorized, and stays that of the image where the scores of a concept are computed."""
    torch = pytest.importorskip("torch")
    module = transformer()
    pixels = images(1)
    found = find_concepts(exported(module), [pixels[0]], 4, preprocess=PREPROCESS)
    kept: list[Any] = []

    def hook(layer: Any, given: Any, tokens: Any) -> Any:
        kept.append(tokens.detach())
        if len(kept) > 1:
            tokens = torch.cat([kept[0][:, :1].expand(4, -1, -1), vectors[:, None].expand(-1, 16, -1)], 1)
        return tokens

    vectors = torch.from_numpy(found.vectors)
    module.blocks[-1].norm1.register_forward_hook(hook)
    with torch.no_grad():
        module(tensor_of(pixels))
        wanted = torch.softmax(module(tensor_of(pixels).expand(4, -1, -1, -1)), 1).numpy()
    np.testing.assert_allclose(found.scores, wanted, atol=1e-4)
    features = kept[0][:, 1:].transpose(1, 2).reshape(1, -1, 4, 4).numpy()
    np.testing.assert_allclose(found.maps, factorized(features, 4)[1], atol=5e-3 * found.maps.max())


def test_more_concepts_leave_less() -> None:
    features = np.random.default_rng(0).gamma(1, 1, (2, 10, 6, 5)).astype(np.float32)
    errors = [factorized(features, count)[2] for count in (2, 5, 9)]
    assert errors == sorted(errors, reverse=True)
    vectors, maps, _ = factorized(features, 9)
    least = features.min((0, 2, 3))
    rebuilt = np.einsum("kc,nkyx->ncyx", vectors - least, maps) + least[:, None, None]
    left = np.linalg.norm(rebuilt - features) / np.linalg.norm(features - least[:, None, None])
    np.testing.assert_allclose(left, errors[-1], rtol=1e-3)


def made() -> Concepts:
    return find_concepts(classifier("gemm"), list(small_images(2)), 3, preprocess=SMALL, labels=list("abcd"))


def test_picture_and_summary() -> None:
    found = made()
    size = len(found.images[0])
    picture = found.picture(1)
    assert picture.shape[1] == 2 * size
    assert picture.shape[0] > size
    np.testing.assert_array_equal(picture[:size, :size], found.images[1])
    facts = json.loads(json.dumps(found.as_dict()))
    assert sum(one["share"] for one in facts["concepts"]) == pytest.approx(1)
    assert [one["label"] for one in facts["concepts"][0]["classes"]] == [label for label, _ in found.best(0)]
    assert found.best(2, 4)[0][1] == found.scores[2].max()
    assert len(np.unique(concept_colors(5).round(), axis=0)) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 1}, "1 concepts, expected 1 or more, and 2 or more"),
        ({"photographs": []}, "found 0 images"),
        ({"count": CHANNELS + 1}, "7 concepts of 6 channels at 128 positions, expected no more concepts than either"),
        ({"protocol": "ten-crop"}, "'ten-crop', expected whole or center"),
        ({"layer": "relu9"}, "found the layer 'relu9'"),
        ({"layer": "flat"}, "no positions left"),
    ],
)
def test_errors(arguments: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"photographs": list(small_images(2)), "preprocess": SMALL, **arguments}
    with pytest.raises(CamrtError, match=words):
        find_concepts(classifier("gemm"), **given)


def test_features_that_are_not_finite() -> None:
    with pytest.raises(CamrtError, match="features that are finite"):
        factorized(np.full((1, 4, 3, 3), np.nan, np.float32), 2)


def test_command(tmp_path: Path) -> None:
    onnx.save(classifier("gemm", metadata={"camrt.preprocess": SMALL.as_json()}), tmp_path / "net.onnx")
    for number, pixels in enumerate(small_images(2)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    command = ["concepts", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--model", str(tmp_path / "net.onnx")]
    command += ["--provider", "cpu", "--count", "3", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert len(facts["concepts"]) == 3
    for file in facts["files"]:
        assert Image.open(io.BytesIO(Path(file).read_bytes())).size[0] == 2 * SMALL.crop
    shown = CliRunner().invoke(app, [*command, str(tmp_path / "broken.png"), str(tmp_path / "gone.png")])
    assert shown.exit_code == 1
    assert "of the features of features are left" in shown.stdout
    assert "broken.png" in shown.stderr
    assert "gone.png" in shown.stderr
    wrong = CliRunner().invoke(app, [*command, "--protocol", "ten-crop"])
    assert wrong.exit_code == 2

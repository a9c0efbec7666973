from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from camrt import CamrtError, Explainer, tuning
from camrt.session import Session
from camrt.tuning import FIRST, AutoSession, Contender, agreement, contenders
from tests.tiny_models import photo, tiny_classifier, tiny_explainer

IMAGES = np.stack([photo(32, 32, seed) for seed in range(5)])
MAPS = np.random.default_rng(0).random((2, 3, 8, 8)).astype(np.float32)


def answers(classes: Any, maps: np.ndarray = MAPS, scores: Any = ((0.9, 0.1, 0.05, 0), (0.5, 0.49, 0.1, 0))) -> dict:
    return {"scores": np.array(scores, np.float32), "classes": np.array(classes), "heatmaps": maps}


class FakeSession:
    """A session that answers as told, and sleeps as long as told."""

    made: list[tuple[str | None, str | None]]

    def __init__(self, model: Any, *, providers: Any, threads: int | None, precision: str | None = None) -> None:
        type(self).made.append((providers, precision))
        self.provider, self.precision = providers or "cpu", precision or "fp32"
        self.inputs, self.outputs, self.metadata = {}, {}, {}
        if (answer := type(self).answers.get(self.precision)) is None:
            raise CamrtError("no such thing here")
        self.answer, self.seconds = answer

    answers: Mapping[str, tuple[dict[str, np.ndarray], float]]

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        import time

        time.sleep(self.seconds)
        return self.answer


def use(monkeypatch: pytest.MonkeyPatch, answered: Mapping[str, tuple[dict[str, np.ndarray], float]]) -> None:
    FakeSession.made, FakeSession.answers = [], answered
    monkeypatch.setattr(tuning, "missing", lambda contender: "")
    monkeypatch.setattr(tuning, "Session", FakeSession)
    monkeypatch.setattr(
        tuning, "contenders", lambda providers: [Contender("openvino", "bf16"), Contender("openvino", "fp16")]
    )


def test_agreement() -> None:
    expected = answers([[0, 1, 2], [0, 1, 2]])
    assert agreement(expected, expected).is_enough
    swapped = answers([[0, 2, 1], [0, 1, 2]], np.stack([MAPS[0, [0, 2, 1]], MAPS[1]]))
    assert agreement(swapped, expected).classes == 1
    assert agreement(swapped, expected).correlation == pytest.approx(1)
    other = answers([[0, 1, 3], [0, 1, 2]])
    assert agreement(other, expected).classes == pytest.approx(5 / 6)
    noisy = MAPS + np.random.default_rng(1).normal(0, 0.1, MAPS.shape).astype(np.float32)
    found = agreement(answers([[0, 1, 2], [0, 1, 2]], noisy), expected)
    correlations = [np.corrcoef(noisy[n, k].ravel(), MAPS[n, k].ravel())[0, 1] for n in range(2) for k in range(3)]
    assert found.correlation == pytest.approx(min(correlations))
    assert not found.is_enough


def test_best_classes() -> None:
    """Of the second image two classes are as likely; of the first they are not."""
    expected = answers([[0, 1, 2], [0, 1, 2]])
    tied = answers([[0, 1, 2], [1, 0, 2]], np.stack([MAPS[0], MAPS[1, [1, 0, 2]]]))
    assert agreement(tied, expected).is_enough
    wrong = answers([[1, 0, 2], [0, 1, 2]], np.stack([MAPS[0, [1, 0, 2]], MAPS[1]]))
    assert not agreement(wrong, expected).is_enough


def test_maps_without_a_correlation() -> None:
    flat, broken = np.zeros_like(MAPS), np.full_like(MAPS, np.nan)
    classes = [[0, 1, 2], [0, 1, 2]]
    assert agreement(answers(classes, flat), answers(classes, flat)).is_enough
    assert not agreement(answers(classes, MAPS), answers(classes, flat)).is_enough
    assert agreement(answers(classes, broken), answers(classes, MAPS)).correlation == 0


def test_scores_without_maps() -> None:
    scores = np.random.default_rng(0).random((2, 9)).astype(np.float32)
    assert agreement({"prob": scores}, {"prob": scores}).is_enough
    assert not agreement({"prob": scores[:, ::-1]}, {"prob": scores}).is_enough


def test_the_fastest_that_agrees(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    exact = answers([[0, 1, 2], [0, 1, 2]])
    near = answers([[0, 1, 2], [0, 1, 2]], MAPS * 1.5)
    far = answers([[0, 1, 2], [0, 1, 2]], MAPS[::-1])
    use(monkeypatch, {"fp32": (exact, 0.05), "bf16": (far, 0), "fp16": (near, 0.01)})
    one = AutoSession(tiny_explainer(), providers=None)
    assert (one.precision, one.first_batch, FakeSession.made) == ("fp32", FIRST, [(None, None)])
    with caplog.at_level(logging.INFO, "camrt.tuning"):
        assert one.run({"image": IMAGES[:2]}) is near
    assert (one.provider, one.precision, one.first_batch) == ("openvino", "fp16", 1)
    assert FakeSession.made == [(None, None), ("openvino", "bf16"), ("openvino", "fp16")]
    one.run({"image": IMAGES[:2]})
    assert len(FakeSession.made) == 3
    assert "openvino bf16" in caplog.messages[0]
    assert caplog.messages[0].endswith("not taken")
    assert caplog.messages[-1] == "precision auto: openvino fp16 is taken"


def test_what_is_slower_or_fails_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exact = answers([[0, 1, 2], [0, 1, 2]])
    use(monkeypatch, {"fp32": (exact, 0.005), "bf16": (exact, 0.05)})
    one = AutoSession(tiny_explainer())
    with caplog.at_level(logging.INFO, "camrt.tuning"):
        one.run({"image": IMAGES[:2]})
    assert one.precision == "fp32"
    assert "not openvino fp16: no such thing here" in caplog.text


def test_a_run_that_fails_leaves_the_choice_to_the_next() -> None:
    one = AutoSession(tiny_explainer(), providers="cpu")
    with pytest.raises(CamrtError):
        one.run({"image": IMAGES[..., :2]})
    assert one.first_batch == FIRST
    one.run({"image": IMAGES})
    assert one.first_batch == 1


@pytest.mark.parametrize(
    ("providers", "expected"),
    [
        ("cpu", []),
        ("coreml", []),
        ("openvino", ["openvino bf16", "openvino fp16"]),
        ("openvino:device=CPU", ["openvino bf16", "openvino fp16"]),
        (["cuda", "cpu"], ["cuda tf32", "cuda fp16"]),
        ("CUDAExecutionProvider", ["cuda tf32", "cuda fp16"]),
        ("tensorrt", ["tensorrt fp16", "tensorrt bf16"]),
        (None, ["openvino fp32", "openvino bf16", "openvino fp16"]),
    ],
    ids=str,
)
def test_contenders(providers: Any, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.onnxruntime, "has_cuda", lambda: False)
    assert [str(each) for each in contenders(providers)] == expected


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tuning, "missing", lambda contender: "it is not installed")
    one = AutoSession(tiny_explainer(), providers=("openvino",) if tuning.openvino.can("fp32") else None)
    with caplog.at_level(logging.INFO, "camrt.tuning"):
        one.run({"image": IMAGES})
    assert one.precision == "fp32"
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("precision auto: not ")
    assert caplog.messages[0].endswith("openvino bf16, openvino fp16: it is not installed")


def test_threads() -> None:
    """The choice is made once, and every answer agrees."""
    one = AutoSession(tiny_explainer())
    expected = Session(tiny_explainer(), providers="cpu").run({"image": IMAGES})
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: one.run({"image": IMAGES[n : n + 1]}), range(5)))
    for n, each in enumerate(found):
        assert np.corrcoef(each["heatmaps"][0, 0].ravel(), expected["heatmaps"][n, 0].ravel())[0, 1] > 0.99


def test_an_explainer(caplog: pytest.LogCaptureFixture) -> None:
    explainer = Explainer(tiny_classifier(), precision="auto")
    assert explainer.precision == "fp32"
    with caplog.at_level(logging.INFO, "camrt.tuning"):
        found = list(explainer.map(list(IMAGES), workers=1))
    assert len(found) == 5
    assert {each.precision for each in found} == {explainer.precision}
    assert {each.as_dict()["provider"] for each in found} == {explainer.provider}
    assert "is taken" in caplog.messages[-1]
    assert all("4 images" in message for message in caplog.messages[:-1] if "ms an image" in message)

"""A model that is served: an explainer, its tensors in the protocol's terms, and its queue."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.explainer import BEST, Prepared
from camrt.images import LARGER
from camrt.serve.batching import Batcher, BatchStatistics
from camrt.serve.protocol import TensorSpec

if TYPE_CHECKING:
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation

Feeds: TypeAlias = Mapping[str, NDArray[Any]]
Found: TypeAlias = dict[str, NDArray[Any]]
_DATATYPES = {"image": "UINT8", "target": "INT64", "scores": "FP32", "classes": "INT64", "heatmaps": "FP32"}


@dataclass(frozen=True)
class Loaded:
    """A model, before it is served.

    Attributes:
        name: What clients call it.
        version: Its version: a positive number as text.
        explainer: What computes.
        max_batch: The most images at once; None for the server's limit.
        max_delay: How long a batch waits, in seconds; None for the server's.
    """

    name: str
    version: str
    explainer: Explainer
    max_batch: int | None = None
    max_delay: float | None = None


class ServedModel:
    """A model with its queue. Requests of both kinds, tensors and images, wait in it together.

    Args:
        loaded: The model.
        max_batch: The most images at once, where the model does not say it.
        max_delay: How long a batch waits, in seconds, where the model does not say it.
        max_queue: The most images that wait.
        observe: Called with the statistics of each batch.

    Attributes:
        name: What clients call it.
        version: Its version.
        explainer: What computes.
        inputs: What the graph takes.
        optional: Those of the inputs that a request may leave out.
        outputs: What the graph gives: scores, classes and heatmaps.
        batcher: Its queue.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        max_batch: int,
        max_delay: float,
        max_queue: int,
        observe: Callable[[BatchStatistics], object],
    ) -> None:
        self.name, self.version, self.explainer = loaded.name, loaded.version, loaded.explainer
        if self.explainer.explained == "box":
            raise CamrtError(
                "found an explainer of detections, expected one of classes: the server has no boxes in its protocol. "
                "camrt export writes one graph for every box, which an inference server runs",
                file=self.name,
            )
        session = self.explainer.session
        self.inputs = tuple(_spec(name, shape) for name, shape in session.inputs.items())
        self.optional = frozenset({"target"} if self.explainer.target == "any" else ())
        self.outputs = tuple(_spec(name, session.outputs[name]) for name in ("scores", "classes", "heatmaps"))
        batch = self.inputs[0].shape[0]
        self.batcher: Batcher[Prepared | Feeds, Explanation | Found] = Batcher(
            self._compute,
            max_batch=batch if batch > 0 else loaded.max_batch or max_batch,
            max_delay=max_delay if loaded.max_delay is None else loaded.max_delay,
            max_queue=max_queue,
            threads=self.explainer.streams,
            observe=observe,
        )

    def describe(self, versions: Sequence[str]) -> dict[str, Any]:
        """Return the metadata that ``GET /v2/models/M`` answers with."""
        return {
            "name": self.name,
            "versions": list(versions),
            "platform": "onnxruntime_onnx",
            "inputs": [spec.as_dict() for spec in self.inputs],
            "outputs": [spec.as_dict() for spec in self.outputs],
        }

    def facts(self) -> dict[str, Any]:
        """Return what the page needs to know: see `camrt.web.site.served_files`."""
        explainer = self.explainer
        facts = {name: getattr(explainer, name) for name in ("method", "protocol", "top", "size", "target", "labels")}
        return {
            "id": f"{self.name}/{self.version}",
            "title": self.name,
            **facts,
            "classes": self.outputs[0].shape[1],
            "infer": f"v2/models/{self.name}/versions/{self.version}/infer",
        }

    async def infer(self, feeds: Feeds) -> Found:
        """Run the graph on tensors.

        Args:
            feeds: Input -> array (N, ...), checked by `camrt.serve.protocol.parse_request`. Without ``target``, a
                graph that takes any classes explains the best ones.

        Raises:
            CamrtError: The batch is too large, or the engine fails.
            Overloaded: The queue is full.
        """
        rows = len(feeds["image"])
        if rows > self.batcher.max_batch:
            raise CamrtError(
                f"found a batch of {rows}, expected at most {self.batcher.max_batch}: send several requests"
            )
        if self.optional and not self.optional <= feeds.keys():
            feeds = {**feeds, "target": np.full((rows, self.explainer.top), BEST, np.int64)}
        elif "target" in feeds:
            target, classes = feeds["target"], self.outputs[0].shape[1]
            is_any = self.explainer.target == "any"  # a negative number stands for the best class
            if (target >= classes).any() or (not is_any and (target < 0).any()):
                raise CamrtError(f"input 'target': found a class that is not there, expected 0 to {classes - 1}")
        found = await self.batcher.submit(feeds, rows)
        assert isinstance(found, dict)
        return found

    async def explain(self, prepared: Prepared) -> Explanation:
        """Explain an image.

        Raises:
            CamrtError: The engine fails.
            Overloaded: The queue is full.
        """
        found = await self.batcher.submit(prepared)
        assert not isinstance(found, dict)
        return found

    def prepare(self, image: bytes, name: str, target: list[str] | None) -> Prepared:
        """Decode and resize an image, in any thread.

        Args:
            image: The bytes of its file.
            name: What it is called.
            target: Classes to explain, by number or name, where the graph takes them.

        Raises:
            CamrtError: It cannot be read, or there is no such class.
        """
        if target and self.explainer.target not in ("any", "input"):
            raise CamrtError(
                f"found the target {', '.join(target)[:80]!r}, expected none: the model {self.name} takes no classes "
                f"with an image, it explains {self._explained}"
            )
        asked = [int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text for text in target or ()]
        try:
            return replace(self.explainer.prepare(image, asked or None), source=name)
        except CamrtError as error:
            message = error.message.replace(LARGER, "Send a smaller one")
            raise CamrtError(message, file=name) from error

    @property
    def _explained(self) -> str:
        target = self.explainer.target
        if isinstance(target, str):
            return "the sum of all scores" if target == "sum" else "the best ones"
        return f"the classes {', '.join(map(str, target))}"

    # ------------------------------------------------------------------------------------------------------------------

    def _compute(self, items: Sequence[Prepared | Feeds]) -> list[Explanation | Found | CamrtError]:
        """A batch: one run of the session where all its requests are of one kind, else two."""
        images = [item for item in items if isinstance(item, Prepared)]
        tensors = [item for item in items if not isinstance(item, Prepared)]
        explained = iter(self.explainer.explain_prepared(images) if images else [])
        found = iter(self._run(tensors) if tensors else [])
        return [next(explained) if isinstance(item, Prepared) else next(found) for item in items]

    def _run(self, requests: Sequence[Feeds]) -> list[Found]:
        """Run the graph once for several requests. The results are views of the batch's."""
        if len(requests) == 1:
            return [self._outputs(requests[0])]
        together = self._outputs({name: np.concatenate([feeds[name] for feeds in requests]) for name in requests[0]})
        ends = list(itertools.accumulate(len(feeds["image"]) for feeds in requests))
        return [
            {name: array[start:end] for name, array in together.items()}
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def _outputs(self, feeds: Feeds) -> Found:
        found = self.explainer.session.run(feeds)
        return {spec.name: found[spec.name] for spec in self.outputs}


def _spec(name: str, shape: Sequence[int | str | None]) -> TensorSpec:
    return TensorSpec(name, _DATATYPES[name], tuple(length if isinstance(length, int) else -1 for length in shape))

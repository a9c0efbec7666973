"""What a method works with: features, gradients and scores of a network, as tensors of the graph under construction.

Axes: N images, of which the network sees ``crops`` parts each, so it runs on N * crops; of each, ``count`` classes are
explained. The tensors here have these axes apart: (N, crops, count, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper

from camrt.errors import CamrtError
from camrt.graph.builder import Builder
from camrt.graph.crops import Crop
from camrt.graph.head import Head
from camrt.graph.layers import FeatureMap
from camrt.graph.rewrite import repeated
from camrt.graph.scores import Scores
from camrt.graph.targets import Targets
from camrt.graph.view import GraphView
from camrt.preprocess import Preprocess

GRADIENT = "camrt/gradient"  # inside the graph: of a pixel method, before the largest of the channels is taken


@dataclass(frozen=True)
class Pass:
    """A run of the network through the graph.

    Attributes:
        image: The network's input: (N * crops, 3, side, side).
        logits: What is differentiated.
        nodes: Those of a run that stand in no graph yet.
    """

    image: str
    logits: str
    nodes: Sequence[onnx.NodeProto] = ()


@dataclass(eq=False)
class Scene:
    """An image that was cut into crops, and a network that has looked at them.

    Attributes:
        builder: Where new nodes go.
        view: The network; with a second copy of its nodes, where the method runs it again.
        first: The run on the crops.
        second: The run on other images of the same size: its nodes stand in ``view``, and in no graph yet.
        crops: What the crops are.
        side: Their side in pixels.
        preprocess: What the network wants of an image.
        scores: What the scores are.
        targets: What is explained.
        classes: The classes that are explained: (N, count) int64.
        grids: The layers that are looked at.
        head: The head of the classifier, where the method needs one.
    """

    builder: Builder
    view: GraphView
    first: Pass
    second: Pass | None
    crops: Sequence[Crop]
    side: int
    preprocess: Preprocess
    scores: Scores
    targets: Targets
    classes: str
    grids: Sequence[FeatureMap] = ()
    head: Head | None = None
    _gradients: dict[str, str] = field(default_factory=dict)
    _runs: int = 0

    @property
    def count(self) -> int:
        """How many classes are explained of each image."""
        return self.targets.count

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers that are looked at."""
        return [Layer(self, grid) for grid in self.grids]

    def gradients(self, layer: str) -> str:
        """The derivative of each class's score by a layer, as `backward` gives it. One backward pass serves all."""
        if layer not in self._gradients:
            self._gradients = self.backward(self.first, [grid.tensor for grid in self.grids])
        return self._gradients[layer]

    def backward(self, run: Pass, layers: Sequence[str], relu: str | None = None) -> dict[str, str]:
        """Differentiate the scores of the explained classes.

        Args:
            run: Which run of the network.
            layers: By what.
            relu: How ReLUs go back: None, ``"guided"`` or ``"deconvnet"``.

        Returns:
            Layer -> (N * crops * count, ...) float32, the classes of a crop one after the other.

        Raises:
            CamrtError: The scores do not depend on a layer, or an operator between has no rule.
        """
        from camrt.graph.gradient import backpropagate

        rank = self.view.rank(run.logits) or 2
        if run.logits in layers:
            raise CamrtError(f"found the layer {run.logits!r}, which is what is explained; expected one before it")
        seeds = self.targets.seeds(self.builder, self.classes, len(self.crops), run.logits, self.scores, rank)
        return dict(backpropagate(self.builder, self.view, {run.logits: seeds}, layers, copies=self.count, relu=relu))

    def pixels(self, run: Pass, relu: str | None = None) -> str:
        """The derivative of each class's score by the image: (N, crops, count, 3, side, side)."""
        gradient = self.backward(run, [run.image], relu)[run.image]
        return self.builder.reshape(gradient, -1, len(self.crops), self.count, 3, self.side, self.side)

    def magnitude(self, gradient: str) -> str:
        """The largest magnitude of the three channels (Simonyan et al. 2014, section 3.1).

        Args:
            gradient: (N, crops, count, 3, side, side).

        Returns:
            (N, crops, count, side, side).
        """
        named = self.builder.node("Identity", [gradient], GRADIENT)
        return self.builder.reduce("Max", self.builder.node("Abs", [named]), [3])

    def images(self) -> str:
        """What the network sees: (N, crops, 3, side, side)."""
        return self.builder.reshape(self.first.image, -1, len(self.crops), 3, self.side, self.side)

    def again(self, images: str) -> Pass:
        """Run the network on other images, inside `summed` or `collected`.

        Args:
            images: (any number, 3, side, side).
        """
        assert self.second is not None
        run = self.second
        self._runs += 1
        if self._runs > 1:  # only the first can be differentiated: its nodes are those of the view
            nodes, names = repeated(run.nodes, f"{run.image}.{self._runs}", [run.image])
            run = Pass(names[run.image], names[run.logits], nodes)
        self.builder.node("Identity", [images], run.image)
        self.builder.nodes.extend(run.nodes)
        return run

    def summed(self, times: int, body: Callable[[str], str], start: str) -> str:
        """Repeat nodes, one run after the other, and add what they give: memory does not grow with their number.

        Args:
            times: How often.
            body: Adds the nodes of a run: its number (int64, from 0) -> what it gives.
            start: Zeros of the shape of that.

        Returns:
            The sum.
        """
        so_far = self.builder.name("loop/sum")
        value = helper.make_tensor_value_info(so_far, TensorProto.FLOAT, None)
        return self._loop(times, lambda number: self.builder.node("Add", [so_far, body(number)]), start, value)

    def collected(self, times: int, body: Callable[[str], str]) -> str:
        """Repeat nodes, one run after the other, and stack what they give.

        Args:
            times: How often.
            body: Adds the nodes of a run: its number (int64, from 0) -> what it gives.

        Returns:
            (times, ...).
        """
        return self._loop(times, body)

    def _loop(
        self, times: int, body: Callable[[str], str], start: str = "", carried: onnx.ValueInfoProto | None = None
    ) -> str:
        builder = self.builder
        outside, builder.nodes = builder.nodes, []
        number, goes_on = builder.name("loop/number"), builder.name("loop/goes_on")
        found = body(number)
        still = builder.node("Identity", [goes_on])
        inside, builder.nodes = builder.nodes, outside
        inputs = [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
        ]
        outputs = [
            helper.make_tensor_value_info(still, TensorProto.BOOL, []),
            helper.make_tensor_value_info(found, TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph(inside, builder.name("loop"), [*inputs, *([carried] if carried else [])], outputs)
        begin = [start] if carried else []
        return builder.node("Loop", [builder.constant(times, "times", np.int64), "", *begin], body=graph)


@dataclass(eq=False)
class Layer:
    """Features of a layer, and what a method asks of them.

    Attributes:
        scene: Where they are from.
        grid: The layer.
    """

    scene: Scene
    grid: FeatureMap

    @property
    def builder(self) -> Builder:
        """Where new nodes go."""
        return self.scene.builder

    @property
    def channels(self) -> int:
        """How many maps the layer has."""
        return self.grid.channels

    @property
    def places(self) -> int:
        """How many numbers a map has."""
        return self.grid.positions

    @cached_property
    def features(self) -> str:
        """A: (N, crops, channels, places)."""
        return self._apart(self.grid.tensor, [])

    @cached_property
    def gradients(self) -> str:
        """dy/dA of each class: (N, crops, count, channels, places)."""
        return self._apart(self.scene.gradients(self.grid.tensor), [self.scene.count])

    @cached_property
    def shared(self) -> str:
        """The features with an axis of size 1 for the classes: (N, crops, 1, channels, places)."""
        return self.builder.unsqueeze(self.features, 2)

    def weighted(self, weights: str) -> str:
        """The sum over the channels, sum_k w_k A_k: (N, crops, count, places).

        Args:
            weights: (N, crops, count, channels), or with a 1 for ``crops``.
        """
        return self.builder.node("MatMul", [weights, self.features])

    def repeated(self, maps: str) -> str:
        """The same map for each class.

        Args:
            maps: (N, crops, places).

        Returns:
            (N, crops, count, places).
        """
        return self.builder.node(
            "Expand", [self.builder.unsqueeze(maps, 2), self.builder.shape(1, 1, self.scene.count, 1)]
        )

    def _apart(self, tensor: str, classes: list[int]) -> str:
        """Axes of their own for images, crops and classes; channels before places."""
        return self.grid.planes(self.builder, tensor, -1, len(self.scene.crops), *classes)

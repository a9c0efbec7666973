"""What a method works with: features, gradients and scores of a network, as values of the graph under construction.

Axes: N images, of which the network sees ``crops`` parts each, so that it runs on N * crops. What differs from class to
class has the classes along its leading axis, which formulas need not know of (`camrt.graph.values`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper

from camrt.builder import Builder
from camrt.errors import CamrtError
from camrt.graph.channel_sums import SummedAt, summed_at
from camrt.graph.components import first_component
from camrt.graph.head import Head
from camrt.graph.layers import FeatureMap
from camrt.graph.rest import rest_of
from camrt.graph.rewrite import repeated
from camrt.graph.rules.relevance import Modifier
from camrt.graph.scores import Scores
from camrt.graph.sizes import Sizes
from camrt.graph.targets import Targets, label_map
from camrt.graph.values import Value, shown
from camrt.graph.view import GraphView, attributes_of
from camrt.preprocess import Crop, Preprocess

BEHIND = "camrt/behind"  # what the names of the network's nodes behind a layer begin with, where they run again
_SMALL = 4096  # numbers of a constant that may be a shape, not a weight
_TOGETHER = 64  # variants of the features that the rest of the network gets at once, at most, for each crop
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
class MethodContext:
    """The crops of an image, and a network that has run on them.

    Attributes:
        builder: Where new nodes go.
        view: The network; with a second copy of its nodes, where the method runs it again.
        first: The run on the crops.
        second: The run on other images of the same size: its nodes stand in ``view``, and in no graph yet.
        crops: What the crops are.
        side: Their side in pixels.
        preprocess: How the network wants an image.
        scores: The scores.
        targets: What is explained.
        chosen: The tensor of the classes that are explained: (N, count) int64.
        grids: The layers that are explained.
        head: The head of the classifier, where the method needs one.
        eigen: Whether what a method sums over the channels becomes its first principal component.
        others: What the network sees of the images that the image is compared with: (B * crops, 3, side, side); None
            where the method compares with none.
        background_count: How many images those are.
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
    chosen: str
    grids: Sequence[FeatureMap] = ()
    head: Head | None = None
    eigen: bool = False
    others: str | None = None
    background_count: int = 0
    _gradients: dict[str, Value] = field(default_factory=dict)
    _runs: int = 0

    @property
    def count(self) -> int:
        """How many classes are explained of each image."""
        return self.targets.count

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers that are explained."""
        return [Layer(self, grid) for grid in self.grids]

    @cached_property
    def classes(self) -> Value:
        """The class of each image: (N,) int64."""
        return Value(self.builder, self.chosen, (None, self.count), TensorProto.INT64).lead_from(1)

    @property
    def classes_input(self) -> onnx.ValueInfoProto:
        """The tensor of the classes that are explained, as an input of a graph."""
        return helper.make_tensor_value_info(self.chosen, TensorProto.INT64, ["N", self.count])

    @cached_property
    def images(self) -> Value:
        """What the network sees: (N, crops, 3, side, side)."""
        return self.tensor(self.first.image).reshape(-1, len(self.crops), 3, self.side, self.side)

    @cached_property
    def background(self) -> Value:
        """What the network sees of the images that the image is compared with: (B, crops, 3, side, side)."""
        assert self.others is not None
        found = Value(self.builder, self.others, (None, 3, self.side, self.side))
        return found.reshape(-1, len(self.crops), 3, self.side, self.side)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes(self.view)

    def tensor(self, name: str) -> Value:
        """A tensor of the network."""
        kind = self._sizes.dtype(name) or TensorProto.FLOAT
        return Value(self.builder, name, self._sizes.shape(name), kind, sizes=self._sizes)

    def logits(self, run: Pass) -> Value:
        """What is differentiated of a run of the network: (N * crops, K), perhaps with axes of size 1 behind."""
        kind = self._sizes.dtype(self.first.logits) or TensorProto.FLOAT
        return Value(self.builder, run.logits, self._sizes.shape(self.first.logits), kind)

    def per_class(self, maps: Value) -> Value:
        """Maps (N, crops, ...) with the classes as an axis of their own: (N, crops, count, ...)."""
        return maps.stacked(self.count if self.count > 1 else None).lead_to(2)

    def gradients(self, layer: str) -> Value:
        """The derivative of each class's score by a layer, of its shape. One backward pass serves all layers."""
        if layer not in self._gradients:
            self._gradients = self.backward(self.first, [grid.tensor for grid in self.grids])
        return self._gradients[layer]

    @cached_property
    def sums(self) -> dict[str, tuple[SummedAt, Value]]:
        """Layer -> where its derivative is summed over the positions, and each class's derivative there.

        Layers whose channels are not on axis 1 are missing.
        """
        logits = self.first.logits
        places = {grid.tensor: summed_at(self.view, self._sizes, grid, logits) for grid in self.grids}
        found = {layer: place for layer, place in places.items() if place is not None}
        tensors = list(dict.fromkeys(place.tensor for place in found.values()))
        gradients = self.backward(self.first, tensors) if tensors else {}
        return {layer: (place, gradients[place.tensor]) for layer, place in found.items()}

    def backward(
        self,
        run: Pass,
        layers: Sequence[str],
        relu: str | None = None,
        modifier: Modifier | None = None,
        seeds: Value | None = None,
    ) -> dict[str, Value]:
        """Differentiate the score of each class that is explained.

        Args:
            run: Which run of the network.
            layers: By what.
            relu: How ReLUs go back: None, ``"guided"`` or ``"deconvnet"``.
            modifier: How all operators do.
            seeds: The derivative of what is explained by the scores of the run, for each class; by default `seeds`.

        Returns:
            Layer -> the derivative, of its shape.

        Raises:
            CamrtError: The scores do not depend on a layer, or an operator between has no rule.
        """
        from camrt.graph.gradient import backpropagate

        if any(grid.tensor == run.logits for grid in self.grids):
            raise CamrtError(f"found the layer {run.logits!r}, which is what is explained; expected one before it")
        seeds = self.seeds(run) if seeds is None else seeds
        found = backpropagate(
            self.builder, self.view, {run.logits: seeds.name}, layers,
            cotangents=seeds.lead, relu=relu, modifier=modifier, sizes=self._sizes,
        )  # fmt: skip
        return {
            layer: Value(self.builder, name, self._sizes.shape(layer), self.tensor(layer).kind, seeds.lead)
            for layer, name in found.items()
        }

    def curvature(self, gradient: Value, layer: str, direction: Value) -> Value | None:
        """The derivative of a layer's gradient along a direction: H v, with H the second derivatives of each score.

        The backward pass is differentiated like any other graph, by the rules of its own operators.

        Args:
            gradient: What `backward` gave of the first run.
            layer: By what it was differentiated, and is again.
            direction: v, of the layer's shape. It counts as a constant.

        Returns:
            Of the shape of ``gradient``; None where the gradient does not change with the layer, as between kinks of a
            network of ReLUs.

        Raises:
            CamrtError: An operator of the backward pass has no rule.
        """
        from camrt.graph.gradient import NoSlopeError, backpropagate

        view, seeds = GraphView(_with_nodes(self.view.model, self.builder, self.classes_input)), direction
        if gradient.lead is not None:  # each class gives its own gradient a slope, and the others' none
            apart = np.eye(gradient.lead, dtype=direction.dtype).reshape(
                gradient.lead, gradient.lead, *[1] * direction.rank
            )
            seeds = direction.unsqueeze(0, 1) * apart
        try:
            found = backpropagate(
                self.builder, view, {gradient.name: seeds.name}, [layer], cotangents=gradient.lead, sizes=Sizes(view)
            )
        except NoSlopeError:
            return None
        return Value(self.builder, found[layer], self._sizes.shape(layer), gradient.kind, gradient.lead)

    def seeds(self, run: Pass) -> Value:
        """1 for the class, of the shape of the scores of a run: the derivative of what is explained by them.

        Of a segmentation where the class's mask is in the first run, whichever run is differentiated.
        """
        return self.targets.seeds(self.classes, len(self.crops), self.logits(run), self.label_map)

    @cached_property
    def label_map(self) -> Value | None:
        """Of a segmentation, the class of each pixel: (N * crops, h, w) int64."""
        return label_map(self.logits(self.first)) if self.targets.is_segment else None

    def pixels(self, run: Pass, relu: str | None = None, modifier: Modifier | None = None) -> Value:
        """The derivative of each class's score by the image: (N, crops, 3, side, side)."""
        gradient = self.backward(run, [run.image], relu, modifier)[run.image]
        return gradient.reshape(-1, len(self.crops), 3, self.side, self.side)

    def named(self, gradient: Value) -> Value:
        """A gradient (N, crops, 3, side, side) that others find in the graph: (N, crops, count, 3, side, side)."""
        apart = self.per_class(gradient)
        self.builder.node("Identity", [apart.name], GRADIENT)
        return Value(self.builder, GRADIENT, apart.shape).lead_from(2)

    def magnitude(self, gradient: Value) -> Value:
        """The largest magnitude of the three channels (Simonyan et al. 2014, section 3.1).

        Args:
            gradient: (N, crops, 3, side, side).

        Returns:
            (N, crops, side, side).
        """
        return abs(self.named(gradient)).max(2)

    def again(self, images: Value) -> Pass:
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
        self.builder.node("Identity", [images.name], run.image)
        self.builder.nodes.extend(run.nodes)
        return run

    def behind(self, layer: str, features: Value, times: int) -> Value:
        """Run the network from a layer on, on other features. What passes the layer stays as it is for the image.

        Args:
            layer: The layer.
            features: Of its shape, ``times`` for each of its images, one behind the other.
            times: How many.

        Returns:
            What is differentiated, of the shape of `logits`: (N * crops * times, K).

        Raises:
            CamrtError: The scores do not depend on the layer, or what passes it does not have the images in front.
        """
        builder, rest = self.builder, rest_of(self.view, self.first.image, layer, self.first.logits)
        self._runs += 1
        shapes = [node.output[0] for node in rest.shapes]
        nodes, names = repeated(rest.nodes, f"{BEHIND}{self._runs}", [layer, *shapes, *rest.around])
        builder.node("Identity", [features.name], names[layer])
        for name in rest.around:
            passing = self.tensor(name)
            if not passing.rank or passing.shape[0] is not None:
                raise CamrtError(
                    f"found {name!r} of shape {shown(passing.shape)}, which passes the layer {layer!r}, expected the "
                    "images on its first axis: name another layer (--layer)"
                )
            each = passing.unsqueeze(1).expand(1, times, *[1] * (passing.rank - 1))
            builder.node("Identity", [each.reshape(-1, *passing.fixed(*range(1, passing.rank))).name], names[name])
        for node in rest.shapes:
            factors = np.ones(self.tensor(node.input[0]).rank, np.int64)
            factors[0] = times  # the batch
            part = attributes_of(node)
            more = factors[part.get("start", 0) : part.get("end")] if node.op_type == "Shape" else np.int64(times)
            builder.node("Mul", [node.output[0], builder.constant(more, "times", np.int64)], names[node.output[0]])
        builder.nodes.extend(nodes)
        return self.logits(Pass(names[layer], names[self.first.logits]))

    def reader(self, together: int) -> Callable[[Value], Value]:
        """What reads the scores of the explained classes out of a run on several variants of each crop.

        Args:
            together: How many variants of a crop.

        Returns:
            A function: logits (N * crops * together, K) -> (N, crops, count, together). The classes of all crops are
            laid out here, so that a loop does it once.
        """
        crops, count = len(self.crops), self.count
        if self.targets.is_segment:
            numbers = math.prod(self.logits(self.first).fixed(1, 2, 3))
            masks = self.seeds(self.first).lead_to(1).reshape(-1, count, numbers)

            def read_masks(logits: Value) -> Value:
                return (masks @ logits.reshape(-1, together, numbers).mT).reshape(-1, crops, count, together)

            return read_masks
        wanted = self.classes.lead_to(1).unsqueeze(1).expand(1, crops * together, 1)

        def read(logits: Value) -> Value:
            if self.targets.kind == "sum":
                found = logits.sum(*range(1, logits.rank))
            else:
                rows = logits.reshape(-1, crops * together, self.scores.classes)
                found = rows.op("GatherElements", wanted, shape=wanted.shape, axis=2)
            return found.reshape(-1, crops, together, count).transpose(0, 1, 3, 2)

        return read

    def summed(self, times: int, body: Callable[[Value], Value], start: Value) -> Value:
        """Repeat nodes, one run after the other, and add what they give: memory does not grow with their number.

        Args:
            times: How often.
            body: Adds the nodes of a run: its number (int64, from 0) -> what it gives.
            start: Zeros of the shape of that.

        Returns:
            The sum.
        """
        so_far = Value(self.builder, self.builder.name("loop/sum"), start.shape, lead=start.lead)
        name, _ = self._loop(times, lambda number: so_far + body(number), start.name, so_far.name)
        return Value(self.builder, name, start.shape, lead=start.lead)

    def collected(self, times: int, body: Callable[[Value], Value]) -> Value:
        """Repeat nodes, one run after the other, and stack what they give.

        Args:
            times: How often.
            body: Adds the nodes of a run: its number (int64, from 0) -> what it gives.

        Returns:
            (times, ...).
        """
        name, found = self._loop(times, body)
        return Value(self.builder, name, (times, *found.shape))

    def _loop(
        self, times: int, body: Callable[[Value], Value], start: str = "", carried: str = ""
    ) -> tuple[str, Value]:
        """A Loop's output, and what its body gives."""
        builder = self.builder
        _ = self.classes, self.images, self.label_map  # made here: what is made in the body cannot be read behind it
        outside, builder.nodes = builder.nodes, []
        number, goes_on = builder.name("loop/number"), builder.name("loop/goes_on")
        found = body(Value(builder, number, (), TensorProto.INT64))
        still = builder.node("Identity", [goes_on])
        inside, builder.nodes = builder.nodes, outside
        inputs = [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
            *([helper.make_tensor_value_info(carried, TensorProto.FLOAT, None)] if carried else []),
        ]
        outputs = [
            helper.make_tensor_value_info(still, TensorProto.BOOL, []),
            helper.make_tensor_value_info(found.name, TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph(inside, builder.name("loop"), inputs, outputs)
        begin = [start] if carried else []
        return builder.node("Loop", [builder.constant(times, "times", np.int64), "", *begin], body=graph), found


def _with_nodes(model: onnx.ModelProto, builder: Builder, chosen: onnx.ValueInfoProto) -> onnx.ModelProto:
    """A model with the nodes under construction, to be read.

    Weights are not copied but become inputs of the same shapes; so do the classes, on whose choice nothing has a slope.
    """
    graph = model.graph
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    result.graph.node.extend(node for node in (*graph.node, *builder.nodes) if chosen.name not in node.output)
    result.graph.input.extend([*graph.input, chosen])
    result.graph.value_info.extend(graph.value_info)
    for tensor in [*graph.initializer, *builder.initializers]:
        if math.prod(tensor.dims) <= _SMALL:
            result.graph.initializer.append(tensor)
        else:
            result.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return result


@dataclass(eq=False)
class Layer:
    """Features of a layer, and what a method asks of them.

    Attributes:
        context: Where they are from.
        grid: The layer.
        is_summed: Whether a method has summed something over the channels.
    """

    context: MethodContext
    grid: FeatureMap
    is_summed: bool = False

    @property
    def channels(self) -> int:
        """How many maps the layer has."""
        return self.grid.channels

    @property
    def positions(self) -> int:
        """How many numbers a map has."""
        return self.grid.positions

    @cached_property
    def features(self) -> Value:
        """A: (N, crops, channels, positions)."""
        return self.grid.planes(self.context.tensor(self.grid.tensor), -1, len(self.context.crops))

    @cached_property
    def gradients(self) -> Value:
        """dy/dA of each class: (N, crops, channels, positions)."""
        return self.grid.planes(self.context.gradients(self.grid.tensor), -1, len(self.context.crops))

    @cached_property
    def mean_gradients(self) -> Value:
        """The mean of dy/dA over each map: (N, crops, channels), without dy/dA itself where that can be skipped."""
        crops = len(self.context.crops)
        if self.grid.tensor not in self.context.sums:
            return self.gradients.mean(-1)
        place, gradient = self.context.sums[self.grid.tensor]
        builder = self.context.builder
        if place.kernel is not None:
            kernel = self.context.tensor(place.kernel)
            outputs = kernel.fixed(0)[0]
            matrix = kernel.reshape(outputs, self.channels)
            summed = gradient.reshape(-1, outputs, place.positions).sum(-1) @ matrix
        elif place.weights is not None:
            name = builder.constant(place.weights, "weights", place.weights.dtype)
            summed = gradient @ Value(builder, name, place.weights.shape, gradient.kind)
        else:
            summed = gradient.reshape(-1, self.channels, place.positions).sum(-1)
        summed = summed.reshape(-1, crops, self.channels)
        return summed / self.positions

    def masked_scores(self, masks: np.ndarray) -> Value:
        """The scores that the rest of the network gives to the features behind each of some masks.

        Args:
            masks: (number, channels or 1, positions or 1). Tokens that are not of the image, such as the class token,
                stay as they are.

        Returns:
            y_c of each mask: (N, crops, count, number), with the classes as an ordinary axis.

        Raises:
            CamrtError: As `MethodContext.behind`.
        """
        kind = self.context.tensor(self.grid.tensor).kind
        return self._variants(self.grid.mask(masks).astype(np.float32), lambda some: some.cast(kind))

    def scores_without_each_channel(self) -> Value:
        """The scores that the rest of the network gives where one of the maps is 0: (N, crops, count, channels).

        Raises:
            CamrtError: As `MethodContext.behind`.
        """
        channels, kind = np.arange(self.channels), self.context.tensor(self.grid.tensor).kind
        all_of_them = self.grid.mask(channels[None, :, None])
        return self._variants(
            self.grid.mask(channels[:, None, None]), lambda some: (~some.equals(all_of_them)).cast(kind)
        )

    def _variants(self, keys: np.ndarray, mask: Callable[[Value], Value]) -> Value:
        """The scores of the features behind masks, which the graph makes of a few keys at a time: (number, ...)."""
        context, number = self.context, len(keys)
        together = max(size for size in range(1, _TOGETHER + 1) if number % size == 0)
        features = context.tensor(self.grid.tensor).unsqueeze(1)
        read = context.reader(together)

        def scored(some: Value) -> Value:
            variants = (features * mask(some)).reshape(-1, *features.shape[2:])
            return read(context.behind(self.grid.tensor, variants, together))

        is_float = keys.dtype == np.float32
        name = context.builder.constant(keys, "masks", keys.dtype)
        rows = Value(context.builder, name, keys.shape, TensorProto.FLOAT if is_float else TensorProto.INT64)
        if together == number:
            return scored(rows)
        parts = rows.reshape(number // together, together, *keys.shape[1:])
        runs = context.collected(
            number // together, lambda run: scored(parts.op("Gather", run, shape=parts.shape[1:], axis=0))
        )
        return runs.transpose(1, 2, 3, 0, 4).reshape(-1, len(context.crops), context.count, number)

    def weighted(self, weights: Value, features: Value | None = None) -> Value:
        """The sum over the channels, sum_k w_k A_k: (N, crops, positions).

        Args:
            weights: (N, crops, channels), or with a 1 for ``crops``.
            features: Some of the channels, (N, crops, channels, positions); by default all of them.
        """
        features = self.features if features is None else features
        if self.context.eigen:
            return self.summed(weights.unsqueeze(-1) * features)
        self.is_summed = True
        return (weights.lead_to(2) @ features).lead_from(2)  # all classes of a crop in one product

    def summed(self, products: Value) -> Value:
        """The sum over the channels, or the first principal component in its place where maps are smoothed that way.

        Args:
            products: What each channel adds at each position: (N, crops, channels, positions).

        Returns:
            (N, crops, positions).
        """
        self.is_summed = True
        return first_component(products) if self.context.eigen else products.sum(-2)

"""Damages ONNX models at random and explains them. A program of its own, so that a crash is seen.

Example:
    $ python -m tests.camrt.graph.graph_fuzzing structure --seed 3 --count 100000 --keep /tmp/found

It prints one JSON object: how many inputs were explained and how many refused, and everything that is wrong: exceptions
other than CamrtError, inputs that took too long, and the most memory that was ever held.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from camrt.errors import CamrtError
from camrt.graph import differentiate, explain_graph
from camrt.graph.methods import METHODS
from tests.camrt.classifiers import HEADS, classifier
from tests.camrt.graph.explainers import PREPROCESS
from tests.fuzzing import Attempt, Program

KINDS = ("bytes", "structure")
_NUMBERS = (0, 1, -1, 2, 3, 7, 13, 255, 65536, 10**6, 2**31 - 1, -(2**31), 2**31, 2**40, 2**63 - 1, -(2**63))


# ------------------------------------------------------------------------------------------------- what is damaged


def models() -> list[onnx.ModelProto]:
    """Small classifiers of each form, and models with functions, control flow, attention and odd operators."""
    found = [classifier(head, batch=batch) for head in HEADS for batch in ("batch", 1)]
    found.append(classifier("gemm", opset=11, softmax=False))
    found += [with_function(), with_if(), with_chain(), channels_last()]
    for model in found:
        helper.set_model_props(
            model, {"camrt.labels": '["a", "b", "c", "d"]', "camrt.preprocess": PREPROCESS.as_json()}
        )
    return found


def with_function() -> onnx.ModelProto:
    """The ReLU is a function of the model's own."""
    model = classifier("gemm")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Identity", ["r"], ["b"])]
    model.functions.append(helper.make_function("own", "Rectify", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Rectify", "own"
    return model


def with_if() -> onnx.ModelProto:
    """An If between features and head."""
    model = classifier("gemm")
    branches = []
    for kind in ("Identity", "Neg"):
        output = helper.make_tensor_value_info(f"{kind}.out", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([helper.make_node(kind, ["features"], [f"{kind}.out"])], kind, [], [output]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(
        2, helper.make_node("If", ["yes"], ["chosen"], "choice", then_branch=branches[0], else_branch=branches[1])
    )
    model.graph.node[3].input[0] = "chosen"
    return model


def with_chain() -> onnx.ModelProto:
    """Many operators between the convolution and the head, whose shapes are computed in the graph."""
    return _between(
        ("Shape", ["features"], {}),
        ("Reshape", ["features", "t0"], {}),
        ("MaxPool", ["t1"], {"kernel_shape": [3, 3], "pads": [1] * 4}),
        ("Transpose", ["t2"], {"perm": [0, 2, 3, 1]}),
        ("Softmax", ["t3"], {"axis": -1}),
        ("Transpose", ["t4"], {"perm": [0, 3, 1, 2]}),
        ("Split", ["t5"], {"axis": 1, "num_outputs": 2}),
        ("Concat", ["t6", "t6.1"], {"axis": 1}),
        ("Slice", ["t7", "zero", "six", "one"], {}),
        ("Mul", ["t8", "features"], {}),
        opset=18,
    )


def channels_last() -> onnx.ModelProto:
    """A layer normalization and a linear layer over the channels, which are the last axis."""
    model = _between(
        ("Transpose", ["features"], {"perm": [0, 2, 3, 1]}), ("LayerNormalization", ["t0", "norm"], {"axis": -1}),
        ("MatMul", ["t1", "linear"], {}), ("Erf", ["t2"], {}), ("Transpose", ["t3"], {"perm": [0, 3, 1, 2]}),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), "norm"))
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 1, (6, 6)).astype(np.float32), "linear"))
    return model


def _between(*operators: tuple[str, list[str], dict[str, Any]], opset: int = 17) -> onnx.ModelProto:
    """A classifier with operators between its features and its head."""
    model = classifier("gemm", opset=opset)
    for number, (kind, inputs, attributes) in enumerate(operators):
        outputs = [f"t{number}", f"t{number}.1"] if kind == "Split" else [f"t{number}"]
        model.graph.node.insert(2 + number, helper.make_node(kind, inputs, outputs, f"n{number}", **attributes))
    model.graph.node[2 + len(operators)].input[0] = f"t{len(operators) - 1}"
    for name, value in (("zero", 0), ("one", 1), ("six", 6)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    return model


# ------------------------------------------------------------------------------------------------ how it is damaged


class Damage:
    """Random changes to models.

    Args:
        chance: Where randomness comes from.
        others: Models that pieces are taken from.
    """

    def __init__(self, chance: random.Random, others: Sequence[onnx.ModelProto]) -> None:
        self.chance = chance
        self.others = others
        self.operators = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})

    def bytes(self, data: bytes) -> bytes:
        """One to sixteen changes to bytes."""
        changed = bytearray(data)
        for _ in range(self.chance.choice([1, 1, 1, 2, 4, 16])):
            here, length = self.chance.randrange(len(changed) or 1), self.chance.choice([1, 2, 4, 8, 32])
            match self.chance.randrange(6):
                case 0:
                    changed[here : here + 1] = bytes([self.chance.randrange(256)])
                case 1:
                    changed[here : here + 1] = bytes([self.chance.choice([0, 1, 127, 128, 255])])
                case 2:
                    changed[here : here + length] = self.chance.randbytes(length)
                case 3:
                    changed[here:here] = changed[here : here + length]
                case 4:
                    del changed[here : here + length]
                case 5:
                    there = self.chance.randrange(len(changed) or 1)
                    one, two = changed[here : here + length], changed[there : there + length]
                    changed[there : there + length], changed[here : here + length] = one, two
        return bytes(changed)

    def structure(self, model: onnx.ModelProto) -> None:
        """One to four changes to what a model says."""
        for _ in range(self.chance.choice([1, 1, 2, 4])):
            self.chance.choice(
                [self._wire] * 3 + [self._operator] * 3 + [self._attribute] * 3
                + [self._node, self._weights, self._weights, self._value, self._model, self._body]
            )(model)  # fmt: skip

    def _names(self, graph: onnx.GraphProto) -> list[str]:
        names = [name for node in graph.node for name in (*node.input, *node.output)]
        return [
            *names,
            *(tensor.name for tensor in graph.initializer),
            "",
            "data",
            "new",
            "image",
            "scores",
            "camrt/maps",
        ]

    def _any_node(self, model: onnx.ModelProto) -> onnx.NodeProto:
        nodes = list(model.graph.node)
        if self.chance.random() < 0.2:
            nodes += [node for function in model.functions for node in function.node]
            nodes += [inner for node in nodes for attribute in node.attribute for inner in attribute.g.node]
        return self.chance.choice(nodes) if nodes else model.graph.node.add()

    def _wire(self, model: onnx.ModelProto) -> None:
        """Another tensor, one more, or one less."""
        node = self._any_node(model)
        names = self.chance.choice([node.input, node.input, node.output])
        name, here = self.chance.choice(self._names(model.graph)), self.chance.randrange(len(names) + 1)
        match self.chance.randrange(3):
            case 0 if here < len(names):
                names[here] = name
            case 1:
                names.insert(here, name)
            case 2 if here < len(names):
                del names[here]

    def _operator(self, model: onnx.ModelProto) -> None:
        node = self._any_node(model)
        match self.chance.randrange(5):
            case 0:
                node.domain = self.chance.choice(["", "ai.onnx", "own", "com.microsoft", "ai.onnx.ml"])
            case 1:
                node.op_type = self.chance.choice(["", "Rectify", "If", "Loop", "Scan", "Constant", "Softmax"])
            case _:
                node.op_type = self.chance.choice(self.operators)

    def _attribute(self, model: onnx.ModelProto) -> None:
        node = self._any_node(model)
        number = self.chance.choice(_NUMBERS)
        if node.attribute and self.chance.random() < 0.7:
            one = self.chance.choice(node.attribute)
            match self.chance.randrange(6):
                case 0:
                    one.i = number
                case 1 if one.ints:
                    one.ints[self.chance.randrange(len(one.ints))] = number
                case 2:
                    one.ints.append(number)
                case 3:
                    one.type = self.chance.randrange(15)
                case 4:
                    one.name = self.chance.choice(["axis", "perm", "pads", "value", "to", "", "kernel_shape"])
                case 5:
                    node.attribute.remove(one)
            return
        name = self.chance.choice(
            ["axis", "axes", "perm", "keepdims", "pads", "strides", "to", "value", "group", "mode"]
        )
        value: Any = self.chance.choice(
            [number, [number], [number, 1], 0.5, "text", numpy_helper.from_array(np.ones(3))]
        )
        node.attribute.append(helper.make_attribute(name, value))

    def _node(self, model: onnx.ModelProto) -> None:
        """A node lost, doubled, moved, or taken from another model."""
        nodes = model.graph.node
        here, there = self.chance.randrange(len(nodes) + 1), self.chance.randrange(len(nodes) + 1)
        match self.chance.randrange(4):
            case 0 if here < len(nodes):
                del nodes[here]
            case 1 if here < len(nodes):
                nodes.insert(there, nodes[here])
            case 2 if here < len(nodes):
                node = nodes.pop(here)
                nodes.insert(min(there, len(nodes)), node)
            case 3:
                nodes.insert(here, self.chance.choice(self.chance.choice(self.others).graph.node))

    def _weights(self, model: onnx.ModelProto) -> None:
        tensors = model.graph.initializer
        if not tensors:
            return
        tensor = self.chance.choice(tensors)
        match self.chance.randrange(8):
            case 0 if tensor.dims:
                tensor.dims[self.chance.randrange(len(tensor.dims))] = self.chance.choice(_NUMBERS)
            case 1:
                tensor.dims.append(1)
            case 2:
                del tensor.dims[-1:]
            case 3:
                tensor.data_type = self.chance.randrange(26)
            case 4:
                tensor.raw_data = tensor.raw_data[: self.chance.randrange(len(tensor.raw_data) + 1)]
            case 5:
                tensor.name = self.chance.choice(self._names(model.graph))
            case 6:
                tensors.remove(tensor)
            case 7:
                count = 1 if not tensor.dims else tensor.dims[0]
                value = np.full(min(max(count, 1), 9), self.chance.choice(_NUMBERS), np.int64)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    def _value(self, model: onnx.ModelProto) -> None:
        """An input or output of another shape, type or name."""
        values = self.chance.choice([model.graph.input, model.graph.output])
        if not values:
            values.add()
        value = self.chance.choice(values)
        dims = value.type.tensor_type.shape.dim
        match self.chance.randrange(7):
            case 0 if dims:
                self.chance.choice(dims).dim_value = self.chance.choice(_NUMBERS)
            case 1 if dims:
                self.chance.choice(dims).dim_param = self.chance.choice(["batch", "n", "", "4"])
            case 2:
                dims.add()
            case 3 if dims:
                del dims[-1]
            case 4:
                value.type.tensor_type.elem_type = self.chance.randrange(26)
            case 5:
                value.name = self.chance.choice(self._names(model.graph))
            case 6:
                value.type.sequence_type.elem_type.tensor_type.elem_type = 1

    def _model(self, model: onnx.ModelProto) -> None:
        match self.chance.randrange(6):
            case 0:
                model.ir_version = self.chance.choice([0, 1, 3, 4, 10, 13, 99, 2**62])
            case 1 if model.opset_import:
                model.opset_import[0].version = self.chance.choice([0, 1, 6, 7, 9, 12, 13, 21, 24, 99, -1, 2**40])
            case 2 if model.opset_import:
                model.opset_import[0].domain = self.chance.choice(["", "ai.onnx", "own"])
            case 3:
                text = self.chance.choice(
                    [
                        "",
                        "[",
                        "[" * 100_000,
                        "null",
                        "[1, 2]",
                        '{"size": -1}',
                        "\ud800".encode("utf-8", "replace").decode(),
                    ]
                )
                entry = model.metadata_props.add()
                entry.key = self.chance.choice(
                    ["camrt.labels", "camrt.preprocess", "camrt.features", "camrt.classifier"]
                )
                entry.value = text
            case 4 if model.functions:
                model.functions.append(self.chance.choice(model.functions))
            case 5:
                model.functions.extend(self.chance.choice(self.others).functions)
                model.opset_import.append(helper.make_opsetid("own", 1))

    def _body(self, model: onnx.ModelProto) -> None:
        """Control flow made of a part of the graph."""
        node = self._any_node(model)
        body = onnx.GraphProto()
        if self.chance.random() < 0.5:
            body.CopyFrom(model.graph)
        output = self.chance.choice(self._names(model.graph))
        body.name = "body"
        body.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
        node.attribute.append(helper.make_attribute(self.chance.choice(["body", "then_branch", "else_branch"]), body))


# ------------------------------------------------------------------------------------------------------ the inputs


def enter(model: onnx.ModelProto, chance: random.Random) -> Callable[[], object]:
    """One of the ways into `camrt.graph`."""
    graph = model.graph
    if chance.random() < 0.3:
        outputs = [value.name for value in graph.output] + [name for node in graph.node for name in node.output]
        output, wrt = chance.choice(outputs or ["x"]), chance.choice([value.name for value in graph.input] or ["x"])
        return lambda: differentiate(model, output, wrt)
    options: dict[str, Any] = {"method": chance.choice(METHODS), "top": 1}
    if chance.random() < 0.2:
        options["target"] = chance.choice(["sum", "input", 0, "a"])
    if chance.random() < 0.2:
        names = [node.output[0] for node in graph.node if node.output]
        options[chance.choice(["layer", "scores"])] = chance.choice(names or ["x"])
    if chance.random() < 0.5:
        options["preprocess"] = PREPROCESS
    return lambda: explain_graph(model, protocol=chance.choice(["center", "full", "ten-crop"]), **options)


def damaged(kind: str, damage: Damage) -> onnx.ModelProto | None:
    """One input; None where protobuf itself refuses it."""
    model = onnx.ModelProto()
    model.CopyFrom(damage.chance.choice(damage.others))
    if kind == "structure":
        damage.structure(model)
        return model
    try:
        return onnx.load_from_string(damage.bytes(model.SerializeToString()))
    except Exception:
        return None


def attempts(kind: str, chance: random.Random, count: int, keep: Path | None) -> Iterator[Attempt | None]:
    """Damaged models. A crash leaves its input in the folder ``keep``."""
    logging.disable(logging.CRITICAL)
    damage = Damage(chance, models())
    for _ in range(count):
        model = damaged(kind, damage)
        if model is None:
            yield None
            continue
        if keep is not None:
            (keep / "last.onnx").write_bytes(model.SerializeToString())
        yield Attempt(enter(model, chance), functools.partial(_keep, model))


def _keep(model: onnx.ModelProto, path: Path) -> None:
    path.with_suffix(".onnx").write_bytes(model.SerializeToString())


PROGRAM = Program("Explain damaged ONNX models.", KINDS, attempts, CamrtError, longest=5_000, done="explained")
fuzz = PROGRAM.fuzz

if __name__ == "__main__":
    PROGRAM.main()

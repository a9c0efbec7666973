"""Damages Caffe files at random and converts them. A program of its own: so a crash is seen and memory measured.

Example:
    $ python -m tests.converters.fuzzing text --seed 3 --count 100000 --keep /tmp/found

It prints one JSON object: the inputs tried, how many were converted and how many refused, and everything that is wrong:
exceptions other than ConversionError, inputs that took too long, and the most memory that was ever held.
"""

from __future__ import annotations

import functools
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from converters import ConversionError, convert, registry
from converters.schema import caffe_pb2
from converters.wire import scan
from tests.caffe_cases import CASES
from tests.caffe_files import caffemodel, input_layer, layer, network
from tests.fuzzing import Attempt, Program

LARGEST = 40_000  # bytes of a file that is damaged: small ones are hit where it matters


@dataclass(frozen=True)
class Files:
    """A network: its description, and its weights if it has any."""

    prototxt: bytes
    caffemodel: bytes | None


# ------------------------------------------------------------------------------------------------- what is damaged


def own_networks() -> list[Files]:
    """A network of most families in each version, small, with weights."""
    rng = np.random.default_rng(0)
    body = (
        layer(
            "conv", "Convolution", "data", params="convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 }"
        ),
        layer("bn", "BatchNorm", "conv", "conv"),
        layer("scale", "Scale", "conv", "conv", "scale_param { bias_term: true }"),
        layer("relu", "ReLU", "conv", "conv", "relu_param { negative_slope: 0.1 }"),
        layer("lrn", "LRN", "conv", params="lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"),
        layer("pool", "Pooling", "lrn", params="pooling_param { pool: MAX kernel_size: 3 stride: 2 }"),
        layer("cut", "Slice", "pool", "left right", "slice_param { axis: 1 slice_point: 2 }"),
        layer("join", "Concat", "right left"),
        layer("sum", "Eltwise", "join pool", params="eltwise_param { operation: SUM coeff: 1 coeff: -1 }"),
        layer("fc", "InnerProduct", "sum", params="inner_product_param { num_output: 3 }"),
        layer("shape", "Reshape", "fc", params="reshape_param { shape { dim: 0 dim: -1 dim: 1 } }"),
        layer("loss", "SoftmaxWithLoss", "fc label", params="include { phase: TEST }"),
    )
    shapes: dict[str, list[tuple[int, ...]]] = {
        "conv": [(4, 3, 3, 3), (4,)],
        "bn": [(4,), (4,), (1,)],
        "scale": [(4,), (4,)],
        "fc": [(3, 16), (3,)],
    }
    weights = {name: [rng.random(shape, np.float32) for shape in many] for name, many in shapes.items()}
    v2 = input_layer("data", 2, 3, 8, 8) + "".join(body[:-1])
    data = layer("source", "Data", "", "data label", "transform_param { crop_size: 8 } data_param { batch_size: 2 }")
    train_val = data + "".join(body)
    v1 = 'input: "data" input_dim: [2, 3, 8, 8]\n' + "".join(
        text.replace("layer {", "layers {").replace(f'"{type}"', name)
        for text, type, name in (
            (body[0], "Convolution", "CONVOLUTION"),
            (body[3], "ReLU", "RELU"),
            (body[5].replace('"lrn"', '"conv"'), "Pooling", "POOLING"),
            (body[9].replace('"sum"', '"pool"'), "InnerProduct", "INNER_PRODUCT"),
        )
    )
    texts = (v2, train_val, v1)
    return [Files(text.encode(), caffemodel(network(text), weights)) for text in texts]


def cases() -> list[Files]:
    """The networks that real Caffe's answers are kept for, as far as they are small."""
    found = []
    for case in CASES.values():
        files = Files(case.prototxt.read_bytes(), case.caffemodel.read_bytes() if case.caffemodel else None)
        if max(len(files.prototxt), len(files.caffemodel or b"")) <= LARGEST:
            found.append(files)
    return found


def with_network(files: Files) -> bytes:
    """The caffemodel with the description in it, as Caffe's solver saves it."""
    net = caffe_pb2.NetParameter()
    text_format.Parse(files.prototxt, net, allow_unknown_field=True)
    saved = caffe_pb2.NetParameter()
    saved.ParseFromString(files.caffemodel or b"")
    layers: list[Any] = [*saved.layer, *saved.layers]
    blobs = {one.name: [blob.SerializeToString() for blob in one.blobs] for one in layers}
    return caffemodel(net, blobs)


# ------------------------------------------------------------------------------------------------ how it is damaged

_TOKEN = re.compile(rb'"[^"\n]*"|[A-Za-z_]\w*|-?[\d.][\w.+-]*|[{}:\[\]<>,;]|\s+|.', re.DOTALL)
_NUMBERS = (
    b"0 1 2 3 7 -1 -2 0.5 1000 30000 65536 1000000 100000007 2147483646 2147483647 2147483648 4294967294 4294967295 "
    b"4294967296 9223372036854775807 9223372036854775808 -2147483648 -9223372036854775808 18446744073709551615 "
    b"18446744073709551616 1e30 -1e30 1e-30 1e39 1e400 nan inf -inf 0x7fffffff true -0"
).split()


def _words() -> list[bytes]:
    """All names that mean something: fields, types, values of enumerations."""
    words = {type for entry in registry.entries() for type in entry.types}
    for message in caffe_pb2.DESCRIPTOR.message_types_by_name.values():
        words.update(field.name for field in message.fields)
        words.update(value.name for kind in message.enum_types for value in kind.values)
    return [word.encode() for word in sorted(words)]


class Damage:
    """Random changes to files.

    Args:
        chance: Where randomness comes from.
        others: Files that pieces are taken from.
    """

    def __init__(self, chance: random.Random, others: Sequence[Files]) -> None:
        self.chance = chance
        self.others = others
        self.words = _words()

    def text(self, text: bytes) -> bytes:
        """One to six changes to a prototxt, most of them to its tokens."""
        for _ in range(self.chance.choice([1, 1, 1, 2, 3, 6])):
            tokens = _TOKEN.findall(text)
            if not tokens:
                return text
            text = self.chance.choice(
                [self._number] * 4 + [self._name] * 2 + [self._token, self._line, self._layer, self._splice]
            )(text, tokens)
        return text

    def _number(self, _: bytes, tokens: list[bytes]) -> bytes:
        places = [index for index, token in enumerate(tokens) if re.match(rb"-?[\d.]", token)]
        if places:
            tokens[self.chance.choice(places)] = self.chance.choice(_NUMBERS)
        return b"".join(tokens)

    def _name(self, _: bytes, tokens: list[bytes]) -> bytes:
        """Another name, type or field; or two blobs or layers that change places."""
        kind = rb'"' if self.chance.random() < 0.6 else rb"[A-Za-z_]"
        places = [index for index, token in enumerate(tokens) if re.match(kind, token)]
        if places:
            here, there = self.chance.choice(places), self.chance.choice(places)
            word = self.chance.choice(self.words)
            if self.chance.random() < 0.5:
                tokens[here], tokens[there] = tokens[there], tokens[here]
            else:
                tokens[here] = b'"' + word + b'"' if kind == rb'"' else word
        return b"".join(tokens)

    def _token(self, _: bytes, tokens: list[bytes]) -> bytes:
        here = self.chance.randrange(len(tokens))
        if self.chance.random() < 0.5:
            del tokens[here]
        else:
            tokens.insert(here, self.chance.choice([*tokens, b"{", b"}", b"[", b"<", b'"', b"'", b"#", b"\0", b"\xff"]))
        return b"".join(tokens)

    def _line(self, text: bytes, _: list[bytes]) -> bytes:
        return b"\n".join(self._moved(text.split(b"\n")))

    def _layer(self, text: bytes, _: list[bytes]) -> bytes:
        return b"".join(self._moved(re.split(rb"(?m)(?=^layers? \{)", text)))

    def _moved(self, parts: list[bytes]) -> list[bytes]:
        """One of the parts lost, doubled, or exchanged with another."""
        here, there = self.chance.randrange(len(parts)), self.chance.randrange(len(parts))
        match self.chance.randrange(3):
            case 0:
                del parts[here]
            case 1:
                parts.insert(there, parts[here])
            case 2:
                parts[here], parts[there] = parts[there], parts[here]
        return parts

    def _splice(self, text: bytes, _: list[bytes]) -> bytes:
        other = self.chance.choice(self.others).prototxt
        if self.chance.random() < 0.5:
            return text + b"\n" + other
        return text[: self.chance.randrange(len(text) + 1)] + other[self.chance.randrange(len(other) + 1) :]

    def binary(self, data: bytes) -> bytes:
        """One to sixteen changes to bytes: cut, flipped, exchanged, doubled, made up."""
        changed = bytearray(data)
        for _ in range(self.chance.choice([1, 1, 1, 2, 4, 16])):
            if not changed:
                break
            # Half of the changes go where names and sizes stand: the beginning.
            last = min(len(changed), 200) if self.chance.random() < 0.5 else len(changed)
            here, length = self.chance.randrange(last), self.chance.choice([1, 2, 4, 8, 32, 200])
            match self.chance.randrange(10):
                case 0:
                    del changed[here:]
                case 1:
                    changed[here] ^= 1 << self.chance.randrange(8)
                case 2:
                    changed[here] = self.chance.randrange(256)
                case 3:
                    changed[here] = self.chance.choice([0, 1, 127, 128, 255])
                case 4:
                    changed[here : here + length] = self.chance.randbytes(length)
                case 5:
                    changed[here:here] = b"\xff" * self.chance.choice([3, 4, 8, 9]) + b"\x01"  # a huge varint
                case 6:
                    changed[here:here] = changed[here : here + length]
                case 7:
                    del changed[here : here + length]
                case 8:
                    there = self.chance.randrange(len(changed))
                    one, two = changed[here : here + length], changed[there : there + length]
                    changed[there : there + length], changed[here : here + length] = one, two
                case 9:
                    changed += self.chance.choice(self.others).caffemodel or b"\xa2\x06\x00"
        return bytes(changed)

    def noise(self) -> bytes:
        """Random bytes, or random letters of a prototxt."""
        size = self.chance.choice([1, 5, 20, 100, 1000])
        if self.chance.random() < 0.5:
            return self.chance.randbytes(size)
        return bytes(self.chance.choices(b'layer{}:"<>[]#\n 019-.,;typenamebottomtop\x00\xff', k=size))


# ------------------------------------------------------------------------------------------------------ the inputs


def damaged_files(kind: str, damage: Damage, folder: Path) -> list[Path]:
    """Write one input of a kind; returns the arguments to convert it with."""
    prototxt, weights = folder / "net.prototxt", folder / "net.caffemodel"
    files = damage.chance.choice(damage.others)
    if kind != "text":
        while files.caffemodel is None:
            files = damage.chance.choice(damage.others)
    match kind:
        case "text":
            prototxt.write_bytes(damage.text(files.prototxt))
            if files.caffemodel is None:
                return [prototxt]
            weights.write_bytes(files.caffemodel)
        case "weights":
            prototxt.write_bytes(files.prototxt)
            weights.write_bytes(damage.binary(files.caffemodel or b""))
        case "alone":
            weights.write_bytes(damage.binary(with_network(files)))
            return [weights]
        case "hdf5":
            prototxt.write_bytes(files.prototxt)
            weights.write_bytes(damage.binary(as_hdf5(files, folder)))
        case "noise":
            prototxt.write_bytes(damage.noise())
            weights.write_bytes(damage.noise())
            return damage.chance.choice([[prototxt], [weights], [prototxt, weights]])
    return [prototxt, weights]


def as_hdf5(files: Files, folder: Path) -> bytes:
    """The weights as Caffe's snapshot_format: HDF5 stores them."""
    import h5py

    with h5py.File(folder / "net.h5", "w") as file:
        for one in scan(memoryview(files.caffemodel or b""), "net.caffemodel").layers:
            for index, blob in enumerate(one.blobs):
                file.create_dataset(f"data/{one.name}/{index}", data=blob)
    return (folder / "net.h5").read_bytes()


KINDS = ("text", "weights", "alone", "hdf5", "noise")


def attempts(kind: str, chance: random.Random, count: int, _: Path | None) -> Iterator[Attempt]:
    """Damaged networks, one after the other in the same folder."""
    damage = Damage(chance, own_networks() * 10 + cases())
    with tempfile.TemporaryDirectory() as name:
        print(f"a crash leaves its input in {name}", file=sys.stderr, flush=True)
        for _number in range(count):
            files = damaged_files(kind, damage, Path(name))
            yield Attempt(functools.partial(convert, *files), functools.partial(_keep, files))


def _keep(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())


PROGRAM = Program("Convert damaged Caffe files.", KINDS, attempts, ConversionError, longest=20_000, done="converted")
fuzz = PROGRAM.fuzz

if __name__ == "__main__":
    PROGRAM.main()

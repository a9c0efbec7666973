"""The text form of messages, with Protocol Buffers' own parser and printer as the second opinion."""

from __future__ import annotations

import contextlib
import math
import random
import re
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.errors import ConversionError
from converters.schema import caffe_pb2
from converters.textformat import MAX_DEPTH, MAX_UNKNOWN, UnknownField, parse
from tests.bounded import memory_below, within

Field = Any  # Protocol Buffers' types know two unrelated descriptors
NetParameter, LayerParameter = caffe_pb2.NetParameter, caffe_pb2.LayerParameter


def net_of(text: str) -> caffe_pb2.NetParameter:
    """The text as our parser reads it; no field may be unknown."""
    net = NetParameter()
    assert parse(text, net, "net.prototxt") == []
    return net


def unknown_in(text: str) -> list[UnknownField]:
    return parse(text, NetParameter(), "net.prototxt")


def error_of(text: str) -> tuple[str, str]:
    """Position and message of the error that the text must give."""
    with pytest.raises(ConversionError) as caught:
        parse(text, NetParameter(), "net.prototxt")
    name, line, column = str(caught.value.file).rsplit(":", 2)
    assert name == "net.prototxt"
    return f"{line}:{column}", caught.value.message


# ------------------------------------------------------------------------------------------------ random messages


def fill(draw: st.DrawFn, message: Message, depth: int) -> None:
    """Give random fields random values, also of inner messages."""
    fields = [
        field
        for field in message.DESCRIPTOR.fields
        if field.type != FieldDescriptor.TYPE_BYTES and (depth or field.message_type is None)
    ]
    if not fields:
        return
    for field in draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda field: field.number)):
        for _ in range(draw(st.integers(1, 3)) if is_repeated(message, field) else 1):
            fill_field(draw, message, field, depth)


def is_repeated(message: Message, field: Field) -> bool:
    return hasattr(getattr(message, field.name), "extend")


def fill_field(draw: st.DrawFn, message: Message, field: Field, depth: int) -> None:
    if field.message_type is not None:
        inner = getattr(message, field.name)
        inner = inner.add() if is_repeated(message, field) else inner
        inner.SetInParent()
        fill(draw, inner, depth - 1)
    elif is_repeated(message, field):
        getattr(message, field.name).append(draw(values_of(field)))
    else:
        setattr(message, field.name, draw(values_of(field)))


def values_of(field: Field) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return {
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_STRING: st.text(max_size=12),
    }[field.cpp_type]


@st.composite
def networks(draw: st.DrawFn) -> caffe_pb2.NetParameter:
    net = NetParameter()
    fill(draw, net, depth=3)
    return net


printing = st.fixed_dictionaries(
    {
        "as_one_line": st.booleans(),
        "as_utf8": st.booleans(),
        "indent": st.integers(0, 8),
        "pointy_brackets": st.booleans(),
        "use_index_order": st.booleans(),
        "use_short_repeated_primitives": st.booleans(),
    }
)
SEEDED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@settings(SEEDED, max_examples=250)
@given(networks(), printing)
def test_reads_what_protocol_buffers_prints(net: caffe_pb2.NetParameter, options: dict[str, Any]) -> None:
    assert net_of(text_format.MessageToString(net, **options)) == net


@settings(SEEDED, max_examples=100)
@given(
    st.floats(width=32, allow_nan=False),
    st.sampled_from(["{!r}", "{:.9g}", "{:.8e}", "{:.8E}f", "{:.60f}", "{:.60f}F"]),
)
def test_reads_floats_however_they_are_printed(value: float, form: str) -> None:
    assert net_of(RELU.format(form.format(value))) == relu(value)


@settings(SEEDED, max_examples=150)
@given(networks(), st.randoms(use_true_random=False))
def test_separators_comments_and_blanks_change_nothing(net: caffe_pb2.NetParameter, chance: random.Random) -> None:
    def adorned(line: str) -> str:
        if line.endswith(" {"):
            line = line[:-2] + chance.choice([" {", ": {", "{", ":\t{", "# } \n{"])
        elif line.strip() != "}":
            line += chance.choice(["", ",", ";", " ;", "# }", "\n,"])
        else:
            line += chance.choice(["", ",", ";"])
        return line + chance.choice(["\n", "\r\n", "\n\n", " # it's \"so\n", "\n#\n", "\t\n"])

    text = text_format.MessageToString(net)
    assert net_of("".join(map(adorned, text.split("\n")[:-1]))) == net


TOKEN = re.compile(r'"[^"\n]*"|\'[^\'\n]*\'|[A-Za-z_]\w*|-?[\d.][\w.+-]*|[{}:\[\]<>,;]')
STRAY = (",", ";", "{", "}", "[", "]", "<", ">", ":", "0", "-1", "1.5f", "nan", "true", "TRAIN", '"x"', "'y'", "name")


PROTOTXT = """
name: "net" input: "data" input_shape { dim: 1 dim: 3 dim: 224 dim: 224 } state { phase: TEST level: 2 stage: "a" }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2.5e-1 }
  convolution_param { num_output: 64 kernel_size: [3, 3] pad: 1 bias_term: false weight_filler { type: 'msra' } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" relu_param < negative_slope: -.1 engine: CAFFE > }
layer { name: "prior" type: "PriorBox" bottom: "conv" bottom: "data" top: "prior" include { phase: TEST }
  prior_box_param { min_size: 30 aspect_ratio: 2 aspect_ratio: 3.0f flip: true variance: [0.1, 0.2] } }
"""


def spoilt(text: str, chance: random.Random) -> str:
    """The text with a token or two lost, repeated, exchanged or replaced."""
    tokens = TOKEN.findall(text)
    for _ in range(chance.choice([1, 1, 2])):
        here, there = chance.randrange(len(tokens)), chance.randrange(len(tokens))
        match chance.randrange(6):
            case 0:
                del tokens[here]
            case 1:
                tokens.insert(there, tokens[here])
            case 2:
                tokens[here], tokens[there] = tokens[there], tokens[here]
            case 3:
                tokens[here] = chance.choice(STRAY)
            case _:  # a value takes the place of another of its kind
                kind = chance.choice(["-.0123456789", "\"'"])
                values = [index for index, token in enumerate(tokens) if token[0] in kind]
                tokens[chance.choice(values)] = tokens[chance.choice(values)]
    return " ".join(tokens)


def test_accepts_what_protocol_buffers_accepts() -> None:
    """Spoilt prototxts: both refuse one, or both read the same message from it."""
    chance = random.Random(0)
    verdicts = set()
    for _ in range(3000):
        text = spoilt(PROTOTXT, chance)
        ours, strict, lenient = NetParameter(), NetParameter(), NetParameter()
        try:
            text_format.Parse(text, strict)
            accepted = True
        except text_format.ParseError:
            accepted = False
        unknown, refusal = [], None
        try:
            unknown = parse(text, ours, "net.prototxt")
        except ConversionError as error:
            refusal = error
        assert accepted == (not unknown and refusal is None), f"{refusal}\n{text}"
        if refusal is not None:
            verdicts.add("refused")
            continue
        # Unknown fields are passed over: Protocol Buffers can do that too, if asked to.
        text_format.Parse(text, lenient, allow_unknown_field=True)
        assert ours == lenient or "nan" in text, text
        verdicts.add("unknown" if unknown else "accepted")
    assert verdicts == {"accepted", "unknown", "refused"}


# ----------------------------------------------------------------------------------------------------- every oddity


def relu(slope: float) -> caffe_pb2.NetParameter:
    return NetParameter(layer=[LayerParameter(relu_param=caffe_pb2.ReLUParameter(negative_slope=slope))])


def bias(term: bool) -> caffe_pb2.NetParameter:
    return NetParameter(layer=[LayerParameter(convolution_param=caffe_pb2.ConvolutionParameter(bias_term=term))])


def pool(method: caffe_pb2.PoolingParameter.PoolMethod) -> caffe_pb2.NetParameter:
    return NetParameter(layer=[LayerParameter(pooling_param=caffe_pb2.PoolingParameter(pool=method))])


def axis(number: int) -> caffe_pb2.NetParameter:
    return NetParameter(layer=[LayerParameter(flatten_param=caffe_pb2.FlattenParameter(axis=number))])


RELU, BIAS = "layer {{ relu_param {{ negative_slope: {} }} }}", "layer {{ convolution_param {{ bias_term: {} }} }}"
POOL, AXIS = "layer {{ pooling_param {{ pool: {} }} }}", "layer {{ flatten_param {{ axis: {} }} }}"

# Text -> message. Protocol Buffers' Python parser must agree.
SYNTAX = {
    "": NetParameter(),
    " \t\r\n\v\f# nothing": NetParameter(),
    '# first\nname: "a" # "last"': NetParameter(name="a"),
    "name: 'a'": NetParameter(name="a"),
    "name: 'say \"a\"'": NetParameter(name='say "a"'),
    'name: "it\'s"': NetParameter(name="it's"),
    'name: "a" \'b\'\n# and\n"c"': NetParameter(name="abc"),
    'name: ""': NetParameter(name=""),
    'name: "# no comment"': NetParameter(name="# no comment"),
    'name: "café"': NetParameter(name="café"),
    r'name: "\n\t\r\a\b\f\v\\\'\""': NetParameter(name="\n\t\r\a\b\f\v\\'\""),
    r'name: "\101\x42\x4a\7x"': NetParameter(name="ABJ\7x"),
    r'name: "caf\303\251 \xc3\xa9"': NetParameter(name="café é"),
    r'name: "a\0b"': NetParameter(name="a\0b"),
    'name:"a"input:"b"': NetParameter(name="a", input=["b"]),
    'name\n:\n"a"': NetParameter(name="a"),
    'name: "a"; input: "b", input: "c";': NetParameter(name="a", input=["b", "c"]),
    'input: ["a", "b" "c"]': NetParameter(input=["a", "bc"]),
    "input: []": NetParameter(),
    'input: "a" input: ["b"]': NetParameter(input=["a", "b"]),
    "input_dim: [1, 0x10, 010] input_dim: -7": NetParameter(input_dim=[1, 16, 8, -7]),
    "layer {} layer <> layer: {} layer: <>": NetParameter(layer=[LayerParameter()] * 4),
    'layer [{ name: "a" }, < name: "b" >]': NetParameter(layer=[LayerParameter(name="a"), LayerParameter(name="b")]),
    "layer: []": NetParameter(),
    "layer { },layer { };": NetParameter(layer=[LayerParameter()] * 2),
    "state {}": NetParameter(state=caffe_pb2.NetState()),
    AXIS.format("2147483647"): axis(2**31 - 1),
    AXIS.format("-2147483648"): axis(-(2**31)),
    AXIS.format("-0x10"): axis(-16),
    AXIS.format("-017"): axis(-15),
    AXIS.format("0"): axis(0),
    RELU.format("1"): relu(1),
    RELU.format("-1."): relu(-1),
    RELU.format(".5"): relu(0.5),
    RELU.format("0.5f"): relu(0.5),
    RELU.format("2F"): relu(2),
    RELU.format("1e-3"): relu(1e-3),
    RELU.format("1.25E+2f"): relu(125),
    RELU.format("inf"): relu(math.inf),
    RELU.format("-Infinity"): relu(-math.inf),
    RELU.format("1e39"): relu(math.inf),  # no float32
    RELU.format("123456789012345678901234567890"): relu(123456789012345678901234567890),
    POOL.format("AVE"): pool(caffe_pb2.PoolingParameter.AVE),
    POOL.format("1"): pool(caffe_pb2.PoolingParameter.AVE),
    **{BIAS.format(word): bias(True) for word in ("true", "True", "t", "1")},
    **{BIAS.format(word): bias(False) for word in ("false", "False", "f", "0")},
}
# What Caffe's parser (C++) reads and Protocol Buffers' Python one does not, or otherwise.
MORE_SYNTAX = {
    RELU.format("- 1.5"): relu(-1.5),
    RELU.format("-# minus\n2"): relu(-2),
    r'name: "\?"': NetParameter(name="?"),
}


@pytest.mark.parametrize("text", SYNTAX)
def test_syntax(text: str) -> None:
    assert net_of(text) == SYNTAX[text]
    assert text_format.Parse(text, NetParameter()) == SYNTAX[text]


@pytest.mark.parametrize("text", MORE_SYNTAX)
def test_syntax_of_caffes_parser(text: str) -> None:
    assert net_of(text) == MORE_SYNTAX[text]


@pytest.mark.parametrize("word", ["nan", "-nan", "NaN"])
def test_nan(word: str) -> None:
    assert math.isnan(net_of(RELU.format(word)).layer[0].relu_param.negative_slope)


def test_bytes_that_are_no_utf8_become_a_mark() -> None:
    assert net_of(r'name: "\xff"').name == "\N{REPLACEMENT CHARACTER}"


# ----------------------------------------------------------------------------------------------------------- errors

# Text -> where the error is, and a part of what it says.
ERRORS = {
    "layer {": ("1:8", "found the end of the file, expected '}'"),
    "layer {\n  name: 'a'\n": ("3:1", "found the end of the file, expected '}'"),
    "layer { name: 'a' > }": ("1:19", "found '>', expected the name of a field"),
    "layer < name: 'a' }": ("1:19", "found '}', expected the name of a field"),
    "layer {}\n}": ("2:1", "found '}', expected the name of a field"),
    "\n\n  :": ("3:3", "found ':', expected the name of a field"),
    "layer {};;": ("1:10", "found ';', expected the name of a field"),
    "layer": ("1:6", "found the end of the file after layer, expected '{'"),
    "layer 'a'": ("1:7", "found \"'a'\" after layer, expected '{'"),
    "layer [{} {}]": ("1:11", "found '{' in a list, expected ',' or ']'"),
    "name 'a'": ("1:6", "found \"'a'\" after name, expected ':'"),
    "name:": ("1:6", "found the end of the file for name, expected a string in quotes"),
    "name: a": ("1:7", "found 'a' for name, expected a string in quotes"),
    "name: 1": ("1:7", "found '1' for name, expected a string in quotes"),
    "name: 'a": ("1:7", "a string without its closing quote on the same line"),
    "name: 'a\n'": ("1:7", "a string without its closing quote on the same line"),
    "name: 'a\\": ("1:7", "a string without its closing quote on the same line"),
    "name: 'a' name: 'b'": ("1:11", "found name a second time, expected it once"),
    "layer {\r\n  type: 'a'\r\n  type: 'b'\r\n}": ("3:3", "found type a second time, expected it once"),
    "state {} state {}": ("1:10", "found state a second time, expected it once"),
    "layer { lrn_param {}\n lrn_param {} }": ("2:2", "found lrn_param a second time"),
    "input_dim: 1.5": ("1:12", "found '1.5' for input_dim, expected a whole number"),
    "input_dim: 1e3": ("1:12", "found '1e3' for input_dim, expected a whole number"),
    "input_dim: 2147483648": ("1:12", "found '2147483648' for input_dim, expected a whole number, at most 2147483647"),
    "input_dim: 'a'": ("1:12", "found \"'a'\" for input_dim, expected a value"),
    "input_dim: --1": ("1:13", "found '-' for input_dim, expected a value"),
    "input_dim: 1 2": ("1:14", "found '2', expected the name of a field"),
    "input_dim: [1 2]": ("1:15", "found '2' in a list, expected ',' or ']'"),
    "input_dim: [1, ]": ("1:16", "found ']' for input_dim, expected a value"),
    "layer: [{}, ]": ("1:13", "found ']' after layer, expected '{'"),
    "input_dim: [1": ("1:14", "found the end of the file in a list"),
    "input_dim: {}": ("1:12", "found '{' for input_dim, expected a value"),
    "layer { convolution_param { num_output: -1 } }": (
        "1:41",
        "found '-1' for num_output, expected a whole number from 0",
    ),
    RELU.format("fast"): ("1:38", "found 'fast' for negative_slope, expected a number"),
    RELU.format("0x" + "f" * 300): ("1:38", "for negative_slope, which is too large"),
    BIAS.format("maybe"): ("1:40", "found 'maybe' for bias_term, expected true or false"),
    BIAS.format("2"): ("1:40", "found '2' for bias_term, expected true or false"),
    POOL.format("MEDIAN"): ("1:31", "found 'MEDIAN' for pool, expected one of AVE, MAX, STOCHASTIC"),
    POOL.format("3"): ("1:31", "found '3' for pool, expected one of AVE, MAX, STOCHASTIC"),
    POOL.format("9" * 5000): ("1:31", "expected one of AVE, MAX, STOCHASTIC"),
    "layer { name: 'é' % }": ("1:19", "found the character '%', which no prototxt has here"),
    "layer { name: 'a' +1 }": ("1:19", "found the character '+', which no prototxt has here"),
    "// comment": ("1:1", "found the character '/', which no prototxt has here"),
    "\0": ("1:1", "found the character '\\x00', which no prototxt has here"),
    "unknown": ("1:8", "found the end of the file, expected ':' or '{'"),
    "unknown 1": ("1:9", "found '1', expected ':' or '{'"),
    "unknown { a: 1": ("1:15", "expected '}'"),
    "unknown: [1, 2": ("1:15", "in a list, expected ',' or ']'"),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_say_where(text: str) -> None:
    place, said = ERRORS[text]
    found, message = error_of(text)
    assert said in message
    assert found == place
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, NetParameter())


def test_weights_in_the_text_are_refused() -> None:
    """Caffe's schema has a list of floats there, ours bytes (see caffe.proto): neither is read from a text."""
    place, message = error_of("layer { blobs { data: 0.5 } }")
    assert (place, message) == ("1:23", "found weights written out as text, expected them in a .caffemodel file")


def test_error_names_the_file_first() -> None:
    with pytest.raises(ConversionError, match=r"^nets/deploy\.prototxt:2:1: found"):
        parse("layer {}\n}", NetParameter(), "nets/deploy.prototxt")


# --------------------------------------------------------------------------------------------------- unknown fields


def test_unknown_fields_keep_path_value_and_place() -> None:
    text = """name: "net"
own: 1
layer { name: "a" }
layer {
  name: "b"
  convolution_param { num_output: 2 sparse_ratio: 0.5 weight_filler { seed: 7 } }
  my_param { alpha: -1e-3 mode: FAST on: true off: false text: 'a' "b" sizes: [1, 2] inner < x: 0x10 > inner { x: 2 } }
}
"""
    layer = ("layer", 1)
    convolution = ("convolution_param", 0)
    assert unknown_in(text) == [
        UnknownField((), "own", 1, 2, 1),
        UnknownField((layer, convolution), "sparse_ratio", 0.5, 6, 37),
        UnknownField((layer, convolution, ("weight_filler", 0)), "seed", 7, 6, 71),
        UnknownField(
            (layer,),
            "my_param",
            {
                "alpha": -1e-3,
                "mode": "FAST",
                "on": True,
                "off": False,
                "text": "ab",
                "sizes": [1, 2],
                "inner": [{"x": 16}, {"x": 2}],
            },
            7,
            3,
        ),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("my: [{ a: 1 }, { a: 2 }]", [{"a": 1}, {"a": 2}]),
        ("my: []", []),
        ("my {}", {}),
        ("my: <>", {}),
        ("my { a: 1 a: [2, 3] a: 4 }", {"a": [1, 2, 3, 4]}),
        ("my { a: 1, b: 2; c: 3 }", {"a": 1, "b": 2, "c": 3}),
        ("my: -inf", -math.inf),
        ("my: 18446744073709551616", 2.0**64),
        ("my: 1.5f", 1.5),
        ("my: SOME_NAME", "SOME_NAME"),
    ],
)
def test_values_of_unknown_fields(value: str, expected: object) -> None:
    (found,) = unknown_in(f"layer {{ {value} }}")
    assert (found.name, found.value) == ("my", expected)


def test_known_fields_beside_unknown_ones_are_read() -> None:
    net = NetParameter()
    assert len(parse("layer { fork: 1 name: 'a' fork_param { name: 'x' } type: 'ReLU' }", net, "f")) == 2
    assert net == NetParameter(layer=[LayerParameter(name="a", type="ReLU")])


# ---------------------------------------------------------------------------------------------------- hostile files


def nested(depth: int, opening: str = "x {", closing: str = "}") -> str:
    return opening * depth + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [("x {", "}"), ("x <", ">"), ("x: [{", "}]")])
def test_depth_is_limited(opening: str, closing: str) -> None:
    assert len(unknown_in(nested(MAX_DEPTH, opening, closing))) == 1
    _, message = error_of(nested(MAX_DEPTH + 1, opening, closing))
    assert message == f"found messages nested more than {MAX_DEPTH} deep"


def test_depth_is_counted_from_the_top() -> None:
    """Known messages and unknown ones in them count alike."""
    outer = "layer { convolution_param { weight_filler { "
    assert len(unknown_in(outer + nested(MAX_DEPTH - 3) + "} } }")) == 1
    assert "nested" in error_of(outer + nested(MAX_DEPTH - 2) + "} } }")[1]


LONG = 2 << 20  # characters


# What it is -> the text, and a part of what the error says.
HOSTILE = {
    "unknown": ("x: 1\n" * 250_000, f"more than {MAX_UNKNOWN:,} fields"),
    "unknown in a layer": ("layer { " + "x {} " * 250_000 + "}", f"more than {MAX_UNKNOWN:,} fields"),
    "deep": ("x {" * (LONG // 3), "nested"),
    "deep lists": ("x: [{" * (LONG // 5), "nested"),
    "lists of lists": ("x: " + "[" * LONG, "expected a value"),
    "name": ("a" * LONG, "expected ':' or '{'"),
    "digits": ("input_dim: " + "1" * LONG, "expected a whole number"),
    "hexadecimal digits": ("input_dim: 0x" + "1" * LONG, "expected a whole number"),
    "octal digits": ("input_dim: 0" + "1" * LONG, "expected a whole number"),
    "digits of a float": ("layer { relu_param { negative_slope: 1." + "1" * LONG, "expected '}'"),
    "digits of an enum": ("layer { pooling_param { pool: " + "1" * LONG, "expected one of"),
    "word for an enum": ("layer { pooling_param { pool: " + "A" * LONG, "expected one of"),
    "word for a bool": ("layer { convolution_param { bias_term: " + "t" * LONG, "expected true or false"),
    "minus signs": ("input_dim: " + "-" * LONG, "expected a value"),
    "open string": ('name: "' + "a" * LONG, "closing quote"),
    "open string of escapes": ('name: "' + "\\n" * (LONG // 2), "closing quote"),
    "many open strings": ("name: '\n" * (LONG // 8), "closing quote"),
    "quotes": ('name: "' + '"' * LONG, "closing quote"),
    "comments": ("#" * LONG + "\n" + "# \n" * (LONG // 3) + "}", "expected the name of a field"),
    "blanks": (" \t\n" * (LONG // 3) + "}", "expected the name of a field"),
    "separators": ("name: 'a'" + ";" * LONG, "expected the name of a field"),
    "wrong brackets": ("}" * LONG, "expected the name of a field"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_soon(name: str) -> None:
    text, says = HOSTILE[name]
    with within(10):
        _, message = error_of(text)
    assert says in message
    assert len(message) < 1000


def test_many_unknown_fields_are_kept() -> None:
    with within(10):
        assert len(unknown_in("x: 1\n" * MAX_UNKNOWN)) == MAX_UNKNOWN


@pytest.mark.parametrize("body", ["a" * LONG, "\\n" * (LONG // 2), "é" * (LONG // 2), "\\303\\251" * (LONG // 8)])
def test_long_strings_are_read(body: str) -> None:
    with within(10):
        net = net_of(f'name: "{body}"')
    assert net == text_format.Parse(f'name: "{body}"', NetParameter())


@pytest.mark.parametrize(
    "text",
    [
        "name: '" + "a" * LONG + "'",
        'name: "' + "a" * LONG + '"',
        "name: '" + "a" * LONG,
        'name: "' + "a" * LONG,
        " " * LONG,
        "#" * LONG,
        "\n#" * (LONG // 2),
    ],
    ids=["'string'", '"string"', "'open string", '"open string', "blanks", "comment", "comments"],
)
def test_long_tokens_take_little_memory(text: str) -> None:
    """Python's regular expressions keep 200 bytes for each turn of a loop that they might have to take back."""
    with memory_below(16 * len(text)), contextlib.suppress(ConversionError):
        net_of(text)

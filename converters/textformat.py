"""Prototxt text -> messages, with the place of every mistake.

Protocol Buffers' own text parser stops at the first field that it does not know, or passes over all of them in silence.
People's prototxts are full of fields of forks, so this one goes on, remembers what it did not know (a plugin may need
it) and where it stood. The grammar is that of https://protobuf.dev/reference/protobuf/textformat-spec.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from converters.errors import ConversionError

Field = Any  # a FieldDescriptor; Protocol Buffers' types know two unrelated ones

MAX_DEPTH = 100  # Protocol Buffers' own limit: deeper nesting is an attack, not a network
MAX_UNKNOWN = 100_000  # fields that the schema does not know

_TOKEN = re.compile(
    # Possessive (`++`): a token is taken whole or not at all, without a memory of each of its characters.
    r"""(?P<space>(?:\s++|\#[^\n]*+)++)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[fF]?)
    |(?P<string>"(?:[^"\\\n]++|\\.)*+"|'(?:[^'\\\n]++|\\.)*+')
    |(?P<sign>[{}<>\[\]:;,-])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_CLOSING = {"{": "}", "<": ">"}
_TRUTH = {"true": True, "True": True, "t": True, "1": True, "false": False, "False": False, "f": False, "0": False}
_INTEGER_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


@dataclass(frozen=True)
class UnknownField:
    """A field that the schema does not have.

    Attributes:
        path: The fields that lead to it, each with its index (0 for one that is not repeated).
        name: Its name.
        value: A number, string, bool, list or dict (a message; a name given more than once holds a list).
        line: Its line, from 1; 0 in a binary file.
        column: Its column, from 1.
        problem: Of a field that the schema knows: what is wrong with its value.
    """

    path: tuple[tuple[str, int], ...]
    name: str
    value: Any
    line: int
    column: int
    problem: str = ""


def parse(text: str, message: Message, file: str, *, lenient: bool = False) -> list[UnknownField]:
    """Fill a message from its text form.

    Args:
        text: The prototxt.
        message: An empty message, filled in place.
        file: The name that errors give.
        lenient: Within a layer, return unknown enumerators and single fields given twice with their ``problem`` instead
            of refusing them: whether they matter depends on the layer, which is known only afterwards.

    Returns:
        The fields that the schema does not know, in order.

    Raises:
        ConversionError: A syntax error, a value of the wrong kind, a single field given twice: with line and column.
    """
    parser = _Parser(text, file, lenient=lenient)
    parser.fields(message, (), None)
    return parser.unknown


class _Parser:
    def __init__(self, text: str, file: str, *, lenient: bool = False) -> None:
        self.text = text
        self.file = file
        self.lenient = lenient
        self.unknown: list[UnknownField] = []
        self.lines: list[int] = []  # where each line begins; found when first asked for
        self.token, self.kind, self.end = "", "", 0
        self.advance()

    # ------------------------------------------------------------------------------------------------------ tokens

    def advance(self) -> str:
        """Step to the next token; return the one just left."""
        left = self.token
        while True:
            self.start = self.end
            match = _TOKEN.match(self.text, self.start)
            if match is None:
                self.token, self.kind = self.text[self.start : self.start + 1], "end"
                if self.token in ('"', "'"):
                    raise self.error("found a string without its closing quote on the same line")
                if self.token:
                    raise self.error(f"found the character {self.token!r}, which no prototxt has here")
                return left
            self.end = match.end()
            self.kind = match.lastgroup or ""
            if self.kind != "space":
                self.token = match.group()
                return left

    def position(self, offset: int) -> tuple[int, int]:
        if not self.lines:
            self.lines = [0, *(match.end() for match in re.finditer("\n", self.text))]
        line = bisect_right(self.lines, offset)
        return line, offset - self.lines[line - 1] + 1

    def error(self, message: str, offset: int | None = None) -> ConversionError:
        line, column = self.position(self.start if offset is None else offset)
        return ConversionError(message, file=f"{self.file}:{line}:{column}")

    def found(self) -> str:
        return f"found {shortened(self.token)}" if self.token else "found the end of the file"

    # ------------------------------------------------------------------------------------------------------ fields

    def fields(self, message: Message, path: tuple[tuple[str, int], ...], closing: str | None) -> None:
        """Parse ``name: value`` and ``name { ... }`` up to the closing bracket, or the end of the file."""
        if len(path) > MAX_DEPTH:
            raise self.error(f"found messages nested more than {MAX_DEPTH} deep")
        known = message.DESCRIPTOR.fields_by_name
        while not self.at_end(closing):
            start, name = self.start, self.field_name()
            field = known.get(name)
            if field is None:
                self.note(path, name, self.any_value(len(path)), start)
            elif field.message_type is not None:
                self.message_field(message, field, path, start)
            else:
                self.scalar_field(message, field, path, start)
            if self.token in (",", ";") and self.kind == "sign":
                self.advance()

    def note(self, path: tuple[tuple[str, int], ...], name: str, value: Any, start: int, problem: str = "") -> None:
        """Remember a field that the message cannot hold."""
        self.unknown.append(UnknownField(path, name, value, *self.position(start), problem))
        if len(self.unknown) > MAX_UNKNOWN:
            raise self.error(f"found more than {MAX_UNKNOWN:,} fields that no Caffe layer has", start)

    def may_wait(self, path: tuple[tuple[str, int], ...], field: Field) -> bool:
        """Whether a bad value can be judged once its layer is known: one of its parameters, or a type of V1's."""
        if not self.lenient or not path or path[0][0] not in ("layer", "layers"):
            return False
        if len(path) > 1:
            return path[1][0] not in ("include", "exclude")  # they say whether there is a layer
        return field.message_type is not None or (path[0][0] == "layers" and field.enum_type is not None)

    def at_end(self, closing: str | None) -> bool:
        if self.kind == "end":
            if closing is None:
                return True
            raise self.error(f"found the end of the file, expected {closing!r}: a bracket is not closed")
        return self.token == closing and self.kind == "sign"

    def field_name(self) -> str:
        if self.kind != "name":
            raise self.error(f"{self.found()}, expected the name of a field")
        return self.advance()

    def message_field(self, message: Message, field: Field, path: tuple[tuple[str, int], ...], start: int) -> None:
        if self.token == ":":
            self.advance()
        if _is_repeated(field) and self.token == "[":
            self.listed(lambda: self.one_message(message, field, path))
            return
        if not _is_repeated(field) and message.HasField(field.name):
            problem = f"found {field.name} a second time, expected it once"
            if not self.may_wait(path, field):
                raise self.error(problem, start)
            self.note(path, field.name, self.any_message(len(path) + 1), start, problem)
            return
        self.one_message(message, field, path)

    def one_message(self, message: Message, field: Field, path: tuple[tuple[str, int], ...]) -> None:
        closing = _CLOSING.get(self.token)
        if closing is None:
            raise self.error(f"{self.found()} after {field.name}, expected '{{'")
        self.advance()
        index = 0
        if _is_repeated(field):
            repeated = getattr(message, field.name)
            index = len(repeated)
            inner = repeated.add()
        else:
            inner = getattr(message, field.name)
            inner.SetInParent()
        self.fields(inner, (*path, (field.name, index)), closing)
        self.advance()

    def scalar_field(self, message: Message, field: Field, path: tuple[tuple[str, int], ...], start: int) -> None:
        if self.token != ":":
            raise self.error(f"{self.found()} after {field.name}, expected ':'")
        self.advance()
        if _is_repeated(field):
            values = getattr(message, field.name)
            if self.token == "[" and self.kind == "sign":
                self.listed(lambda: values.append(self.value(field)))
            else:
                values.append(self.value(field))
        elif message.HasField(field.name):
            problem = f"found {field.name} a second time, expected it once"
            if not (len(path) > 1 and self.may_wait(path, field)):
                raise self.error(problem, start)
            self.note(path, field.name, self.any_element(len(path)), start, problem)
        elif field.enum_type is not None and self.may_wait(path, field):
            self.lenient_enumeration(message, field, path, start)
        else:
            setattr(message, field.name, self.value(field))

    def lenient_enumeration(
        self, message: Message, field: Field, path: tuple[tuple[str, int], ...], start: int
    ) -> None:
        where, word = self.start, self.scalar(field.name)
        value, problem = _enumerator(field, word)
        if problem:
            self.note(path, field.name, word, where, problem)
        else:
            setattr(message, field.name, value)

    def listed(self, element: Callable[[], object]) -> None:
        """``[a, b, c]``, calling ``element`` at each."""
        self.advance()
        if self.token != "]":
            element()
            while self.token == ",":
                self.advance()
                element()
        if self.token != "]":
            raise self.error(f"{self.found()} in a list, expected ',' or ']'")
        self.advance()

    # ------------------------------------------------------------------------------------------------------ values

    def value(self, field: Field) -> Any:
        start = self.start
        if field.type == FieldDescriptor.TYPE_BYTES:
            raise self.error("found weights written out as text, expected them in a .caffemodel file")
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self.string(field.name)
        word = self.scalar(field.name)
        if field.enum_type is not None:
            value, problem = _enumerator(field, word)
            if problem:
                raise self.error(problem, start)
            return value
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            if word not in _TRUTH:
                raise self.error(f"found {shortened(word)} for {field.name}, expected true or false", start)
            return _TRUTH[word]
        if field.cpp_type in _INTEGER_BITS:
            return self.integer(field, word, start)
        number = _number(word)
        if number is None:
            raise self.error(f"found {shortened(word)} for {field.name}, expected a number", start)
        try:
            return -0.0 if number == 0 and word.startswith("-") else float(number)
        except OverflowError:
            raise self.error(f"found {shortened(word)} for {field.name}, which is too large", start) from None

    def scalar(self, name: str) -> str:
        """A word or number, with its minus."""
        minus = ""
        if self.token == "-" and self.kind == "sign":
            minus = self.advance()
        if self.kind not in ("name", "number"):
            raise self.error(f"{self.found()} for {name}, expected a value")
        return minus + self.advance()

    def string(self, name: str) -> str:
        if self.kind != "string":
            raise self.error(f"{self.found()} for {name}, expected a string in quotes")
        parts = []
        while self.kind == "string":
            parts.append(_unescape(self.advance()[1:-1]))
        return "".join(parts)

    def integer(self, field: Field, word: str, start: int) -> int:
        number = _number(word)
        low, high = _INTEGER_BITS[field.cpp_type]
        if not isinstance(number, int) or not low <= number <= high:
            kind = "a whole number" if low else "a whole number from 0"
            raise self.error(f"found {shortened(word)} for {field.name}, expected {kind}, at most {high}", start)
        return number

    def any_value(self, depth: int) -> Any:
        """The value of a field that the schema does not know, as plain Python."""
        colon = self.token == ":"
        if colon:
            self.advance()
        if self.token in _CLOSING and self.kind == "sign":
            return self.any_message(depth + 1)
        if not colon:
            raise self.error(f"{self.found()}, expected ':' or '{{'")
        if self.token == "[" and self.kind == "sign":
            values: list[Any] = []
            self.listed(lambda: values.append(self.any_element(depth)))
            return values
        return self.any_element(depth)

    def any_element(self, depth: int) -> Any:
        if self.token in _CLOSING and self.kind == "sign":
            return self.any_message(depth + 1)
        if self.kind == "string":
            return self.string("a field")
        word = self.scalar("a field")
        number = _number(word)
        if number is not None:
            return number
        return {"true": True, "false": False}.get(word, word)

    def any_message(self, depth: int) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            raise self.error(f"found messages nested more than {MAX_DEPTH} deep")
        closing = _CLOSING[self.advance()]
        result: dict[str, Any] = {}
        while not self.at_end(closing):
            name = self.field_name()
            add_unknown(result, name, self.any_value(depth))
            if self.token in (",", ";") and self.kind == "sign":
                self.advance()
        self.advance()
        return result


def shortened(text: str, most: int = 60) -> str:
    """A text in quotes for a message, cut where it is long."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


class _Repeated(list[Any]):
    """The values of an unknown field that was given more than once."""


def add_unknown(fields: dict[str, Any], name: str, value: Any) -> None:
    """Put a value under a name; further ones of the same name make a list of them all."""
    if name not in fields:
        fields[name] = value
        return
    present = fields[name]
    if not isinstance(present, _Repeated):
        present = fields[name] = _Repeated(present if isinstance(present, list) else [present])
    present.extend(value) if isinstance(value, list) else present.append(value)


def _is_repeated(field: Field) -> bool:
    is_repeated = getattr(field, "is_repeated", None)
    if is_repeated is None:  # before Protocol Buffers 6.31, which then deprecated `label`
        is_repeated = getattr(field, "label") == FieldDescriptor.LABEL_REPEATED  # noqa: B009
    return bool(is_repeated)


def _enumerator(field: Field, word: str) -> tuple[int, str]:
    """The number of an enumerator, or what is wrong with it."""
    kind = field.enum_type
    value = kind.values_by_name.get(word) or kind.values_by_number.get(_number(word))
    if value is None:
        known = ", ".join(sorted(kind.values_by_name))
        return 0, f"found {shortened(word)} for {field.name}, expected one of {known}"
    return int(value.number), ""


def _number(word: str) -> int | float | None:
    digits = word.lower()
    minus = digits.startswith("-")
    digits = digits[minus:]
    if digits in ("inf", "infinity", "nan"):
        value: int | float = float(digits)
    elif re.fullmatch(r"0x[0-9a-f]+", digits):
        value = int(digits, 16)
    elif re.fullmatch(r"0[0-7]+", digits):
        value = int(digits, 8)
    elif re.fullmatch(r"[0-9]{1,20}", digits):
        value = int(digits)
    else:
        try:
            value = float(digits.removesuffix("f"))
        except ValueError:
            return None
    return -value if minus else value


def _unescape(body: str) -> str:
    """C's escapes. Octal and hex escapes are bytes, of UTF-8 where they form it."""
    if "\\" not in body:
        return body

    def one(match: re.Match[str]) -> bytes:
        octal, hexadecimal, letter = match.groups()
        if octal:
            return bytes([int(octal, 8) & 255])
        if hexadecimal:
            return bytes([int(hexadecimal, 16)])
        return _ESCAPED.get(letter, letter).encode("utf-8", "replace")

    raw, last = bytearray(), 0
    for match in _ESCAPE.finditer(body):
        raw += body[last : match.start()].encode("utf-8", "replace") + one(match)
        last = match.end()
    raw += body[last:].encode("utf-8", "replace")
    return raw.decode("utf-8", "replace")

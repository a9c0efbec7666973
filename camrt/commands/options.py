"""Options that several commands have, and what is checked of them before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from camrt.graph.methods import METHODS
from camrt.loading import is_name

if TYPE_CHECKING:
    from converters.zoo import NamedModel

PROTOCOLS = ("ten-crop", "center", "full")
THRESHOLDS = (20, 100, 110)  # of generate_bbox.m
STATUS = "Exit status: 0, 1 (it failed, or an image did) or 2 (usage)."

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="cuda|cpu|...", help="Where it runs; by default CUDA where ONNX Runtime has it, else the CPU."
    ),
]
Thresholds = Annotated[
    tuple[int, int, int], typer.Option(metavar="A B C", help="The three grey levels of the box generator.")
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help=f"How the maps come about: {', '.join(METHODS)} (docs/methods.md); by default cam."
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(PROTOCOLS),
        help="What the network sees of an image; by default what it says, or what suits the method: mostly ten-crop.",
    ),
]
Top = Annotated[
    int | None,
    typer.Option(min=1, help="How many classes are explained; by default 5, or 1 where each costs much."),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS", help="What is explained in place of the best classes: a name or number; may be repeated."
    ),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TENSOR|NODE", help="The features that the maps are made of; by default the last with places."
    ),
]
Scores = Annotated[
    str | None, typer.Option(metavar="TENSOR", help="What is explained; by default the last output of class scores.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method, as samples=50; may be repeated."),
]


def named(name: str) -> NamedModel:
    """The named model.

    Raises:
        typer.BadParameter: There is none of that name.
    """
    from converters import zoo
    from converters.errors import ConversionError

    try:
        return zoo.find(name)
    except ConversionError as error:
        raise typer.BadParameter(str(error)) from None


def check_model(model: str) -> None:
    """A name must be one that is known; whether a file is there is seen when it is read."""
    if is_name(model):
        named(model)


def check_protocol(protocol: str | None) -> None:
    """It must be one that is known."""
    if protocol is not None:
        check_choice(protocol, PROTOCOLS, "--protocol")


def check_method(method: str | None) -> None:
    """It must be one that is known."""
    if method is not None:
        check_choice(method, METHODS, "--method")


def one_or_several(given: Sequence[str] | None) -> str | list[str] | None:
    """What an option that may be repeated says."""
    return list(given) if given and len(given) > 1 else given[0] if given else None


def settings_of(given: Sequence[str] | None) -> dict[str, str] | None:
    """Settings of a method, NAME=VALUE each.

    Raises:
        typer.BadParameter: One has another form.
    """
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise typer.BadParameter(f"found {name + equals + value!r}, expected NAME=VALUE", param_hint="--set")
    return {name: value for name, _, value in pairs} or None


def check_choice(value: str, choices: Sequence[str], flag: str) -> None:
    """It must be one of the choices.

    Raises:
        typer.BadParameter: It is not.
    """
    if value not in choices:
        raise typer.BadParameter(f"found {value!r}, expected one of {', '.join(choices)}", param_hint=flag)


def is_same_file(one: Path | None, other: Path | None) -> bool:
    """Whether both are there, and are one file."""
    return one is not None and other is not None and one.exists() and other.exists() and one.samefile(other)

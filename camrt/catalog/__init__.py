"""Networks by name: where a name leads, without loading anything.

A name with a prefix belongs to a source: a module of this package, which finds it under `source`.

* ``zoo:NAME``: the ONNX Model Zoo (`camrt.catalog.modelzoo`),
* ``hf:OWNER/REPO[@REVISION][/FILE.onnx]``: Hugging Face (`camrt.catalog.huggingface`),
* ``torchvision:NAME``, ``timm:NAME``: exported by PyTorch (`camrt.catalog.pytorch`).

The plain names that people type first (``resnet50``) each stand for one of these: models/names.toml. Names of Caffe's
networks are those of `converters.zoo`, and go before them.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from types import MappingProxyType

from camrt.catalog.entry import PREFIXES, SOURCES, Entry, title_of
from converters import zoo

__all__ = ["PREFIXES", "Entry", "find", "groups", "has_prefix", "plain_names", "title_of"]


def has_prefix(text: str) -> bool:
    """Return whether a text names a network of a source: it begins with one of `PREFIXES` and a colon."""
    prefix, colon, _ = text.partition(":")
    return bool(colon) and prefix in PREFIXES


def find(text: str) -> Entry | None:
    """Return the network that a name stands for; None where it has no prefix and is no plain name.

    Args:
        text: A name.

    Raises:
        CamrtError: The source has no such network, or the name has another form.
    """
    prefix, _, name = (text if has_prefix(text) else plain_names().get(text, "")).partition(":")
    found = SOURCES.find(prefix)
    return None if found is None else found(name)


@functools.cache
def groups() -> Mapping[str, Mapping[str, str]]:
    """Return the plain names in groups: each with the name, prefix and all, that it stands for."""
    text = (zoo.models_folder() / "names.toml").read_text(encoding="utf-8")
    return MappingProxyType({group: MappingProxyType(names) for group, names in tomllib.loads(text).items()})


def plain_names() -> Mapping[str, str]:
    """Return the plain names, with what each stands for."""
    return {name: target for names in groups().values() for name, target in names.items()}

"""Build the static site: the page, the explainer graphs, and ``site.json``, which tells the page what there is.

`served_files` is the same page for a server that computes: there, ``site.json`` names paths in place of graphs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camrt import colors
from camrt.errors import CamrtError
from camrt.loading import Request, explainer_graph, title_of
from camrt.results import write
from camrt.web import runtime
from converters import metadata

if TYPE_CHECKING:
    import onnx

SITE, PAGE = "site.json", "index.html"
MODELS, SAMPLES = "models", "samples"
ANY = "any"  # the target of the page's graphs: the best classes, until a person picks another
_STATIC = ("camrt.js", "camrt.css")
_MAKER = "camrt web"  # what site.json says, by which a folder is known again


@dataclass(frozen=True)
class SiteModel:
    """An explainer graph for the page.

    Attributes:
        content: The ONNX file.
        title: The model's name.
        facts: What the page needs to know: method, protocol, top, size, target, classes, labels.
    """

    content: bytes
    title: str
    facts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The beginning of the file's SHA-256."""
        return hashlib.sha256(self.content).hexdigest()[:8]

    @property
    def identity(self) -> str:
        """A name of the file that is new where its content is: browsers and CDNs keep the old ones for long."""
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.title}-{self.facts['method']}").strip("-.")
        return f"{words[:100]}-{self.digest}"


def site_model(model: str, request: Request) -> SiteModel:
    """Make the explainer graph of a model for the page.

    Args:
        model: A named model, or an ONNX file: a classifier or an explainer.
        request: What the explainer is to do.

    Returns:
        A graph that takes the classes that a person picks (target ``"any"``); an explainer that is given stays as it
        is.

    Raises:
        CamrtError: No explainer can be made of it, or not one that the page can run.
        converters.ConversionError: There is no model of that name, or its weights cannot be had.
    """
    import onnx

    found = explainer_graph(model, request)
    try:
        graph = onnx.load(found) if isinstance(found, Path) else found
        content = found.read_bytes() if isinstance(found, Path) else _serialized(found)
        properties = metadata.of_model(graph)
        stated = _explainer_facts(properties)
        if isinstance(found, Path):
            request.compare(stated)
        if stated.get("explained") == "box":
            raise CamrtError(
                "found an explainer of detections, expected one of classes: the page knows no boxes. camrt explain "
                "draws them"
            )
        facts = {key: stated[key] for key in ("method", "protocol", "top", "size")}
        facts |= {"target": stated.get("target", "top"), "classes": _class_count(graph)}
        facts["labels"] = metadata.labels_of(properties)
    except (CamrtError, ValueError) as error:
        raise CamrtError(str(error), file=model) from error
    return SiteModel(content, properties.get(metadata.NAME) or title_of(model), facts)


def build(
    models: Sequence[SiteModel], out: Path, *, title: str, samples: Sequence[Path] = (), package: Path | None = None
) -> dict[str, Any]:
    """Write the site.

    ``site.json`` is written last and names all other files: until then, a site that is built anew is the old one.
    Graphs and samples that the old one named are removed.

    Args:
        models: The first is the one that the page shows first.
        out: The folder. It is made if need be; one with other files than those of a site is refused.
        title: Plain text.
        samples: Images that the page offers.
        package: An unpacked npm package of onnxruntime-web, which is put beside the page; None to load it from the CDN.

    Returns:
        What ``site.json`` says, and ``"written"``, the bytes of all files.

    Raises:
        CamrtError: The folder holds something else or cannot be written; an image or the package cannot be read.
    """
    old = _files_of(out)
    listed = [{"id": one.identity, "title": one.title, **one.facts, **_file(one)} for one in _distinct(models)]
    pictures = [(path, _read(path)) for path in samples]
    named = [{"name": path.name, "file": _sample_name(path, content)} for path, content in pictures]
    site = {
        "maker": _MAKER,
        "title": title,
        "runtime": runtime.described(is_vendored=package is not None),
        "colors": colors.as_dict(),
        "models": listed,
        "samples": named,
    }
    written = 0 if package is None else runtime.vendored(package, out)
    contents = {model["file"]: one.content for model, one in zip(listed, _distinct(models), strict=True)}
    contents |= {sample["file"]: content for sample, (_, content) in zip(named, pictures, strict=True)}
    contents |= _static_files(title, policy=content_policy(is_vendored=package is not None), is_served=False)
    contents[SITE] = json.dumps(site, ensure_ascii=False).encode()
    for name, content in contents.items():
        write(out / name, content)
        written += len(content)
    for name in old - contents.keys():
        (out / name).unlink(missing_ok=True)
    return {**site, "written": written}


def served_files(models: Sequence[Mapping[str, Any]], *, title: str) -> dict[str, bytes]:
    """Make the page of a server that computes: no graph and no onnxruntime-web is loaded.

    Args:
        models: What the page needs to know of each: ``id``, ``title``, the facts of a `SiteModel`, and ``infer``, the
            path, from the page, that answers the Open Inference Protocol. The first is the one that is shown first.
        title: Plain text.

    Returns:
        Name -> content of all files.
    """
    site = {"title": title, "runtime": None, "colors": colors.as_dict(), "models": list(models), "samples": []}
    files = _static_files(title, policy=SERVED_POLICY, is_served=True)
    return {**files, SITE: json.dumps(site, ensure_ascii=False).encode()}


def content_policy(*, is_vendored: bool) -> str:
    """Return the Content-Security-Policy of the page: nothing is sent, and nothing else is loaded.

    Args:
        is_vendored: Whether onnxruntime-web is beside the page.
    """
    return _policy(" blob:", " 'wasm-unsafe-eval'", "" if is_vendored else f" {runtime.CDN}")


def _policy(blob: str = "", scripts: str = "", elsewhere: str = "") -> str:
    """The policy with more sources of scripts, and more places to connect to."""
    return (
        f"default-src 'none'; script-src 'self'{blob}{scripts}; worker-src 'self'{blob}; style-src 'self'; "
        f"img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'{blob}{elsewhere}; base-uri 'none'; "
        "form-action 'none'"
    )


SERVED_POLICY = _policy()  # of a page whose server computes: all that it loads and asks is there


def stated_site(folder: Path) -> dict[str, Any] | None:
    """Read what a site says of itself; None where the folder holds none."""
    try:
        site = json.loads((folder / SITE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return site if isinstance(site, dict) and site.get("maker") == _MAKER else None


# ---------------------------------------------------------------------------------------------------------- the graphs


def _serialized(model: onnx.ModelProto) -> bytes:
    from converters.model import MAX_MODEL

    if (size := model.ByteSize()) > MAX_MODEL:
        raise CamrtError(f"found a graph of {size:,} bytes, expected at most {MAX_MODEL:,}: browsers hold no more")
    return model.SerializeToString()


def _explainer_facts(properties: Mapping[str, str]) -> dict[str, Any]:
    try:
        stated = metadata.explainer_of(properties)
    except ValueError as error:
        raise CamrtError(f"found the metadata {metadata.EXPLAINER}, which cannot be used ({error})") from None
    assert stated is not None  # it was told an explainer by that
    if (resizing := stated.get("resize", "square")) != "square":
        raise CamrtError(f"found an explainer that resizes images by {resizing!r}, expected 'square'")
    return stated


def _class_count(graph: onnx.ModelProto) -> int:
    shapes = {value.name: value.type.tensor_type.shape for value in graph.graph.output}
    if "scores" not in shapes or not (count := shapes["scores"].dim[-1].dim_value):
        raise CamrtError(f"found the outputs {', '.join(shapes)}, expected scores of a fixed number of classes")
    return int(count)


def _distinct(models: Sequence[SiteModel]) -> list[SiteModel]:
    """The models without those that are there twice."""
    return list({one.identity: one for one in models}.values())


def _file(model: SiteModel) -> dict[str, Any]:
    return {"file": f"{MODELS}/{model.identity}.onnx", "bytes": len(model.content)}


# ----------------------------------------------------------------------------------------------------------- the files


def _static_files(title: str, *, policy: str, is_served: bool) -> dict[str, bytes]:
    """The page, its style and its module. Their version is in the links, as browsers keep the old ones."""
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("camrt.web") / "static"
    files = {name: (folder / name).read_bytes() for name in _STATIC}
    version = hashlib.sha256(b"".join(files.values())).hexdigest()[:8]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.from_string((folder / PAGE).read_text("utf-8"))
    return {**files, PAGE: page.render(title=title, policy=policy, version=version, is_served=is_served).encode()}


def _read(path: Path) -> bytes:
    from camrt import images

    images.decode(path)
    return path.read_bytes()


def _sample_name(path: Path, content: bytes) -> str:
    return f"{SAMPLES}/{hashlib.sha256(content).hexdigest()[:16]}{path.suffix.lower()}"


def _files_of(out: Path) -> set[str]:
    """The graphs and samples of the site that is in a folder; nothing where there is none."""
    if not out.exists():
        return set()
    if not out.is_dir():
        raise CamrtError("is a file, expected a folder for the site", file=str(out))
    site = stated_site(out)
    if site is None:
        if any(out.iterdir()) and not _is_begun(out):
            raise CamrtError(
                "holds files that are not a site of camrt web. Name another folder with --out", file=str(out)
            )
        return set()
    return set(_own_names(site))


def _is_begun(out: Path) -> bool:
    """Whether all that is in a folder is what a build that was stopped may have left."""
    known = {PAGE, SITE, MODELS, SAMPLES, runtime.FOLDER, *_STATIC}
    return all(each.name in known or each.name.startswith(".") for each in out.iterdir())


def _own_names(site: Mapping[str, Any]) -> Iterator[str]:
    """The names in a ``site.json``, if they are names that a build gives: the file may come from anywhere."""
    for key, folder in (("models", MODELS), ("samples", SAMPLES)):
        for one in site.get(key, ()):
            name = one.get("file") if isinstance(one, dict) else None
            if isinstance(name, str) and re.fullmatch(rf"{folder}/[^/\\]+", name):
                yield name

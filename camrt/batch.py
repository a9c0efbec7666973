"""Many images, explained into a folder by runs that may be stopped and started again."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeGuard

from camrt import loading, results
from camrt.engines.engine import FP32
from camrt.errors import CamrtError
from camrt.results import LINES, json_line

if TYPE_CHECKING:
    from filelock import FileLock

    from camrt.engines.engine import Providers
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation
    from camrt.localize.crf import CRF
    from camrt.render import PictureFormat, Style

MAX_SIDE = 1024  # pixels: of the pictures; as `camrt.explanation.MAX_SIDE`, which loads NumPy
PAGE, LOCK, CARDS = "index.html", ".camrt-lock", ".cards"
_DRAWING_BYTES = 1 << 28  # of images that are drawn at once
_BUSY = "another camrt explain writes into this folder. Wait for it, or name another one with --out"
# What is looked for in folders. A file that is named is read whatever its ending.
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif",
)  # fmt: skip

Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[float], Any]]]


@dataclass(frozen=True)
class ImageFile:
    """An image to explain, as it was when it was looked at.

    Attributes:
        given: Its path, as it was given.
        path: Its absolute path.
        size: Its bytes.
        mtime_ns: When it was changed.
    """

    given: str
    path: str
    size: int
    mtime_ns: int

    @property
    def key(self) -> dict[str, Any]:
        """Return what must not have changed since it was explained."""
        return {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns}


class Batch:
    """Explain images into a folder, each once, and go on there when started again.

    The folder holds the files of `Explanation.save_files`, and a line of JSON for each image in ``explanations.jsonl``:
    ``path`` (absolute), ``size`` and ``mtime_ns`` of the image, what `Explanation.as_dict` says, ``stem`` (what the
    names of its files begin with: the image's name, with a part of a hash where another image has that name),
    ``files`` (their names in the folder) and ``settings`` (what the results depend on beside the image: the model with
    its file's size and time of change, and the arguments).

    What holds, wherever a run was killed:

    * A file is whole or not there. Where the line is, the files are, and they are those that the line says.
    * An image is done when its line has its path, size and time of change and these settings, and its files are there.
      What is done is not computed again; what is not, is, and files that it no longer has are removed.
    * The last line of an image counts; a line that was torn is removed. Lines without ``settings`` (of
      `Explanation.save`) stay as they are. Any other line that is not JSON is an error, and nothing is changed.
    * One run at a time: a second one on the same folder is refused, where the file system has locks.
    * No name in a line leads out of the folder. Results are not taken for images.
    * An image that cannot be read, explained, drawn or written does not stop the run; the next run tries it again. A
      full disk, or a folder that cannot be written to, does.
    * A run that fails before it has explained anything leaves the folder as it was.

    Used in a ``with`` block, which holds the lock.

    Args:
        folder: Made if it is not there.
        model: A name, or the path of an ONNX model, as for `camrt.Explainer`. It is loaded if an image is not done.
        method: As for `camrt.Explainer`; so are the arguments up to ``max_pixels``.
        protocol: What the network sees of an image.
        top: How many classes are explained.
        target: What is explained in place of the best classes.
        layer: The features that the maps are made of.
        classifier: The linear layer behind them.
        scores: The tensor that is explained.
        settings: What is set of the method.
        smooth: How maps are smoothed.
        background: The paths of the images that expected-gradients compares with.
        detections: How a detector says what it finds.
        weights: The weights of a named model.
        preprocess: The preset of the preprocessing.
        providers: Where the model runs. Lines say it, and results of all providers count.
        precision: What it computes in.
        max_side: The longer side in pixels of the largest pictures and maps; None for those of the image's size.
        max_pixels: The most pixels of an image that is read.
        style: How the overlays are drawn; if left out, as `camrt.render.Style` says. Its boxes are in the lines too.
        maps: How the maps are written; None for not at all.
        form: The format of the overlays, as for `Explanation.save_files`.
        cards: Whether what `page` needs is kept of each image.
        crf: How the maps are refined, as for `Explanation.refine`; None for not at all.
        side: The size at which they are, as for `Explanation.refine`.

    Attributes:
        total: How many images the run is about, once `explain` has begun.
        skipped: How many of them were done before.
        explained: How many were explained so far.

    Example:
        >>> images, missing = find_images(["photos"])  # doctest: +SKIP
        >>> with Batch("explained", "googlenetCAM", maps="npz") as batch:  # doctest: +SKIP
        ...     failed = batch.explain(images)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: str,
        *,
        method: str | None = None,
        protocol: str | None = None,
        top: int | None = None,
        target: int | str | Sequence[int | str] | None = None,
        layer: str | Sequence[str] | None = None,
        classifier: str | None = None,
        scores: str | None = None,
        settings: Mapping[str, Any] | None = None,
        smooth: str | Sequence[str] | None = None,
        background: Sequence[str] | None = None,
        detections: str | None = None,
        weights: Path | None = None,
        preprocess: str | None = None,
        providers: Providers | None = None,
        precision: str | None = None,
        max_side: int | None = MAX_SIDE,
        max_pixels: int | None = None,
        style: Style | None = None,
        maps: Literal["png", "npz"] | None = None,
        form: PictureFormat = "jpeg",
        cards: bool = False,
        crf: CRF | None = None,
        side: int = 256,
    ) -> None:
        self.folder, self.model = Path(folder), model
        self.method, self.protocol, self.top = method, protocol, top
        self.target, self.layer, self.settings = target, layer, settings
        self.smooth, self.background = smooth, background
        self.classifier, self.scores, self.detections = classifier, scores, detections
        self.weights, self.preprocess = weights, preprocess
        self.providers, self.precision = providers, precision
        self.max_side, self.max_pixels = max_side, max_pixels
        self._style, self.maps, self.form, self.cards = style, maps, form, cards
        self.crf, self.side = crf, side
        self.total = self.skipped = self.explained = 0
        self._lock: FileLock | None = None
        self._made: list[Path] = []  # by this run, and of no use if it explains nothing
        self._lines: dict[str, dict[str, Any]] = {}  # of the images, by path
        self._others: list[str] = []  # of Explanation.save
        self._owners: dict[str, str] = {}  # stem, without regard to case -> the image's path

    @property
    def style(self) -> Style:
        """How the overlays are drawn."""
        from camrt.render import STYLE  # loads NumPy

        return self._style or STYLE

    def __enter__(self) -> Self:
        from converters.encoding import sweep

        missing = [each for each in (self.folder, *self.folder.absolute().parents) if not each.exists()]
        self._made = [each for each in (self.folder / LINES, self.folder / LOCK) if not each.exists()] + missing
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamrtError(f"cannot be written to: {error.strerror or error}", file=str(self.folder)) from error
        self._lock = results.lock(self.folder / LOCK, _BUSY)
        try:
            sweep(self.folder)
            self._read()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._leave(failed=kind is not None)

    def _leave(self, *, failed: bool = True) -> None:
        """Give the lock back; after a run that failed before it explained anything, the folder is as it was."""
        if self._lock is None:
            return
        if failed and not self.explained:
            for path in self._made:
                with contextlib.suppress(OSError):  # a folder that has come to hold something stays
                    path.rmdir() if path.is_dir() else path.unlink()
        self._lock.release()
        self._lock = None

    def explain(
        self,
        images: Iterable[ImageFile],
        *,
        batch: int | None = None,
        progress: Progress = lambda total: contextlib.nullcontext(lambda count: None),
    ) -> list[tuple[str, str]]:
        """Explain the images that are not done.

        Args:
            images: Results of earlier runs among them are left out.
            batch: How many images the session gets at once, as for `Explainer.map`.
            progress: Called with the number of images once the model is loaded; the block's value is called with how
                many more are done.

        Returns:
            The images that could not be explained, with the reasons.

        Raises:
            CamrtError: The model cannot be loaded or run, or the folder cannot be written to.
            ConversionError: There is no model of that name, or its weights cannot be had.
        """
        if self._lock is None:
            raise RuntimeError("a Batch is used in a with block, which holds its folder's lock")
        settings = self._settings()
        results_of_old = {self._absolute(name) for record in self._lines.values() for name in record["files"]}
        wanted = [image for image in images if image.path not in results_of_old]
        waiting = {image.given: image for image in wanted if not self._is_done(image, settings)}
        self.total, self.skipped = len(wanted), len(wanted) - len(waiting)
        failed: list[tuple[str, str]] = []
        if not waiting:
            return failed
        from camrt.explainer import STREAMS, Explainer, of_image
        from camrt.images import MAX_PIXELS

        explainer = Explainer(
            self.model, self.method, self.protocol, self.top, self.providers, precision=self.precision,
            target=self.target, layer=self.layer, classifier=self.classifier, scores=self.scores,
            settings=self.settings, smooth=self.smooth, background=self.background, detections=self.detections,
            weights=self.weights, preprocess=self.preprocess, max_side=self.max_side,
            max_pixels=self.max_pixels or MAX_PIXELS, streams=min(STREAMS, len(waiting)),
        )  # fmt: skip
        settings = self._settings()  # with the size of the model's file, which may have been downloaded only now
        with contextlib.suppress(OSError):  # which is said when the first line is written
            (self.folder / LINES).touch()
        replaces = bool(self._lines.keys() & {image.path for image in waiting.values()})
        with progress(self.total) as move:
            move(self.skipped)
            advance = _through_images(explainer, move)

            def record_failure(name: str, error: CamrtError) -> None:
                failed.append((name, str(error)))
                advance(1)

            explained = explainer.map(list(waiting), batch=batch, on_error=record_failure)
            for source, record in self._written(explained, waiting, settings):
                if isinstance(record, Exception):
                    record_failure(source, of_image(record, source))
                    continue
                self._keep(record)
                self.explained += 1
                advance(1)
        if replaces:
            self._read()  # which leaves one line for each image
        return failed

    def lines(self, images: Iterable[ImageFile]) -> list[dict[str, Any]]:
        """Return the lines of those of the images that are explained, in their order."""
        return [self._lines[image.path] for image in images if image.path in self._lines]

    def page(self, images: Iterable[ImageFile]) -> Path:
        """Write a page, ``index.html``, of those of the images that are explained.

        Args:
            images: In the order of the page. They were explained with ``cards``.

        Raises:
            CamrtError: It cannot be written.
        """
        from camrt.report import facts_of, html_document

        lines = self.lines(images)
        facts = facts_of(lines[-1], model=Path(self.model).name) if lines else {}
        cards = [self._card(line["stem"]) for line in lines]
        texts = (card.read_text(encoding="utf-8") for card in cards if card.exists())
        page = html_document(texts, facts=facts, style=self.style)
        results.write(self.folder / PAGE, page.encode())
        return self.folder / PAGE

    # ------------------------------------------------------------------------------------------------------- the lines

    def _read(self) -> None:
        """Read the lines; the last one is left out if it is torn."""
        self._lines, self._others = {}, []
        file = self.folder / LINES
        content = file.read_bytes() if file.exists() else b""
        for line, record in results.parse_lines(io.BytesIO(content), file):
            if _is_ours(record):
                self._lines.pop(record["path"], None)  # the last line of an image counts, and stands where it stood
                self._lines[record["path"]] = record
            elif record is not None:
                self._others.append(line.decode().removesuffix("\n"))
        self._owners = {str(record.get("stem", "")).casefold(): path for path, record in self._lines.items()}
        self._tidy(content)

    def _tidy(self, content: bytes) -> None:
        """Leave whole lines, and one for each image."""
        lines = [*self._others, *map(json_line, self._lines.values())]
        wanted = "".join(f"{line}\n" for line in lines).encode()
        if wanted != content:
            results.write(self.folder / LINES, wanted)

    def _settings(self) -> dict[str, Any]:
        """Return what the results depend on besides the image."""
        return {
            "model": loading.identity(self.model, self.weights),
            "method": self.method,
            "protocol": self.protocol,
            "top": self.top,
            **self._chosen(),
            "style": self.style.as_dict(),
            "format": self.form,
            "maps": self.maps or "none",
            **({"crf": {**self.crf.as_dict(), "side": self.side}} if self.crf else {}),
        }

    def _chosen(self) -> dict[str, Any]:
        """Of the arguments that a line need not have: those that say something."""
        chosen = {
            "target": self.target,
            "layer": self.layer,
            "classifier": self.classifier,
            "scores": self.scores,
            "set": self.settings,
            "smooth": self.smooth,
            "background": self.background,
            "detections": self.detections,
            "preprocess": self.preprocess,
            "precision": None if self.precision == FP32 else self.precision,
            "max_side": None if self.max_side == MAX_SIDE else self.max_side or 0,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def _is_done(self, image: ImageFile, settings: Mapping[str, Any]) -> bool:
        record = self._lines.get(image.path)
        if record is None or record["settings"] != settings or any(record.get(k) != v for k, v in image.key.items()):
            return False
        files = [self.folder / name for name in record["files"]]
        return all(file.exists() for file in [*files, *([self._card(record["stem"])] if self.cards else [])])

    # ------------------------------------------------------------------------------------------------------- the files

    def _written(
        self, explanations: Iterable[Explanation], images: Mapping[str, ImageFile], settings: Mapping[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
        """Write the files of images in threads, each image in one, a few at once.

        Yields:
            For each image, in order, its source, and what its line is to say, or why it could not be written.

        Raises:
            CamrtError: The folder can no longer be written to.
        """
        workers = min(8, os.cpu_count() or 1)
        under_way: deque[tuple[Explanation, Future[dict[str, Any]]]] = deque()

        def first() -> tuple[str, dict[str, Any] | Exception]:
            found, result = under_way.popleft()
            try:
                return found.source, result.result()
            except Exception as error:  # whatever it is, it is about this image; unless it is about the folder
                if _is_lost(error):
                    raise
                return found.source, error

        with ThreadPoolExecutor(workers, "camrt-draw") as threads:
            for found in explanations:
                image = images[found.source]
                under_way.append((found, threads.submit(self._write, found, image, self._stem(image.path), settings)))
                while len(under_way) > workers or sum(one.image.nbytes for one, _ in under_way) > _DRAWING_BYTES:
                    yield first()
            while under_way:
                yield first()

    def _write(self, found: Explanation, image: ImageFile, stem: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Write the files of an image. Returns what its line is to say."""
        if self.crf:
            found = found.refine(crf=self.crf, side=self.side)
        files = found.save_files(
            self.folder, stem=stem, maps=self.maps, style=self.style, form=self.form, max_side=None
        )
        if self.cards:
            from camrt.report import html_card

            card = html_card(found, style=self.style)
            results.write(self._card(stem), card.encode(errors="replace"))
        else:
            self._card(stem).unlink(missing_ok=True)  # of an earlier run
        return {
            **image.key,
            **found.as_dict(self.style.boxes, self.style.thresholds),
            "stem": stem,
            "files": files,
            "settings": settings,
        }

    def _keep(self, record: dict[str, Any]) -> None:
        """Write the line of an image, whose files are there; and remove the files that only the earlier line names."""
        path = record["path"]
        for name in set(self._lines.get(path, {}).get("files", ())) - set(record["files"]):
            (self.folder / name).unlink(missing_ok=True)
        results.append(self.folder / LINES, record)
        self._lines[path] = record

    def _stem(self, path: str) -> str:
        """Return what an image's file names begin with: its name, with a part of a hash if that is taken."""
        if path in self._lines:
            return str(self._lines[path]["stem"])
        stem = Path(path).stem
        if Path(stem).name != stem:  # of "..png" it is "."
            stem = Path(path).name
        stem = results.shortened(stem)
        if self._owners.get(stem.casefold(), path) != path:
            stem = f"{stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
        self._owners[stem.casefold()] = path
        return stem

    def _card(self, stem: str) -> Path:
        return self.folder / CARDS / f"{stem}.html"

    def _absolute(self, name: str) -> str:
        return os.path.abspath(self.folder / name)  # noqa: PTH100 - links are not followed


def _through_images(explainer: Explainer, move: Callable[[float], object]) -> Callable[[int], object]:
    """Let progress follow the masks of a black-box method, which scores thousands for an image.

    Returns:
        What is called for each image that is done, with 1: it moves by what the masks have not.
    """
    from camrt.blackbox.session import BlackBox

    ahead = 0.0  # images' worth of masks that were counted, of images that are not done
    if not isinstance(explainer.session, BlackBox):
        return move
    last = 0.0

    def follow(done: int, total: int) -> None:
        nonlocal ahead, last
        share = done / total
        step, last = share - last if share > last else share, share % 1
        ahead += step
        move(step)

    def advance(count: int) -> None:
        nonlocal ahead
        counted = min(ahead, count)
        ahead -= counted
        move(count - counted)

    explainer.session.progress = follow
    return advance


def _is_lost(error: BaseException | None) -> bool:
    """Return whether an error is about the folder, so that no other image can be written either."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return True
        error = error.__cause__
    return False


def _is_ours(record: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a line was written by a Batch, and its names are names, not paths that lead elsewhere."""
    if not isinstance(record, dict) or not isinstance(record.get("path"), str) or "settings" not in record:
        return False
    names = [record.get("stem"), *(record["files"] if isinstance(record.get("files"), list) else [None])]
    return all(isinstance(name, str) and name and Path(name).name == name for name in names)


# ---------------------------------------------------------------------------------------------------------- the images


def find_images(patterns: Iterable[str], *, but: Path | None = None) -> tuple[list[ImageFile], list[tuple[str, str]]]:
    """Find the images that are named, each once, in order.

    Args:
        patterns: Files, whatever their endings; folders, for the images in them and below; globs. Hidden
            files are left out.
        but: A folder that is left out of those that are looked through: where results go.

    Returns:
        The images; and what was named and is not there, with the reason.
    """
    images: dict[str, ImageFile] = {}
    missing = []
    for pattern in patterns:
        found = list(_found(pattern, but))
        if not found:
            missing.append((pattern, _why_nothing(pattern)))
        for path in found:
            try:
                record = path.stat()
            except OSError as error:
                missing.append((str(path), error.strerror or str(error)))
                continue
            absolute = os.path.abspath(path)  # noqa: PTH100 - a link to an image is an image of its own
            images.setdefault(absolute, ImageFile(str(path), absolute, record.st_size, record.st_mtime_ns))
    return list(images.values()), missing


def _found(pattern: str, but: Path | None) -> Iterator[Path]:
    """Find the files that a pattern names: itself, the images of a folder, the matches of a glob."""
    path = Path(pattern)
    if path.is_dir():
        for folder, folders, files in os.walk(path, followlinks=False):
            here = Path(folder)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not (but is not None and but.is_dir() and but.samefile(here / name))
            )
            yield from (
                here / name
                for name in sorted(files)
                if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS
            )
    elif path.exists():
        yield path
    elif glob.has_magic(pattern):
        for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - the pattern may begin anywhere
            if not Path(match).is_dir():
                yield Path(match)


def _why_nothing(pattern: str) -> str:
    if Path(pattern).is_dir():
        return f"the folder holds no images ({', '.join(ENDINGS)})"
    return "nothing matches" if glob.has_magic(pattern) else "there is no such file"

"""The files of onnxruntime-web that the page runs: where they are, and how they are checked.

One version is pinned, and each of its files by its hash. By default, the page loads them from a public CDN, which hosts
the files of the npm package as they are. `vendored` puts them beside the page instead.

For another version, unpack its npm package, change `VERSION`, and run ``python -m camrt.web.runtime DIR``, which prints
the table.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camrt.errors import CamrtError
from camrt.results import write

VERSION = "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
PACKAGE = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
PACKAGE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
PACKAGE_BYTES = 33_106_585
FOLDER = "runtime"  # beside the page

_NOTICE = f"""onnxruntime-web {VERSION}, https://github.com/microsoft/onnxruntime

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class RuntimeFile:
    """A file of the package.

    Attributes:
        name: In its folder ``dist``.
        bytes: Its size.
        integrity: Its SHA-384, in the form of Subresource Integrity.
    """

    name: str
    bytes: int
    integrity: str


# Of each build the module, the loader of the WebAssembly, and the WebAssembly.
BUILDS = {
    "wasm": (
        RuntimeFile(
            "ort.wasm.min.mjs", 50_126, "sha384-SfFfy/pvthiOsgaw3KX0bV5TfQ6Iq+oY9KutMe4SxIuHH4cl+DCSD4rTsYOoG1tJ"
        ),
        RuntimeFile(
            "ort-wasm-simd-threaded.mjs",
            24_381,
            "sha384-XcXA/MtAf0WpB8e023xQH9CM7RIjiugakT7x99DIwpFf7k56BIFFcAPerIF7FDad",
        ),
        RuntimeFile(
            "ort-wasm-simd-threaded.wasm",
            14_239_897,
            "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
        ),
    ),
    "webgpu": (
        RuntimeFile(
            "ort.webgpu.min.mjs", 66_349, "sha384-FPQBMbud8ICuP0Ii+Gr95KWEX9pKHtUC3lacIp0aPI8WYluKvTsEGQ3AE2Ze3QlL"
        ),
        RuntimeFile(
            "ort-wasm-simd-threaded.asyncify.mjs",
            53_057,
            "sha384-qViEcCGzsR/m8nlQwIsbYh7afN4thuraqFYDQY6huvmoLVoZq/eYawQ1wrv8nnhA",
        ),
        RuntimeFile(
            "ort-wasm-simd-threaded.asyncify.wasm",
            26_781_914,
            "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
        ),
    ),
}
FILES = tuple(file for build in BUILDS.values() for file in build)


def described(*, is_vendored: bool) -> dict[str, Any]:
    """Describe the runtime for the page.

    Args:
        is_vendored: Whether its files are beside the page.

    Returns:
        The version, whether it is vendored, and for each build its files: URL, bytes and integrity.
    """
    base = f"{FOLDER}/" if is_vendored else CDN
    builds = {
        name: [{"url": base + file.name, "bytes": file.bytes, "integrity": file.integrity} for file in build]
        for name, build in BUILDS.items()
    }
    return {"version": VERSION, "vendored": is_vendored, "builds": builds}


def vendored(package: Path, site: Path) -> int:
    """Put the files of an unpacked npm package beside the page.

    Args:
        package: The folder ``package`` that ``npm pack`` and ``tar`` leave, ``node_modules/onnxruntime-web``, or the
            folder ``dist`` in it.
        site: The folder of the page.

    Returns:
        How many bytes were written.

    Raises:
        CamrtError: A file is missing, or is not that of the pinned version; or the site cannot be written.
    """
    dist = package / "dist" if (package / "dist").is_dir() else package
    written = 0
    for file in FILES:
        write(site / FOLDER / file.name, _checked(dist / file.name, file))
        written += file.bytes
    write(site / FOLDER / "LICENSE.txt", _NOTICE.encode())
    return written


def downloaded() -> Path:
    """Return the folder of the files in the cache; where they are missing, download the npm package (33 MB).

    Raises:
        CamrtError: It cannot be downloaded, or is not the pinned one.
    """
    from converters.download import Expected, download
    from converters.errors import ConversionError

    if (found := cached()) is not None:
        return found
    folder = _cache_folder()
    with tempfile.TemporaryDirectory(prefix="camrt-web-") as temporary:
        package = Path(temporary) / PACKAGE.rpartition("/")[2]
        try:
            download([PACKAGE], package, Expected(PACKAGE_BYTES, PACKAGE_BYTES, PACKAGE_SHA256))
        except ConversionError as error:
            raise CamrtError(
                f"onnxruntime-web {VERSION} cannot be downloaded ({error}). Elsewhere, run npm pack "
                f"onnxruntime-web@{VERSION}, unpack it, and name the folder with --runtime DIR"
            ) from error
        with tarfile.open(package) as archive:
            for file in FILES:
                stream = archive.extractfile(f"package/dist/{file.name}")
                assert stream is not None  # the package is the pinned one
                write(folder / file.name, stream.read())
    return folder


def cached() -> Path | None:
    """Return the folder of the files in the cache, if they are there and whole."""
    folder = _cache_folder()
    try:
        is_whole = all((folder / file.name).stat().st_size == file.bytes for file in FILES)
    except OSError:
        return None
    return folder if is_whole else None


def _cache_folder() -> Path:
    from converters import zoo

    return zoo.cache_folder() / f"onnxruntime-web-{VERSION}"


def _checked(path: Path, file: RuntimeFile) -> bytes:
    """Read a file that has to be the pinned one."""
    anew = f"npm pack onnxruntime-web@{VERSION}, unpack it, and name its folder with --runtime"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CamrtError(
            f"there is no such file, expected that of onnxruntime-web {VERSION}: {anew}", file=str(path)
        ) from None
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    if (found := _integrity(content)) != file.integrity:
        raise CamrtError(
            f"found the hash {found}, expected {file.integrity} of onnxruntime-web {VERSION}: {anew}", file=str(path)
        )
    return content


def _integrity(content: bytes) -> str:
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode('ascii')}"


if __name__ == "__main__":
    dist = Path(sys.argv[1]) / "dist"
    for file in FILES:
        content = (dist / file.name).read_bytes()
        print(file.name, len(content), _integrity(content))

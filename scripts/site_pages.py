"""Pages of the site that are not files below docs; a hook of mkdocs.yml.

README, CONTRIBUTING, CHANGELOG and the cards of models become pages, with their links turned. The help of all commands
is a page as well. Links to other files of the repository become their names: the site has no such files.

The theme loads two scripts from a CDN, for search without a server and for diagrams, and formulas are set by KaTeX.
`make docs` gets these packages from npm, and they become files of the site; where they are missing, the build says so.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "models/lenetCAM/README.md": "lenetcam.md",
    "models/lenetCAM_mnist/README.md": "lenetcam_mnist.md",
    "models/inceptionv3CAM/README.md": "inceptionv3cam.md",
}
NODE = ROOT / "build" / "node" / "node_modules"
SHIM = "https://unpkg.com/iframe-worker/shim"
SEARCH, MERMAID = "assets/iframe-worker.js", "assets/mermaid.js"
SCRIPTS = {"iframe-worker/shim/index.js": SEARCH, "mermaid/dist/mermaid.min.js": MERMAID}  # of npm -> of the site
KATEX = "assets/katex"
SETTER = "formulas.js"  # of docs: calls KaTeX
_LOG = logging.getLogger("mkdocs.hooks.site_pages")
COMMANDS = "reference/commands.md"
WIDTH = "100"  # characters: the help of a command
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        content = turned((ROOT / source).read_text(encoding="utf-8"), source, page)
        files.append(File.generated(config, page, content=content))
    files.append(File.generated(config, COMMANDS, content="\n".join(commands())))
    for source, name in SCRIPTS.items():
        if (NODE / source).is_file():
            files.append(File.generated(config, name, abs_src_path=str(NODE / source)))
        else:
            package = source.partition("/")[0]
            _LOG.info("%s is not in build/node: the site asks a CDN for it (npm install --prefix build/node %s)",
                      package, package)  # fmt: skip
    if (NODE / "mermaid").is_dir():
        config.extra_javascript.append(MERMAID)
    _add_katex(files, config)
    return files


def _add_katex(files: Any, config: Any) -> None:
    """The script, the style and the fonts that set formulas. Without them, formulas stay as they are written in TeX."""
    from mkdocs.structure.files import File

    dist = NODE / "katex" / "dist"
    if not dist.is_dir():
        _LOG.info("katex is not in build/node: formulas are shown as TeX (npm install --prefix build/node katex)")
        return
    for source in (dist / "katex.min.js", dist / "katex.min.css", *sorted(dist.glob("fonts/*.woff2"))):
        name = f"{KATEX}/{source.relative_to(dist).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(source)))
    config.extra_css.append(f"{KATEX}/katex.min.css")
    config.extra_javascript += [f"{KATEX}/katex.min.js", SETTER]


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Take the script of the search from the site."""
    return _with_own_shim(output, os.path.relpath(SEARCH, Path(page.url).parent))


def on_post_template(output: str, **_: Any) -> str:
    """Likewise, on the page of a missing page, whose links start at the root."""
    return _with_own_shim(output, f"/{SEARCH}")


def _with_own_shim(output: str, path: str) -> str:
    return output.replace(SHIM, path) if (NODE / "iframe-worker").is_dir() else output


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of the pages below docs."""
    path = page.file.src_uri
    # Of headings with the same anchor, GitHub numbers the second x-1, and Python-Markdown x_1.
    markdown = re.sub(r"\]\(#([^)]+)-(\d+)\)", r"](#\1_\2)", markdown)
    return markdown if path in (*PAGES.values(), COMMANDS) else turned(markdown, f"docs/{path}", path)


def turned(text: str, source: str, page: str) -> str:
    """Make the links of a file of the repository those of a page.

    Args:
        text: Markdown.
        source: The file, as a path in the repository.
        page: The page, as a path in the site.
    """

    def link(match: re.Match[str]) -> str:
        mark, label, target, anchor = match.groups()
        path = os.path.normpath(PurePosixPath(source).parent / target)
        if path in PAGES:
            there = PAGES[path]
        elif path.startswith("docs/"):
            there = path.removeprefix("docs/")
        else:
            return label
        return f"{mark}[{label}]({os.path.relpath(there, PurePosixPath(page).parent)}{anchor or ''})"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def commands() -> Iterator[str]:
    """The help of all commands, as Markdown."""
    os.environ |= {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    import typer

    from camrt.cli import app

    yield "# Commands\n\nWhat `camrt COMMAND --help` prints.\n"
    yield from _help("camrt", typer.main.get_command(app))


def _help(name: str, command: Any) -> Iterator[str]:
    from typer.testing import CliRunner

    from camrt.cli import app

    printed = CliRunner().invoke(app, [*name.split()[1:], "--help"]).output
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    yield f"## {name}\n\n```text\n{lines}\n```\n"
    for one in getattr(command, "commands", {}):
        yield from _help(f"{name} {one}", command.commands[one])

"""What the files about the project say agrees: version, versions of Python, the wheel's contents."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

import camrt
import converters

SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of Keep a Changelog


@pytest.fixture(scope="module")
def setup(repository: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


def test_version_is_the_same_everywhere(repository: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="CITATION.cff is YAML")
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## \[([\d.]+)\]", changes, re.MULTILINE)[0]
    assert camrt.__version__ == converters.__version__ == citation["version"] == newest


def test_changelog_keeps_its_format(repository: Path) -> None:
    changes = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    for release in re.split(r"^## ", changes, flags=re.MULTILINE)[1:]:
        assert re.match(r"\[(Unreleased|\d+\.\d+\.\d+)\]( - (unreleased|\d{4}-\d\d-\d\d))?\n", release), release[:40]
        sections = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert sections
        assert set(sections) <= SECTIONS
        assert len(sections) == len(set(sections)), "a section twice: a merge kept both"


def test_citation_has_what_the_format_requires(repository: Path) -> None:
    """Citation File Format 1.2.0: cff-version, message, title and authors."""
    yaml = pytest.importorskip("yaml", reason="CITATION.cff is YAML")
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors"}


def test_stated_versions_of_python_are_tried(repository: Path, setup: configparser.ConfigParser) -> None:
    stated = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    tried = re.findall(r"3\.\d+", re.findall(r"set -- (.*)", (repository / ".ci" / "package").read_text())[0])
    assert set(stated) <= set(tried)
    assert setup["options"]["python_requires"] == f">={stated[0]}"


def test_hooks_are_the_tools_of_make_lint(repository: Path) -> None:
    yaml = pytest.importorskip("yaml", reason=".pre-commit-config.yaml is YAML")
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    called = {hook["entry"].split()[0] for hook in hooks if hook["language"] == "system"}
    lint = re.findall(r"^lint:.*?\n\n", (repository / "Makefile").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert called == {f".venv/bin/{tool}" for tool in re.findall(r"\$\(BIN\)/(\S+)", lint[0])}

"""What reaches a terminal: nothing that it would obey, nothing endless, and a line in place of a traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camrt.errors import CamrtError
from converters.errors import MAX_DETAILS, MAX_MESSAGE, ConversionError, ConversionWarning, install, printable
from converters.terminal import echo
from tests.caffe_files import weights_alone
from tests.converters.small_net import NET, write_random

EVIL = "\x1b]0;title\x07\x1b[2J\r\x9b31m\nerror: forged \u202egnp.\udcff"
ESCAPED = r"\x1b]0;title\x07\x1b[2J\r\x9b31m\nerror: forged \u202egnp.\udcff"
FILE = "\x1b[31m\nerror: forged \u202e\u009b"  # what a file system takes


def safe(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


# ----------------------------------------------------------------------------------------------------------- messages


@given(st.text(st.characters(), max_size=300), st.integers(40, 200))
def test_printable_text_is_one_short_line_and_stays_as_it_is(text: str, most: int) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    assert printable(shown, most) == shown
    if text.isprintable() and len(text) <= most:
        assert shown == text


def test_what_is_escaped_and_what_is_not() -> None:
    assert printable(EVIL) == ESCAPED
    for text in ("épreuve/写真 1.png", "C:\\new\\table", "a'b\"c", "😀", ""):
        assert printable(text) == text


def test_long_text_keeps_its_beginning_and_its_end() -> None:
    shown = printable("found it" + "x" * 6_500_000 + "do that", 200)
    assert shown.startswith("found itxxx")
    assert shown.endswith("xxxdo that")
    assert "6,500,015 characters" in shown
    assert len(shown) == 200


@pytest.mark.parametrize("error", [ConversionError, CamrtError])
def test_errors_are_fit_for_a_terminal(error: type[ConversionError] | type[CamrtError]) -> None:
    raised = error(f"found {EVIL}", file=EVIL, details=[EVIL, "and so on"])
    assert str(raised) == f"{ESCAPED}: found {ESCAPED}\n{ESCAPED}\nand so on"
    assert str(raised.in_file("other")) == str(raised)
    long = str(error("m" * 10**7, file="f" * 10**6, details=["d" * 10**6, *map(str, range(10**5)), "last"]))
    assert len(long) < 20_000
    assert len(long.split("\n")) == MAX_DETAILS + 2
    assert long.endswith("... and 99,962 more\nlast")


def test_warnings_and_layers_are_fit_for_a_terminal() -> None:
    assert str(ConversionWarning(EVIL)) == ESCAPED
    assert len(str(ConversionWarning("x" * 10**6))) == MAX_MESSAGE
    assert str(ConversionError("found", layer=EVIL)) == f"layer {ESCAPED}: found"


def test_advice_on_installing_works_where_the_user_is() -> None:
    """It names the Python that runs, and packages rather than an extra of a package that is nowhere to download."""
    words = shlex.split(install("h5py", "cv2"))
    assert words[1:] == ["-m", "pip", "install", "h5py", "opencv-python-headless<5"]
    done = subprocess.run([words[0], "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sys.prefix


@pytest.mark.parametrize("is_terminal", [True, False])
def test_results_are_escaped_on_a_terminal_and_raw_in_a_pipe(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a shell takes from `$(camrt download vgg16CAM)` is the path itself."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    echo("a\x1b[31m\n.caffemodel")
    assert capsys.readouterr().out == ("a\\x1b[31m\\n.caffemodel\n" if is_terminal else "a\x1b[31m\n.caffemodel\n")


# ------------------------------------------------------------------------------------------------------- the commands


def run(*arguments: object, entry: tuple[str, ...] = ("-m", "camrt", "convert"), **environment: str) -> tuple[int, str]:
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        [sys.executable, *entry, *map(str, arguments)], capture_output=True, env=env, check=False, timeout=120
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "surrogateescape")


def evil_network(folder: Path) -> Path:
    r"""Converts; the input, a blob and the network have names with escapes, as `\033[31m` in the prototxt's strings."""
    text = NET.replace('"data"', r'"data\033[31m\n"').replace('"prob"', r'"prob\n\033]0;x\007"')
    (folder / FILE).write_text(text)
    return folder / FILE


@pytest.mark.skipif(sys.platform == "win32", reason="file names")
def test_names_of_files_and_blobs_are_escaped(tmp_path: Path) -> None:
    prototxt = evil_network(tmp_path)
    caffemodel = tmp_path / f"{FILE}.caffemodel"
    write_random(prototxt, caffemodel)
    caffemodel.write_bytes(caffemodel.read_bytes() + weights_alone({"stray\x1b[31m\nlayer": []}))
    status, said = run(prototxt, caffemodel, "-o", tmp_path / f"{FILE}.onnx")
    assert status == 0, said
    assert safe(said), said
    assert r"data\x1b[31m\n" in said
    status, said = run(prototxt, caffemodel, "-o", tmp_path / "b.onnx", "--outputs", "missing\x1b[31m")
    assert status == 1
    assert safe(said), said


@pytest.mark.skipif(sys.platform == "win32", reason="file names")
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["missing\x1b[31m\n.prototxt"], 1),
        (["no_such\x1b[31m\nmodel"], 2),
        (["--\x1b[31mx"], 2),
        (["vgg16CAM", "a\nb"], 2),
    ],
)
def test_a_wrong_command_line_is_escaped(arguments: list[str], status: int) -> None:
    found, said = run(*arguments)
    assert found == status
    assert safe(said), said
    assert "\nmodel" not in said


def test_layers_without_a_handler_are_listed_line_by_line(tmp_path: Path) -> None:
    """The lines are ours; a newline in a name makes none. And names of megabytes do not make messages of megabytes."""
    text = NET.replace('type: "ReLU"', r'type: "Evil\nerror: forged\033[31m"').replace(
        "Softmax", "Huge" + "e" * 3_000_000
    )
    (tmp_path / "net.prototxt").write_text(text)
    status, said = run(tmp_path / "net.prototxt", "-o", tmp_path / "a.onnx")
    assert status == 1
    assert safe(said), said[:2000]
    assert len(said) < 10_000
    lines = said.splitlines()
    assert any(line.startswith(r"  Evil\nerror: forged\x1b[31m: relu") for line in lines)
    assert lines[-1].startswith("To add one")
    assert sum(line.startswith("error:") for line in lines) == 1


def test_json_is_ascii(tmp_path: Path) -> None:
    prototxt = evil_network(tmp_path)
    write_random(prototxt, tmp_path / "a.caffemodel")
    status, said = run(prototxt, tmp_path / "a.caffemodel", "-o", tmp_path / "a.onnx", "--json")
    assert status == 0, said
    facts = json.loads(said.splitlines()[0])
    assert facts["inputs"] == ["data\x1b[31m\n (N x 3 x 16 x 16)"]
    assert safe(said)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("module", ["typer", "numpy"])
@pytest.mark.parametrize("entry", ["camrt", "convert.py"])
def test_ctrl_c_during_imports_is_a_line(entry: str, module: str, tmp_path: Path) -> None:
    """A module of that name that interrupts the process as it is imported, before ours can have begun its work."""
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / f"{module}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), 2)\ntime.sleep(5)\n"
    )
    (tmp_path / "net.prototxt").write_text(NET)
    root = Path(__file__).resolve().parents[2]
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may have it ignored
    start = {
        "camrt": "sys.argv[0:1] = ['camrt', 'convert']; from camrt.__main__ import main; main()",
        "convert.py": f"runpy.run_path({str(root / 'scripts' / 'convert.py')!r}, run_name='__main__')",
    }[entry]
    status, said = run(
        tmp_path / "net.prototxt", entry=("-c", f"{handler}import sys, runpy; {start}"),
        PYTHONPATH=f"{tmp_path / 'stubs'}{os.pathsep}{root}",
    )  # fmt: skip
    assert status == 130, said
    assert "interrupted" in said


def test_examples_of_the_help_can_be_typed() -> None:
    status, said = run("--help")
    assert status == 0
    examples = [line for line in said.splitlines() if line.strip().startswith(("convert ", "camrt convert "))]
    assert len(examples) == 5
    assert all(line.strip().startswith("camrt convert ") for line in examples)

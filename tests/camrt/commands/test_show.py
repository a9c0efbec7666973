"""`camrt explain --show`, in a terminal that understands colors and nothing more."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.camrt.commands.command_line import run
from tests.tiny_models import tiny_explainer

posix = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny_explainer(top=2), "tiny.onnx")
    picture = np.full((40, 48, 3), (10, 200, 30), np.uint8)
    Image.fromarray(picture).save("a.png")


def in_terminal(*arguments: str, size: tuple[int, int, int, int] = (50, 60, 800, 480)) -> tuple[int, str]:
    """Run the command line in a pseudo-terminal. Returns its status, and what it printed."""
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "60", "LINES": "50"}
    with subprocess.Popen(
        [sys.executable, "-m", "camrt", *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        parts = []
        try:
            while part := os.read(master, 1 << 16):
                parts.append(part)
        except OSError:  # the other end is closed
            pass
    os.close(master)
    return process.returncode, b"".join(parts).decode(errors="replace")


@posix
@pytest.mark.slow
def test_pictures_are_shown_by_half_blocks() -> None:
    pytest.importorskip("textual_image", reason="pictures in terminals need textual-image, which is not here")
    status, printed = in_terminal("explain", "a.png", "--model", "tiny.onnx", "--show", "--opacity", "0")
    assert status == 0, printed
    assert printed.count("▀") > 2 * 300
    colors = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+)", printed)
    # The image has a single color.
    nearest = min((np.abs(np.array(one, int) - (10, 200, 30)).max() for one in colors), default=255)
    assert nearest < 12, (nearest, Counter(colors).most_common(5), printed[:1000])
    assert printed.index("a_top1") < printed.index("▀")
    status, printed = in_terminal("explain", "a.png", "--model", "tiny.onnx", "--show", size=(0, 0, 0, 0))
    assert status == 0
    assert "0 explained, 1 were done" in printed or "1 explained" in printed


@posix
def test_a_pipe_is_no_terminal() -> None:
    status, _, err = run("explain", "a.png", "--model", "tiny.onnx", "--show")
    assert status == 2
    assert "a terminal" in err
    assert not Path("explained").exists()


@posix
@pytest.mark.slow
def test_the_package_is_named() -> None:
    code = "import sys; sys.modules['textual_image'] = None; from camrt.__main__ import main; main()"
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-c", code, "explain", "a.png", "--model", "tiny.onnx", "--show"]
    done = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, text=True, check=False)
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert "pip install 'camrt[show]'" in done.stderr
    assert not Path("explained").exists()

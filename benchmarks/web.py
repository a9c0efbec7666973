"""The page in Chromium: milliseconds for an image, and frames per second of a camera that Chromium makes up.

    python benchmarks/web.py [--seconds 5] [--model MODEL.onnx]

Needs Chromium, playwright, and onnxruntime-web (``npm install --prefix build/node onnxruntime-web``). Without a model,
lenetCAM runs. The last column is the rate of the model alone, over that of the frames: what decoding, resizing and
drawing leave of it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camrt.loading import LENET, Request
from camrt.web.server import serving, url_of
from camrt.web.site import ANY, build, site_model

FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def measured(browser: Any, url: str, seconds: float) -> dict[str, float]:
    """Run the camera for a while: medians of what the page says of each frame, and the frames."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("body[data-ready=true]")
    page.click("#camera")
    page.wait_for_selector('#rate:text-matches("frames/s")')
    page.wait_for_timeout(1000)  # a warm-up
    found: list[float] = page.evaluate(
        """async (seconds) => {
            const panel = [...camrt.panels.values()][0];
            const times = [];
            const end = performance.now() + 1000 * seconds;
            for (let last = null; performance.now() < end; ) {
                await new Promise((resolve) => setTimeout(resolve, 2));
                if (panel.result && panel.result !== last) times.push((last = panel.result).milliseconds);
            }
            return times;
        }""",
        seconds,
    )
    threads = page.inner_text("#engine")
    page.close()
    return {"backend": threads, "ms": statistics.median(found), "frames/s": len(found) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--model", default=LENET)
    parser.add_argument("--preprocess", choices=["caffe", "torchvision"])
    parser.add_argument("--methods", nargs="+", default=["cam", "gradcam"])
    parser.add_argument("--runtime", type=Path, default=ROOT / "build" / "node" / "node_modules" / "onnxruntime-web")
    asked = parser.parse_args()

    from playwright.sync_api import sync_playwright

    print(f"{'method':<12}{'backend':<20}{'ms':>8}{'frames/s':>10}{'of the model':>14}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for method in asked.methods:
            model = site_model(asked.model, Request(method, preprocess=asked.preprocess, target=ANY))
            out = Path(folder) / method
            build([model], out, title=method, package=asked.runtime)
            with serving(out, 0) as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                row = measured(browser, f"{url_of(server)}?backend=wasm", asked.seconds)
                server.shutdown()
            share = row["frames/s"] * row["ms"] / 1000
            print(f"{method:<12}{row['backend']:<20}{row['ms']:>8.1f}{row['frames/s']:>10.1f}{share:>14.0%}")
        browser.close()


if __name__ == "__main__":
    main()

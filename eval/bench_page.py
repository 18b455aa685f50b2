"""Start of the page, and its memory over many pictures: `python eval/bench_page.py --pictures 20`.

Each picture of 12 megapixels is uploaded in a browser, painted on, harmonized and downloaded. Needs the extra
`app`, playwright, and Debian's package chromium.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from playwright.sync_api import sync_playwright

    load = os.getloadavg()[0]
    began = time.monotonic()
    command = [sys.executable, "-m", "harmony_diffusion.cli", "app", "--port", "0", "--no-browser"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        assert server.stdout is not None
        address = server.stdout.readline().split()[2]
        answered = time.monotonic() - began
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        opened = time.monotonic()
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#viewer-run")
        usable = answered + time.monotonic() - opened
        cpu = seconds_of(server.pid)
        print(
            f"load before {load:.1f}; page usable after {usable:.1f} s, server's CPU until then {cpu:.1f} s"
        )
        resident = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(args.pictures):
                path = Path(folder) / f"picture{number}.jpg"
                draw_picture(number, args.width, args.height).save(path, quality=90)
                harmonize(page, path)
                resident.append(megabytes_of(server.pid))
                print(f"{number + 1:3d} pictures: {resident[-1]:.0f} MB resident", flush=True)
        browser.close()
        server.terminate()
    half = len(resident) // 2
    growth = 100 * (max(resident[half:]) / max(resident[:half]) - 1) if half else 0.0
    print(f"most {max(resident):.0f} MB; the second half reached {growth:+.1f} % of the first half's most")


def draw_picture(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def harmonize(page: Any, path: Path) -> None:
    """Upload a picture, paint a line, harmonize, and download the result."""
    page.set_input_files("#up input[type=file]", path)
    page.wait_for_timeout(500)
    page.wait_for_function(
        "name => document.querySelector('#up').innerText.includes(name.slice(0, 6))",
        arg=path.name,
        timeout=120_000,
    )
    page.wait_for_selector("#board .hd-frame[data-ready=true]", timeout=120_000)
    page.wait_for_timeout(4000)
    box = page.locator("#board .hd-board").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"], steps=10)
    page.mouse.up()
    before = page.locator("#viewer .hd-after").get_attribute("src")
    page.click("#viewer-run")
    page.wait_for_function(
        "before => document.querySelector('#viewer .hd-after').getAttribute('src') !== before",
        arg=before,
        timeout=240_000,
    )
    with page.expect_download(timeout=240_000):
        page.click("#viewer-download")
    page.locator("#up button[aria-label='Clear'], #up button[title='Clear']").first.click()


def megabytes_of(process: int) -> float:
    """Return the resident memory of a process."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def seconds_of(process: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

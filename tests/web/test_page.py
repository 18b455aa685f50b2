"""The page in headless Chromium, with the network watched: what it computes, and that nothing leaves it."""

import gzip
import re
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import Chromium, requested_urls
from PIL import Image

from harmony_diffusion.cli import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SERVED = ("index.html", "page.css", "page.js", "worker.js", "harmonize.js", "sw.js", "model", "runtime")


class Recorder(SimpleHTTPRequestHandler):
    """Serve a folder; note method, path and length of the body of every request."""

    def handle_one_request(self):
        super().handle_one_request()
        if self.raw_requestline:
            length = int(self.headers.get("Content-Length") or 0) if hasattr(self, "headers") else 0
            self.server.requests.append((self.command, self.path, length))

    def log_message(self, *_):
        pass


@contextmanager
def serve(folder):
    """Serve a folder on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Recorder, directory=str(folder)))
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def site(web, tmp_path_factory):
    """The page on a port of this machine, as any static host would serve it."""
    folder = tmp_path_factory.mktemp("site")
    for name in SERVED:
        copy = shutil.copytree if (web / name).is_dir() else shutil.copy
        copy(web / name, folder / name)
    with serve(folder) as server:
        yield server


def harmonize_in_page(browser, composite, mask, name="harmonized.png", timeout=300):
    """Harmonize two files in the page; return the downloaded picture, (H, W, 3)."""
    says = "document.querySelector('#status').textContent"
    browser.choose_file("#picture", composite)
    browser.wait(f"{says}.startsWith('Paint')")
    browser.choose_file("#mask", mask)
    browser.wait(f"{says} === 'Ready.'")
    browser.run("document.querySelector('#run').click()")
    browser.wait(f"{says}.startsWith('Done')", timeout)
    (browser.folder / name).unlink(missing_ok=True)
    browser.run("document.querySelector('#download').click()")
    browser.wait((browser.folder / name).is_file)
    browser.wait(lambda: not list(browser.folder.glob("*.crdownload")))
    return np.asarray(Image.open(browser.folder / name).convert("RGB"))


@pytest.fixture(scope="module")
def visit(site, chromium, tmp_path_factory):
    """One visit: load, harmonize, stop the server, reload, harmonize again; then the logs."""
    folder = tmp_path_factory.mktemp("visit")
    Image.open(EXAMPLES / "composite.jpg").convert("RGB").save(folder / "composite.png")
    files = folder / "composite.png", EXAMPLES / "mask.png"
    origin = f"http://127.0.0.1:{site.server_address[1]}"
    browser = Chromium(chromium, folder)
    found = {"folder": folder, "files": files, "origin": origin}
    try:
        browser.page("Page.navigate", url=f"{origin}/index.html")
        browser.wait("document.documentElement?.dataset.ready === 'true'")
        found["loaded"] = list(site.requests)
        found["online"] = harmonize_in_page(browser, *files)
        found["after"] = site.requests[len(found["loaded"]) :]
        browser.run(
            "{ const s = document.querySelector('#strength');"
            " s.value = 50; s.dispatchEvent(new Event('input')); }"
        )
        (folder / "harmonized.png").unlink()
        browser.run("document.querySelector('#download').click()")
        browser.wait((folder / "harmonized.png").is_file)
        browser.wait(lambda: not list(folder.glob("*.crdownload")))
        found["half"] = np.asarray(Image.open(folder / "harmonized.png").convert("RGB"))
        site.shutdown()
        site.server_close()
        browser.page("Page.navigate", url="about:blank")
        browser.page("Page.navigate", url=f"{origin}/index.html")
        browser.wait("document.documentElement?.dataset.ready === 'true'")
        found["offline"] = harmonize_in_page(browser, *files)
    finally:
        browser.close()
    found["urls"] = requested_urls(browser.net_log)
    return found


def peak_of_renderers(profile):
    """Return the peak resident memory in bytes of the largest renderer of the browser with this profile."""
    peaks = [0]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
            if "--type=renderer" in command and f"--user-data-dir={profile}" in command:
                status = (folder / "status").read_text()
                peaks.append(1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1]))
        except OSError:  # it has ended
            continue
    return max(peaks)


@pytest.mark.slow
def test_12_megapixels_leave_the_page_responsive_and_stay_below_1500_mb(web, chromium, tmp_path):
    small = Image.open(EXAMPLES / "composite.jpg").resize((4000, 3000)), Image.open(EXAMPLES / "mask.png")
    small[0].save(tmp_path / "composite.png")
    small[1].resize((4000, 3000)).save(tmp_path / "mask.png")
    with serve(web) as server:
        browser = Chromium(chromium, tmp_path)
        try:
            browser.page("Page.navigate", url=f"http://127.0.0.1:{server.server_address[1]}/index.html")
            browser.wait("document.documentElement?.dataset.ready === 'true'")
            # Counts ticks of the page's thread while the worker is busy.
            browser.run(
                "window.ticks = 0; setInterval(() => { if (document.querySelector('#status').textContent"
                ".startsWith('Harm')) ticks++; }, 20); 0"
            )
            harmonize_in_page(browser, tmp_path / "composite.png", tmp_path / "mask.png")
            assert browser.run("ticks") >= 5
            peak = peak_of_renderers(tmp_path / "profile")
        finally:
            browser.close()
    assert 1e8 < peak < 1.5e9


def test_what_goes_wrong_is_said_and_a_result_of_another_mask_is_not_shown(web, chromium, tmp_path):
    for name in SERVED:
        copy = shutil.copytree if (web / name).is_dir() else shutil.copy
        copy(web / name, tmp_path / name)
    Image.open(EXAMPLES / "composite.jpg").save(tmp_path / "composite.png")
    (tmp_path / "text.png").write_text("no picture")
    says = "(document.querySelector('#status')?.textContent ?? '')"
    with serve(tmp_path) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/index.html"
        browser = Chromium(chromium, tmp_path)
        try:
            browser.page("Page.navigate", url=address)
            browser.wait("document.documentElement?.dataset.ready === 'true'")
            browser.choose_file("#picture", tmp_path / "text.png")
            browser.wait(f"{says}.includes('no picture that the browser reads')")
            browser.choose_file("#picture", tmp_path / "composite.png")
            browser.wait(f"{says}.startsWith('Paint')")
            browser.choose_file("#mask", EXAMPLES / "mask.png")
            browser.wait(f"{says} === 'Ready.'")
            click = "document.querySelector('#{}').click()"
            browser.run(f"{click.format('run')}; {click.format('clear')}; 0")
            browser.wait(f"{says}.startsWith('Changed meanwhile')")
            assert browser.run("document.querySelector('#download').disabled")
            assert not browser.run("document.querySelector('#run').disabled")
        finally:
            browser.close()
        shutil.rmtree(tmp_path / "runtime")
        (tmp_path / "second").mkdir()
        browser = Chromium(chromium, tmp_path / "second")
        try:
            browser.page("Page.navigate", url=address)
            browser.wait(f"{says}.includes('run `make web`')")
        finally:
            browser.close()


def levels(one, other):
    return np.abs(one.astype(int) - other.astype(int))


def test_the_download_equals_the_command_line(visit, web):
    output = visit["folder"] / "command.png"
    assert main(["image", *map(str, visit["files"]), "-o", str(output), "--overwrite"]) == 0
    expected = np.asarray(Image.open(output))
    composite, mask = (np.asarray(Image.open(path)) for path in visit["files"])
    assert (levels(visit["online"], expected).max(2) <= 1).mean() >= 0.999
    assert (visit["online"][mask == 0] == composite[mask == 0]).all()
    assert (visit["online"][mask == 255] != composite[mask == 255]).any()


def test_strength_needs_no_new_run(visit):
    composite = np.asarray(Image.open(visit["files"][0])).astype(float)
    expected = composite + 0.5 * (visit["online"] - composite)
    assert np.abs(visit["half"] - expected).max() <= 0.51


def test_no_request_is_made_for_a_picture_and_none_leaves_the_origin(visit):
    assert visit["loaded"] and {method for method, *_ in visit["loaded"]} == {"GET"}
    assert visit["after"] == []
    away = [
        (method, url)
        for method, url in visit["urls"]
        if urlsplit(url).scheme in ("http", "https", "ws", "wss")
        and not url.startswith(f"{visit['origin']}/")
    ]
    assert away == []
    assert any(url.startswith(visit["origin"]) for _, url in visit["urls"])  # the log did see requests
    assert {method for method, url in visit["urls"] if url.startswith("http")} == {"GET"}


def test_the_page_works_after_a_reload_without_network(visit):
    assert np.array_equal(visit["offline"], visit["online"])


def test_the_whole_transfer_is_at_most_12_mb_compressed(web):
    files = [
        p for name in SERVED for p in ([web / name] if (web / name).is_file() else (web / name).iterdir())
    ]
    total = sum(len(gzip.compress(path.read_bytes())) for path in files)
    assert total <= 12e6, {path.name: len(gzip.compress(path.read_bytes())) for path in files}

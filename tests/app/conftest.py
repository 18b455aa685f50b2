"""One server and one browser for all tests of the page."""

import shutil

import numpy as np
import pytest
from page_server import Server
from PIL import Image


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    running = Server("--max-upload", "50")
    yield running
    running.stop()


@pytest.fixture(scope="module")  # playwright's event loop must not outlive these tests
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="tests in a browser need playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("tests in a browser need Debian's package chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, headless=True, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@pytest.fixture
def visit(browser, server):
    """Open the page; afterwards there must be no error, and no request to another machine."""
    seen = []

    def opened(**options):
        context = browser.new_context(
            accept_downloads=True, **{"viewport": {"width": 1280, "height": 900}, **options}
        )
        page = context.new_page()
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else None)
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_selector("#viewer-run", timeout=60_000)
        seen.append((context, page))
        return page

    yield opened
    for context, page in seen:
        elsewhere = [url for url in page.requests if not url.startswith((server.url, "data:", "blob:"))]
        context.close()
        assert not elsewhere and not page.errors, (elsewhere, page.errors)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A composite of 1600 x 1200 pixels, a cut-out, and a background."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (12, 16, 3), dtype=np.uint8))
    composite = np.asarray(coarse.resize((1600, 1200), Image.Resampling.BICUBIC)).copy()
    composite[400:800, 500:900] = (220, 120, 40)
    Image.fromarray(composite).save(folder / "composite.png", compress_level=1)
    Image.fromarray(composite[::2, ::2]).save(folder / "background.png")
    mask = np.zeros((1200, 1600), np.uint8)
    mask[400:800, 500:900] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    alpha = np.zeros((120, 160), np.uint8)
    alpha[20:100, 30:130] = 255
    Image.fromarray(np.dstack((np.full((120, 160, 3), (200, 30, 30), np.uint8), alpha))).save(
        folder / "cut.png"
    )
    return folder

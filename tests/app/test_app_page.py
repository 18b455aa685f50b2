"""The page in a real browser: what is downloaded is what the command line writes."""

import cv2
import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.cli import main


def upload(page, selector, path):
    page.set_input_files(f"{selector} input[type=file]", path)


def remove(page, selector):
    page.click(f"{selector} button[aria-label^='Remove'], {selector} button[aria-label='Clear']")


def upload_composite(page, path):
    upload(page, "#up", path)
    page.wait_for_selector("#board .hd-frame[data-ready=true]", timeout=60_000)


def paint(page, *stops, board="#board"):
    """Draw a line through places given as shares of the board; return it in shares."""
    box = page.locator(f"{board} .hd-board").bounding_box()
    for number, (x, y) in enumerate(stops):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=20 if number else 1)
        if not number:
            page.mouse.down()
    page.mouse.up()


def run(page, name="viewer"):
    page.click(f"#{name}-run")
    page.wait_for_selector(f"#{name} .hd-pair:not([hidden])", timeout=120_000)


def slide(page, selector, value):
    """Move a slider, and wait until the browser has drawn the page again."""
    page.evaluate(
        """async ([selector, value]) => {
            const slider = document.querySelector(selector);
            slider.value = value;
            for (const name of ['input', 'change']) slider.dispatchEvent(new Event(name));
            await new Promise(requestAnimationFrame);
        }""",
        [selector, value],
    )


def download(page, tmp_path, name="viewer"):
    with page.expect_download(timeout=60_000) as waiting:
        page.click(f"#{name}-download")
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def download_file(page, tmp_path, ending, name="viewer"):
    with page.expect_download(timeout=60_000) as waiting:
        page.locator(f"#{name}-files a[download$='{ending}']").first.click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_w1_only_the_painted_stroke_changes(visit, pictures, tmp_path):
    page = visit()
    upload_composite(page, pictures / "composite.png")
    paint(page, (0.36, 0.5), (0.52, 0.5))
    run(page)
    assert page.locator("#viewer .hd-after").get_attribute("src").startswith("data:image/jpeg")
    result = np.asarray(Image.open(download(page, tmp_path)))
    mask = np.asarray(Image.open(download_file(page, tmp_path, "_mask.png")))
    composite = np.asarray(Image.open(pictures / "composite.png"))
    assert result.shape == composite.shape and mask.shape == composite.shape[:2]
    # What the mouse drew: 40 pixels wide on a board of 1024, so 62.5 wide on 1600.
    drawn = np.zeros(mask.shape, np.uint8)
    cv2.line(drawn, (int(0.36 * 1600), 600), (int(0.52 * 1600), 600), 255, 62)
    assert abs((mask > 127).sum() / (drawn > 0).sum() - 1) < 0.1
    changed = (result != composite).any(2)
    assert not changed[cv2.dilate(drawn, np.ones((9, 9), np.uint8)) == 0].any()
    # Exactly: how far pixels lie from the line of 62.5 pixels.
    rows, columns = np.nonzero(changed)
    middle = np.clip(columns + 0.5, 0.36 * 1600, 0.52 * 1600)
    assert np.hypot(columns + 0.5 - middle, rows + 0.5 - 600).max() - 62.5 / 2 <= 2
    assert not changed[mask == 0].any()
    assert changed[mask > 127].mean() >= 0.9


def test_w3_strength_acts_without_a_request_and_equals_the_command_line(visit, pictures, tmp_path):
    page = visit()
    upload_composite(page, pictures / "composite.png")
    paint(page, (0.36, 0.45), (0.52, 0.45), (0.52, 0.6))
    run(page)
    page.wait_for_timeout(500)
    before = len(page.requests)
    slide(page, "#viewer .hd-strength", 0.3)
    opacity = page.evaluate("getComputedStyle(document.querySelector('#viewer .hd-after')).opacity")
    assert float(opacity) == pytest.approx(0.3)
    page.wait_for_timeout(500)
    assert len(page.requests) == before
    result = download(page, tmp_path)
    mask = download_file(page, tmp_path, "_mask.png")
    call = ["image", pictures / "composite.png", mask, "-o", tmp_path / "cli.png", "--strength", "0.3"]
    assert main([str(part) for part in call]) == 0
    assert result.read_bytes() == (tmp_path / "cli.png").read_bytes()


def test_w2_cut_out_lies_where_it_was_dropped(visit, pictures, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Compose").click()
    upload(page, "#ground-up", pictures / "background.png")
    page.wait_for_selector("#stage .hd-background:not([hidden])")
    upload(page, "#cut-up", pictures / "cut.png")
    page.wait_for_selector("#stage .hd-cutout:not([hidden])")
    cut, ground = page.locator("#stage .hd-cutout"), page.locator("#stage .hd-ground")
    box, width = cut.bounding_box(), ground.bounding_box()["width"]
    start = int(page.input_value("#stage .hd-x")), int(page.input_value("#stage .hd-y"))
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 100, box["y"] + box["height"] / 2 - 40, steps=10)
    page.mouse.up()
    step = 800 / width
    x, y = int(page.input_value("#stage .hd-x")), int(page.input_value("#stage .hd-y"))
    assert abs(x - start[0] - 100 * step) <= 1 and abs(y - start[1] + 40 * step) <= 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert (int(page.input_value("#stage .hd-x")), int(page.input_value("#stage .hd-y"))) == (x + 1, y + 10)
    run(page, "composed")
    result = download(page, tmp_path, "composed")
    composite = download_file(page, tmp_path, "_composite.png", "composed")
    pasted = np.asarray(Image.open(composite)).astype(int)
    changed = np.argwhere((pasted == (200, 30, 30)).all(2))
    assert changed.min(0).tolist() == [y + 10 + 20, x + 1 + 30]
    call = [
        "compose",
        pictures / "cut.png",
        pictures / "background.png",
        "--at",
        f"{x + 1},{y + 10}",
        "-o",
        tmp_path / "cli.png",
    ]
    assert main([str(part) for part in call]) == 0
    assert result.read_bytes() == (tmp_path / "cli.png").read_bytes()


def test_shadow_and_scale_reach_the_result(visit, pictures, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Compose").click()
    upload(page, "#cut-up", pictures / "cut.png")
    upload(page, "#ground-up", pictures / "background.png")
    page.wait_for_selector("#stage .hd-cutout:not([hidden])")
    slide(page, "#stage .hd-scale", 150)
    page.get_by_text("Shadow and edges").click()
    page.locator("#shadow input[value=auto]").check()
    run(page, "composed")
    download(page, tmp_path, "composed")
    layer = np.asarray(Image.open(download_file(page, tmp_path, "_shadow.png", "composed")))
    mask = np.asarray(Image.open(download_file(page, tmp_path, "_mask.png", "composed")))
    assert layer.min() < 220 and (layer[mask == 255] == 255).all()
    rows, columns = np.nonzero(mask > 127)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (120, 150)


def test_w4_deep_tiff_with_profile_comes_back_as_the_command_line_writes_it(visit, tmp_path):
    from PIL import ImageCms

    from harmony_diffusion.images.picture import Picture

    rng = np.random.default_rng(1)
    pixels = cv2.resize(rng.integers(9000, 56000, (8, 10, 3), dtype=np.uint16), (500, 400))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Picture(pixels, profile=profile).save(tmp_path / "deep.tif")
    page = visit()
    upload_composite(page, tmp_path / "deep.tif")
    paint(page, (0.3, 0.5), (0.7, 0.5))
    run(page)
    result = download(page, tmp_path)
    mask = download_file(page, tmp_path, "_mask.png")
    assert result.suffix == ".tif"
    assert main(["image", str(tmp_path / "deep.tif"), str(mask), "-o", str(tmp_path / "cli.tif")]) == 0
    assert result.read_bytes() == (tmp_path / "cli.tif").read_bytes()


def test_box_finds_the_object_and_a_mask_file_is_used_to_the_bit(visit, pictures, tmp_path):
    page = visit()
    upload_composite(page, pictures / "composite.png")
    page.click("#board [data-tool=box]")
    paint(page, (0.29, 0.3), (0.59, 0.7))
    page.click("#find")
    page.wait_for_function(
        """() => { const board = document.querySelector('#board .hd-board');
        const pixel = board.getContext('2d').getImageData(board.width * 0.44, board.height * 0.5, 1, 1).data;
        return pixel[0] > 230 && pixel[1] < 110; }""",
        timeout=60_000,
    )
    run(page)
    download(page, tmp_path)
    found = np.asarray(Image.open(download_file(page, tmp_path, "_mask.png"))) > 127
    wanted = np.asarray(Image.open(pictures / "mask.png")) > 127
    assert (found & wanted).sum() / (found | wanted).sum() > 0.9

    page.get_by_text("Mask from a file").click()
    upload(page, "#mask-up", pictures / "mask.png")
    page.wait_for_selector("#mask-up .file-preview")
    page.wait_for_timeout(1500)
    page.click("#viewer-run")
    page.wait_for_timeout(1500)
    result = download(page, tmp_path)
    call = ["image", pictures / "composite.png", pictures / "mask.png", "-o", tmp_path / "cli.png"]
    assert main([str(part) for part in call]) == 0
    assert result.read_bytes() == (tmp_path / "cli.png").read_bytes()


def test_another_input_removes_the_result(visit, pictures):
    page = visit()
    upload_composite(page, pictures / "composite.png")
    paint(page, (0.36, 0.5), (0.52, 0.5))
    run(page)
    remove(page, "#up")
    page.wait_for_selector("#viewer .hd-pair", state="hidden")
    page.wait_for_selector("#board .hd-frame:not([data-ready])")
    assert page.locator("#viewer .hd-controls").is_hidden()
    assert page.locator("#viewer .hd-note").inner_text() == "The result appears here."
    assert page.locator("#board .hd-note").inner_text() == "Upload a picture, then paint the pasted object."
    upload_composite(page, pictures / "composite.png")
    paint(page, (0.36, 0.5), (0.52, 0.5))
    run(page)
    assert page.locator("#viewer .hd-after").get_attribute("src").startswith("data:image/jpeg")


def test_a_removed_file_leaves_the_stage(visit, pictures):
    page = visit()
    page.get_by_role("tab", name="Compose").click()
    upload(page, "#ground-up", pictures / "background.png")
    upload(page, "#cut-up", pictures / "cut.png")
    page.wait_for_selector("#stage .hd-cutout:not([hidden])")
    remove(page, "#cut-up")
    page.wait_for_selector("#stage .hd-cutout", state="hidden")
    assert page.locator("#stage .hd-background").is_visible()
    remove(page, "#ground-up")
    page.wait_for_selector("#stage .hd-background", state="hidden")
    assert page.locator("#stage .hd-note").inner_text().startswith("Upload a cut-out and a background")


def test_variations_are_chosen_by_a_click(visit, pictures):
    page = visit()
    upload_composite(page, pictures / "composite.png")
    paint(page, (0.36, 0.5), (0.52, 0.5))
    page.locator("#viewer-variations input").check()
    run(page)
    choices = page.locator("#viewer .hd-choices button")
    assert choices.count() == 3
    first = page.locator("#viewer .hd-after").get_attribute("src")
    choices.nth(2).click()
    assert page.locator("#viewer .hd-after").get_attribute("src") != first
    assert page.input_value("#viewer .hd-strength") == "0.6"


def test_undo_takes_the_last_stroke_back(visit, pictures):
    page = visit()
    upload_composite(page, pictures / "composite.png")
    pixel = """() => { const board = document.querySelector('#board .hd-board');
        return [...board.getContext('2d').getImageData(board.width / 2, board.height / 2, 1, 1).data]; }"""
    before = page.evaluate(pixel)
    paint(page, (0.4, 0.5), (0.6, 0.5))
    assert page.evaluate(pixel) != before
    page.click("#board .hd-undo")
    assert page.evaluate(pixel) == before


def test_clear_and_undo_also_take_a_mask_file_back(visit, pictures, tmp_path):
    upper = np.zeros((1200, 1600), np.uint8)
    upper[100:200, 100:1500] = 255
    Image.fromarray(upper).save(tmp_path / "upper.png")
    page = visit()
    upload_composite(page, pictures / "composite.png")
    page.get_by_text("Mask from a file").click()
    shown = """([x, y, reddish]) => { const board = document.querySelector('#board .hd-board');
        const place = [x * board.width, y * board.height, 1, 1];
        const [red, , blue] = board.getContext('2d').getImageData(...place).data;
        return (red > blue + 80) === reddish; }"""
    plain = page.evaluate(shown, [0.2, 0.125, True])
    for name, place in ((pictures / "mask.png", None), (tmp_path / "upper.png", [0.2, 0.125, not plain])):
        if place:
            page.click("#mask-up button[aria-label^='Remove'], #mask-up button[aria-label='Clear']")
        upload(page, "#mask-up", name)
        page.wait_for_selector("#mask-up .file-preview")
        page.wait_for_timeout(1000)
        if place:
            page.wait_for_function(shown, arg=place)
    page.click("#board .hd-undo")
    run(page)
    download(page, tmp_path)
    found = np.asarray(Image.open(download_file(page, tmp_path, "_mask.png")))
    assert np.array_equal(found, np.asarray(Image.open(pictures / "mask.png")))
    page.click("#board .hd-clear")
    page.click("#viewer-run")
    toast = page.locator(".toast-body").first
    toast.wait_for(timeout=30_000)
    assert "is empty" in toast.inner_text()


def test_bad_files_are_refused_in_a_sentence(visit, tmp_path):
    page = visit()
    (tmp_path / "text.png").write_text("no picture")
    upload(page, "#up", tmp_path / "text.png")
    toast = page.locator(".toast-body").first
    toast.wait_for(timeout=30_000)
    assert "text.png" in toast.inner_text() and "/" not in toast.inner_text().replace("http://", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_window(visit, pictures, width, scheme):
    page = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
    upload_composite(page, pictures / "composite.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('body *')].filter(e => e.offsetParent
        && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .map(e => parseFloat(getComputedStyle(e).fontSize)))"""
    )
    assert smallest >= 12

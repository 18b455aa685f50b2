import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from harmony_diffusion.errors import InputError, SizeMismatchError
from harmony_diffusion.images.quick_decoding import read_mask, read_picture
from harmony_diffusion.metrics import functional
from harmony_diffusion.metrics.protocols import METRICS, PROTOCOLS, Protocol, find_protocols, score

ISSUE_NAMES = {"bcmi", "dovenet", "rainnet", "hdnet", "idih", "pct_net", "harmonizer", "dht", "diffharmony"}
# Prediction and real differ by 10, 20 | 2, 0 in two rows of two pixels; the first row is foreground.
ERRORS = np.array([[10.0, 20.0], [2.0, 0.0]])


def values_of(name, *images, metrics=METRICS, **changes):
    return score([replace(PROTOCOLS[name], **changes)], *images, metrics=metrics)[0]


@pytest.fixture
def tiny():
    """Prediction, real, mask and composite of 2x2 pixels, errors as in ERRORS; no need to resize."""
    real = np.full((2, 2, 3), 100, np.uint8)
    harmonized = (real + ERRORS[..., None]).astype(np.uint8)
    composite = (real + np.array([[90], [1]])[..., None]).astype(np.uint8)
    return harmonized, real, np.array([[255, 255], [0, 0]], np.uint8), composite


@pytest.fixture(scope="module")
def large():
    """Prediction, real, mask and composite of 300x280, nothing but noise, with a soft-edged mask."""
    generator = np.random.default_rng(3)
    harmonized, real, composite = generator.integers(0, 256, (3, 280, 300, 3), dtype=np.uint8)
    mask = np.zeros((280, 300), np.uint8)
    mask[50:200, 40:180] = 255
    mask[45:50, 40:180] = 130
    return harmonized, real, mask, composite


@pytest.mark.parametrize(
    ("protocol", "fixture"), [("bcmi", "bcmi_256"), ("idih", "saic_256"), ("pct_net", "pctnet_fullres")]
)
def test_real_triple_scores_as_the_official_scripts(protocol, fixture, shared):
    expected = json.loads((shared / "golden" / "fixtures.json").read_text())["real_triple"]
    names = expected["files"]
    composite, real = (
        read_picture(shared / "golden" / "images" / names[key]) for key in ("composite", "real")
    )
    mask = read_mask(shared / "golden" / "images" / names["mask"])
    wanted = expected[fixture]
    known = [name for name in METRICS if name in wanted]
    found = score([PROTOCOLS[protocol]], composite, real, mask, metrics=known)[0]
    for name in known:
        assert found[name] == pytest.approx(wanted[name], rel=1e-3), name
    area = wanted.get("area", wanted.get("soft_area"))
    pixels = 256**2 if PROTOCOLS[protocol].size else mask.size
    assert found["foreground_ratio"] == pytest.approx(area / pixels, rel=1e-3)


@pytest.mark.parametrize("example", ["1", "2", "3"])
def test_rainnet_examples_score_as_published(example, shared):
    folder = shared / "golden" / "images"
    expected = json.loads((shared / "golden" / "fixtures.json").read_text())["rainnet_examples"][example]
    real, mask = (
        read_picture(folder / f"rainnet_{example}-gt.png"),
        read_mask(folder / f"rainnet_{example}-mask.png"),
    )
    results = {"composite_vs_real": read_picture(folder / f"rainnet_{example}.png")}
    if "official_rainnet_output_vs_real" in expected:
        sheet = read_picture(folder / f"rainnet_{example}-results.png")
        results["official_rainnet_output_vs_real"] = sheet[:, 512:]
    for key, image in results.items():
        found = values_of("default", image, real, mask)
        for name, wanted in (("mse", "mse"), ("psnr", "psnr"), ("fmse", "fmse_masked")):
            assert found[name] == pytest.approx(expected[key][wanted], rel=1e-3), (key, name)
        assert found["foreground_ratio"] * 256**2 == pytest.approx(expected[key]["area"], rel=1e-3)
        whole = values_of("rainnet", image, real, mask, background="kept")["fmse"]
        assert whole == pytest.approx(expected[key]["fmse"], rel=1e-3)


def test_every_published_protocol_has_a_preset():
    assert {*PROTOCOLS} >= ISSUE_NAMES | {"default"}


@pytest.mark.parametrize(
    ("background", "mse", "fmse_whole", "bmse"),
    [
        ("kept", 126, 252, 2),
        ("composite", 125.5, 251, 1),
        ("real", 125, 250, 0),
        ("ignored", 125, 252, math.nan),
    ],
)
def test_background_counts_as_declared(tiny, background, mse, fmse_whole, bmse):
    found = values_of("default", *tiny, metrics=METRICS[:4] + ("bmse",), size=None, background=background)
    assert found["mse"] == mse and found["fmse"] == 250
    assert found["bmse"] == pytest.approx(bmse, nan_ok=True)
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / mse))
    assert found["fpsnr"] == pytest.approx(10 * math.log10(255**2 / 250))
    whole = values_of("default", *tiny, metrics=["fmse"], size=None, background=background, fmse="whole")
    assert whole == {"foreground_ratio": 0.5, "fmse": fmse_whole}


@pytest.mark.parametrize(("peak", "expected"), [(255, 255), ("range", 20), ("real", 100)])
def test_peak_is_as_declared(tiny, peak, expected):
    found = values_of("default", *tiny, metrics=["psnr"], size=None, peak=peak)
    assert found["psnr"] == pytest.approx(10 * math.log10(expected**2 / 126))


@pytest.mark.parametrize(("rounding", "error"), [("none", 0.75), ("truncate", 0), ("round", 1)])
def test_rounding_is_as_declared(rounding, error):
    real, mask = np.full((2, 2, 3), 7, np.uint8), np.full((2, 2), 255, np.uint8)
    harmonized = np.full((2, 2, 3), 7.75, np.float32)
    found = values_of("default", harmonized, real, mask, metrics=["mse"], size=None, rounding=rounding)
    assert found["mse"] == pytest.approx(error**2)


def test_prediction_of_another_size_is_rounded_as_its_file_would_be(large):
    harmonized, real, mask, _ = large
    prediction = np.clip(harmonized.repeat(2, 0).repeat(2, 1) + 0.3, 0, 255)
    found = values_of("idih", prediction, real, mask, metrics=["mse"])
    written = np.rint(prediction).astype(np.uint8)
    assert found == values_of("idih", written, real, mask, metrics=["mse"])


def test_soft_mask_weighs_as_declared(tiny):
    harmonized, real, _, _ = tiny
    mask = np.array([[255, 51], [0, 0]], np.uint8)
    forms = {
        form: values_of("default", harmonized, real, mask, metrics=["fmse"], size=None, fmse=form)["fmse"]
        for form in ("masked", "masked_images", "whole")
    }
    assert forms["masked"] == pytest.approx((100 + 0.2 * 400) / 1.2)
    assert forms["masked_images"] == pytest.approx((100 + 0.04 * 400) / 1.2)
    assert forms["whole"] == pytest.approx(504 / 1.2)
    hard = values_of("default", harmonized, real, mask, metrics=["fmse"], size=None, mask="hard")
    assert hard == {"foreground_ratio": 0.25, "fmse": 100}


def test_resizing_follows_pillow_and_opencv(large):
    cv2 = pytest.importorskip("cv2")
    harmonized, real, mask, _ = large
    shrink = {
        "pil_bilinear": lambda a: np.asarray(
            Image.fromarray(a).resize((256, 256), Image.Resampling.BILINEAR)
        ),
        "pil_bicubic": lambda a: np.asarray(Image.fromarray(a).resize((256, 256), Image.Resampling.BICUBIC)),
        "cv2_bilinear": lambda a: cv2.resize(a, (256, 256), interpolation=cv2.INTER_LINEAR),
    }
    for resize, shrunk in shrink.items():
        found = values_of("default", *large, resize=resize, metrics=["mse"])
        a, b = shrunk(harmonized).astype(float), shrunk(real).astype(float)
        assert found["mse"] == pytest.approx(((a - b) ** 2).mean(), rel=1e-12)
        weights = shrunk(mask.astype(np.float32) / 255)
        assert found["foreground_ratio"] == pytest.approx(weights.mean(dtype=float), rel=1e-6)


@pytest.mark.parametrize("mask_kind", ["hard", "soft"])
def test_scores_are_those_of_the_functional_metrics(large, mask_kind):
    harmonized, real, mask, _ = large
    kept = {"size": None, "mask": mask_kind, "ssim": "gaussian"}
    found = values_of("default", harmonized, real, mask, **kept)
    weights = mask > 127 if mask_kind == "hard" else mask / 255
    images = [torch.from_numpy(x).permute(2, 0, 1)[None].double() for x in (harmonized, real)]
    plane = torch.from_numpy(weights)[None, None].double()
    for name in METRICS:
        arguments = images if name in ("mse", "psnr", "ssim") else [*images, plane]
        expected = getattr(functional, name)(*arguments).item()
        assert found[name] == pytest.approx(expected, rel=1e-6), name


def test_whole_numbers_and_floats_score_the_same(large):
    """The exact sums of 8-bit images and those in float64 are two ways to one number."""
    harmonized, real, mask, composite = large
    for protocol in PROTOCOLS.values():
        protocol = replace(protocol, size=None)
        images = real, mask, composite
        whole, floating = (score([protocol], h, *images)[0] for h in (harmonized, harmonized.astype(float)))
        assert whole == pytest.approx(floating, rel=1e-9, nan_ok=True)


def test_structural_similarity_of_an_ignored_background_is_that_of_pasted_images(large):
    harmonized, real, mask, _ = large
    found = values_of("pct_net", harmonized, real, mask, metrics=["ssim"])
    weights = mask[..., None] / 255
    expected = structural_similarity(
        harmonized * weights + real * (1 - weights),
        real.astype(float),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert found["ssim"] == pytest.approx(expected, rel=1e-6)


def test_several_protocols_score_as_each_alone(large):
    together = score(list(PROTOCOLS.values()), *large[:3], composite=large[3])
    assert len({row["psnr"] for row in together}) > 5
    for protocol, row in zip(PROTOCOLS.values(), together, strict=True):
        assert score([protocol], *large)[0] == pytest.approx(row, rel=0, nan_ok=True)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_degenerate_images_have_finite_scores_or_none(name):
    generator = np.random.default_rng(0)
    real = generator.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    empty, pixel, full = np.zeros((3, 64, 48), np.uint8)
    pixel[32:34, 24], full[:] = 255, 255
    assert values_of(name, real, real, full, real, metrics=["psnr", "fpsnr"])["psnr"] == 100
    found = values_of(name, real[::-1], real, empty, real)
    assert found["foreground_ratio"] == 0
    assert all(math.isnan(found[metric]) for metric in ("fmse", "fpsnr", "fssim"))
    assert math.isfinite(found["mse"])
    found = values_of(name, real[::-1], real, pixel, real)
    del found["bmse"]
    assert all(math.isfinite(value) for value in found.values())
    flat = np.zeros_like(real)
    assert all(not math.isinf(value) for value in values_of(name, flat, flat, pixel, flat).values())


def test_what_does_not_fit_is_refused(tiny):
    harmonized, real, mask, _ = tiny
    with pytest.raises(SizeMismatchError, match="mask: is 2x1, real is 2x2"):
        score([PROTOCOLS["default"]], harmonized, real, mask[:1])
    with pytest.raises(SizeMismatchError, match="nothing is resized"):
        score([PROTOCOLS["pct_net"]], harmonized[:1], real, mask)
    with pytest.raises(InputError, match="composite: is needed"):
        score([PROTOCOLS["harmonizer"]], harmonized, real, mask)
    with pytest.raises(InputError, match="smaller than the window"):
        score([replace(PROTOCOLS["default"], size=None)], harmonized, real, mask)


def test_names_of_protocols():
    assert list(find_protocols("idih, bcmi")) == ["idih", "bcmi"]
    assert find_protocols("all") == PROTOCOLS
    for names, reason in (
        ("idih,nobody", "or all, got 'nobody'"),
        ("idih,idih", "twice"),
        ("", "or all, got ''"),
    ):
        with pytest.raises(InputError, match=reason):
            find_protocols(names)


def test_a_protocol_of_ones_own_is_a_few_lines(tiny):
    mine = Protocol("a paper", size=None, peak="real")
    assert score([mine], *tiny, metrics=["mse"])[0]["mse"] == 126


def test_documentation_shows_the_protocols_as_they_are():
    readme = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    for name, protocol in PROTOCOLS.items():
        size = f"{protocol.size}x{protocol.size}" if protocol.size else "own"
        cells = [f"`{name}`", protocol.follows, size, protocol.resize if protocol.size else "", protocol.mask]
        cells += [protocol.rounding, protocol.peak, protocol.fmse, protocol.background, protocol.ssim]
        assert "| " + " | ".join(str(cell) for cell in cells) + " |" in readme

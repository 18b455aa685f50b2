import math

import numpy as np
import pytest
import torch
from PIL import Image

import harmony_diffusion
from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.evaluate import evaluate
from harmony_diffusion.metrics.rows import COLUMNS, format_row, mean_rows


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number, subset in enumerate(("a", "a", "b")):
        real = rng.integers(0, 200, (256, 256, 3), dtype=np.uint8)
        mask = np.zeros((256, 256), np.uint8)
        mask[40 : 90 + 30 * number, 60:200] = 255
        composite = np.where(mask[..., None] > 0, real + np.uint8(10 + number), real)
        paths = []
        for kind, array in (("composite", composite), ("mask", mask), ("real", real)):
            paths.append(tmp_path / f"{kind}{number}.png")
            Image.fromarray(array).save(paths[-1])
        found.append(HarmonySample(f"x{number}_1_1", subset, *paths))
    return found


def unchanged(composite, mask):
    assert composite.shape == (1, 3, 256, 256) and mask.shape == (1, 1, 256, 256)
    return composite


def test_known_error_has_the_scores_of_the_formulas(samples):
    result = evaluate(unchanged, samples)
    assert [row.image for row in result.rows] == [(s.subset, s.name) for s in samples]
    for number, row in enumerate(result.rows):
        ratio = (50 + 30 * number) * 140 / 256**2
        error = (10 + number) ** 2
        assert row.protocol == "default" and row.foreground_ratio == pytest.approx(ratio)
        assert row.scores["fmse"] == pytest.approx(error) and row.scores["bmse"] == 0
        assert row.scores["mse"] == pytest.approx(ratio * error)
        assert row.scores["psnr"] == pytest.approx(10 * math.log10(255**2 / (ratio * error)))
    assert result.means["fmse"] == pytest.approx((100 + 121 + 144) / 3)


def test_means_are_those_of_a_rows_file(samples, tmp_path):
    result = evaluate(unchanged, samples)
    cells = [
        format_row(
            row.name, row.subset, row.protocol, {**row.scores, "foreground_ratio": row.foreground_ratio}
        )
        for row in result.rows
    ]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(",".join(line) for line in (COLUMNS, *cells)) + "\n")
    means = mean_rows(path)[("default", "all")]
    assert result.means == pytest.approx({key: means[key] for key in result.means})


def test_every_model_is_a_function_to_score(samples):
    identity = evaluate(harmony_diffusion.load_model("identity"), samples[:1])
    assert identity == evaluate(unchanged, samples[:1])
    reinhard = harmony_diffusion.evaluate(harmony_diffusion.load_model("reinhard"), samples[:1])
    assert reinhard.means["fmse"] != identity.means["fmse"]


def test_empty_foreground_has_no_foreground_scores_and_is_left_out_of_their_means(samples, tmp_path):
    Image.new("L", (256, 256)).save(tmp_path / "empty.png")
    empty = HarmonySample("empty", "a", samples[0].composite, tmp_path / "empty.png", samples[0].real)
    result = evaluate(unchanged, [samples[1], empty])
    assert not {"fmse", "fpsnr", "fssim"} & {*result.rows[1].scores}
    assert result.means["fmse"] == pytest.approx(121)


@pytest.mark.parametrize(
    ("predict", "reason"),
    [
        (lambda composite, mask: composite[0], r"shape \(3, 256, 256\)"),
        (lambda composite, mask: composite * 255, "values outside"),
        (lambda composite, mask: composite * torch.nan, "values outside"),
        (lambda composite, mask: composite.numpy(), "ndarray"),
        (lambda composite, mask: (composite * 255).byte(), "uint8"),
    ],
)
def test_what_is_no_image_is_refused(samples, predict, reason):
    with pytest.raises(InputError, match=reason):
        evaluate(predict, samples)


def test_no_samples_and_sizes_that_differ_are_refused(samples, tmp_path):
    with pytest.raises(InputError, match="samples: is empty"):
        evaluate(unchanged, [])
    Image.new("L", (20, 20), 255).save(tmp_path / "small.png")
    odd = HarmonySample("odd", "a", samples[0].composite, tmp_path / "small.png", samples[0].real)
    with pytest.raises(InputError, match="small.png: is 20x20, its composite is 256x256"):
        evaluate(unchanged, [odd])

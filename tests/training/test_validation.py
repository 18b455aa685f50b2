"""Scores, pictures and the card."""

import math

import pytest
import torch

from harmony_diffusion.models import create_model
from harmony_diffusion.training.model_card import name_in_card, write_model_card
from harmony_diffusion.training.validation import Triple, validate


def triple(count, difference):
    real = torch.full((count, 3, 8, 8), 0.4)
    mask = torch.zeros(count, 1, 8, 8)
    mask[..., :4] = 1
    return Triple(real + difference * mask, mask, real)


def test_scores_are_means_over_images_on_the_255_scale():
    # Two batches of 1 and 3 images: each image counts once.
    batches = [triple(1, 0.1), triple(3, 0.2)]
    scores, _ = validate(create_model("identity"), batches)
    levels = [round(0.5 * 255) - 102, round(0.6 * 255) - 102]
    mse = [level**2 / 2 for level in levels]
    assert scores["fmse"] == pytest.approx((levels[0] ** 2 + 3 * levels[1] ** 2) / 4)
    assert scores["mse"] == pytest.approx((mse[0] + 3 * mse[1]) / 4)
    decibels = [10 * math.log10(255**2 / value) for value in mse]
    assert scores["psnr"] == pytest.approx((decibels[0] + 3 * decibels[1]) / 4)
    assert scores["composite_psnr"] == scores["psnr"]


def test_pictures_show_the_first_images_in_rows():
    _, pictures = validate(create_model("identity"), [triple(1, 0.1), triple(3, 0.2)], rows=2)
    assert pictures.shape == (3, 16, 32)
    composite, mask, harmonized, real = pictures[:, 8:].split(8, 2)
    torch.testing.assert_close(composite, triple(1, 0.2).composite[0])
    assert torch.equal(harmonized, composite) and torch.equal(real, triple(1, 0).real[0])
    assert mask.mean() == 0.5


def test_mode_of_the_model_is_put_back():
    model = create_model("idih", depth=4, base_channels=4).train()
    validate(model, [Triple(*(x[..., :].repeat(1, 1, 4, 4) for x in triple(1, 0.1)))])
    assert model.training


def test_card_tells_command_data_and_scores(tmp_path):
    facts = {"training": {"steps": 7}, "data": {"samples": 12}, "results": {"psnr": 30.125}}
    text = write_model_card(tmp_path, "idih", command="accelerate launch x", **facts).read_text("utf-8")
    for told in ("accelerate launch x", "- steps: 7", "- samples: 12", "| psnr | 30.12 |", "2006.00809"):
        assert told in text
    assert "$" not in text
    unscored = write_model_card(tmp_path, "imrsf_dam_gct", command="", training={}, data={}, results={})
    assert "not run" in unscored.read_text("utf-8") and "]()" not in unscored.read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("stabilityai/stable-diffusion-2-inpainting", "stabilityai/stable-diffusion-2-inpainting"),
        ("outputs/low/model", "outputs/low/model"),
        ("/home/name/outputs/low/model", "low/model"),
        ("/home/name/photographs", "photographs"),
        ("--sigma", "--sigma"),
    ],
)
def test_card_does_not_tell_where_things_lie(name, told):
    assert name_in_card(name) == told

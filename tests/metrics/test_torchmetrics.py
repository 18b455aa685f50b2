import importlib
import os
import sys
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchmetrics
from PIL import Image

from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.errors import InputError, MissingDependencyError
from harmony_diffusion.metrics.evaluate import evaluate
from harmony_diffusion.metrics.functional import fmse, fpsnr
from harmony_diffusion.metrics.torchmetrics import ForegroundMSE, ForegroundPSNR, HarmonyMetrics


def batch(count=4, seed=0):
    """Return harmonized, real, mask and composite; the mask of the last image is empty."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, count, 3, 32, 40, generator=generator)
    mask = torch.zeros(count, 1, 32, 40)
    for index in range(count - 1):
        mask[index, :, 4 : 10 + index, 5:20] = 1
    return images[0], images[1], mask, images[2]


def test_means_are_over_images_that_have_a_foreground():
    harmonized, real, mask, _ = batch()
    for kind, function in ((ForegroundMSE, fmse), (ForegroundPSNR, fpsnr)):
        metric = kind()
        for part in (slice(0, 1), slice(1, 4)):
            metric.update(harmonized[part], real[part], mask[part])
        expected = function(harmonized * 255, real * 255, mask)[:3].mean()
        assert torch.allclose(metric.compute(), expected.float()) and metric.images == 3
        assert metric.higher_is_better == (kind is ForegroundPSNR)
        metric.reset()
        assert metric.images == 0


def test_a_batch_that_is_one_image_is_psnr_of_torchmetrics():
    harmonized, real, mask, _ = batch(2)
    metric = ForegroundPSNR()
    whole = torch.ones_like(mask[:1])
    metric.update(harmonized[:1], real[:1], whole)
    reference = torchmetrics.functional.image.peak_signal_noise_ratio(
        harmonized[:1], real[:1], data_range=1.0
    )
    assert torch.allclose(metric.compute(), reference, atol=1e-4)


def test_they_work_in_a_collection_with_metrics_of_others():
    harmonized, real, mask, _ = batch()
    collection = torchmetrics.MetricCollection({"fmse": ForegroundMSE(), "fpsnr": ForegroundPSNR()})
    found = collection(harmonized, real, mask)
    assert set(found) == {"fmse", "fpsnr"} and found["fmse"] == collection.compute()["fmse"]


def test_all_metrics_equal_our_rows(tmp_path):
    samples, arrays = [], []
    for index in range(3):
        generator = np.random.default_rng(index)
        composite, real = generator.integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[5:20, 8:30] = 255 * (index < 2)
        paths = [tmp_path / f"{index}_{part}.png" for part in ("composite", "mask", "real")]
        for path, array in zip(paths, (composite, mask, real), strict=True):
            Image.fromarray(array).save(path)
        samples.append(HarmonySample(str(index), "made", *paths))
        arrays.append((composite, mask[..., None], real))
    rows = evaluate(lambda composite, mask: composite, samples)
    metric = HarmonyMetrics()
    composite, mask, real = (
        torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 255
        for parts in zip(*arrays, strict=True)
    )
    metric.update(composite[:2], real[:2], mask[:2])
    metric.update(composite[2:], real[2:], mask[2:], composite[2:])
    found = metric.compute()
    assert set(found) == set(rows.means)
    for name, value in rows.means.items():
        assert found[name].item() == pytest.approx(value, rel=1e-6), name


def test_a_protocol_that_pastes_the_composite_needs_it():
    harmonized, real, mask, composite = batch()
    metric = HarmonyMetrics("harmonizer", metrics=("mse", "psnr"))
    with pytest.raises(InputError, match="composite"):
        metric.update(harmonized, real, mask)
    metric.update(harmonized, real, mask, composite)
    assert set(metric.compute()) == {"mse", "psnr"}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"protocol": "ours"}, "ours"), ({"protocol": "all"}, "several"), ({"metrics": ("lpips",)}, "lpips")],
)
def test_unknown_protocols_and_metrics_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        HarmonyMetrics(**options)


def run_process(rank, folder):
    """Score half of the images; the result after `compute` must be that of all."""
    code = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        harmonized, real, mask, composite = (tensor[rank::2] for tensor in batch(5))
        metrics = [ForegroundMSE(), HarmonyMetrics(metrics=("mse", "fmse", "psnr"))]
        metrics[0].update(harmonized, real, mask)
        metrics[1].update(harmonized, real, mask, composite)
        torch.save({"foreground_mse": metrics[0].compute(), **metrics[1].compute()}, folder / f"{rank}.pt")
        dist.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def test_two_processes_get_the_means_of_all_images(tmp_path):
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            run_process(rank, tmp_path)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    harmonized, real, mask, composite = batch(5)
    alone = HarmonyMetrics(metrics=("mse", "fmse", "psnr"))
    alone.update(harmonized, real, mask, composite)
    single = ForegroundMSE()
    single.update(harmonized, real, mask)
    expected = {**alone.compute(), "foreground_mse": single.compute()}
    assert set(first) == set(expected) and single.images == 4
    assert all(torch.allclose(first[name], value) for name, value in expected.items())


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "harmony_diffusion.metrics.torchmetrics")
    with pytest.raises(MissingDependencyError, match=r"harmony-diffusion\[eval\]"):
        importlib.import_module("harmony_diffusion.metrics.torchmetrics")


@pytest.mark.parametrize("make", [ForegroundMSE, HarmonyMetrics])
def test_batches_that_do_not_fit_are_refused_and_not_counted(make):
    harmonized, real, mask, _ = batch()
    for arguments, words in (
        ((harmonized, real[:1], mask), "real: must be"),
        ((harmonized, real, mask[:, 0]), "mask: must be"),
        ((harmonized, real * 255, mask), "real: must lie in"),
        (((harmonized * 255).byte(), real, mask), "harmonized: must be finite"),
        ((harmonized / 0, real, mask), "NaN or infinite"),
    ):
        metric = make()
        with pytest.raises(InputError, match=words):
            metric.update(*arguments)
        assert not any(value for value in metric.metric_state.values())

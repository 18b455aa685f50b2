import logging
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from harmony_diffusion.data.iharmony4 import read_iharmony4
from harmony_diffusion.data.photographs import read_photographs
from harmony_diffusion.data.synthesis.composites import SyntheticComposites, reference_colors
from harmony_diffusion.data.training_set import KeyedView, PairSet, PhotographSet, WeightedOrder
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.quick_decoding import read_mask


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_sample_is_a_function_of_seed_epoch_and_index(photographs_folder):
    training_set = PhotographSet(read_photographs(photographs_folder), 32, turn=True)
    assert len(training_set) == 8
    forward = [training_set.sample_at(1, 2, index) for index in range(8)]
    again = PhotographSet(read_photographs(photographs_folder), 32, turn=True)
    for index in (5, 0, 7, 5):
        assert equal(again.sample_at(1, 2, index), forward[index])
    assert forward[0]["real"].shape == (3, 32, 32) and forward[0]["real"].dtype == torch.uint8
    assert forward[0]["mask"].shape == (1, 32, 32) and forward[0]["mask"].max() == 255
    assert sorted(int(item["source"]) for item in forward) == list(range(8))
    for seed, epoch in ((1, 3), (2, 2)):
        others = [training_set.sample_at(seed, epoch, index) for index in range(8)]
        assert not any(torch.equal(a["real"], b["real"]) for a, b in zip(forward, others, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_stopped(photographs_folder, workers):
    view = KeyedView(PhotographSet(read_photographs(photographs_folder), 32), seed=5)
    expected = [view[position] for position in range(4, 20)]
    loader = DataLoader(view, batch_size=4, sampler=range(4, 20), num_workers=workers)
    batches = list(loader)
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        for row in range(4):
            assert equal({name: values[row] for name, values in batch.items()}, expected[4 * number + row])


def test_weights_decide_how_often_a_source_is_seen():
    order = WeightedOrder(5, [0.0, 0.5, 1.0, 1.25, 2.25])
    total = Counter()
    for epoch in range(40):
        counts = Counter(order(0, epoch, index) for index in range(5))
        assert counts[0] == 0 and 0 <= counts[1] <= 1 and counts[4] in (2, 3)
        total += counts
    assert [abs(total[k] / 40 - w) < 0.2 for k, w in enumerate((0.0, 0.5, 1.0, 1.25, 2.25))] == [True] * 5
    for weights in ([1.0], [0.0] * 5, [1.0, -1.0, 1.0, 1.0, 1.0], [float("nan")] * 5):
        with pytest.raises(InputError, match="weights"):
            WeightedOrder(5, weights)


def test_without_weights_every_source_is_seen_once_an_epoch():
    order = WeightedOrder(50, None)
    first, second = ([order(3, epoch, index) for index in range(50)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50)) and first != second


def test_pairs_stay_in_step(iharmony4_folder):
    samples = read_iharmony4(iharmony4_folder, "test")
    training_set = PairSet(samples, 48, turn=True, whole=0.0)
    for index in range(4):
        item = training_set.sample_at(0, 0, index)
        # In the fixture the foreground is the negative of the real one.
        inside = (item["mask"] > 0).expand(3, -1, -1)
        away = torch.nn.functional.max_pool2d(inside[None].float(), 9, 1, 4)[0] == 0
        core = -torch.nn.functional.max_pool2d(-inside[None].float(), 9, 1, 4)[0] == 1
        negative = 255 - item["composite"].int()
        assert (item["composite"].int() - item["real"].int())[away].abs().float().mean() < 5
        assert (negative - item["real"].int())[core].abs().float().mean() < 5


def test_whole_frames_are_as_many_as_asked_for(photographs_folder):
    photographs = read_photographs(photographs_folder)
    foregrounds = {p.name: (read_mask(p.mask) > 127).mean() for p in photographs}
    differences = {}
    for whole in (0.0, 1.0):
        training_set = PhotographSet(photographs, 32, whole=whole)
        items = [training_set.sample_at(0, 0, index) for index in range(8)]
        differences[whole] = [
            abs(
                (item["mask"] > 127).double().mean().item()
                - foregrounds[photographs[int(item["source"])].name]
            )
            for item in items
        ]
    assert max(differences[1.0]) < 0.01 and max(differences[0.0]) > 0.05


def test_bad_photographs_stop_or_are_skipped_and_counted(photographs_folder, caplog):
    photographs = read_photographs(photographs_folder)
    photographs[2].mask.unlink()
    photographs[5].picture.write_bytes(photographs[5].picture.read_bytes()[:400])
    with pytest.raises(InputError, match=r"p\.[25]\.(png|jpg): cannot be"):
        for index in range(8):
            PhotographSet(photographs, 32).sample_at(0, 0, index)
    lenient = PhotographSet(photographs, 32, skip_bad=True)
    with caplog.at_level(logging.WARNING):
        items = [lenient.sample_at(0, 0, index) for index in range(8)]
    assert sum(int(item["skipped"]) for item in items) >= 2
    assert not {2, 5} & {int(item["source"]) for item in items}
    assert "p.2.png" in caplog.text and "p.5.jpg" in caplog.text
    assert equal(items[3], PhotographSet(photographs, 32, skip_bad=True).sample_at(0, 0, 3))


def test_nothing_but_bad_photographs_stops(photographs_folder):
    photographs = read_photographs(photographs_folder)
    for photograph in photographs:
        photograph.mask.unlink()
    with pytest.raises(InputError, match="one after another"):
        PhotographSet(photographs, 32, skip_bad=True).sample_at(0, 0, 0)


def test_bad_pairs_are_named(iharmony4_folder):
    from PIL import Image

    samples = read_iharmony4(iharmony4_folder, "test")
    with Image.open(samples[2].real) as image:
        image.resize((40, 30)).save(samples[2].real)
    with pytest.raises(InputError, match=r"c7\.jpg: is 40x30, its picture is 64x48"):
        for index in range(4):
            PairSet(samples, 32).sample_at(0, 0, index)


def test_a_batch_of_real_photographs_becomes_composites(shared):
    root = shared / "data" / "photos"
    if not root.is_dir():
        pytest.skip("../shared/data/photos is absent")
    photographs = read_photographs(root, "val")[::30]
    training_set = PhotographSet(photographs, 64)
    items = [training_set.sample_at(0, 0, index) for index in range(len(photographs))]
    batch = {name: torch.stack([item[name] for item in items]) for name in ("real", "mask", "key")}
    synthesize = SyntheticComposites(reference_colors(photographs))
    made = synthesize(batch["real"], batch["mask"], batch["key"])
    assert made.composite.shape == (len(photographs), 3, 64, 64) and made.composite.isfinite().all()
    assert (made.mask.mean((1, 2, 3)) > 0).all()

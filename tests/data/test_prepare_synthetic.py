import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harmony_diffusion.data.check import check_dataset
from harmony_diffusion.data.iharmony4 import read_iharmony4
from harmony_diffusion.data.photographs import read_photographs, subset_weights
from harmony_diffusion.data.synthesis.composites import KINDS, SyntheticComposites, reference_colors
from harmony_diffusion.data.training_set import PhotographSet

SCRIPT = Path(__file__).resolve().parents[2] / "train" / "prepare_synthetic.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_files_are_what_training_makes_on_the_fly(photographs_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = ["--data", photographs_folder, "--output", out, "--size", 32, "--epochs", 2, "--seed", 4]
    run(monkeypatch, *options, "--batch_size", 3, "--device", "cpu")
    assert check_dataset(out).problems == []
    samples = {sample.name: sample for sample in read_iharmony4(out, "train")}
    assert len(samples) == 16

    photographs = read_photographs(photographs_folder)
    training_set = PhotographSet(photographs, 32, subset_weights([p.subset for p in photographs]))
    places = [(epoch, index) for epoch in (0, 1) for index in range(8)]
    items = [training_set.sample_at(4, epoch, index) for epoch, index in places]
    batch = [torch.stack([item[name] for item in items]) for name in ("real", "mask", "key")]
    made = SyntheticComposites(reference_colors(photographs))(*batch)
    for row, (epoch, index) in enumerate(places):
        sample = samples[f"train{epoch}-{index:07d}_1_1"]
        assert sample.subset == KINDS[made.kind[row]]
        for path, tensor in ((sample.composite, made.composite), (sample.real, made.real)):
            stored = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
            assert torch.equal(stored / 255, tensor[row])
        assert torch.equal(torch.from_numpy(np.array(Image.open(sample.mask))) / 255, made.mask[row, 0])

    with (out / "sources_train.csv").open(newline="") as file:
        rows = {row["real"]: row for row in csv.DictReader(file)}
    assert rows["train0-0000003"]["photograph"] == photographs[int(items[3]["source"])].name
    assert {row["licence"] for row in rows.values()} == {"CC0 1.0"}
    with pytest.raises(SystemExit, match="holds composites of the split train already"):
        run(monkeypatch, *options)


def test_a_data_set_of_pairs_is_refused(iharmony4_folder, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="which holds no photographs"):
        run(monkeypatch, "--data", iharmony4_folder, "--output", tmp_path / "out", "--split", "test")

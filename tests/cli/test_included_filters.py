"""The included Harmonizer: readable filters, edited and applied again, without a network."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from harmony_diffusion.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_filters_of_the_included_weights_are_written_edited_and_applied(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = [str(EXAMPLES / name) for name in ("composite.jpg", "mask.png")]

    def harmonize(name):
        options = ["--model", "harmonizer_lite", "--filters", str(tmp_path / "filters.json")]
        assert main(["image", *files, "-o", str(tmp_path / name), *options]) == 0
        return np.asarray(Image.open(tmp_path / name).convert("RGB"), float)

    composite = np.asarray(Image.open(files[0]).convert("RGB"), float)
    mask = np.asarray(Image.open(files[1]).convert("L"))
    inside, outside = mask == 255, mask == 0
    predicted = harmonize("predicted.png")
    written = json.loads((tmp_path / "filters.json").read_text())
    assert len(written["filters"]) == 6 and any(abs(value) > 0.02 for value in written["filters"].values())
    # The muffin is brightly lit and its new table is dim.
    assert predicted[inside].mean() < composite[inside].mean() - 2

    written["filters"] = dict.fromkeys(written["filters"], 0) | {"brightness": -0.5}
    (tmp_path / "filters.json").write_text(json.dumps(written))
    edited = harmonize("edited.png")
    assert edited[inside].mean() < predicted[inside].mean()
    assert np.array_equal(edited[outside], composite[outside])

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.score_rows import Row
from harmony_diffusion.reports.hub_results import merge_into_card, model_index_results, write_eval_results
from harmony_diffusion.reports.tables import make_tables

CARD = """---
library_name: harmony-diffusion
license: apache-2.0
tags:
- image-harmonization
widget:
- text: ünïcode
model-index:
- name: mine
  results:
  - task:
      type: image-to-image
    dataset:
      name: RealHM
      type: realhm
    metrics:
    - type: psnr
      value: 27.0
---

# A card

Text with --- in it.
"""


@pytest.fixture
def tables():
    rows = [
        Row("a", "HCOCO", 0.02, "idih", {"mse": 10.0, "psnr": 38.126}),
        Row("b", "HFlickr", 0.3, "idih", {"mse": 20.0, "psnr": 30.0}),
        Row("a", "HCOCO", 0.02, "hdnet", {"mse": 8.0, "psnr": 39.0}),
        Row("b", "HFlickr", 0.3, "hdnet", {"mse": 18.0, "psnr": 31.0}),
    ]
    return make_tables({"hdnet_lite": rows}, resamples=20)


def results_of(tables):
    return model_index_results(tables, "hdnet_lite", dataset="iharmony4", dataset_name="iHarmony4")


def test_card_keeps_what_it_has_and_gains_the_scores(tmp_path, tables):
    path = tmp_path / "README.md"
    path.write_text(CARD, "utf-8")
    merge_into_card(path, "hdnet_lite", results_of(tables))
    merged = ModelCard.load(path)
    assert merged.text == ModelCard(CARD).text
    data = merged.data.to_dict()
    assert data["widget"] == [{"text": "ünïcode"}] and data["license"] == "apache-2.0"
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "mine" and len(results) == 1 + 2 * 3 * 2
    assert [r.metric_value for r in results if r.dataset_type == "realhm"] == [27.0]
    found = {
        (r.dataset_config, r.metric_name): r.metric_value for r in results if r.dataset_type == "iharmony4"
    }
    assert found["all", "PSNR (idih)"] == 34.06 and found["all", "MSE (hdnet)"] == 13.0
    assert found["HCOCO", "PSNR (idih)"] == 38.13


def test_merging_again_replaces_and_does_not_repeat(tmp_path, tables):
    path = tmp_path / "README.md"
    path.write_text(CARD, "utf-8")
    merge_into_card(path, "hdnet_lite", results_of(tables))
    once = path.read_bytes()
    merge_into_card(path, "hdnet_lite", results_of(tables))
    assert path.read_bytes() == once
    better = make_tables({"hdnet_lite": [Row("a", "HCOCO", 0.02, "idih", {"psnr": 50.0})]}, resamples=0)
    merge_into_card(path, "hdnet_lite", results_of(better))
    results = ModelCard.load(path).data.eval_results
    values = [r.metric_value for r in results if (r.dataset_config, r.metric_name) == ("all", "PSNR (idih)")]
    assert values == [50.0] and len(results) == 13


def test_a_card_without_results_gets_its_name(tmp_path, tables):
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: other\n---\n# Card\n")
    merge_into_card(path, "hdnet_lite", results_of(tables))
    assert ModelCard.load(path).data.model_name == "hdnet_lite"


@pytest.mark.parametrize("text", ["---\na: [1\n---\n", "---\nmodel-index: 3\n---\n", "---\n- a\n---\n"])
def test_a_broken_card_is_refused_and_left_alone(tmp_path, tables, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a model card"):
        merge_into_card(path, "hdnet_lite", results_of(tables))
    assert path.read_text() == text
    with pytest.raises(InputError, match="cannot be read"):
        merge_into_card(tmp_path / "absent.md", "hdnet_lite", results_of(tables))


def test_eval_results_are_what_the_hub_parses(tmp_path, tables):
    paths = write_eval_results(tmp_path, tables, "hdnet_lite", dataset="owner/iHarmony4", date="2026-01-31")
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        ".eval_results/iHarmony4_idih.yaml",
        ".eval_results/iHarmony4_hdnet.yaml",
    ]
    entries = parse_eval_result_entries(yaml.safe_load(paths[0].read_text()))
    assert {(e.dataset_id, e.task_id, e.value) for e in entries} == {
        ("owner/iHarmony4", "idih_mse", 15.0),
        ("owner/iHarmony4", "idih_psnr", 34.06),
    }
    assert entries[0].date == "2026-01-31"
    assert entries[0].notes.startswith("protocol idih, mean over 2 images, 95 % interval [30.00, 38.13]")
    with pytest.raises(InputError, match="owner/name"):
        write_eval_results(tmp_path, tables, "hdnet_lite", dataset="iharmony4")
    with pytest.raises(InputError, match="is not among the methods"):
        write_eval_results(tmp_path, tables, "mkl", dataset="owner/iharmony4")

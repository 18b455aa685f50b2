"""Datasets: each yields `HarmonySample`, or `Photograph` to make composites of, and knows no model.

| layout | what is at the path | module |
|---|---|---|
| `photographs` | `index.csv`, `SOURCE/ID.jpg`, `SOURCE/ID.png` | `photographs` |
| `open-images` | `SPLIT-annotations-object-segmentation.csv`, masks, images | `open_images` |
| `manifest` | a file `manifest-SPLIT.csv` in such a folder, of the masks chosen | `open_images` |
| `iharmony4` | `SUBSET/SUBSET_SPLIT.txt` or `IHD_SPLIT.txt`, three folders a subset | `iharmony4` |
| `json-lines` | a file `.jsonl` with `composite`, `mask`, `real` a line | `folders` |
| `folders` | `composite/`, `mask/`, `real/` with files of the same names | `folders` |
| `triples` | `masks/7.png`, `7/mask.png` or `7_mask.png`, and so on: ccHarmony, RealHM, HVIDIT | `triples` |
| `shards` | `.tar` files with `NAME.composite.jpg`, `NAME.mask.png`, `NAME.real.jpg` | `web_shards` |
| `datasets` | parquet, `imagefolder`, from `save_to_disk`, or `owner/name` on the Hub | `hub_datasets` |

`layouts.list_dataset` reads all but shards by their path. `hub_export` writes parquet files for `datasets`.
In training, `training_set.PairSet` and `PhotographSet` give the crop at (seed, epoch, index), and
`synthesis.composites.SyntheticComposites` makes composites of a batch of photographs, on the device.
`captions` makes prompts by BLIP and reads them. `check.check_dataset` says beforehand what cannot be used.
"""

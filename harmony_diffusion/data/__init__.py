"""Data sets. A data set yields `HarmonySample`, or `Photograph` for synthetic composites, and knows no model.

| layout | files at the path | module |
|---|---|---|
| `photographs` | `index.csv`, `SOURCE/ID.jpg`, `SOURCE/ID.png` | `photographs` |
| `open-images` | `SPLIT-annotations-object-segmentation.csv`, masks, images | `open_images` |
| `manifest` | a file `manifest-SPLIT.csv` in an Open Images folder, with the selected masks | `open_images` |
| `iharmony4` | `SUBSET/SUBSET_SPLIT.txt` or `IHD_SPLIT.txt`, three folders per subset | `iharmony4` |
| `json-lines` | a file `.jsonl` with `composite`, `mask` and `real` in each line | `folders` |
| `folders` | `composite/`, `mask/`, `real/` with files of the same names | `folders` |
| `triples` | `masks/7.png`, `7/mask.png`, `7_mask.png` and similar: ccHarmony, RealHM, HVIDIT | `triples` |
| `shards` | `.tar` files with `NAME.composite.jpg`, `NAME.mask.png`, `NAME.real.jpg` | `web_shards` |
| `datasets` | parquet, `imagefolder`, from `save_to_disk`, or `owner/name` on the Hub | `hub_datasets` |

`layouts.list_dataset` detects the layout from the path and lists the samples of every layout except `shards`.
`hub_export` writes parquet files for `datasets`.
In training, `training_set.PairSet` and `PhotographSet` return the crop at (seed, epoch, index), and
`synthesis.composites.SyntheticComposites` makes composites from a batch of photographs on the device.
`captions` writes prompts with BLIP and reads them. `check.check_dataset` finds unusable files before
training.
"""

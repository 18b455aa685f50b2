#!/usr/bin/env bash
# Make the tables of the README and of the card of the default model: every method that needs no further weights.
#
#   bash eval/readme_table.sh IN_PLACE RELOCATED OUTPUT [MODEL [FRAMES]]
#
# IN_PLACE and RELOCATED are benchmarks in the layout of iHarmony4, made from the same photographs: objects recoloured
# in place, and objects moved within their photograph. MODEL is a registry name or a saved folder (default:
# color_grid). FRAMES is a set from `make_frame_composites.py`: objects on other frames of their clips. It adds rows to the
# table of gains.
# A run that was killed resumes.
set -e
in_place=$1 relocated=$2 output=$3 model=${4:-color_grid} frames=$5
name=$(basename "$model")
methods="identity poisson reinhard mkl histogram_matching idt"
score() { # SET DATA METHOD [OPTIONS]
  local set=$1 data=$2 method=$3
  shift 3
  python eval/eval_dataset.py --data "$data" --model "$method" --output "$output/$set/$(basename "$method")" "$@"
}
for method in $methods "$model"; do
  score in_place "$in_place" "$method"
  score relocated "$relocated" "$method"
done
score mask_large "$in_place" "$model" --mask-offset 2
score mask_small "$in_place" "$model" --mask-offset -2
score untouched_in_place "$in_place" "$model" --untouched
score untouched_relocated "$relocated" "$model" --untouched
frame_set=()
if [ -n "$frames" ]; then
  score frames "$frames" identity
  score frames "$frames" "$model"
  frame_set=(--set "other frame of the clip" "$output/frames/$name/rows.csv" "$output/frames/identity/rows.csv")
fi
for set in in_place relocated; do
  python eval/make_tables.py $(for method in $methods $name; do echo "$output/$set/$method/rows.csv"; done) \
    --compare "$name,identity" --output "$output/$set/tables"
done
python eval/make_gains.py \
  --set "in place" "$output/in_place/$name/rows.csv" "$output/in_place/identity/rows.csv" \
  --set relocated "$output/relocated/$name/rows.csv" "$output/relocated/identity/rows.csv" \
  --set "mask 2 px too large" "$output/mask_large/$name/rows.csv" "$output/in_place/identity/rows.csv" \
  --set "mask 2 px too small" "$output/mask_small/$name/rows.csv" "$output/in_place/identity/rows.csv" \
  ${frame_set[@]+"${frame_set[@]}"} \
  --untouched "in place" "$output/untouched_in_place/$name/rows.csv" \
  --untouched relocated "$output/untouched_relocated/$name/rows.csv" \
  --output "$output/gains.md"
python eval/make_report.py "$output/in_place/$name/rows.csv" --composite "$output/in_place/identity/rows.csv" \
  --data "$in_place" --model "$model" --cases 4 --overwrite \
  --output "$output/report.html" --picture "$output/best_and_worst.jpg"

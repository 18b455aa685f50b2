#!/usr/bin/env bash
# The tables of the README: every method that works as installed, on composites and on untouched photographs.
#
#   bash eval/readme_table.sh BENCHMARK PHOTOGRAPHS OUTPUT
#
# BENCHMARK is a folder in iHarmony4's layout, PHOTOGRAPHS a folder with index.csv, whose split `test` is taken.
# A run that was killed goes on where it stopped.
set -e
benchmark=$1 photographs=$2 output=$3
methods="identity color_grid poisson reinhard mkl histogram_matching idt"
for method in $methods; do
  python eval/eval_dataset.py --data "$benchmark" --model "$method" --output "$output/$method"
done
python eval/eval_dataset.py --data "$photographs" --model color_grid --output "$output/untouched"
python eval/make_tables.py $(for method in $methods; do echo "$output/$method/rows.csv"; done) \
  --compare color_grid,identity --output "$output/tables"
python eval/make_report.py "$output/color_grid/rows.csv" --composite "$output/identity/rows.csv" \
  --data "$benchmark" --model color_grid --cases 4 --overwrite \
  --output "$output/report.html" --picture "$output/best_and_worst.jpg"

#!/usr/bin/env bash
# ControlNet that sees the raw foreground instead of its blurred colours: the ablation of figure 7
# (Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102)
#
#   bash train/recipes/sd2_raw_condition.sh --data OPEN_IMAGES/manifest-train.csv --captions OPEN_IMAGES/captions \
#     --output outputs/sd2_raw
#
# The settings of sd2_dual_low.sh with --sigma 0: nothing is blurred. The paper states no other setting. The result
# takes the place of the ControlNet for colours, alone; eval/paper_figures.sh compares it with the two ControlNets.
# Hardware and hours: as sd2_dual_low.sh, 8 RTX A6000, 96 h. Not run.
set -e
exec bash "$(dirname "$0")/sd2_dual_low.sh" --sigma 0 "$@"

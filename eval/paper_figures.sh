#!/usr/bin/env bash
# Figures 6 and 7 of the paper (Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102) as tables.
#
#   bash eval/paper_figures.sh PIPELINE PHOTOGRAPHS OUTPUT
#   RAW=outputs/mini/raw/model bash eval/paper_figures.sh outputs/mini/plain PHOTOGRAPHS OUTPUT
#
# PIPELINE is a folder by train/make_pipeline.py. Figure 6: both scales swept apart, by default 10 x 10; OUTPUT/grid
# receives grid.md, grid.csv and the heat map grid.png of FID and PSNR. Figure 7, if RAW is a ControlNet trained with
# `--sigma 0`: the raw foreground as the only condition, against edges and colours together, for foregrounds as they
# are and for foregrounds enlarged by each factor of SHRINK; OUTPUT/raw receives the tables.
# Every option can be set in the environment. For Stable Diffusion 2: SIZE=512 GUIDANCE=7.5 CAPTIONS=FOLDER
# EXTRACTOR=inception.safetensors EXTRACTOR_SIZE=299 IDS=ids.txt DEVICE=cuda.
# Hardware: two CPU cores; the grid of 100 photographs takes about three hours (estimated from 0.8 s of CPU time per
# photograph and cell in eval/mini_tables.sh). A run that was killed resumes.
set -e
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
PIPELINE=$1 DATA=$2 OUT=$3
SIZE=${SIZE:-128} SAMPLING_STEPS=${SAMPLING_STEPS:-20} GUIDANCE=${GUIDANCE:-1} SCALES=${SCALES:-0.1:1.0:0.1}
LIMIT=${LIMIT:-100} SHRINK=${SHRINK:-1 4} DEVICE=${DEVICE:-cpu} BATCH=${BATCH:-8}
here=$(dirname "$0")
mkdir -p "$OUT"
if [ -z "$EXTRACTOR" ]; then
  EXTRACTOR=$OUT/lite0.pt EXTRACTOR_SIZE=224
  [ -f "$EXTRACTOR" ] || python "$here/make_extractor.py" "$EXTRACTOR"
fi
if [ -n "$CAPTIONS" ]; then prompts=(--captions "$CAPTIONS"); else prompts=(--caption_column label); fi

score() { # NAME ARGUMENTS …
  local name=$1
  shift
  python "$here/eval_controlnets.py" --data "$DATA" "${prompts[@]}" ${IDS:+--ids "$IDS"} --base "$PIPELINE" \
    --size "$SIZE" --steps "$SAMPLING_STEPS" --guidance_scale "$GUIDANCE" --limit "$LIMIT" --batch_size "$BATCH" \
    --device "$DEVICE" --extractor "$EXTRACTOR" --extractor_size "${EXTRACTOR_SIZE:-299}" --force \
    --edges_like "$PIPELINE/controlnet_high" --output "$OUT/$name" "$@"
}
both=(--high "$PIPELINE/controlnet_high" --low "$PIPELINE/controlnet_low")
score grid "${both[@]}" --scale-grid "$SCALES"
if [ -n "$RAW" ]; then
  for factor in $SHRINK; do
    score "raw/both-$factor" "${both[@]}" --shrink-foreground "$factor"
    score "raw/raw-$factor" --low "$RAW" --shrink-foreground "$factor"
  done
  compared=()
  for factor in $SHRINK; do compared+=(--compare "both-$factor,raw-$factor"); done
  python "$here/make_tables.py" "$OUT"/raw/*/rows.csv "${compared[@]}" --output "$OUT/raw"
else
  echo "Figure 7: not run, because RAW is not set; train/recipes/mini_raw_condition.sh trains it"
fi

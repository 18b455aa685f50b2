#!/usr/bin/env bash
# The tables of a small dual-ControlNet pipeline: what each control brings, at which scale, and whether it harmonizes.
#
#   bash eval/mini_tables.sh checkpoints/mini_dual_controlnet PHOTOGRAPHS OUTPUT [CONTROLNET …]
#
# PIPELINE is a folder by train/save_pipeline.py; PHOTOGRAPHS holds index.csv with the split `test` and the column
# `label`. Table 1 of the paper (text, high, low, both), Table 2 (the scale of both controls), and foregrounds in wrong
# colours, which the pipeline shall put right: with its own ControlNet for colours, and with each of those named
# after OUTPUT. FID and KID with EfficientNet-Lite0 (ImageNet), for want of Inception offline.
# Hardware: two CPU cores. A run that was killed goes on where it stopped.
set -e
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
PIPELINE=$1 DATA=$2 OUT=$3
shift 3
SIZE=${SIZE:-128} SAMPLING_STEPS=${SAMPLING_STEPS:-20} TEST_LIMIT=${TEST_LIMIT:-1000000} SWEEP_LIMIT=${SWEEP_LIMIT:-200}
SCALES=${SCALES:-0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1.0} PERTURBED_SCALES=${PERTURBED_SCALES:-0.5 1.0}
DEVICE=${DEVICE:-cpu} JOBS=${JOBS:-2}
here=$(dirname "$0")
mkdir -p "$OUT"

score() { # NAME LIMIT ARGUMENTS...: generate and score, beside at most JOBS - 1 others
  local name=$1 limit=$2
  shift 2
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do sleep 1; done
  python "$here/eval_controlnets.py" --data "$DATA" --caption_column label --base "$PIPELINE" \
    --size "$SIZE" --steps "$SAMPLING_STEPS" --guidance_scale 1 --limit "$limit" --device "$DEVICE" \
    --extractor "$OUT/lite0.pt" --extractor_size 224 --force --output "$OUT/$name" "$@" &
  scoring+=($!)
}
high=(--high "$PIPELINE/controlnet_high") low=(--low "$PIPELINE/controlnet_low")

[ -f "$OUT/lite0.pt" ] || python "$here/make_extractor.py" "$OUT/lite0.pt"
score sweep "$SWEEP_LIMIT" "${high[@]}" "${low[@]}" --control-scale "${SCALES// /,}"
score text "$TEST_LIMIT"
score high "$TEST_LIMIT" "${high[@]}"
score low "$TEST_LIMIT" "${low[@]}"
score both "$TEST_LIMIT" "${high[@]}" "${low[@]}"
for controlnet in "$PIPELINE/controlnet_low" "$@"; do
  name=$(basename "${controlnet%/model}")
  for scale in $PERTURBED_SCALES; do
    score "perturbed/$name-$scale" "$SWEEP_LIMIT" --perturb "${high[@]}" --low "$controlnet" \
      --high_scale "$scale" --low_scale "$scale"
  done
done
for job in "${scoring[@]}"; do wait "$job"; done
python "$here/make_tables.py" "$OUT"/{text,high,low,both}/rows.csv --compare both,high --compare both,low \
  --compare both,text --output "$OUT/tables"
python "$here/make_tables.py" "$OUT"/perturbed/*/rows.csv --output "$OUT/tables/perturbed"

#!/usr/bin/env bash
# Make the tables of a small dual-ControlNet pipeline: effect of each control, control scale, and harmonization.
#
#   bash eval/mini_tables.sh checkpoints/mini_dual_controlnet PHOTOGRAPHS OUTPUT
#   BENCHMARK=FOLDER bash eval/mini_tables.sh outputs/mini/plain PHOTOGRAPHS OUTPUT outputs/mini/perturbed …
#
# The first argument and those after OUTPUT are folders written by train/make_pipeline.py. PHOTOGRAPHS contains index.csv
# with the split `test` and the column `label`.
# First pipeline: Table 1 of the paper (text, high, low, both) and Table 2 (scale of both controls). FID and KID use
# EfficientNet-Lite0 (ImageNet), because Inception is not available offline. The agreement of edges is that with the
# edges of the first pipeline's ControlNet. Paint by Example has a row if PBE is a folder with its weights, else it is
# listed as not run.
# All pipelines: scores of the results compared with the scores of the composites (`identity`), for photographs with
# perturbed foregrounds and, if BENCHMARK is a folder in the layout of iHarmony4, for its composites. `detail` is
# "generated" (paste the generated foreground) or "preserve" (transfer only its colour and light).
# Hardware: two CPU cores. A run that was killed resumes.
set -e
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
FIRST=$1 DATA=$2 OUT=$3
shift 3
SIZE=${SIZE:-128} SAMPLING_STEPS=${SAMPLING_STEPS:-20} SCALES=${SCALES:-0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1.0}
PERTURBED_SCALES=${PERTURBED_SCALES:-0.5 1.0} DETAILS=${DETAILS:-generated preserve} DEVICE=${DEVICE:-cpu} JOBS=${JOBS:-2}
TEST_LIMIT=${TEST_LIMIT:-1000000} SWEEP_LIMIT=${SWEEP_LIMIT:-100} BENCHMARK_LIMIT=${BENCHMARK_LIMIT:-25}
here=$(dirname "$0")
mkdir -p "$OUT"

. "$here/jobs.sh"
score() { # NAME LIMIT PIPELINE ARGUMENTS …: regenerate foregrounds of photographs
  local name=$1 limit=$2 pipeline=$3
  shift 3
  start python "$here/eval_controlnets.py" --data "$DATA" --caption_column label --base "$pipeline" --size "$SIZE" \
    --steps "$SAMPLING_STEPS" --guidance_scale 1 --limit "$limit" --device "$DEVICE" --extractor "$OUT/lite0.pt" \
    --extractor_size 224 --force --edges_like "$FIRST/controlnet_high" --output "$OUT/$name" "$@"
}

[ -f "$OUT/lite0.pt" ] || python "$here/make_extractor.py" "$OUT/lite0.pt"
high=(--high "$FIRST/controlnet_high") low=(--low "$FIRST/controlnet_low")
score sweep "$SWEEP_LIMIT" "$FIRST" "${high[@]}" "${low[@]}" --control-scale "${SCALES// /,}"
score text "$TEST_LIMIT" "$FIRST"
score high "$TEST_LIMIT" "$FIRST" "${high[@]}"
score low "$TEST_LIMIT" "$FIRST" "${low[@]}"
score both "$TEST_LIMIT" "$FIRST" "${high[@]}" "${low[@]}"
rows=("$OUT"/{text,high,low,both}/rows.csv)
pbe=(--not-run "paint-by-example=PBE=FOLDER bash eval/mini_tables.sh PIPELINE PHOTOGRAPHS OUTPUT")
if [ -n "$PBE" ]; then
  rows+=("$OUT/paint-by-example/rows.csv") pbe=()
  score paint-by-example "$TEST_LIMIT" "$PBE" --model paint-by-example --guidance_scale 5
fi
score perturbed/identity "$SWEEP_LIMIT" "$FIRST" --perturb --model identity
for pipeline in "$FIRST" "$@"; do
  for scale in $PERTURBED_SCALES; do
    for detail in $DETAILS; do
      score "perturbed/$(basename "$pipeline")-$scale-$detail" "$SWEEP_LIMIT" "$pipeline" --perturb --detail "$detail" \
        --high_scale "$scale" --low_scale "$scale" --high "$pipeline/controlnet_high" --low "$pipeline/controlnet_low"
    done
  done
done
if [ -n "$BENCHMARK" ]; then
  composites=(python "$here/eval_dataset.py" --data "$BENCHMARK" --limit "$BENCHMARK_LIMIT")
  start "${composites[@]}" --model identity --output "$OUT/benchmark/identity"
  for pipeline in "$FIRST" "$@"; do
    for scale in $PERTURBED_SCALES; do
      for detail in $DETAILS; do
        start "${composites[@]}" --model "$pipeline" --output "$OUT/benchmark/$(basename "$pipeline")-$scale-$detail" \
          --call num_inference_steps="$SAMPLING_STEPS" guidance_scale=1 high_scale="$scale" low_scale="$scale" \
          detail="$detail"
      done
    done
  done
fi
finish_all

python "$here/make_tables.py" "${rows[@]}" --compare both,high --compare both,low \
  --compare both,text "${pbe[@]}" --output "$OUT/tables"
for variant in raw pasted; do
  start python "$here/eval_fid.py" "$OUT/both/$variant" "$OUT/both/real" --against "$OUT"/{high,low,text}/"$variant" \
    --force --extractor "$OUT/lite0.pt" --size 224 --output "$OUT/tables/fid_$variant.json"
done
finish_all
for kind in perturbed ${BENCHMARK:+benchmark}; do
  compared=()
  for file in "$OUT/$kind"/*-*/rows.csv; do compared+=(--compare "$(basename "$(dirname "$file")"),identity"); done
  python "$here/make_tables.py" "$OUT/$kind"/*/rows.csv "${compared[@]}" --output "$OUT/tables/$kind"
done

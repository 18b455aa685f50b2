#!/usr/bin/env bash
# Compare a diffusion pipeline that harmonizes with the default model, the mini dual-ControlNet pipeline, and the composites.
#
#   bash eval/harmonizer_tables.sh IN_PLACE RELOCATED OUTPUT [HARMONIZER] [DUAL]
#
# IN_PLACE and RELOCATED are benchmarks in the layout of iHarmony4, as for eval/readme_table.sh: objects recoloured in place,
# and objects moved within their photograph. HARMONIZER and DUAL are folders of pipelines (default:
# checkpoints/mini_harmonizer and checkpoints/mini_dual_controlnet). OUTPUT/table.md receives the tables: PSNR, fMSE and its
# ratio to that of the composites with intervals, FID and KID with EfficientNet-Lite0, the PSNR of photographs that need no
# change, and the seconds of CPU time for a picture.
# STEPS are the steps of HARMONIZER, MORE_STEPS those of a second row, CALL further options, LIMIT the composites of each kind,
# METHODS some of the methods below.
# Hardware: two CPU cores, about two hours. A run that was killed resumes.
set -e
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
in_place=$1 relocated=$2 output=$3 harmonizer=${4:-checkpoints/mini_harmonizer} dual=${5:-checkpoints/mini_dual_controlnet}
STEPS=${STEPS:-1} MORE_STEPS=${MORE_STEPS:-4} DUAL_STEPS=${DUAL_STEPS:-20} JOBS=${JOBS:-2} TIMED=${TIMED:-4}
limit=(${LIMIT:+--limit "$LIMIT"})
here=$(dirname "$0")
mkdir -p "$output/seconds"

. "$here/jobs.sh"
options_of() { # METHOD: set `model` and `call`
  local steps=$STEPS
  [ "$1" = mini_harmonizer ] || steps=$MORE_STEPS
  case $1 in
    mini_harmonizer*) model=$harmonizer call=(--call "num_inference_steps=$steps" guidance_scale=1 detail=preserve $CALL) ;;
    mini_dual_controlnet) model=$dual call=(--call "num_inference_steps=$DUAL_STEPS" guidance_scale=1 detail=preserve) ;;
    *) model=$1 call=() ;;
  esac
}
score() { # SET DATA METHOD [OPTIONS]
  local set=$1 data=$2 method=$3 model call
  shift 3
  options_of "$method"
  start python "$here/eval_dataset.py" --data "$data" "${limit[@]}" --model "$model" --output "$output/$set/$method" "${call[@]}" "$@"
}
time_method() { # METHOD: CPU seconds for a picture, without imports and loading
  local model call report
  options_of "$1"
  report=$(python "$here/eval_dataset.py" --data "$in_place" --limit "$TIMED" --model "$model" --timing --restart \
    --output "$output/seconds/$1" "${call[@]}" 2>&1 >/dev/null | sed -n 's/^scored in .* s, \(.*\) s of CPU.*/\1/p')
  images=$(($(wc -l < "$output/seconds/$1/rows.csv") - 1))
  awk -v total="$report" -v images="$images" 'BEGIN { print total / images }' > "$output/seconds/$1.txt"
}

methods=${METHODS:-identity color_grid mini_dual_controlnet mini_harmonizer mini_harmonizer_${MORE_STEPS}_steps}
[ -f "$output/lite0.pt" ] || python "$here/make_extractor.py" "$output/lite0.pt"
for set in in_place relocated; do
  data=${!set}
  score "untouched_$set" "$data" identity --untouched --save-images "$output/images/$set/real"
  for method in $methods; do
    score "$set" "$data" "$method" --save-images "$output/images/$set/$method"
    [ "$method" = identity ] || score "untouched_$set" "$data" "$method" --untouched
  done
done
finish_all
for method in ${methods#identity}; do [ -s "$output/seconds/$method.txt" ] || time_method "$method"; done
for set in in_place relocated; do
  for method in $methods; do
    [ -f "$output/$set/$method/fid.json" ] || start python "$here/eval_fid.py" "$output/images/$set/$method" \
      "$output/images/$set/real" --force --extractor "$output/lite0.pt" --size 224 --output "$output/$set/$method/fid.json"
  done
done
finish_all
python "$here/make_harmonizer_table.py" "$output" --sets in_place relocated --methods $methods --output "$output/table.md"

#!/usr/bin/env bash
# The whole method at a size that two CPU cores train in a night: base, both ControlNets, evaluation
# (after Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102)
#
#   bash train/recipes/mini_dual_controlnet.sh PATH/TO/PHOTOGRAPHS PATH/TO/taef2.safetensors outputs/mini
#
# PHOTOGRAPHS holds index.csv with the splits train, val and test and the column `label`. 128x128, a U-Net of
# 8.5 M parameters on the 32 latent channels of TAEF2, two ControlNets of 3.7 M, a text encoder of random weights.
# `low_perturbed` is trained with perturbed foregrounds, `low_plain` without, as in the paper; with `base` and `high`
# they make the pipelines `perturbed` and `plain`, whose tables come to `eval/tables`. Killed, the same command goes on
# where it was.
#
# The ControlNets are trained apart and for the latents first, as in the paper (`draft_…`), and then for decoded
# pictures, unlike there, since two of TAEF2's 32 channels hold most of the light; `high` beside `low_plain`, for half of
# its samples.
#
# Edges need three things that colours do not. At 128 pixels the thresholds 100 and 200, meant for 512, mark 19 % of the
# foreground, mostly texture: the edges of another photograph agree with them as well as those of a result made from
# text alone. 200 and 400 mark 11 %. The weights that --pixel_loss gives to the channels of light leave little for
# the channels of detail: `edges_high` therefore trains for the plain latents of the draft, four times as long,
# beside `low_plain`, before the short training for decoded pictures. And eval/mini_tables.sh measures whether edges show.
# Hardware: two CPU cores: 40 minutes to encode the crops, 48 to train the base, 36 for the drafts, 40 for the
# ControlNets, 45 for the tables; `edges_high` 72 more. 2.1 GB. Or a GPU
# with PROCESSES=1 DEVICE=cuda.
# Expected: not run in one go with `edges_high`; docs/mini_method.md has the scores of its stages on 60 photographs. Without
# it, and with the thresholds 100 and 200: the tables of checkpoints/mini_dual_controlnet.
#
# Steps and sizes can be set in the environment, see below.
set -e
# Tensors that are freed at every step shall not go back to the system at every step (glibc).
export MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000
# Networks this small gain nothing from a second thread, and everything from a second process.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
DATA=$1 TAEF2=$2 OUT=$3
BASE_STEPS=${BASE_STEPS:-6000} CONTROL_STEPS=${CONTROL_STEPS:-2000} PICTURE_STEPS=${PICTURE_STEPS:-400}
EDGE_STEPS=${EDGE_STEPS:-$((4 * CONTROL_STEPS))} THRESHOLDS=${THRESHOLDS:-200 400}
BATCH=${BATCH:-16} SIZE=${SIZE:-128} TRAIN_LIMIT=${TRAIN_LIMIT:-1000000}
VARIANTS=${VARIANTS:-2} DEVICE=${DEVICE:-cpu} PROCESSES=${PROCESSES:-2}
[ "$DEVICE" != cpu ] || export ACCELERATE_USE_CPU=true
here=$(dirname "$0")/../..
# A training may outlive this shell: do not start another beside it.
mkdir -p "$OUT"
exec 9> "$OUT/.lock"
! command -v flock > /dev/null || flock -n 9 || { echo "$OUT: another run is at work there" >&2; exit 1; }

shared=(--data "$DATA" --caption_column label --max_train_samples "$TRAIN_LIMIT" --resolution "$SIZE"
  --precompute "$VARIANTS" --proportion_empty_prompts 0.1 --lr_scheduler cosine --use_ema
  --validation_split val --validation_steps 2000 --validation_inference_steps 20
  --validation_guidance_scale 1 --checkpointing_steps 250)
controlnet=(--pretrained_model_name_or_path "$OUT/base/model" --conditioning_embedding 8 16 32 64 --unit_embedding
  --sigma $((SIZE / 64)))
draft=("${controlnet[@]}" --max_train_steps "$CONTROL_STEPS" --learning_rate 1e-3 --lr_warmup_steps 50
  --ema_decay 0.995)
high=(--control high --precomputed_dir "$OUT/latents" --canny_thresholds $THRESHOLDS)
low_plain=(--control low --precomputed_dir "$OUT/latents" --no_perturb_foreground)
low_perturbed=(--control low --precomputed_dir "$OUT/latents_perturbed" --precompute 1)

stage() { # PROCESSES NAME SCRIPT ARGUMENTS...: train, unless it is done
  local processes=$1 name=$2 script=$3
  shift 3
  [ -d "$OUT/$name/model" ] || torchrun --standalone --nproc_per_node "$processes" "$here/train/$script.py" \
    --output "$OUT/$name" --train_batch_size $((BATCH / processes)) "${shared[@]}" "$@"
}

stage "$PROCESSES" base train_inpainting --random_base mini --taef2 "$TAEF2" --max_train_steps "$BASE_STEPS" \
  --learning_rate 3e-4 --lr_warmup_steps 500 --ema_decay 0.999 --precomputed_dir "$OUT/latents"

stage 1 draft_high train_controlnet "${draft[@]}" "${high[@]}" &
trainings=($!)
stage 1 draft_low_plain train_controlnet "${draft[@]}" "${low_plain[@]}" &
trainings+=($!)
stage 1 draft_low_perturbed train_controlnet "${draft[@]}" "${low_perturbed[@]}" &
trainings+=($!)
for training in "${trainings[@]}"; do wait "$training"; done

finish() { # NAME DRAFT STEPS ARGUMENTS...: train for decoded pictures, each step of which takes three times as long
  local name=$1 draft=$2 steps=$3
  shift 3
  stage "$PROCESSES" "$name" train_controlnet "${controlnet[@]}" --max_train_steps "$steps" --learning_rate 5e-4 \
    --lr_warmup_steps 20 --ema_decay 0.98 --pixel_loss 0.25 --controlnet_model_name_or_path "$OUT/$draft/model" "$@"
}
finish low_plain draft_low_plain "$PICTURE_STEPS" "${low_plain[@]}"
finish low_perturbed draft_low_perturbed "$PICTURE_STEPS" "${low_perturbed[@]}"
beside=("${high[@]}" --beside "$OUT/low_plain/model")
stage "$PROCESSES" edges_high train_controlnet "${controlnet[@]}" --max_train_steps "$EDGE_STEPS" \
  --learning_rate 1e-3 --lr_warmup_steps 50 --ema_decay 0.999 --controlnet_model_name_or_path "$OUT/draft_high/model" \
  "${beside[@]}"
finish high edges_high "$PICTURE_STEPS" "${beside[@]}"

for low in plain perturbed; do
  [ -d "$OUT/$low" ] || python "$here/train/make_pipeline.py" --base "$OUT/base/model" --high "$OUT/high/model" \
    --low "$OUT/low_$low/model" --half --output "$OUT/$low"
done
SIZE=$SIZE DEVICE=$DEVICE JOBS=${JOBS:-$PROCESSES} bash "$here/eval/mini_tables.sh" "$OUT/plain" "$DATA" "$OUT/eval" \
  "$OUT/perturbed"

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
# The ControlNets for colours are trained apart, as in the paper; `high` starts apart (`draft_high`) and goes on beside
# `low_plain`, for half of its samples. All are trained for plain latents. Training them for decoded pictures
# (--pixel_loss) makes results nearer to the photograph and blurred, and beside blurred colours, sharp edges cost PSNR.
#
# Edges need two things that colours do not. At 128 pixels the thresholds 100 and 200, meant for 512, mark 19 % of the
# foreground, mostly texture: the edges of another photograph agree with them as well as those of a result made from
# text alone. 200 and 400 mark 11 %. And they need eight times as many steps. docs/mini_method.md has the pairs that
# were tried.
# Hardware: two CPU cores: 40 minutes to encode the crops, 48 to train the base, 50 for colours and the draft, 140 for
# the edges, 30 for the tables. 2.1 GB. Or a GPU with PROCESSES=1 DEVICE=cuda.
# Expected: the tables of checkpoints/mini_dual_controlnet, whose ControlNets were trained in more stages, see its card. Not run
# in one go.
#
# Steps and sizes can be set in the environment, see below.
set -e
# Tensors that are freed at every step shall not go back to the system at every step (glibc).
export MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000
# Networks this small gain nothing from a second thread, and everything from a second process.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
DATA=$1 TAEF2=$2 OUT=$3
BASE_STEPS=${BASE_STEPS:-6000} CONTROL_STEPS=${CONTROL_STEPS:-2000} EDGE_STEPS=${EDGE_STEPS:-$((8 * CONTROL_STEPS))}
LOW_STEPS=${LOW_STEPS:-$((3 * CONTROL_STEPS / 2))} THRESHOLDS=${THRESHOLDS:-200 400}
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
apart=("${controlnet[@]}" --learning_rate 1e-3 --lr_warmup_steps 50 --ema_decay 0.995)
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

stage 1 draft_high train_controlnet "${apart[@]}" --max_train_steps "$CONTROL_STEPS" "${high[@]}" &
trainings=($!)
stage 1 low_plain train_controlnet "${apart[@]}" --max_train_steps "$LOW_STEPS" "${low_plain[@]}" &
trainings+=($!)
stage 1 low_perturbed train_controlnet "${apart[@]}" --max_train_steps "$LOW_STEPS" "${low_perturbed[@]}" &
trainings+=($!)
for training in "${trainings[@]}"; do wait "$training"; done

stage "$PROCESSES" high train_controlnet "${controlnet[@]}" --max_train_steps "$EDGE_STEPS" --learning_rate 1e-3 \
  --lr_warmup_steps 50 --ema_decay 0.999 --controlnet_model_name_or_path "$OUT/draft_high/model" "${high[@]}" \
  --beside "$OUT/low_plain/model"

for low in plain perturbed; do
  [ -d "$OUT/$low" ] || python "$here/train/make_pipeline.py" --base "$OUT/base/model" --high "$OUT/high/model" \
    --low "$OUT/low_$low/model" --half --output "$OUT/$low"
done
SIZE=$SIZE DEVICE=$DEVICE JOBS=${JOBS:-$PROCESSES} bash "$here/eval/mini_tables.sh" "$OUT/plain" "$DATA" "$OUT/eval" \
  "$OUT/perturbed"

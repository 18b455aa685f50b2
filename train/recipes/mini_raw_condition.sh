#!/usr/bin/env bash
# The ablation of figure 7 in small: a ControlNet that sees the raw foreground instead of its blurred colours
# (Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102)
#
#   bash train/recipes/mini_raw_condition.sh PATH/TO/PHOTOGRAPHS outputs/mini
#
# OUTPUT is that of mini_dual_controlnet.sh: its base and its encoded crops are used, and both are made by that
# recipe. The settings are those of its `low_plain` with --sigma 0; OUTPUT/raw/model receives the result, and
# OUTPUT/figures the tables of eval/paper_figures.sh.
# Hardware: two CPU cores, about 25 minutes to train (estimated from `low_plain`), and the tables. Not run to its end.
set -e
export MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
DATA=$1 OUT=$2
CONTROL_STEPS=${CONTROL_STEPS:-2000} LOW_STEPS=${LOW_STEPS:-$((3 * CONTROL_STEPS / 2))} BATCH=${BATCH:-16} SIZE=${SIZE:-128}
VARIANTS=${VARIANTS:-2} TRAIN_LIMIT=${TRAIN_LIMIT:-1000000} DEVICE=${DEVICE:-cpu} PROCESSES=${PROCESSES:-2}
[ "$DEVICE" != cpu ] || export ACCELERATE_USE_CPU=true
here=$(dirname "$0")/../..

[ -d "$OUT/raw/model" ] || torchrun --standalone --nproc_per_node "$PROCESSES" "$here/train/train_controlnet.py" \
  --control low --sigma 0 --no_perturb_foreground --output "$OUT/raw" --train_batch_size $((BATCH / PROCESSES)) \
  --data "$DATA" --caption_column label --max_train_samples "$TRAIN_LIMIT" --resolution "$SIZE" \
  --precompute "$VARIANTS" --precomputed_dir "$OUT/latents" --proportion_empty_prompts 0.1 --lr_scheduler cosine \
  --use_ema --checkpointing_steps 250 --pretrained_model_name_or_path "$OUT/base/model" \
  --conditioning_embedding 8 16 32 64 --unit_embedding --max_train_steps "$LOW_STEPS" --learning_rate 1e-3 \
  --lr_warmup_steps 50 --ema_decay 0.995
RAW=$OUT/raw/model SIZE=$SIZE DEVICE=$DEVICE bash "$here/eval/paper_figures.sh" "$OUT/plain" "$DATA" "$OUT/figures"

#!/usr/bin/env bash
# ControlNet for colours (Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102)
#
#   bash train/recipes/sd2_dual_low.sh --data OPEN_IMAGES/manifest-train.csv --captions OPEN_IMAGES/captions \
#     --output outputs/sd2_dual_low
#
# Paper: Stable Diffusion 2 inpainting frozen, whole frames at 512x512, Adam 1e-6, weight decay 0.01 (as part of the
# gradient: the paper says Adam, not AdamW), 10,000 warm-up steps, 64 images a step, control scale 1, 12.5 % of Open
# Images (docs/training.md prepares it), captions by BLIP.
# Hardware and hours: 8 RTX A6000, 96 h. The paper states no number of steps; 200,000 stand for it here.
# Expected: with the ControlNet for edges FID 11.79, PSNR 31.26, MSE 53.08 on 2,000 images of Open Images.
# Not run.
# Not in the paper: bf16, and empty prompts (none). The foreground is not perturbed, as in the paper:
# the blurred colours are then the right ones already, and nothing teaches harmonization. Without the flag
# --no_perturb_foreground it is.
set -e
accelerate launch --num_processes 8 ${LAUNCH_FLAGS:-} train/train_controlnet.py \
  --control low \
  --no_perturb_foreground \
  --control_scale 1 \
  --resolution 512 \
  --whole_frames 1 \
  --no_mirror \
  --optimizer adam \
  --train_batch_size 4 \
  --gradient_accumulation_steps 2 \
  --max_train_steps 200000 \
  --learning_rate 1e-6 \
  --lr_scheduler constant_with_warmup \
  --lr_warmup_steps 10000 \
  --adam_weight_decay 0.01 \
  --mixed_precision bf16 \
  --gradient_checkpointing \
  --checkpointing_steps 1000 \
  --dataloader_num_workers 8 \
  "$@"

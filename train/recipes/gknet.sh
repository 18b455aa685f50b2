#!/usr/bin/env bash
# GKNet (Shen et al., ICCV 2023, https://arxiv.org/abs/2305.11676)
#
#   bash train/recipes/gknet.sh --data PATH/TO/IHARMONY4 --output outputs/gknet
#
# Paper: iHarmony4 at 256x256, batch 16, Adam 1e-4 (0.9, 0.999, 1e-8), 120 epochs, FN-MSE with A_min 100.
# Expected, iHarmony4 at 256x256: PSNR 39.53, MSE 19.90, fMSE 220.44.
# Hardware and hours: four RTX 2080 Ti, about two days.
# Not run.
# Not stated in the paper: the schedule (here that of iDIH, times 0.1 at 105 and 115) and the augmentation
# (here crops and mirroring).
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model gknet \
  --loss fn_mse \
  --min_area 100 \
  --train_batch_size 16 \
  --num_train_epochs 120 \
  --optimizer adam \
  --learning_rate 1e-4 \
  --lr_scheduler step \
  --lr_milestones 105 115 \
  --lr_gamma 0.1 \
  --dataloader_num_workers 8 \
  "$@"

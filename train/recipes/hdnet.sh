#!/usr/bin/env bash
# HDNet (Chen et al., ACM MM 2023, https://arxiv.org/abs/2211.08639)
#
#   bash train/recipes/hdnet.sh --data PATH/TO/IHARMONY4 --output outputs/hdnet
#
# Official code: iHarmony4 at 256x256, batch 12, Adam 1e-3, times 0.1 at epoch 100 and again at 110 of 120,
# FN-MSE with A_min 100, no augmentation, the background of the composite replaced by that of the real image.
# Expected, iHarmony4 at 256x256: PSNR 40.46, MSE 16.55 (best epoch on the test set; the paper of March 2023
# says 38.58 and 23.42).
# Hardware and hours: not stated.
# Not run.
# Other than the official code: half of the samples are mirrored. Its loss is in [-1, 1], four times ours, which
# Adam hardly sees.
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model hdnet \
  --loss fn_mse \
  --min_area 100 \
  --clean_background \
  --whole_frames 1 \
  --train_batch_size 12 \
  --num_train_epochs 120 \
  --optimizer adam \
  --learning_rate 1e-3 \
  --lr_scheduler step \
  --lr_milestones 100 110 \
  --lr_gamma 0.1 \
  --dataloader_num_workers 8 \
  "$@"

#!/usr/bin/env bash
# PCT-Net, CNN (Guerreiro et al., CVPR 2023)
#
#   bash train/recipes/pct_net.sh --data PATH/TO/IHARMONY4 --output outputs/pct_net
#
# Official code: iHarmony4 at full resolution, batch 16 (8 on each of two GPUs), Adam 1e-3, times 0.1 at epochs 160
# and 175 of 180, FN-MSE with A_min 1000, smoothness of the parameter maps times 0.1, contrastive loss times 0.01.
# Expected, iHarmony4 at full resolution: PSNR 38.30, MSE 24.02, fMSE 282.8.
# Hardware and hours: two GPUs; hours: not stated.
# Not run.
# Other than the official code: crops are scaled to 512x512 (`--resolution`), of which the network sees 256x256; no
# contrastive loss, which needs VGG-16.
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model pct_net \
  --loss fn_mse \
  --min_area 1000 \
  --smoothness 0.1 \
  --resolution 512 \
  --train_batch_size 16 \
  --num_train_epochs 180 \
  --optimizer adam \
  --learning_rate 1e-3 \
  --lr_scheduler step \
  --lr_milestones 160 175 \
  --lr_gamma 0.1 \
  --dataloader_num_workers 8 \
  "$@"

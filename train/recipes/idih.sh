#!/usr/bin/env bash
# iDIH (Sofiiuk et al., WACV 2021, https://arxiv.org/abs/2006.00809)
#
#   bash train/recipes/idih.sh --data PATH/TO/IHARMONY4 --output outputs/idih
#
# Official code: iHarmony4 at 256x256, batch 16, Adam 1e-3 (0.9, 0.999, 1e-8), times 0.1 at epochs 105 and 115 of
# 120, FN-MSE with A_min 100 on the whole frame the network renders, crops of at least half the frame, mirroring.
# Expected, iHarmony4 at 256x256: PSNR 36.99, MSE 30.70.
# Hardware and hours: not stated.
# Not run.
# Other than the official code: crops are at least a quarter of the frame and hold half of the object, and 35 % of
# the samples are whole frames. Its loss is in units of ImageNet's deviation, which Adam hardly sees.
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model idih \
  --loss fn_mse \
  --min_area 100 \
  --raw_output \
  --train_batch_size 16 \
  --num_train_epochs 120 \
  --optimizer adam \
  --learning_rate 1e-3 \
  --lr_scheduler step \
  --lr_milestones 105 115 \
  --lr_gamma 0.1 \
  --dataloader_num_workers 8 \
  "$@"

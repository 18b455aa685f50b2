#!/usr/bin/env bash
# iMRSF-DAM-GCT (Yang, Li, Liu, Gao)
#
#   bash train/recipes/imrsf_dam_gct.sh --data PATH/TO/IHARMONY4 --output outputs/imrsf_dam_gct
#
# Paper: iHarmony4 at 256x256, Adam 1e-3 (0.9, 0.999), times 0.5 at epochs 55, 81, 105 and 115 of 120, FN-MSE
# with A_min 100, mirroring and crops of random size.
# Expected, iHarmony4 at 256x256: PSNR 39.75, MSE 17.05, fMSE 186.89.
# Hardware: four GTX 1080 Ti; hours: not stated.
# Not run.
# Not stated in the paper: the batch size (here 16).
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model imrsf_dam_gct \
  --loss fn_mse \
  --min_area 100 \
  --raw_output \
  --train_batch_size 16 \
  --num_train_epochs 120 \
  --optimizer adam \
  --learning_rate 1e-3 \
  --lr_scheduler step \
  --lr_milestones 55 81 105 115 \
  --lr_gamma 0.5 \
  --dataloader_num_workers 8 \
  "$@"

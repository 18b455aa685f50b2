#!/usr/bin/env bash
# Harmonizer (Ke et al., ECCV 2022, https://arxiv.org/abs/2207.01322)
#
#   bash train/recipes/harmonizer.sh --data PATH/TO/IHARMONY4 --output outputs/harmonizer
#
# Paper: iHarmony4 at 256x256, batches of 8 fine and 8 coarse, Adam 3e-4, times 0.1 at epochs 25 and 50 of 60.
# Expected, iHarmony4 at 256x256: PSNR 37.84, MSE 24.26, fMSE 280.51.
# Hardware and hours: the paper names none.
# Not run to its end. 1,000 steps on photographs with masks (`--data PHOTOGRAPHS --dataloader_num_workers 0
# --profile_steps 1000`, one CPU core): data 1.6 % of the time, transfer and composites 5.6 %; 3.3 images/s.
# Other than the paper: its encoder starts from ImageNet weights of EfficientNet-B0, which are not at hand, so
# this one starts from random ones (`--model harmonizer_lite --imagenet_encoder` starts from those of Lite0);
# crops of the object in place of whole frames in 65 % of the samples; its colour jitter is that of
# `data.synthetic.jitter`. Both halves of a batch come from two passes through the same samples.
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model harmonizer \
  --loss harmonizer \
  --quarter_turns \
  --train_batch_size 16 \
  --num_train_epochs 60 \
  --optimizer adam \
  --learning_rate 3e-4 \
  --lr_scheduler step \
  --lr_milestones 25 50 \
  --lr_gamma 0.1 \
  --dataloader_num_workers 8 \
  "$@"

#!/usr/bin/env bash
# Harmonizer (Ke et al., ECCV 2022, https://arxiv.org/abs/2207.01322) with an EfficientNet-Lite0 encoder at 128 pixels
#
#   bash train/recipes/harmonizer_lite.sh --data PATH/TO/PHOTOGRAPHS --output outputs/harmonizer_lite
#
# The paper's two streams and its dynamic loss, on photographs with masks in place of iHarmony4.
# Other than the paper: encoder (Lite0 from ImageNet weights), 128 pixels, AdamW 5e-4 with linear decay, a moving average
# of the weights; objects of both streams also stand before other parts of their photograph, or are moved within it.
# Run in part: the included weights are those of two processes, 2,500 steps and `--ema_decay 0.995`, 52 minutes on two CPU
# cores; see harmony_diffusion/weights/harmonizer_lite/README.md. 24 images a second of CPU time.
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model harmonizer_lite \
  --model_config '{"working_size": 128}' \
  --imagenet_encoder \
  --subset_power 0.5 \
  --resolution 128 \
  --loss harmonizer \
  --train_batch_size 16 \
  --num_train_epochs 60 \
  --optimizer adamw \
  --adam_weight_decay 0.02 \
  --learning_rate 5e-4 \
  --lr_warmup_steps 200 \
  --lr_scheduler linear \
  --max_grad_norm 1 \
  --use_ema \
  --channels_last \
  --half \
  "$@"

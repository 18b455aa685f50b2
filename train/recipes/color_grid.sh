#!/usr/bin/env bash
# ColorGrid, the default model (this project)
#
#   bash train/recipes/color_grid.sh --data PATH/TO/PHOTOGRAPHS --output outputs/color_grid
#
# Composites are made of photographs with masks as training goes. AdamW 6e-4, a constant rate and then a linear decay to
# zero, root of FN-MSE, ImageNet encoder whose first stages stay as they are.
# Expected, hardware and hours: see harmony_diffusion/weights/color_grid/README.md, which tells how the weights of the
# package were trained; they were not made by this very command but by three runs, the first two at 192 pixels.
# Not run as one.
set -e
accelerate launch ${LAUNCH_FLAGS:-} train/train_discriminative.py \
  --model color_grid \
  --subset_power 0.5 \
  --resolution 224 \
  --imagenet_encoder \
  --freeze backbone.stem. backbone.blocks.0. backbone.blocks.1. backbone.blocks.2. backbone.blocks.3. \
    backbone.blocks.4. \
  --loss fn_rmse \
  --loss_stride 3 \
  --min_area 64 \
  --train_batch_size 32 \
  --num_train_epochs 100 \
  --optimizer adamw \
  --adam_weight_decay 0.02 \
  --learning_rate 6e-4 \
  --backbone_lr_factor 0.4 \
  --lr_warmup_steps 200 \
  --lr_scheduler linear \
  --lr_constant_epochs 40 \
  --max_grad_norm 1 \
  --use_ema \
  --ema_decay 0.998 \
  --channels_last \
  --half \
  --dataloader_num_workers 1 \
  "$@"

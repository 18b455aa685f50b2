#!/usr/bin/env bash
# A small diffusion pipeline that harmonizes: the base of the mini recipe, trained on with the composite in its image
# channel (after Zhou et al., DiffHarmony, ICMR 2024)
#
#   bash train/recipes/mini_harmonizer.sh PATH/TO/PHOTOGRAPHS outputs/mini_harmonizer
#
# PHOTOGRAPHS contains index.csv with the splits train and val. The U-Net of BASE (default:
# checkpoints/mini_dual_controlnet) is trained at 128x128 pixels on composites made of the photographs: objects are also
# moved and mirrored, and masks are imperfect, so that pixels at the border do not show the true colours. VARIANTS
# composites of each photograph are encoded first and kept in OUTPUT/precomputed.
#
# Harmonization has one right answer, so the U-Net is trained for one step: the last timestep is pure noise, and 80 % of
# the samples are drawn there, where the prediction of the velocity is that of the image. More steps sample an answer
# instead, which is farther from the truth than the mean. To the error of all latents the recipe adds the error of the
# foreground's mean colours. The pipeline averages each result with that of the mirrored picture, and
# keeps 80 % of the change, since the network is too sure of it (chosen on `val`). Calls that leave out the arguments
# after --call use these values.
#
# If the process was killed, the same command resumes. OUTPUT/model is the pipeline.
# Hardware: two CPU cores, 10 GB of disk space: about 70 minutes to encode, 150 to train. Or a GPU with PROCESSES=1
# DEVICE=cuda.
# Run in three shorter parts: see checkpoints/mini_harmonizer/README.md. Not run with these numbers.
# Tables: eval/harmonizer_tables.sh.
#
# Steps and sizes can be set in the environment, see below.
set -e
# Tensors that are freed at every step shall not go back to the system at every step (glibc).
export MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000
# Networks this small gain nothing from a second thread, and everything from a second process.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
DATA=$1 OUT=$2
shift 2
STEPS=${STEPS:-17000} VARIANTS=${VARIANTS:-20} BATCH=${BATCH:-32} SIZE=${SIZE:-128} PROCESSES=${PROCESSES:-2}
DEVICE=${DEVICE:-cpu} PRECISION=${PRECISION:-bf16} WARMUP=${WARMUP:-200} DECAY=${DECAY:-0.999}
[ "$DEVICE" != cpu ] || export ACCELERATE_USE_CPU=true
here=$(dirname "$0")/../..
torchrun --standalone --nproc_per_node "$PROCESSES" "$here/train/train_inpainting.py" \
  --data "$DATA" --output "$OUT" --pretrained_model_name_or_path "${BASE:-$here/checkpoints/mini_dual_controlnet}" \
  --image_channel composite --decoupled --zero_terminal_snr --last_timestep 0.8 --color_loss 100 --average_mirrored \
  --opacity 0.8 \
  --call num_inference_steps=1 guidance_scale=1 detail=preserve context=0.2 \
  --resolution "$SIZE" --precompute "$VARIANTS" --precomputed_dir "$OUT/precomputed" \
  --train_batch_size $((BATCH / PROCESSES)) --max_train_steps "$STEPS" --mixed_precision "$PRECISION" \
  --learning_rate 3e-4 --lr_scheduler cosine --lr_warmup_steps "$WARMUP" --use_ema --ema_decay "$DECAY" --half \
  --validation_split val --num_validation_images 64 --validation_inference_steps 1 --validation_steps 2000 \
  --checkpointing_steps 500 --checkpoints_total_limit 2 --logging_steps 100 "$@"

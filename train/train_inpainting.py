"""Train or fine-tune the inpainting model that the ControlNets stand beside.

    accelerate launch train/train_inpainting.py --data PATH/TO/PHOTOGRAPHS --caption_column label \
        --random_base mini --taef2 taef2.safetensors --output outputs/base
    accelerate launch train/train_inpainting.py --data PATH/TO/IHARMONY4 --image_channel composite \
        --output outputs/harmonizer

Without `--random_base` it starts from Stable Diffusion 2 inpainting, or from the model that
`--pretrained_model_name_or_path` names; only the U-Net is trained. With `--image_channel composite` the
U-Net sees all of the composite where it usually sees the background alone, so that the pipeline harmonizes
directly (`init="composite"`, few steps, no guidance; DiffHarmony, Zhou et al., ICMR 2024). The foregrounds of
photographs are then perturbed, and the photograph is the target; composites with ground truth are taken as
they are.

OUTPUT_DIR gets `checkpoint-STEP` folders and at the end `model`, a pipeline with its card, to be given to
`train_controlnet.py`, `assemble_pipeline` and `harmony`. The same command, run again after the process was
killed, goes on from the newest checkpoint and ends with the same weights.
"""

import argparse
import copy
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.training_set import KeyedView
from harmony_diffusion.diffusion.base_models import load_base_components
from harmony_diffusion.diffusion.random_weights import BASES, random_components
from harmony_diffusion.models.tiny_autoencoder import load_taef2
from harmony_diffusion.pipelines.stable_diffusion import IMAGE_CHANNELS, StableDiffusionHarmonizationPipeline
from harmony_diffusion.training.checkpoints import finish, remove_unfinished, write_folder_atomically
from harmony_diffusion.training.diffusion_data import DiffusionData
from harmony_diffusion.training.diffusion_run import (
    FIXED,
    Board,
    Conditioner,
    add_data_arguments,
    add_optimizer_arguments,
    add_run_arguments,
    build_optimizer,
    check_arguments,
    evaluating,
    finite_loss,
    freeze,
    learning_rate,
    open_split,
    push_to_hub,
    training_facts,
    training_samples,
    validate_pipeline,
    validation_images,
    write_card,
)
from harmony_diffusion.training.diffusion_step import DenoisingObjective, sample_noise, sample_timesteps
from harmony_diffusion.training.model_card import forget_origins, told_name
from harmony_diffusion.training.order import BatchPositions
from harmony_diffusion.training.pixel_loss import PixelLoss
from harmony_diffusion.training.trained_model import TrainedModel, make_accelerator

logger = logging.getLogger("train_inpainting")

USAGE = """from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

pipe = StableDiffusionHarmonizationPipeline.from_pretrained("PATH/TO/THIS/FOLDER")"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="inpainting model (default: Stable Diffusion 2)")
    add("--random_base", choices=BASES, help="start from random weights of this size instead")
    add("--taef2", type=Path, help="autoencoder of a random base: weights of TAEF2; default: random")
    add("--image_channel", "--image-channel", dest="image_channel", choices=IMAGE_CHANNELS, default="masked", help="what the U-Net sees of the picture")  # fmt: skip  # noqa: E501
    add_data_arguments(parser)
    add_optimizer_arguments(parser, learning_rate=1e-5)
    add_run_arguments(parser)
    args = parser.parse_args()
    check_arguments(parser, args)
    if args.random_base and args.pretrained_model_name_or_path:
        parser.error("--random_base and --pretrained_model_name_or_path: give one of them")
    if args.taef2 and not args.random_base:
        parser.error("--taef2 needs --random_base")
    if args.perturb_foreground is None:
        args.perturb_foreground = args.image_channel == "composite"
    return args


def load_models(args: argparse.Namespace) -> dict[str, Any]:
    if not args.random_base:
        return load_base_components(args.pretrained_model_name_or_path, dtype=torch.float32)
    vae = load_taef2(args.taef2) if args.taef2 else None
    components = random_components(args.random_base, seed=args.seed, vae=vae)
    return {name: components[name] for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}


def publish(
    models: dict[str, Any],
    args: argparse.Namespace,
    data: DiffusionData,
    training: dict[str, object],
    scores: dict[str, float],
) -> None:
    """Write OUTPUT_DIR/model with its card, and upload it if asked."""
    origin = args.pretrained_model_name_or_path or "Stable Diffusion 2 inpainting"
    training = {"started from": "random weights" if args.random_base else told_name(origin), **training}
    training["image channel"] = args.image_channel
    training["predicts"] = models["scheduler"].config.prediction_type

    def write(folder: Path) -> None:
        dtype = torch.float16 if args.half else torch.float32
        saved = {
            name: torch.nn.Module.to(copy.deepcopy(part), dtype)
            if isinstance(part, torch.nn.Module)
            else part
            for name, part in models.items()
        }
        pipe = StableDiffusionHarmonizationPipeline(
            **saved, working_size=args.resolution, image_channel=args.image_channel
        )
        pipe.save_pretrained(folder)
        forget_origins(folder)
        write_card(folder, "Inpainting model", USAGE, {"Training": training, "Data": data.facts}, scores)

    write_folder_atomically(args.output_dir / "model", write)
    if args.push_to_hub:
        push_to_hub(args.output_dir / "model", args.hub_model_id)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    accumulation, processes = args.gradient_accumulation_steps, accelerator.num_processes
    device, is_main, rank = accelerator.device, accelerator.is_main_process, accelerator.process_index
    torch.backends.cuda.matmul.allow_tf32 = args.allow_tf32
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        remove_unfinished(args.output_dir)

    models = load_models(args)
    unet = models["unet"].to(device).requires_grad_(True).train()
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    freeze(models, ("vae", "text_encoder"), device, args.mixed_precision)

    data = open_split(args, args.train_split)
    held_out = open_split(args, args.validation_split, data.composer) if args.validation_split else None
    samples = training_samples(args, data, models, args.image_channel, accelerator)
    batch = args.train_batch_size * accumulation * processes
    total = args.max_train_steps or math.ceil(args.num_train_epochs * len(samples) / batch)

    optimizer = build_optimizer(list(unet.parameters()), args)
    fixed = {name: getattr(args, name) for name in (*FIXED, "image_channel")}
    fixed |= {"samples": len(samples), "batch": batch}
    if not args.lr_scheduler.startswith("constant"):
        fixed["steps"] = total
    pixel_loss = PixelLoss(models["vae"]) if args.pixel_loss is not None else None
    objective = DenoisingObjective(unet, models["scheduler"], snr_gamma=args.snr_gamma, pixel_loss=pixel_loss)
    trained = TrainedModel(unet, optimizer, args, accelerator)
    start = trained.begin(objective, fixed)
    positions = BatchPositions(args.train_batch_size, accumulation, start, total, rank, processes)
    loader = DataLoader(
        KeyedView(samples, args.seed),
        batch_sampler=positions,
        num_workers=args.dataloader_num_workers,
        pin_memory=device.type == "cuda",
    )
    conditioner = Conditioner(
        data,
        models,
        args.image_channel,
        None,
        args.proportion_empty_prompts,
        device,
        pixel_share=args.pixel_loss,
    )
    timestep_count = models["scheduler"].config.num_train_timesteps
    board = Board(args.output_dir, args.report_to) if is_main else None

    def validate(step: int, unet: Any) -> dict[str, float]:
        if held_out is None or board is None:
            return {}
        images, prompts = validation_images(held_out, args.num_validation_images)
        pipe = StableDiffusionHarmonizationPipeline(
            **{**models, "unet": unet}, working_size=args.resolution, image_channel=args.image_channel
        )
        options: dict[str, Any] = {"num_inference_steps": args.validation_inference_steps}
        options["guidance_scale"] = args.validation_guidance_scale
        if args.image_channel == "composite":
            options |= {"init": "composite", "guidance_scale": 1.0}
        with evaluating(unet), trained.autocast():
            scores, pictures = validate_pipeline(pipe, images, prompts, **options)
        logger.info("validation after %d steps: %s", step, scores)
        board.scalars({f"validation/{name}": value for name, value in scores.items()}, step)
        board.pictures(pictures, step)
        return scores

    batches = iter(loader)
    progress = tqdm(total=total, initial=start, unit=" steps", desc="inpainting", disable=not is_main)
    for step in range(start, total):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, step, total, batch)
        for part in range(step * accumulation, (step + 1) * accumulation):
            items = next(batches)
            torch.manual_seed(sample_key(args.seed, part, rank))
            conditions = conditioner(items)
            noise = sample_noise(items["key"], conditions.latents)
            timesteps = sample_timesteps(items["key"], timestep_count).to(device)
            with accelerator.accumulate(trained.synchronized):
                losses = trained.objective(conditions, noise, timesteps)
                accelerator.backward(losses["loss"])
                if args.max_grad_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                trained.stepper.step()
                trained.stepper.zero_grad()
        if trained.average is not None:
            trained.average.update(unet, step)
        done = step + 1
        progress.update()
        if board is not None and done % args.logging_steps == 0:
            loss = finite_loss(losses, done)
            progress.set_postfix(loss=f"{loss:.4g}")
            rate = optimizer.param_groups[0]["lr"]
            board.scalars({"train/loss": loss, "train/learning_rate": rate}, done)
        if done % args.checkpointing_steps == 0 or done == total:
            finite_loss(losses, done)
            trained.save(done)
        if done % args.validation_steps == 0 and done < total:
            with trained.averaged() as averaged:
                validate(done, averaged)
            accelerator.wait_for_everyone()
    progress.close()
    with trained.averaged() as averaged:
        if is_main:
            scores = validate(total, averaged)
            publish({**models, "unet": averaged}, args, data, training_facts(args, total, batch), scores)


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    accelerator = make_accelerator(args)
    train(args, accelerator)
    finish(accelerator)


if __name__ == "__main__":
    main()

"""Train a ControlNet for edges or for colours of the foreground, beside a frozen inpainting model.

    accelerate launch train/train_controlnet.py --control high --data OPEN_IMAGES/manifest-train.csv \
        --captions OPEN_IMAGES/captions --output outputs/high

`--data` is photographs with masks. Each photograph is its own target: the ControlNet sees the foreground's
edges (`high`) or blurred colours (`low`), the inpainting model the background. With `--perturb_foreground`
colour and light of the foreground are changed before the control image is drawn; without it the blurred
colours are the right ones already, and nothing teaches harmonization. It is on by default for `low`.
`--beside FOLDER` adds what a trained ControlNet of the other kind says, to half of the samples, so that the
new one can learn what that one leaves.

OUTPUT_DIR gets `checkpoint-STEP` folders and at the end `model`, a ControlNet of diffusers with its card. The
same command, run again after the process was killed, goes on from the newest checkpoint and ends with the
same weights. The paper's settings are in `train/recipes`.
"""

import argparse
import copy
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.training_set import KeyedView
from harmony_diffusion.diffusion.base_models import load_base_components, read_pipeline_config
from harmony_diffusion.diffusion.control_images import SIGMA
from harmony_diffusion.diffusion.control_settings import ROLES, ControlSettings, load_control_settings
from harmony_diffusion.diffusion.controlnets import CONTROL_INPUTS, check_controlnet, make_controlnet
from harmony_diffusion.errors import InputError
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline
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

logger = logging.getLogger("train_controlnet")

USAGE = """from harmony_diffusion.pipelines.assembly import assemble_pipeline

pipe = assemble_pipeline(BASE, {role}="PATH/TO/THIS/FOLDER")"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("model").add_argument
    add("--control", choices=ROLES, required=True, help="high: edges; low: blurred colours")
    add("--pretrained_model_name_or_path", help="inpainting model (default: Stable Diffusion 2)")
    add("--controlnet_model_name_or_path", help="ControlNet to start from (default: the U-Net's encoder)")
    add("--beside", type=Path, help="trained ControlNet of the other kind: learn what it leaves, and alone")
    add("--control_input", choices=CONTROL_INPUTS, default="noisy_latents", help="4 channels, or all 9")
    add("--control_scale", type=float, default=1.0, help="lambda of equation 7")
    add("--conditioning_embedding", type=int, nargs="*", default=[16, 32, 96, 256], help="widths of the part that embeds the control image")  # fmt: skip  # noqa: E501
    add("--unit_embedding", action="store_true", help="start that part so that it counts at once")
    add("--canny_thresholds", type=float, nargs=2, default=[100, 200])
    add("--no_silhouette", action="store_true", help="leave the outline of the mask out of the edges")
    add("--sigma", type=float, default=SIGMA, help="of the blur, in pixels of the resolution")
    add("--no_premultiplied", action="store_true", help="average foreground colours alone in the blur")
    add_data_arguments(parser)
    add_optimizer_arguments(parser, learning_rate=5e-6)
    add_run_arguments(parser)
    args = parser.parse_args()
    check_arguments(parser, args)
    if args.perturb_foreground is None:
        args.perturb_foreground = args.control == "low"
    return args


def control_settings(args: argparse.Namespace) -> ControlSettings:
    return ControlSettings(
        args.control,
        args.control_input,
        tuple(args.canny_thresholds),
        not args.no_silhouette,
        args.sigma,
        not args.no_premultiplied,
    )


def load_other(args: argparse.Namespace, settings: ControlSettings) -> ControlSettings | None:
    """Read how the control images of `--beside` are drawn; None without it.

    Raises:
        InputError: It is no ControlNet to be trained beside.
    """
    if args.beside is None:
        return None
    other = load_control_settings(args.beside)
    if other.role == settings.role or other.control_input != settings.control_input:
        raise InputError(
            "--beside",
            f"is a ControlNet of the kind {other.role!r} that sees {other.control_input}",
            "Give one of the other kind that sees the same.",
        )
    return other


def build_controlnet(args: argparse.Namespace, unet: Any, vae: Any) -> ControlNetModel:
    torch.manual_seed(args.seed)
    if args.controlnet_model_name_or_path:
        controlnet = ControlNetModel.from_pretrained(args.controlnet_model_name_or_path).float()
        check_controlnet(controlnet, unet, args.control_input, args.controlnet_model_name_or_path)
    else:
        if len(args.conditioning_embedding) != len(vae.config.block_out_channels):
            widths = len(vae.config.block_out_channels)
            raise InputError(
                "--conditioning_embedding",
                f"has {len(args.conditioning_embedding)} widths",
                f"Give {widths}: each after the first halves the image, as the autoencoder does.",
            )
        controlnet = make_controlnet(
            unet,
            control_input=args.control_input,
            conditioning_embedding_out_channels=tuple(args.conditioning_embedding),
            unit_embedding=args.unit_embedding,
        )
    controlnet.requires_grad_(True).train()
    if args.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    return controlnet


def publish(
    controlnet: ControlNetModel,
    settings: ControlSettings,
    args: argparse.Namespace,
    data: DiffusionData,
    training: dict[str, object],
    scores: dict[str, float],
) -> None:
    """Write OUTPUT_DIR/model with its card, and upload it if asked."""

    def write(folder: Path) -> None:
        (copy.deepcopy(controlnet).half() if args.half else controlnet).save_pretrained(folder)
        settings.save(folder)
        forget_origins(folder)
        own = {
            "base": told_name(args.pretrained_model_name_or_path or "Stable Diffusion 2 inpainting"),
            "started from": told_name(args.controlnet_model_name_or_path or "the encoder of the base"),
            **asdict(settings),
            "trained beside": told_name(args.beside or "none"),
        }
        facts = {"Training": {**own, **training}, "Data": data.facts}
        title = f"ControlNet for the {'edges' if args.control == 'high' else 'colours'} of a foreground"
        write_card(folder, title, USAGE.format(role=args.control), facts, scores)

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

    models = load_base_components(args.pretrained_model_name_or_path, dtype=torch.float32)
    settings = control_settings(args)
    image_channel = read_pipeline_config(args.pretrained_model_name_or_path).get("image_channel", "masked")
    controlnet = build_controlnet(args, models["unet"], models["vae"]).to(device)
    other, beside = load_other(args, settings), None
    if other:
        beside = ControlNetModel.from_pretrained(args.beside).float()
        check_controlnet(beside, models["unet"], args.control_input, args.beside)
        models[f"controlnet_{other.role}"] = beside
    frozen = [name for name, model in models.items() if isinstance(model, torch.nn.Module)]
    freeze(models, frozen, device, args.mixed_precision)

    data = open_split(args, args.train_split)
    held_out = open_split(args, args.validation_split, data.composer) if args.validation_split else None
    samples = training_samples(args, data, models, image_channel, accelerator)
    batch = args.train_batch_size * accumulation * processes
    total = args.max_train_steps or math.ceil(args.num_train_epochs * len(samples) / batch)

    optimizer = build_optimizer(list(controlnet.parameters()), args)
    fixed = {name: getattr(args, name) for name in (*FIXED, "control_scale")}
    fixed |= {"control": str(settings), "beside": str(other), "samples": len(samples), "batch": batch}
    if not args.lr_scheduler.startswith("constant"):
        fixed["steps"] = total
    objective = DenoisingObjective(
        models["unet"],
        models["scheduler"],
        controlnet,
        args.control_input,
        args.control_scale,
        args.snr_gamma,
        beside,
        PixelLoss(models["vae"]) if args.pixel_loss is not None else None,
    )
    trained = TrainedModel(controlnet, optimizer, args, accelerator)
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
        image_channel,
        settings.draw,
        args.proportion_empty_prompts,
        device,
        other.draw if other else None,
        args.pixel_loss,
    )
    timestep_count = models["scheduler"].config.num_train_timesteps
    board = Board(args.output_dir, args.report_to) if is_main else None

    def validate(step: int, controlnet: ControlNetModel) -> dict[str, float]:
        if held_out is None or board is None:
            return {}
        images, prompts = validation_images(held_out, args.num_validation_images)
        pipe = StableDiffusionHarmonizationPipeline(
            **models,
            **{f"controlnet_{args.control}": controlnet},
            **(other.of_pipeline() if other else {}) | settings.of_pipeline(),
            working_size=args.resolution,
            image_channel=image_channel,
        )
        options = {"num_inference_steps": args.validation_inference_steps}
        with evaluating(controlnet), trained.autocast():
            scores, pictures = validate_pipeline(
                pipe, images, prompts, guidance_scale=args.validation_guidance_scale, **options
            )
        logger.info("validation after %d steps: %s", step, scores)
        board.scalars({f"validation/{name}": value for name, value in scores.items()}, step)
        board.pictures(pictures, step)
        return scores

    batches = iter(loader)
    progress = tqdm(total=total, initial=start, unit=" steps", desc=args.control, disable=not is_main)
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
                    accelerator.clip_grad_norm_(controlnet.parameters(), args.max_grad_norm)
                trained.stepper.step()
                trained.stepper.zero_grad()
        if trained.average is not None:
            trained.average.update(controlnet, step)
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
            publish(averaged, settings, args, data, training_facts(args, total, batch), scores)


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    accelerator = make_accelerator(args)
    train(args, accelerator)
    finish(accelerator)


if __name__ == "__main__":
    main()

"""Harmonization with Stable Diffusion 2 inpainting and two ControlNets, one for edges and one for colours.

Paper: Liu et al. 2025, "Image instances semantics and visual harmonization using pretrained diffusion model",
DOI 10.20169/j.issn.2095-2163.24111102. No official code. Where the paper is silent (sampler, steps, guidance,
Canny thresholds, width of the blur, pasting) the value is an argument or in the config. Equations 6-11 are in
`dual_control.py`.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import (
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
)

from harmony_diffusion.diffusion.base_models import check_base
from harmony_diffusion.diffusion.captioner import caption_images
from harmony_diffusion.diffusion.control_images import SIGMA
from harmony_diffusion.diffusion.controlnets import CONTROL_INPUTS, ControlInput, check_controlnet
from harmony_diffusion.diffusion.working_picture import (
    Batch,
    WorkingPicture,
    groups_of_equal_size,
    load_working_pictures,
)
from harmony_diffusion.errors import InputError, InputNote
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder
from harmony_diffusion.pipelines.call_checks import (
    CALLBACK_TENSORS,
    StepCallback,
    check_controls,
    check_generators,
    check_result,
    check_sampling,
    check_text,
    one_for_each,
)
from harmony_diffusion.pipelines.dual_control import DualControlDenoiser
from harmony_diffusion.pipelines.harmonization import export_pictures
from harmony_diffusion.pipelines.output import DiffusionHarmonizationOutput

Window = tuple[float, float]
IMAGE_CHANNELS = ("masked", "composite")


class StableDiffusionHarmonizationPipeline(DualControlDenoiser):
    """Generate the foreground anew, so that it keeps its shape and colours and fits its background.

    Args:
        vae: Autoencoder, of any number of latent channels.
        text_encoder: Text encoder.
        tokenizer: Its tokenizer.
        unet: Inpainting U-Net: of 9 channels for 4 latent channels.
        scheduler: Any; UniPC needs about 20 steps.
        controlnet_high: ControlNet for Canny edges (`make_controlnet`); None = no such control.
        controlnet_low: ControlNet for blurred colours; None = no such control.
        captioner: BLIP, asked for a prompt where none is given.
        captioner_processor: Its processor.
        safety_checker: Safety checker; what it objects to comes out black.
        feature_extractor: Its image processor.
        control_input: What the ControlNets see beside their control image: "noisy_latents" (Z_t, equation 6)
            or "unet_input" ([Z_t, M', Z_ms], as the U-Net).
        canny_thresholds: Of the edges that `controlnet_high` was trained with, see `canny_image`.
        silhouette: Whether the outline of the mask is among them.
        sigma: Blur that `controlnet_low` was trained with, see `gaussian_image`.
        premultiplied: Whether it was blurred on black.
        working_size: Side in pixels of the square that the network works at, a multiple of 64.
        image_channel: What the U-Net was trained to see beside the mask: "masked", the background alone, as
            inpainting models are; or "composite", all of the composite (Zhou et al., DiffHarmony, ICMR 2024).

    Raises:
        CheckpointError: Components that do not belong together.

    Example:
        >>> import numpy as np
        >>> from harmony_diffusion.diffusion.random_weights import random_components
        >>> pipe = StableDiffusionHarmonizationPipeline(**random_components("tiny"), working_size=64)
        >>> pipe.set_progress_bar_config(disable=True)
        >>> mask = np.zeros((96, 96), np.uint8)
        >>> mask[30:60, 30:60] = 255
        >>> composite = np.full((96, 96, 3), 128, np.uint8)
        >>> pipe(composite, mask, "a cup", num_inference_steps=2, output_type="np").images[0].shape
        (96, 96, 3)
    """

    # The ControlNets take turns with the U-Net at each step, so they are not in the sequence: diffusers loads
    # them on first use, and `release_controlnets` unloads them after the last.
    model_cpu_offload_seq = "captioner->text_encoder->unet->vae"  # type: ignore[assignment]
    _optional_components = [
        "controlnet_high",
        "controlnet_low",
        "captioner",
        "captioner_processor",
        "safety_checker",
        "feature_extractor",
    ]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = list(CALLBACK_TENSORS)

    def __init__(
        self,
        vae: AutoencoderKL | TinyAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        controlnet_high: ControlNetModel | None = None,
        controlnet_low: ControlNetModel | None = None,
        captioner: BlipForConditionalGeneration | None = None,
        captioner_processor: BlipProcessor | None = None,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        control_input: ControlInput = "noisy_latents",
        canny_thresholds: tuple[float, float] = (100, 200),
        silhouette: bool = True,
        sigma: float = SIGMA,
        premultiplied: bool = True,
        working_size: int = 512,
        image_channel: str = "masked",
    ) -> None:
        # Not the parent's, which edits the scheduler it is given, and asks for components of no use here.
        DiffusionPipeline.__init__(self)
        if control_input not in CONTROL_INPUTS:
            raise InputError("control_input", f"must be one of {', '.join(CONTROL_INPUTS)}")
        if image_channel not in IMAGE_CHANNELS:
            raise InputError("image_channel", f"must be one of {', '.join(IMAGE_CHANNELS)}")
        check_base(unet, text_encoder, scheduler)
        for name, controlnet in (("controlnet_high", controlnet_high), ("controlnet_low", controlnet_low)):
            if controlnet is not None and unet is not None:
                check_controlnet(controlnet, unet, control_input, name)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            controlnet_high=controlnet_high,
            controlnet_low=controlnet_low,
            captioner=captioner,
            captioner_processor=captioner_processor,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(
            control_input=control_input,
            canny_thresholds=tuple(canny_thresholds),
            silhouette=silhouette,
            sigma=sigma,
            premultiplied=premultiplied,
            working_size=working_size,
            image_channel=image_channel,
        )
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._guidance_scale, self._interrupt, self._num_timesteps = 1.0, False, 0
        self._clip_skip, self._cross_attention_kwargs = None, None  # type: ignore[assignment]

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        composite: Any,
        mask: Any,
        prompt: str | list[str] | None = None,
        *,
        foreground: Any = None,
        background: Any = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        high_scale: float = 1.0,
        low_scale: float = 1.0,
        high_window: Window = (0.0, 1.0),
        low_window: Window = (0.0, 1.0),
        control_cfg: Literal["both", "cond"] = "both",
        init: Literal["noise", "composite"] = "noise",
        strength: float = 1.0,
        context: float = 0.5,
        shadow: bool = False,
        detail: Literal["generated", "preserve"] = "generated",
        feather: float = 8.0,
        match_surroundings: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_layers: bool = False,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> DiffusionHarmonizationOutput | tuple[Any, Any]:
        """Harmonize one composite or a list of them; those of one working size share a batch.

        Args:
            composite: As for `HarmonizationPipeline`.
            mask: The foreground of each composite: 1 (white) is foreground, soft values are kept.
            prompt: What the whole picture shows, for all or one each; by default the captioner says it.
            foreground: Takes the composite's place where edges and colours are read; of its size.
            background: Takes its place as the surroundings shown to the network; of its size.
            negative_prompt: What it does not show.
            num_inference_steps: Steps from noise to picture.
            guidance_scale: Weight of the prompt; up to 1, the negative prompt does not run.
            high_scale: Strength of the edges, lambda_h of equation 7; at 0 their ControlNet does not run.
            low_scale: Strength of the colours, lambda_l; the paper found 0.6 to 0.7 best.
            high_window: Start and end of the steps with edges, as shares of all steps.
            low_window: Start and end of the steps with colours.
            control_cfg: Controls count for "both" halves of guidance or, faster, for the "cond"itional one.
            init: Start from "noise", or from the noisy "composite", of which more remains at less `strength`.
            strength: Share of the steps that is run; 0 returns the input.
            context: Surroundings shown on each side, as a share of the foreground's longer side.
            shadow: Let the surroundings change where a shadow may fall.
            detail: "generated", or "preserve": change colour and light alone, at full resolution.
            feather: Working pixels over which the result fades beyond the mask; all else stays to the bit.
            match_surroundings: Take back what drift of colour shows around the mask.
            generator: Source of the noise: one, or one for each image.
            num_images_per_prompt: Images for each composite.
            prompt_embeds: From `encode_prompt`, in place of the prompt, `(B, L, D)`.
            negative_prompt_embeds: In place of the negative prompt.
            output_type: "pil", "np", "pt", "picture" (see `HarmonizationPipeline`) or "latent".
            return_layers: Also take each result apart into foreground and shadow.
            callback_on_step_end: `f(pipe, step, timestep, tensors)`, after each step; may return tensors.
            callback_on_step_end_tensor_inputs: Of "latents", "prompt_embeds", "mask", "masked_image_latents".
            return_dict: Return the output object, else the tuple `(images, nsfw_content_detected)`.

        Raises:
            InputError: Something that cannot be used; nothing was computed.
        """
        check_text(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_sampling(num_inference_steps, guidance_scale, init, strength, num_images_per_prompt)
        check_result(output_type, detail, feather, return_layers)
        settings = check_controls(control_cfg, high=(high_scale, high_window), low=(low_scale, low_window))
        after_step = StepCallback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        cutting = {"shadow": shadow, "working_size": self.config["working_size"], "context": context}
        works = load_working_pictures(composite, mask, foreground, background, **cutting)
        generator = check_generators(generator, len(works) * num_images_per_prompt)
        self._guidance_scale, self._interrupt = guidance_scale, False

        prompts = self.prepare_prompts(prompt, prompt_embeds, works)
        given = (prompt_embeds, negative_prompt_embeds)
        text = self.prepare_text(prompts, negative_prompt, given, len(works), num_images_per_prompt)
        batches: list[Batch] = []
        for group in groups_of_equal_size(works) if strength else ():
            if self.interrupt:
                break
            batches.append(batch := Batch(group, num_images_per_prompt, generator))
            timesteps = self.prepare_timesteps(num_inference_steps, strength)
            self.prepare_latents_of(batch, text, init, timesteps)
            controls = self.prepare_controls(batch, settings)
            self.denoise(batch, timesteps, controls, control_cfg, after_step)
        self.release_controlnets()
        pasting = {"detail": detail, "feather": feather, "match_surroundings": match_surroundings}
        output = self.make_output(
            works, batches, prompts, num_images_per_prompt, output_type, return_layers, pasting
        )
        self.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.nsfw_content_detected)

    def prepare_prompts(
        self, prompt: str | list[str] | None, prompt_embeds: Tensor | None, works: list[WorkingPicture]
    ) -> list[str] | None:
        """Return the text for each composite: given, captioned, or empty; None where embeddings are given.

        Raises:
            InputError: More or fewer texts than composites.
        """
        if prompt_embeds is not None:
            return None
        if prompt is not None:
            return one_for_each(prompt, len(works), "prompt")
        captions = [""] * len(works)
        if self.captioner is None:
            warnings.warn("prompt: none is given, and there is no captioner; it is empty", InputNote, 3)
            return captions
        shown = [work for work in works if work.region is not None]
        images = [work.composite for work in shown]
        for work, caption in zip(
            shown, caption_images(self.captioner, self.captioner_processor, images), strict=True
        ):
            captions[work.index] = caption
        return captions

    def prepare_text(
        self,
        prompts: list[str] | None,
        negative_prompt: str | list[str] | None,
        given: tuple[Tensor | None, Tensor | None],
        count: int,
        images_each: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode the texts of all images, once.

        Args:
            prompts: One for each composite.
            negative_prompt: One for each composite, or one for all.
            given: Embeddings of either, `(B, L, D)`.
            count: Number of composites.
            images_each: Images of each.

        Returns:
            Embeddings of the prompts `(N, L, D)`, and with guidance those of the negative prompts.

        Raises:
            InputError: Texts or embeddings of more or fewer composites.
        """
        for name, embeds in zip(("prompt_embeds", "negative_prompt_embeds"), given, strict=True):
            if embeds is not None and (embeds.ndim != 3 or len(embeds) != count):
                raise InputError(name, f"has shape {tuple(embeds.shape)}, expected ({count}, L, D)")
        positive, negative = self.encode_prompt(
            prompts,
            self._execution_device,
            images_each,
            self.do_classifier_free_guidance,
            one_for_each(negative_prompt, count, "negative_prompt"),
            prompt_embeds=given[0],
            negative_prompt_embeds=given[1],
        )
        dtype = self.unet.dtype
        return positive.to(dtype), negative.to(dtype) if self.do_classifier_free_guidance else None

    def make_output(
        self,
        works: list[WorkingPicture],
        batches: list[Batch],
        prompts: list[str] | None,
        images_each: int,
        output_type: str,
        return_layers: bool,
        pasting: dict[str, Any],
    ) -> DiffusionHarmonizationOutput:
        """Decode the latents and put them into the pictures; what nothing was made for stays as it was."""
        regions = [work.region for work in works]
        if output_type == "latent":
            latents = stack_equal([one for batch in batches for one in batch.latents])
            return DiffusionHarmonizationOutput(latents, prompts=prompts, regions=regions)
        pictures = [work.picture for work in works for _ in range(images_each)]
        unsafe = [False] * len(pictures)
        for batch in batches:
            images, flags = self.decode(batch.latents)
            for position, row in enumerate(batch.rows):
                work = works[row // images_each]
                pictures[row] = work.paste(images[position, None], **pasting)
                unsafe[row] = flags is not None and bool(flags[position])
        return DiffusionHarmonizationOutput(
            export_pictures(pictures, output_type),
            prompts=prompts,
            regions=regions,
            nsfw_content_detected=unsafe if self.safety_checker is not None else None,
            layers=[works[row // images_each].split(picture) for row, picture in enumerate(pictures)]
            if return_layers
            else None,
        )


def stack_equal(tensors: list[Tensor]) -> Tensor | list[Tensor]:
    """Stack tensors of one size to `(B, …)`; return those of several sizes as they are."""
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors

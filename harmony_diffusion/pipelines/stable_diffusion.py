"""Harmonization with Stable Diffusion 2 inpainting and two ControlNets, one for edges and one for colours.

Paper: Liu et al. 2025, "Image instances semantics and visual harmonization using pretrained diffusion model",
DOI 10.20169/j.issn.2095-2163.24111102. No official code. Where the paper is silent (sampler, steps, guidance,
Canny thresholds, width of the blur, pasting) the value is an argument or in the config. Equations 6-11 are in
`harmony_diffusion/diffusion/conditioning.py`.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, Literal
from weakref import WeakKeyDictionary

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
from harmony_diffusion.diffusion.conditioning import IMAGE_CHANNELS
from harmony_diffusion.diffusion.control_detectors import check_detector
from harmony_diffusion.diffusion.control_images import SIGMA
from harmony_diffusion.diffusion.controlnets import CONTROL_INPUTS, check_controlnet
from harmony_diffusion.diffusion.working_picture import (
    Batch,
    Group,
    WorkingPicture,
    groups_of_equal_size,
    make_working_pictures,
)
from harmony_diffusion.errors import InputError, InputNote, InputTypeError
from harmony_diffusion.images.masks import MaskSource
from harmony_diffusion.images.picture import PictureSource
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder
from harmony_diffusion.numbers import check_integer, check_number
from harmony_diffusion.pipelines.argument_checks import check_generators
from harmony_diffusion.pipelines.call_checks import (
    CALLBACK_TENSORS,
    Controls,
    Result,
    Sampling,
    StepCallback,
    Texts,
    check_controls,
    check_equal_embeds,
    check_latents,
    check_result,
    check_sampling,
    check_text,
    check_types_of_controlnets,
    one_for_each,
)
from harmony_diffusion.pipelines.call_defaults import check_call_defaults, with_call_defaults
from harmony_diffusion.pipelines.dual_control import DualControlDenoiser, Noise
from harmony_diffusion.pipelines.inputs import load_call_pairs
from harmony_diffusion.pipelines.output import DiffusionHarmonizationOutput, export_pictures, stack_equal
from harmony_diffusion.pipelines.saving_and_loading import SavedPipeline
from harmony_diffusion.pipelines.separate_calls import ENCODING_TEXT, separate_call

Window = tuple[float, float]
# Settings of the last pipeline with each U-Net: `Pipeline(**pipe.components)` would lose them in silence.
_SETTINGS_OF_UNET: WeakKeyDictionary[torch.nn.Module, dict[str, Any]] = WeakKeyDictionary()


class StableDiffusionHarmonizationPipeline(SavedPipeline, DualControlDenoiser):
    """Generate the foreground anew, so that it keeps its shape and colours and fits its background.

    Args:
        vae: Autoencoder, of any number of latent channels.
        text_encoder: Text encoder.
        tokenizer: Its tokenizer.
        unet: Inpainting U-Net: of 9 channels for 4 latent channels.
        scheduler: Any; UniPC needs about 20 steps.
        controlnet_high: ControlNet for Canny edges (`make_controlnet`); None = no such control.
        controlnet_low: ControlNet for blurred colours; None = no such control.
        captioner: BLIP, which writes a prompt where none is given.
        captioner_processor: Its processor.
        safety_checker: Safety checker; images that it refuses come out black.
        feature_extractor: Its image processor.
        control_input: Input of the ControlNets beside their control image: "noisy_latents" (Z_t, equation 6)
            or "unet_input" ([Z_t, M', Z_ms], as the U-Net).
        canny_thresholds: Thresholds of the edges that `controlnet_high` was trained with, see `canny_image`.
        silhouette: Draw the outline of the mask too, see `canny_image`.
        sigma: Blur that `controlnet_low` was trained with, see `gaussian_image`.
        premultiplied: Blur on black, see `gaussian_image`.
        working_size: Side in pixels of the square that the network works at, a multiple of 64.
        image_channel: Image that the U-Net was trained to see beside the mask, see `IMAGE_CHANNELS`.
        average_mirrored: Generate the mirrored picture too, and take the mean of both: twice the time, less
            error where the networks predict the one right answer. Latents are those of the picture alone.
        opacity: Share of the change that is kept, in [0, 1]. Networks that are too sure of their
            changes come nearer to the truth with less than 1.
        call_defaults: Values of arguments that a call leaves out, by their names in `CALL_SETTINGS`; they
            replace the defaults of `__call__`. Give those that the U-Net was trained for.

    Attributes:
        control_detector: Function from image to image that draws the edges in place of Canny, such as a
            detector of controlnet-aux, see `detector_image`; None = Canny. It is not saved.

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
        >>> pipe(composite, mask, "a cup", num_inference_steps=2, output_type="array").images[0].shape
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
        control_input: str = "noisy_latents",
        # Without parameters: diffusers warns about the types of parameters that it cannot check.
        canny_thresholds: tuple | list = (100, 200),  # type: ignore[type-arg]
        silhouette: bool = True,
        sigma: float = SIGMA,
        premultiplied: bool = True,
        working_size: int = 512,
        image_channel: str = "masked",
        average_mirrored: bool = False,
        opacity: float = 1.0,
        call_defaults: dict | None = None,  # type: ignore[type-arg]
    ) -> None:
        # Not the parent's, which edits the scheduler it is given, and asks for components of no use here.
        DiffusionPipeline.__init__(self)
        if control_input not in CONTROL_INPUTS:
            raise InputError("control_input", f"must be one of {', '.join(CONTROL_INPUTS)}")
        if image_channel not in IMAGE_CHANNELS:
            raise InputError("image_channel", f"must be one of {', '.join(IMAGE_CHANNELS)}")
        if not isinstance(average_mirrored, bool):
            raise InputTypeError("average_mirrored", f"must be True or False, got {average_mirrored!r}")
        check_base(unet, text_encoder, scheduler)
        for name, controlnet in (("controlnet_high", controlnet_high), ("controlnet_low", controlnet_low)):
            if controlnet is not None and unet is not None:
                check_controlnet(controlnet, unet, control_input, name)
        check_captioner(captioner, captioner_processor)
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
            average_mirrored=average_mirrored,
            opacity=check_number("opacity", opacity, 0, 1),
            call_defaults=check_call_defaults(call_defaults),
        )
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._guidance_scale, self._interrupt, self._num_timesteps = 1.0, False, 0
        self._clip_skip, self._cross_attention_kwargs = None, None  # type: ignore[assignment]
        self._running_calls = 0
        if unet is not None:
            self._note_lost_settings(unet)

    def _note_lost_settings(self, unet: Any) -> None:
        """Warn if the U-Net comes from a pipeline whose settings this one does not have."""
        _, settings = self._get_signature_keys(type(self))
        own = {name: self.config[name] for name in settings}
        defaults = {name: signature(type(self)).parameters[name].default for name in settings}
        before = _SETTINGS_OF_UNET.get(unet, own)
        lost = [f"{name}={before[name]}" for name in settings if own[name] == defaults[name] != before[name]]
        if lost:
            warnings.warn(
                f"unet: its last pipeline had {', '.join(sorted(lost))}; this one has the defaults. "
                f"Give these values, or call `{type(self).__name__}.from_pipe(pipe)`, which keeps them",
                InputNote,
                3,
            )
        _SETTINGS_OF_UNET[unet] = own

    @with_call_defaults
    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        composite: PictureSource | Sequence[PictureSource],
        mask: MaskSource | Sequence[MaskSource],
        prompt: str | list[str] | None = None,
        *,
        foreground: PictureSource | Sequence[PictureSource] | None = None,
        background: PictureSource | Sequence[PictureSource] | None = None,
        reference_mask: None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 20,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
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
        latents: Tensor | list[Tensor] | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "pil",
        return_layers: bool = False,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> DiffusionHarmonizationOutput | tuple[Any, Any]:
        """Harmonize one composite or a list; `call_defaults` of the config replace the defaults below.

        Args:
            composite: As for `HarmonizationPipeline`.
            mask: The foreground of each composite: 1 (white) is foreground, soft values are kept.
            prompt: Describes the whole picture, one for all or one each; by default the captioner writes it.
            foreground: Picture whose edges and colours replace those of the composite. It has the same size.
            background: Picture whose surroundings replace those of the composite. It has the same size.
            reference_mask: Refused: only `HarmonizationPipeline` reads it.
            negative_prompt: Describes what the picture must not show.
            num_inference_steps: Steps from noise to picture.
            timesteps: Timesteps in place of the scheduler's own, for schedulers that take them.
            sigmas: Noise levels in place of the scheduler's own, for schedulers that take them.
            eta: Noise that DDIM adds at each step, from 0 to 1; other schedulers ignore it.
            guidance_scale: Weight of the prompt; up to 1, the negative prompt does not run.
            high_scale: Strength of the edges, lambda_h of equation 7; at 0 their ControlNet does not run.
            low_scale: Strength of the colours, lambda_l; the paper found 0.6 to 0.7 best.
            high_window: Start and end of the steps with edges, as shares of all steps.
            low_window: Start and end of the steps with colours.
            control_cfg: Use controls in "both" halves of guidance or, faster, in the "cond"itional half.
            init: Start from "noise", or from the "composite" with noise, more of it at higher `strength`.
            strength: Share of the steps that run; 0 returns the input.
            context: Surroundings in view on each side, as a share of the foreground's longer side.
            shadow: Let the surroundings change where a shadow may fall.
            detail: "generated", or "preserve": change colour and light alone, at full resolution.
            feather: Working pixels over which the result fades beyond the mask; all else stays to the bit.
            match_surroundings: Remove the network's drift of colour, measured around the mask.
            generator: Source of the noise: one, or one for each image.
            latents: The noise itself, `(N, C, h, w)`, or a list of `(C, h, w)`.
            num_images_per_prompt: Images for each composite.
            prompt_embeds: From `encode_prompt`, in place of the prompt, `(B, L, D)`.
            negative_prompt_embeds: In place of the negative prompt.
            clip_skip: Layers of the text encoder to skip at its end.
            cross_attention_kwargs: As in diffusers; `{"scale": 0.5}` halves the effect of LoRA layers.
            output_type: "pil", "np", "pt", "picture", "array" (see `HarmonizationOutput`) or "latent".
            return_layers: Also split each result into foreground and shadow.
            callback_on_step_end: `f(pipe, step, timestep, tensors)`, after each step; may return tensors.
            callback_on_step_end_tensor_inputs: Names of its tensors, of `CALLBACK_TENSORS`.
            return_dict: Return the output object, else the tuple `(images, nsfw_content_detected)`.

        Raises:
            InputError: An argument that cannot be used; nothing was computed.
        """
        result = check_result(output_type, return_layers, detail, feather, match_surroundings, reference_mask)
        texts = check_text(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip, self)
        sampling = check_sampling(
            num_inference_steps, guidance_scale, init, strength, timesteps, sigmas, eta, self.scheduler
        )
        controls = check_controls(control_cfg, high=(high_scale, high_window), low=(low_scale, low_window))
        after_step = StepCallback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        works = self.load_works(composite, mask, foreground, background, shadow, context)
        noise = self.check_noise(generator, latents, num_images_per_prompt, works)
        with separate_call(self) as call:
            call.begin(sampling, texts, controls, cross_attention_kwargs)
            prompts, text = call.prepare_text(texts, works, noise.images_each)
            batches = call.generate(works, text, sampling, noise, controls, after_step)
            output = call.make_output(works, batches, prompts, noise.images_each, result)
        return output if return_dict else (output.images, output.nsfw_content_detected)

    def load_works(
        self,
        composite: PictureSource | Sequence[PictureSource],
        mask: MaskSource | Sequence[MaskSource],
        foreground: PictureSource | Sequence[PictureSource] | None,
        background: PictureSource | Sequence[PictureSource] | None,
        shadow: bool,
        context: float,
    ) -> list[WorkingPicture]:
        """Load pictures and masks, and cut out what the network works on; see `make_working_pictures`."""
        context = check_number("context", context, 0, math.inf)
        size = self.config["working_size"]
        pairs = load_call_pairs(composite, mask)
        return make_working_pictures(
            pairs, foreground, background, shadow=shadow, working_size=size, context=context
        )

    def check_noise(
        self, generator: Any, latents: Any, num_images_per_prompt: Any, works: list[WorkingPicture]
    ) -> Noise:
        """Check the source of the noise of all images.

        Raises:
            InputError: Not one generator or one noise for each image.
        """
        images_each = check_integer("num_images_per_prompt", num_images_per_prompt, 1)
        channels = self.unet.config["out_channels"]
        return Noise(
            images_each,
            check_generators(generator, len(works) * images_each),
            check_latents(latents, works, images_each, channels, self.vae_scale_factor),
        )

    def begin(
        self,
        sampling: Sampling,
        texts: Texts,
        controls: Controls,
        cross_attention_kwargs: dict[str, Any] | None,
    ) -> None:
        """Set the state of a call that diffusers' methods and callbacks read, and check the networks.

        Raises:
            InputError: A ControlNet of another type than the U-Net, custom timesteps that do not work, or a
                detector that cannot be called.
        """
        if not isinstance(cross_attention_kwargs, dict | None):
            raise InputTypeError(
                "cross_attention_kwargs", f"must be a dictionary, got {cross_attention_kwargs!r}"
            )
        check_types_of_controlnets(self, controls)
        if self.control_detector is not None:
            check_detector(self.control_detector)
        self._guidance_scale, self._clip_skip = sampling.guidance_scale, texts.clip_skip  # type: ignore[assignment]
        self._cross_attention_kwargs = cross_attention_kwargs  # type: ignore[assignment]
        if sampling.strength:
            self.prepare_timesteps(sampling)

    def prepare_prompts(self, texts: Texts, works: list[WorkingPicture]) -> list[str] | None:
        """Return the prompt of each composite: given, captioned, or empty; None with embeddings.

        Raises:
            InputError: More or fewer texts than composites, or a captioner without its processor.
        """
        if texts.prompt_embeds is not None:
            return None
        if texts.prompt is not None:
            return one_for_each(texts.prompt, len(works), "prompt")
        captions = [""] * len(works)
        if self.captioner is None:
            warnings.warn("prompt: none is given, and there is no captioner; it is empty", InputNote, 4)
            return captions
        check_captioner(self.captioner, self.captioner_processor)
        views = {work.index: work.view.composite for work in works if work.view is not None}
        written = caption_images(self.captioner, self.captioner_processor, list(views.values()))
        for index, caption in zip(views, written, strict=True):
            captions[index] = caption
        return captions

    def prepare_text(
        self, texts: Texts, works: list[WorkingPicture], images_each: int
    ) -> tuple[list[str] | None, tuple[Tensor, Tensor | None]]:
        """Find the prompts of all composites, and encode them once.

        Args:
            texts: Prompts and embeddings of the call.
            works: Pictures of the call.
            images_each: Images of each.

        Returns:
            The prompts, see `prepare_prompts`; their embeddings `(N, L, D)`, and with guidance those of the
            negative prompts.

        Raises:
            InputError: Texts or embeddings of more or fewer composites.
        """
        count, given = len(works), (texts.prompt_embeds, texts.negative_prompt_embeds)
        for name, embeds in zip(("prompt_embeds", "negative_prompt_embeds"), given, strict=True):
            if embeds is not None and len(embeds) != count:
                raise InputError(name, f"has shape {tuple(embeds.shape)}, expected ({count}, L, D)")
        negative_prompts = one_for_each(texts.negative_prompt, count, "negative_prompt")
        adapted = getattr(self.text_encoder, "peft_config", None) is not None
        with ENCODING_TEXT:
            prompts = self.prepare_prompts(texts, works)
            skipping = prompts is not None and texts.clip_skip is not None
            own = self._embed_early(prompts, texts.clip_skip) if skipping else given[0]  # type: ignore[arg-type]
            positive, negative = self.encode_prompt(
                None if skipping else prompts,
                self._execution_device,
                images_each,
                self.do_classifier_free_guidance,
                negative_prompts,
                prompt_embeds=own,
                negative_prompt_embeds=given[1],
                lora_scale=(self.cross_attention_kwargs or {}).get("scale") if adapted else None,
            )
        dtype = self.unet.dtype
        if not self.do_classifier_free_guidance:
            return prompts, (positive.to(dtype), None)
        check_equal_embeds(positive, negative)
        return prompts, (positive.to(dtype), negative.to(dtype))

    def _embed_early(self, prompts: list[str], clip_skip: int) -> Tensor:
        """Embed prompts by an early layer of the text encoder, `(B, L, D)`.

        Not by diffusers, which looks for the last norm where transformers 5 no longer has it.
        """
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids = tokens.input_ids.to(self._execution_device)
        states = self.text_encoder(ids, output_hidden_states=True).hidden_states
        encoder = getattr(self.text_encoder, "text_model", self.text_encoder)
        return encoder.final_layer_norm(states[-(clip_skip + 1)])

    def generate(
        self,
        works: list[WorkingPicture],
        text: tuple[Tensor, Tensor | None],
        sampling: Sampling,
        noise: Noise,
        controls: Controls,
        after_step: StepCallback,
    ) -> list[Batch]:
        """Generate the latents of all images, one working size after the other, until interrupted."""
        batches: list[Batch] = []
        for group in groups_of_equal_size(works, noise.images_each) if sampling.strength else ():
            if self.interrupt:
                break
            batch = self.generate_group(group, text, sampling, noise, controls, after_step)
            if self.config["average_mirrored"] and not self.interrupt:
                mirror = self.generate_group(group.mirrored(), text, sampling, noise, controls, after_step)
                # An interrupted one is not finished, and would spoil the mean.
                batch = batch if self.interrupt else replace(batch, mirrored=mirror)
            batches.append(batch)
        self.release_controlnets()
        return batches

    def generate_group(
        self,
        group: Group,
        text: tuple[Tensor, Tensor | None],
        sampling: Sampling,
        noise: Noise,
        controls: Controls,
        after_step: StepCallback,
    ) -> Batch:
        """Generate the latents of pictures of one working size."""
        self._guidance_scale = sampling.guidance_scale  # type: ignore[assignment]  # a callback may change it
        timesteps = self.prepare_timesteps(sampling)
        batch = self.prepare_batch(group, text, noise, sampling, timesteps)
        extra = self.prepare_extra_step_kwargs(noise.generators_of(group.rows), sampling.eta)
        active = self.prepare_controls(group, controls)
        return self.denoise(batch, timesteps, active, controls.cfg, extra, after_step)

    def make_output(
        self,
        works: list[WorkingPicture],
        batches: list[Batch],
        prompts: list[str] | None,
        images_each: int,
        result: Result,
    ) -> DiffusionHarmonizationOutput:
        """Decode the latents and put them into the pictures; a picture without latents stays as it is."""
        regions = [work.region for work in works]
        if result.output_type == "latent":
            latents: list[Tensor | None] = [None] * (len(works) * images_each)
            for batch in batches:
                for row, one in zip(batch.rows, batch.latents, strict=True):
                    latents[row] = one
            return DiffusionHarmonizationOutput(stack_equal(latents), prompts=prompts, regions=regions)
        pictures = [work.picture for work in works for _ in range(images_each)]
        unsafe = [False] * len(pictures)
        pasting = result.pasting | {"opacity": self.config["opacity"]}
        for batch in batches:
            images, references, flags = self.decode_batch(batch, pasting["detail"])
            for position, row in enumerate(batch.rows):
                work = works[row // images_each]
                reference = None if references is None else references[position, None]
                pictures[row] = work.paste(images[position, None], pasting, reference)
                unsafe[row] = flags is not None and bool(flags[position])
        return DiffusionHarmonizationOutput(
            export_pictures(pictures, result.output_type),
            prompts=prompts,
            regions=regions,
            nsfw_content_detected=unsafe if self.safety_checker is not None else None,
            layers=[works[row // images_each].split(picture) for row, picture in enumerate(pictures)]
            if result.return_layers
            else None,
        )


def check_captioner(captioner: Any, processor: Any) -> None:
    """Check that a captioner comes with its processor.

    Raises:
        InputError: It does not.
    """
    if captioner is not None and processor is None:
        raise InputError(
            "captioner_processor",
            "is None, and the captioner cannot read pictures without it",
            "Give `transformers.BlipProcessor`, or a prompt for each composite.",
        )

"""Denoising under two controls, step by step.

Paper: Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102; equations in `diffusion/conditioning.py`.
`StableDiffusionHarmonizationPipeline` adds the parts before and after: pictures, prompts, pasting.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
    retrieve_timesteps,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from harmony_diffusion.diffusion.conditioning import (
    control_residuals,
    controlnet_sample,
    encode_latents,
    for_conditional_half,
    latent_mask,
    predict_noise,
    unet_sample,
    visible_image,
)
from harmony_diffusion.diffusion.control_detectors import ControlDetector, detector_image
from harmony_diffusion.diffusion.control_images import canny_image, gaussian_image
from harmony_diffusion.diffusion.controlnets import Control, embed_control_image, make_embedding_reusable
from harmony_diffusion.diffusion.working_picture import Batch, Group
from harmony_diffusion.errors import InputError
from harmony_diffusion.pipelines.call_checks import Controls, Sampling, StepCallback


@dataclass(frozen=True)
class Noise:
    """Source of the noise of a call.

    Attributes:
        images_each: Images of each composite.
        generator: One for all images, one for each, or None for torch's own.
        latents: The noise itself, `(C, h, w)` for each image, in place of drawing it.
    """

    images_each: int = 1
    generator: list[torch.Generator] | torch.Generator | None = None
    latents: list[Tensor] | None = None

    def generators_of(self, rows: list[int]) -> list[torch.Generator] | torch.Generator | None:
        """Return the generators of these images."""
        return [self.generator[row] for row in rows] if isinstance(self.generator, list) else self.generator


class DualControlDenoiser(StableDiffusionInpaintPipeline):
    """Steps of inpainting with the ControlNets `controlnet_high` and `controlnet_low`, each a method.

    Each step returns its result. Encoding of text, schedule and safety checker are those of diffusers.
    """

    controlnet_high: Any
    controlnet_low: Any
    control_detector: ControlDetector | None = None
    _called: "DualControlDenoiser | None" = None

    @property
    def interrupt(self) -> bool:
        """True once this call, or all calls of the pipeline, should stop."""
        return self._interrupt or (self._called is not None and self._called._interrupt)

    def prepare_timesteps(self, sampling: Sampling) -> Tensor:
        """Return the timesteps of the last `strength` of the schedule, which begins anew.

        Raises:
            InputError: The scheduler does not take these timesteps or sigmas.
        """
        device = self._execution_device
        custom = {name: getattr(sampling, name) for name in ("timesteps", "sigmas")}
        given = [name for name, values in custom.items() if values]
        try:
            _, count = retrieve_timesteps(
                self.scheduler, None if given else sampling.num_inference_steps, device, **custom
            )
        except (ValueError, AssertionError) as error:
            if not given:
                raise
            reason = f"cannot be used with {type(self.scheduler).__name__}: {error}"
            raise InputError(given[0], reason, "Give `num_inference_steps` instead.") from error
        timesteps, _ = self.get_timesteps(count, sampling.strength, device)
        self._num_timesteps = len(timesteps)
        return timesteps

    def prepare_batch(
        self,
        group: Group,
        text: tuple[Tensor, Tensor | None],
        noise: Noise,
        sampling: Sampling,
        timesteps: Tensor,
    ) -> Batch:
        """Return the latents that a group starts from, and the other inputs of the U-Net."""
        embeds = torch.cat([part[group.rows] for part in (text[1], text[0]) if part is not None])
        generated = group.stack("inpainting_mask")
        channel = self.config["image_channel"]
        seen = group.stack("composite" if channel == "composite" else "background")
        image_latents = self.encode_images(visible_image(seen, generated, channel))
        mask = latent_mask(generated, image_latents.shape[-2:]).to(image_latents)
        # Not the parent's `prepare_latents`, which takes images of any but 4 channels for pixels.
        shape, device = (len(group.rows), *image_latents.shape[1:]), self._execution_device
        if noise.latents is None:
            generators = noise.generators_of(group.rows)
            drawn = randn_tensor(shape, generator=generators, device=device, dtype=self.unet.dtype)
        else:
            drawn = torch.stack([noise.latents[row] for row in group.rows]).to(device, self.unet.dtype)
        if sampling.init == "noise":
            latents = drawn * self.scheduler.init_noise_sigma
        else:
            start = group.repeat(self.encode_images(2 * group.stack("composite") - 1))
            latents = self.scheduler.add_noise(start, drawn, timesteps[:1].repeat(len(group.rows)))
        return Batch(
            rows=group.rows,
            latents=latents,
            prompt_embeds=embeds,
            mask=group.repeat(mask),
            masked_image_latents=group.repeat(image_latents),
        )

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1], `(B, 3, H, W)`, to scaled latents `(B, C, h, w)`; not sampled."""
        return encode_latents(self.vae, images.to(self._execution_device)).to(self.unet.dtype)

    def make_control_images(self, group: Group) -> dict[str, Callable[[], Tensor]]:
        """Return a function for each ControlNet that draws its control images, `(B, 3, H, W)` in [0, 1]."""
        foreground, mask, config = group.stack("foreground"), group.stack("foreground_mask"), self.config
        low, high = config["canny_thresholds"]
        silhouette, detector = config["silhouette"], self.control_detector

        def draw_edges() -> Tensor:
            if detector is not None:
                return detector_image(foreground, mask, detector, silhouette=silhouette)
            return canny_image(
                foreground, mask, low_threshold=low, high_threshold=high, silhouette=silhouette
            )

        return {
            "controlnet_high": draw_edges,
            "controlnet_low": lambda: gaussian_image(
                foreground, mask, sigma=config["sigma"], premultiplied=config["premultiplied"]
            ),
        }

    def prepare_controls(self, group: Group, settings: Controls) -> list[Control]:
        """Draw and embed the control images of the ControlNets that exist and have a scale."""
        controls = []
        for name, draw in self.make_control_images(group).items():
            controlnet, (scale, window) = getattr(self, name), settings.settings[name]
            if controlnet is not None and scale != 0:
                make_embedding_reusable(controlnet)
                embedding = embed_control_image(controlnet, draw().to(self._execution_device))
                controls.append(Control(controlnet, group.repeat(embedding), scale, window))
        return controls

    def denoise(
        self,
        batch: Batch,
        timesteps: Tensor,
        controls: list[Control],
        control_cfg: str,
        extra: dict[str, Any],
        after_step: StepCallback,
    ) -> Batch:
        """Take the noise out of the batch's latents, step by step, until done or interrupted."""
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                active = [control for control in controls if control.is_active(step, len(timesteps))]
                noise = self.predict_noise(batch, timestep, active, control_cfg)
                latents = self.scheduler.step(noise, timestep, batch.latents, **extra, return_dict=False)[0]
                batch = after_step(self, step, timestep, replace(batch, latents=latents))
                progress.update()
        return batch

    def predict_noise(
        self, batch: Batch, timestep: Tensor, controls: list[Control], control_cfg: str
    ) -> Tensor:
        """Predict the noise in the batch's latents, with guidance and with these controls."""
        guided = self.do_classifier_free_guidance
        latents = self.scheduler.scale_model_input(batch.latents, timestep)
        sample = unet_sample(latents, batch.mask, batch.masked_image_latents)
        control_sample = controlnet_sample(latents, sample, self.config["control_input"])
        half = guided and control_cfg == "cond"
        if guided:
            sample = torch.cat([sample] * 2)
            control_sample = control_sample if half else torch.cat([control_sample] * 2)
        # A callback may have left the embeddings of the prompts alone.
        embeds = batch.prompt_embeds[-len(sample) :]
        residuals = control_residuals(controls, control_sample, timestep, embeds[-len(control_sample) :])
        if residuals is not None and half:
            residuals = for_conditional_half(residuals)
        noise = predict_noise(self.unet, sample, timestep, embeds, residuals, self.cross_attention_kwargs)
        if guided:
            without, with_prompt = noise.chunk(2)
            noise = without + self.guidance_scale * (with_prompt - without)
        return noise

    def release_controlnets(self) -> None:
        """Unload the ControlNets before the autoencoder decodes, where models are offloaded."""
        for hook in getattr(self, "_all_hooks", []):
            if hook.model is self.controlnet_high or hook.model is self.controlnet_low:
                hook.offload()

    def decode(self, latents: Tensor) -> tuple[Tensor, list[bool] | None]:
        """Decode latents `(N, C, h, w)` to images `(N, 3, H, W)` in [0, 1], and return the safety verdicts.

        Raises:
            InputError: The values exceed the range of the autoencoder's number type.
        """
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images = self.vae.decode(scaled, return_dict=False)[0]
        if not torch.isfinite(images).all():
            raise InputError(
                "vae",
                f"gives values that are not finite in {self.vae.dtype}",
                "Keep it in a larger type: `pipe.vae.to(torch.float32)`, or load with dtype=torch.bfloat16.",
            )
        images, flags = self.run_safety_checker(images, images.device, self.unet.dtype)
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        if flags is not None:
            images[torch.tensor(flags)] = 0
        return images, flags

    def decode_batch(self, batch: Batch, detail: str) -> tuple[Tensor, Tensor | None, list[bool] | None]:
        """Decode the images of a batch, or the mean of them and of those of the mirrored pictures.

        Returns:
            The images, see `decode`; the composites, see `decode_references`; and the safety verdicts.
        """
        images, flags = self.decode(batch.latents)
        references = self.decode_references(batch, detail)
        if batch.mirrored is None:
            return images, references, flags
        others, other_references, other_flags = self.decode_batch(batch.mirrored, detail)
        images = (images + others.flip(3)) / 2
        if references is not None and other_references is not None:
            references = (references + other_references.flip(3)) / 2
        if flags is not None and other_flags is not None:
            flags = [one or other for one, other in zip(flags, other_flags, strict=True)]
            images[torch.tensor(flags)] = 0
        return images, references, flags

    def decode_references(self, batch: Batch, detail: str) -> Tensor | None:
        """Decode the composites as the U-Net sees them, `(N, 3, H, W)` in [0, 1].

        The change of colour is measured from them, so that the errors of the autoencoder cancel.

        Returns:
            None if pixels are generated, or if the U-Net does not see the composites.
        """
        if detail != "preserve" or self.config["image_channel"] != "composite":
            return None
        scaled = batch.masked_image_latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images = self.vae.decode(scaled, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

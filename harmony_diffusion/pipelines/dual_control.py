"""Denoising under two controls: the part of the diffusion pipeline that equations 6-11 of the paper describe.

Paper: Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102. `StableDiffusionHarmonizationPipeline` adds
what leads to it and from it: pictures, prompts, pasting.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
    retrieve_latents,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from harmony_diffusion.diffusion.control_images import canny_image, gaussian_image
from harmony_diffusion.diffusion.controlnets import (
    Control,
    control_residuals,
    embed_control_image,
    for_conditional_half,
    make_embedding_reusable,
)
from harmony_diffusion.diffusion.working_picture import Batch
from harmony_diffusion.errors import InputError
from harmony_diffusion.pipelines.call_checks import ControlSetting, StepCallback


class DualControlDenoiser(StableDiffusionInpaintPipeline):
    """Steps of inpainting with the ControlNets `controlnet_high` and `controlnet_low`, each a method.

    Encoding of text, noise, schedule and safety checker are those of diffusers' pipeline.
    """

    controlnet_high: Any
    controlnet_low: Any

    def prepare_timesteps(self, num_inference_steps: int, strength: float) -> Tensor:
        """Return the timesteps of the last `strength` of the schedule, which begins anew."""
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps, _ = self.get_timesteps(num_inference_steps, strength, self._execution_device)
        self._num_timesteps = len(timesteps)
        return timesteps

    def prepare_latents_of(
        self, batch: Batch, text: tuple[Tensor, Tensor | None], init: str, timesteps: Tensor
    ) -> None:
        """Set the latents that a batch starts from, and what the U-Net is told at each step beside them."""
        batch.prompt_embeds = torch.cat([part[batch.rows] for part in (text[1], text[0]) if part is not None])
        hole, composite = batch.stack("hole"), 2 * batch.stack("composite") - 1
        if self.config["image_channel"] == "composite":
            latents = self.encode_images(composite)
        else:
            # Equation 9, in the autoencoder's [-1, 1]: what is left out is mid-grey.
            latents = self.encode_images((2 * batch.stack("background") - 1) * (1 - hole))
        mask = F.interpolate(hole, latents.shape[-2:])  # nearest, as the paper has it
        batch.mask, batch.masked_image_latents = batch.repeat(mask.to(latents)), batch.repeat(latents)
        # Not the parent's `prepare_latents`, which takes images of any but 4 channels for pixels.
        shape, device = (len(batch), *latents.shape[1:]), self._execution_device
        noise = randn_tensor(shape, generator=batch.generator, device=device, dtype=self.unet.dtype)
        if init == "noise":
            batch.latents = noise * self.scheduler.init_noise_sigma
        else:
            start = batch.repeat(self.encode_images(composite))
            batch.latents = self.scheduler.add_noise(start, noise, timesteps[:1].repeat(len(batch)))

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1], `(B, 3, H, W)`, to scaled latents `(B, C, h, w)`; not sampled."""
        images = images.to(self._execution_device, self.vae.dtype)
        latents = retrieve_latents(self.vae.encode(images), sample_mode="argmax")
        return (latents * self.vae.config.scaling_factor).to(self.unet.dtype)

    def make_control_images(self, batch: Batch) -> dict[str, Callable[[], Tensor]]:
        """Return for each ControlNet's name what draws its control images, `(B, 3, H, W)` in [0, 1]."""
        foreground, mask, config = batch.stack("foreground"), batch.stack("foreground_mask"), self.config
        low, high = config["canny_thresholds"]
        return {
            "controlnet_high": lambda: canny_image(
                foreground, mask, low_threshold=low, high_threshold=high, silhouette=config["silhouette"]
            ),
            "controlnet_low": lambda: gaussian_image(
                foreground, mask, sigma=config["sigma"], premultiplied=config["premultiplied"]
            ),
        }

    def prepare_controls(self, batch: Batch, settings: dict[str, ControlSetting]) -> list[Control]:
        """Draw and embed the control images of the ControlNets that are there and have a scale."""
        controls = []
        for name, draw in self.make_control_images(batch).items():
            controlnet, (scale, window) = getattr(self, name), settings[name]
            if controlnet is not None and scale != 0:
                make_embedding_reusable(controlnet)
                embedding = embed_control_image(controlnet, draw().to(self._execution_device))
                controls.append(Control(controlnet, batch.repeat(embedding), scale, window))
        return controls

    def denoise(
        self,
        batch: Batch,
        timesteps: Tensor,
        controls: list[Control],
        control_cfg: str,
        after_step: StepCallback,
    ) -> None:
        """Take the noise out of the batch's latents, step by step, until done or interrupted."""
        extra = self.prepare_extra_step_kwargs(batch.generator, eta=0.0)
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                active = [control for control in controls if control.is_active(step, len(timesteps))]
                noise = self.predict_noise(batch, timestep, active, control_cfg)
                batch.latents = self.scheduler.step(
                    noise, timestep, batch.latents, **extra, return_dict=False
                )[0]
                after_step(self, step, timestep, batch)
                progress.update()

    def predict_noise(
        self, batch: Batch, timestep: Tensor, controls: list[Control], control_cfg: str
    ) -> Tensor:
        """Predict the noise in the batch's latents, with guidance and with these controls (equations 6-8)."""
        guided = self.do_classifier_free_guidance
        latents = self.scheduler.scale_model_input(batch.latents, timestep)
        unet_input = torch.cat([latents, batch.mask, batch.masked_image_latents], dim=1)  # equation 11
        control_input = latents if self.config["control_input"] == "noisy_latents" else unet_input
        half = guided and control_cfg == "cond"
        if guided:
            unet_input = torch.cat([unet_input] * 2)
            control_input = control_input if half else torch.cat([control_input] * 2)
        # A callback may have left the embeddings of the prompts alone.
        embeds = batch.prompt_embeds[-len(unet_input) :]
        residuals = control_residuals(controls, control_input, timestep, embeds[-len(control_input) :])
        if residuals is not None and half:
            residuals = for_conditional_half(residuals)
        down, middle = residuals if residuals is not None else (None, None)
        noise = self.unet(
            unet_input,
            timestep,
            encoder_hidden_states=embeds,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
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
        """Decode latents `(N, C, h, w)` to images `(N, 3, H, W)` in [0, 1], and say which are unsafe.

        Raises:
            InputError: The autoencoder's number format is too small for its values.
        """
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images = self.vae.decode(scaled, return_dict=False)[0]
        if not torch.isfinite(images).all():
            raise InputError(
                "vae",
                f"gives values that are no numbers in {self.vae.dtype}",
                "Keep it in a larger type: `pipe.vae.to(torch.float32)`, or load with dtype=torch.bfloat16.",
            )
        images, flags = self.run_safety_checker(images, images.device, self.unet.dtype)
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        if flags is not None:
            images[torch.tensor(flags)] = 0
        return images, flags

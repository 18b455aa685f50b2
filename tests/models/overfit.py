"""Train a model on one real picture: the proof that loss, gradient, batch norm and output fit together."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def real_pair(size: int, shared: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return composite, mask and real image of one picture, `(1, C, size, size)`.

    The photograph is an example of RainNet (iHarmony4).
    """
    names = {"rainnet_1.png": "RGB", "rainnet_1-mask.png": "L", "rainnet_1-gt.png": "RGB"}
    tensors = []
    for name, mode in names.items():
        # Not averaged: an edge pixel of both foreground and background would be neither in a hard mask.
        with Image.open(shared / "golden" / "images" / name) as file:
            picture = file.convert(mode).resize((size, size), Image.Resampling.NEAREST)
        array = np.atleast_3d(np.asarray(picture, dtype=np.float32)) / 255
        tensors.append(torch.from_numpy(array).permute(2, 0, 1)[None])
    composite, mask, real = tensors
    return composite, (mask > 0.5).float(), real


def foreground_psnr(harmonized: Tensor, real: Tensor, mask: Tensor) -> float:
    squared_error = ((harmonized - real).square() * mask).sum() / (3 * mask.sum())
    return float(-10 * squared_error.log10())


def overfit(
    model: torch.nn.Module, size: int, steps: int, shared: Path, lr: float = 1e-3, target: float = 41.0
) -> tuple[float, float, int]:
    """Train on the picture and its mirror image until the foreground PSNR passes `target`.

    The learning rate falls along a cosine to a hundredth: the last decibels need small steps. The two halves
    of the batch keep batch norms happy where the bottleneck is a single pixel.

    Returns:
        Foreground PSNR of the composite, that of the model in evaluation mode, and the steps taken.
    """
    torch.manual_seed(0)
    composite, mask, real = real_pair(size, shared)
    before = foreground_psnr(composite, real, mask)
    batch = [torch.cat((t, t.flip(-1))) for t in (composite, mask, real)]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 100)
    reached = before
    for step in range(1, steps + 1):
        model.train()
        error = (model(batch[0], batch[1]) - batch[2]).square() * batch[1]
        loss = error.sum() / (3 * batch[1].sum())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                reached = foreground_psnr(model(composite, mask), real, mask)
            if reached > target:
                break
    return before, reached, step

"""Train a model on one real picture: the proof that loss, gradient, batch norm and output fit together."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def real_pair(size: int, shared: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return composite, mask and real image of one picture, `(1, C, size, size)`.

    The photograph is an example of RainNet (iHarmony4); without the reference material, a smooth field with
    texture takes its place, whose foreground gets other colours.
    """
    if shared is not None:
        folder = shared / "golden" / "images"
        names = {"rainnet_1.png": "RGB", "rainnet_1-mask.png": "L", "rainnet_1-gt.png": "RGB"}
        pictures = [Image.open(folder / name).convert(mode) for name, mode in names.items()]
        arrays = [np.atleast_3d(np.asarray(p.resize((size, size), Image.Resampling.BOX))) for p in pictures]
        composite, mask, real = (
            torch.from_numpy(a.astype(np.float32) / 255).permute(2, 0, 1)[None] for a in arrays
        )
        return composite, (mask > 0.5).float(), real
    generator = torch.Generator().manual_seed(0)
    real = torch.zeros(1, 3, size, size)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.2)):
        coarse = torch.rand(1, 3, cells, cells, generator=generator)
        real += weight * F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : 3 * size // 4, size // 3 : 5 * size // 6] = 1
    shifted = (real * torch.tensor([1.1, 0.8, 0.7]).view(3, 1, 1) + 0.05).clamp(0, 1)
    return torch.where(mask > 0, shifted, real), mask, real


def foreground_psnr(harmonized: Tensor, real: Tensor, mask: Tensor) -> float:
    squared_error = ((harmonized - real).square() * mask).sum() / (3 * mask.sum())
    return float(-10 * squared_error.log10())


def overfit(
    model: torch.nn.Module, size: int, steps: int, shared: Path | None, lr: float = 1e-3, target: float = 40.0
) -> tuple[float, float, int]:
    """Train on the picture and its mirror image until the foreground PSNR passes `target`.

    The learning rate falls linearly to a tenth. The two halves of the batch keep batch norms happy where the
    bottleneck is a single pixel.

    Returns:
        Foreground PSNR of the composite, that of the model in evaluation mode, and the steps taken.
    """
    torch.manual_seed(0)
    composite, mask, real = real_pair(size, shared)
    before = foreground_psnr(composite, real, mask)
    batch = [torch.cat((t, t.flip(-1))) for t in (composite, mask, real)]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
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

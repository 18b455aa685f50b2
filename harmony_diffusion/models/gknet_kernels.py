"""The kernel branch of GKNet: long-distance references, their fusion, and the kernels they modulate with.

Paper: https://arxiv.org/abs/2305.11676 (sections 3.2 and 3.3).  The paper names the parts and their equations
but neither widths nor depths (its supplement is not public): choices that it leaves open are marked ★.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

KERNEL_SIZE = 3  # ★ N of eq. 6
ATTENTION_GROUPS = 8  # ★ n of eq. 2


def _recomputed_in_training(module: nn.Module, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call `function`; if `module` trains, recompute it in the backward pass instead of storing activations.

    The functions passed here are cheap to compute; their activations would take half of the training memory.
    """
    if module.training and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return function(*arguments)


def _tap(features: Tensor, reference: Tensor, weight: Tensor, bias: Tensor, row: int, column: int) -> Tensor:
    """One term of eq. 6: one kernel entry of every pixel times the neighbour `(row, column)` away."""
    neighbours = functional.pad(features, (-column, column, -row, row))  # shifts; zeros come in at the border
    return functional.conv2d(reference, weight, bias) * neighbours


class HarmonyKernel(nn.Conv2d):
    """Harmony kernel modulation: every pixel and channel is filtered with a predicted kernel (eq. 5 and 6).

    The module is the post-convolution `K = Conv(F_KPB)` of `C * N * N` outputs, but the kernels are never
    held: each of their `N * N` entries is computed, multiplied with the features shifted to that neighbour,
    and added up. Output `c * N * N + i * N + j` weighs row i, column j of the neighbourhood in channel c.
    (The paper writes the index as p - q; for a predicted kernel the order does not matter.) As in the
    paper, the kernels are not normalised.

    Args:
        channels: Channels of the reference and of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels * KERNEL_SIZE**2, 1)
        # ★ The kernels start close to the identity, so that the U-Net trains from the first step.
        with torch.no_grad():
            self.weight.mul_(0.01)
            identity = torch.zeros(KERNEL_SIZE**2)
            identity[KERNEL_SIZE**2 // 2] = 1
            assert self.bias is not None
            self.bias.copy_(identity.repeat(channels))

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:  # type: ignore[override]
        """Modulate `features` with kernels predicted from `reference`, all `(B, C, H, W)`.

        Outside the frame features count as zero ★.
        """
        assert self.bias is not None
        weight = self.weight.unflatten(0, (-1, KERNEL_SIZE**2))  # (C, N * N, C, 1, 1)
        bias = self.bias.unflatten(0, (-1, KERNEL_SIZE**2))
        modulated = torch.zeros_like(features)
        for tap in range(KERNEL_SIZE**2):
            row, column = tap // KERNEL_SIZE - KERNEL_SIZE // 2, tap % KERNEL_SIZE - KERNEL_SIZE // 2
            arguments = (features, reference, weight[:, tap], bias[:, tap], row, column)
            modulated += _recomputed_in_training(self, _tap, *arguments)
        return modulated


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and MLP over a sequence.

    Args:
        channels: Width of the tokens.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP in units of `channels`.
    """

    def __init__(self, channels: int, heads: int = 8, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens after one layer, `(B, L, C)`."""
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, heads, C / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        return tokens + _recomputed_in_training(self, self._normed_mlp, tokens)

    def _normed_mlp(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm2(tokens))


class LongDistanceReference(nn.Module):
    """LRE: one token a pixel of the deepest features, transformer layers, and a post-convolution.

    Args:
        channels: Channels of the deepest features.
        layers: Transformer layers ★.
        grid: Height and width the learned positions are stored at ★; they are resized to other sizes.
    """

    def __init__(self, channels: int, layers: int = 6, grid: int = 32) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, channels, grid, grid).normal_(std=0.02))
        self.layers = nn.ModuleList(TransformerLayer(channels) for _ in range(layers))
        self.post = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the long-distance reference `F_LR` of the deepest features, both `(B, C, H, W)`."""
        size = features.shape[-2:]
        position: Tensor = self.position
        if position.shape[-2:] != size:
            position = functional.interpolate(position, size, mode="bicubic", align_corners=False)
        tokens = (features + position).flatten(2).transpose(1, 2)  # (B, H * W, C)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.post(tokens.transpose(1, 2).unflatten(2, size))


class SelectiveCorrelationFusion(nn.Module):
    """SCF: weigh the channels of encoder features and reference by how their groups correlate (eq. 2 to 4).

    Args:
        channels: Channels of the encoder features and of the result.
        reference_channels: Channels of the reference, which may be coarser.
        select: Whether the branches are weighed; without, they are added (the paper's ablation).
    """

    def __init__(self, channels: int, reference_channels: int, select: bool = True) -> None:
        super().__init__()
        self.select = select
        self.encoder = nn.Conv2d(channels, channels, 3, padding=1)
        self.reference = nn.Conv2d(reference_channels, channels, 3, padding=1)
        if select:
            self.encoder_mlp = _squeeze_mlp(channels)
            self.reference_mlp = _squeeze_mlp(channels)
            # ★ "N x N convolutions with splitting": the kernel covers the whole n x n map.
            self.correlate = nn.Conv2d(1, 2 * channels, ATTENTION_GROUPS)
            self.encoder_fc = nn.Linear(channels, channels)
            self.reference_fc = nn.Linear(channels, channels)
            self.strength = nn.Parameter(torch.zeros(()))  # b of eq. 3

    def channel_weights(self, encoder: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return `S_E` and `S_KPB` of eq. 3 for two feature maps, both `(B, C)`."""
        alpha_encoder = self.encoder_mlp(encoder.mean((2, 3)))  # (B, C)
        alpha_reference = self.reference_mlp(reference.mean((2, 3)))
        groups_encoder = alpha_encoder.unflatten(1, (ATTENTION_GROUPS, -1))  # (B, n, m)
        groups_reference = alpha_reference.unflatten(1, (ATTENTION_GROUPS, -1))
        relation = groups_reference @ groups_encoder.transpose(1, 2)  # eq. 2, (B, n, n)
        factor_reference, factor_encoder = self.correlate(relation.unsqueeze(1)).flatten(1).chunk(2, dim=1)
        weight_encoder = alpha_encoder + self.strength * self.encoder_fc(factor_encoder)
        weight_reference = alpha_reference + self.strength * self.reference_fc(factor_reference)
        return weight_encoder.sigmoid(), weight_reference.sigmoid()

    def forward(self, encoder: Tensor, reference: Tensor) -> Tensor:
        """Fuse encoder features `(B, C, H, W)` with a reference `(B, R, h, w)`, `(B, C, H, W)`."""
        encoder, reference = self.encoder(encoder), self.reference(reference)
        if self.select:
            weight_encoder, weight_reference = self.channel_weights(encoder, reference)
            encoder = encoder * weight_encoder[..., None, None]
            reference = reference * weight_reference[..., None, None]
        if reference.shape[-2:] != encoder.shape[-2:]:
            size = encoder.shape[-2:]
            reference = functional.interpolate(reference, size, mode="bilinear", align_corners=False)
        return encoder + reference


def _squeeze_mlp(channels: int) -> nn.Sequential:
    """The MLP of SCF, with a hidden layer of a quarter ★."""
    return nn.Sequential(
        nn.Linear(channels, channels // 4), nn.ReLU(inplace=True), nn.Linear(channels // 4, channels)
    )


class KernelPredictionBlock(nn.Module):
    """KPB: fuse a level's encoder features with the coarser reference and predict its kernels (eq. 1).

    Args:
        channels: Channels of the level.
        reference_channels: Channels of the coarser level's reference.
        select: Whether SCF weighs the features that it fuses.
    """

    def __init__(self, channels: int, reference_channels: int, select: bool = True) -> None:
        super().__init__()
        self.fuse = SelectiveCorrelationFusion(channels, reference_channels, select)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.kernel = HarmonyKernel(channels)

    def forward(self, encoder: Tensor, reference: Tensor) -> Tensor:
        """Return `F_KPB` of this level, `(B, C, H, W)`; `self.kernel` modulates the decoder with it."""
        fused = _recomputed_in_training(self, self._fuse_and_convolve, encoder, reference)
        return functional.relu(self.norm(fused))

    def _fuse_and_convolve(self, encoder: Tensor, reference: Tensor) -> Tensor:
        return self.conv(self.fuse(encoder, reference))

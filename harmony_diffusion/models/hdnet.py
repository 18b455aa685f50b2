"""HDNet: hierarchical dynamic harmonization, from local matches to global kernels.

Paper: Chen et al., "Hierarchical Dynamic Image Harmonization", ACM MM 2023, https://arxiv.org/abs/2211.08639.
Official code: https://github.com/chenhaoxing/HDNet (MIT, no weights).  Changed here: pictures of any size are
mirrored up to a multiple of 8; the convolution the official code creates and never uses is left out
(`conv_guide`, 902 of its 10,414,389 parameters); only foreground and background positions are compared, a
block of the foreground at a time.

Where paper and code differ: the paper adjusts a foreground position by its K nearest background positions,
weighted by similarity; the code takes the nearest one (K = 1) and weighs it by a softmax over all positions
of the frame, which makes the weights tiny. `ld_mode` chooses; the default is the code, whose numbers are the
published ones.

The official training and test code replaces the background of the composite by the one of the real picture
(which removes JPEG noise); here the network reads the composite unchanged.
"""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import CheckpointedModule, init_pix2pix_, reflect_to_multiple
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin
from harmony_diffusion.models.rain_net import RAIN, DownStage

_STRIDE = 8
_QUERIES_AT_ONCE = 1024


def _mask_tokens(mask: Tensor, x: Tensor) -> Tensor:
    """Resize a mask `(B, 1, H, W)` to the features `(B, C, h, w)` by nearest neighbour: `(B, h w, 1)`."""
    return F.interpolate(mask.detach().to(x.dtype), size=x.shape[-2:], mode="nearest").flatten(2).mT


def _rows(selected: Tensor, spare: int = 0) -> Tensor:
    """List the selected positions of each sample first, as many for all as the fullest sample selects.

    Args:
        selected: `(B, N)`, boolean.
        spare: List that many more.

    Returns:
        Rows of the flattened `(B N)`, `(B, n)`, no row twice, at least one per sample. Where shapes must not
        depend on values (`torch.compile`, export, tracing), n is N.
    """
    batch, count = selected.shape
    first = torch.arange(0, batch * count, count, device=selected.device)[:, None]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return first + torch.arange(count, device=selected.device)
    order = selected.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return first + order[:, : max(int(selected.sum(1).max()), 1) + spare]


def _take(tokens: Tensor, rows: Tensor) -> Tensor:
    """Pick rows `(B, n)` of the tokens `(B, N, C)`: `(B, n, C)`."""
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _add(tokens: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Add values `(B, n, C)` at rows `(B, n)` of fresh tokens `(B, N, C)`, in place."""
    return tokens.flatten(0, 1).index_add_(0, rows.flatten(), values.flatten(0, 1)).view(tokens.shape)


def _picture(tokens: Tensor, x: Tensor) -> Tensor:
    """Lay out tokens `(B, h w, C)` as features of the size of `x`, `(B, C, h, w)` in channels-last format.

    For a batch of one, `tokens.mT.unflatten(2, ...)` has a batch stride that convolutions do not accept as
    channels-last, so that each would copy its input.
    """
    return tokens.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)


class LocalDynamics(nn.Module):
    """LD: adjust every foreground position by the background positions most similar to it.

    Args:
        channels: Channels of the features.
        mode: `"official"`: the nearest position, weighed by a softmax of the similarities over the frame, as
            in the code; `"paper"`: the `neighbors` nearest, weighed by a softmax over them. Nearness is
            the dot product in both modes (our choice in the paper mode). A soft mask weighs both sides.
        neighbors: K of the paper mode.
    """

    def __init__(self, channels: int, mode: str = "official", neighbors: int = 3) -> None:
        super().__init__()
        self.mode, self.neighbors = mode, neighbors
        self.linear = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, C, h, w)` under the picture's mask `(B, 1, H, W)` to the same shape."""
        tokens, weight = x.flatten(2).mT, _mask_tokens(mask, x)
        foreground = _rows(weight[..., 0] > 0)
        # The official code keeps the foreground in the support as zero vectors, which are nearest when no
        # similarity is positive; a spare row adds one such vector.
        background = _rows(weight[..., 0] < 1, spare=1)
        foreground_weight, background_weight = _take(weight, foreground), 1 - _take(weight, background)
        query = _take(tokens, foreground) * foreground_weight
        support = _take(tokens, background) * background_weight
        if self.mode == "official":
            fused = self._fuse_nearest(query, support, x.shape[2] * x.shape[3])
        else:
            fused = self._fuse_neighbors(query, support, background_weight[..., 0] == 0)
        adjusted = self.linear(torch.cat((fused, query), 2)) * foreground_weight
        return _picture(_add(tokens * (1 - weight), foreground, adjusted), x)

    def _fuse_nearest(self, query: Tensor, support: Tensor, count: int) -> Tensor:
        """Official mode: `(B, n, C)` queries and `(B, m, C)` support of a frame of `count` positions."""
        parts = [(part @ support.mT).max(2) for part in query.split(_QUERIES_AT_ONCE, 1)]
        similarity = torch.cat([part.values for part in parts], 1).float()
        # Positions outside the foreground are queries as well: zero vectors of similarity 0.
        rest = count - query.shape[1]
        others = similarity.new_full((len(query), 1), math.log(rest) if rest else -math.inf)
        total = torch.cat((similarity, others), 1).logsumexp(1, keepdim=True)
        index = torch.cat([part.indices for part in parts], 1)
        return _pick(support, index) * torch.exp(similarity - total)[..., None].to(query.dtype)

    def _fuse_neighbors(self, query: Tensor, support: Tensor, excluded: Tensor) -> Tensor:
        """Paper mode; `excluded` `(B, m)` is True where the support is not background."""
        lowest = torch.finfo(query.dtype).min
        fused = []
        for part in query.split(_QUERIES_AT_ONCE, 1):
            similarity = (part @ support.mT).masked_fill(excluded[:, None], lowest)
            near = similarity.topk(min(self.neighbors, support.shape[1]), 2)
            # Without any background all weights are equal and the excluded support is 0: nothing is fused.
            weights = near.values.float().softmax(2).to(query.dtype)
            picked = _pick(support, near.indices.flatten(1)).unflatten(1, near.indices.shape[1:])
            fused.append((picked * weights[..., None]).sum(2))
        return torch.cat(fused, 1)


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens of `(B, N, C)` by indices `(B, n)` into each sample: `(B, n, C)`."""
    first = torch.arange(0, tokens.shape[0] * tokens.shape[1], tokens.shape[1], device=index.device)
    return _take(tokens, index + first[:, None])


class MaskAwareDynamics(nn.Module):
    """MGD: one 1x1 convolution for the foreground and one for the background, both made from the features.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 4, 1)
        # Two groups: the kernel of the foreground from the first two values, of the background from the rest.
        self.expand = nn.Conv2d(4, 2 * channels * channels, 1, groups=2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, C, h, w)` under the picture's mask `(B, 1, H, W)` to the same shape."""
        channels = x.shape[1]
        code = torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        foreground_kernel, background_kernel = self.expand(code).view(-1, 2, channels, channels).unbind(1)
        tokens, weight = x.flatten(2).mT, _mask_tokens(mask, x)
        foreground = _rows(weight[..., 0] > 0)
        change = _take(tokens, foreground) @ (foreground_kernel - background_kernel).mT
        result = _add(tokens @ background_kernel.mT, foreground, change * _take(weight, foreground))
        return _picture(result, x)


class UpStage(nn.Module):
    """Transposed convolution, RAIN, the skip, and the dynamic convolution in the three finest stages."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dynamic: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, stride + 2, stride, 1, bias=False)
        self.norm = RAIN(out_channels)
        self.dynamic = MaskAwareDynamics(2 * out_channels) if dynamic else None

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, in_channels, h, w)` and a skip `(B, C, H, W)` to `(B, 2 C, H, W)`, both activated."""
        x = torch.cat((skip, self.norm(self.conv(x), mask)), 1)
        return F.relu(x if self.dynamic is None else self.dynamic(x, mask), inplace=True)


class HDNet(CheckpointedModule, HarmonyModel, ModelMixin, ConfigMixin):
    """Encoder-decoder with region-aware normalization, local matches and mask-aware kernels.

    The mask is not an input channel; only RAIN, LD and MGD use it.

    Args:
        base_channels: Width of the first level: 32 for HDNet, 8 for HDNet-lite.
        ld_mode: Local dynamics as in the `"official"` code or in the `"paper"`.
        neighbors: K of the paper mode. The paper leaves it open; its figure shows 3.

    Raises:
        InputError: Unknown `ld_mode`, or fewer than one neighbour.

    Example:
        >>> model = HDNet(base_channels=4).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="Hierarchical Dynamic Image Harmonization",
        paper="https://arxiv.org/abs/2211.08639",
        code="https://github.com/chenhaoxing/HDNet",
        code_license="MIT",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, base_channels: int = 32, ld_mode: str = "official", neighbors: int = 3) -> None:
        super().__init__()
        if ld_mode not in ("official", "paper"):
            raise InputError("ld_mode", f"is {ld_mode!r}", 'Use "official" or "paper".')
        if neighbors < 1:
            raise InputError("neighbors", f"is {neighbors}", "Use 1 or more.")
        widths = [base_channels * factor for factor in (1, 2, 4, 8, 8, 8, 8, 8)]
        strides = (1, 2, 1, 2, 1, 2, 1, 1)
        self.down = nn.ModuleList(
            DownStage(
                before, after, 0 < i < 7, nn.LeakyReLU(0.2, inplace=True) if i < 7 else nn.Identity(), stride
            )
            for i, (before, after, stride) in enumerate(zip([3, *widths], widths, strides, strict=False))
        )
        self.local_dynamics = LocalDynamics(widths[-1], ld_mode, neighbors)
        self.up = nn.ModuleList()
        in_channels = widths[-1]
        for i, stride in enumerate((1, 1, 2, 1, 2, 1, 2)):
            self.up.append(UpStage(in_channels, widths[6 - i], stride, dynamic=i >= 4))
            in_channels = 2 * widths[6 - i]
        self.to_rgb = nn.ConvTranspose2d(in_channels, 3, 3, 1, 1)
        init_pix2pix_(self)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, in [0, 1]."""
        height, width = composite.shape[-2:]
        mask = reflect_to_multiple(mask, _STRIDE)
        x = 2 * reflect_to_multiple(composite, _STRIDE) - 1
        x = x.contiguous(memory_format=torch.channels_last)
        # The skips are activated: the official LeakyReLU works in place.
        skips = []
        for stage in self.down:
            x = self.run(stage, x)
            skips.append(x)
        x = F.relu(self.local_dynamics(skips.pop(), mask))
        for stage in self.up:
            x = self.run(stage, x, skips.pop(), mask)
        x = torch.tanh(self.to_rgb(x))
        return ((x + 1) / 2)[..., :height, :width].to(composite.dtype).contiguous()

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of an official `latest_net_G.pth` of any width."""
        renames: list[tuple[str, str | None]] = [
            (r"model_layer0\.weight", "down.0.conv.weight"),
            (r"model_layer([1-6])\.1\.weight", r"down.\1.conv.weight"),
            (r"model_layer71\.1\.weight", "down.7.conv.weight"),
            (r"LD\.linear\.(weight|bias)", r"local_dynamics.linear.\1"),
            (r"model_layer\d+att\.conv_guide\.(weight|bias)", None),  # never used
            (r"model_out\.1\.(weight|bias)", r"to_rgb.\1"),
        ]
        for i, layer in enumerate((72, 8, 9, 10, 11, 12, 13)):
            renames.append((rf"model_layer{layer}\.1\.weight", f"up.{i}.conv.weight"))
            renames.append((rf"model_layer{layer}norm\.(.+)", rf"up.{i}.norm.\1"))
            renames.append((rf"model_layer{layer}att\.conv_kernel\.1\.(.+)", rf"up.{i}.dynamic.squeeze.\1"))
            renames.append((rf"model_layer{layer}att\.conv_kernel\.3\.(.+)", rf"up.{i}.dynamic.expand.\1"))
        converted = rename_keys(state_dict, renames, "HDNet")
        linear = "local_dynamics.linear.weight"
        if linear in converted:
            converted[linear] = converted[linear].flatten(1)  # a 1x1 Conv1d in the official code
        return converted

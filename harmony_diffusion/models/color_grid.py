"""ColorGrid: a coarse grid of colour transforms, predicted from image features and colour statistics.

Two ideas come from published work. PCT-Net (Guerreiro et al., CVPR 2023) and the bilateral grid of HDRNet
(Gharbi et al., SIGGRAPH 2017) predict transforms from a small image and apply them at any resolution. GKNet
and the transformers for harmonization (Guo et al., CVPR 2021) transfer light from the background to the
foreground by attention. The network itself is ours. An ImageNet encoder describes the content, statistics
describe the colours of both regions, and pairs of colours on both sides of the mask's border describe the
difference between them. A small transformer over patches combines all three.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.efficientnet import Lite0Pyramid
from harmony_diffusion.models.origin import Origin
from harmony_diffusion.morphology import dilate

STRIDE = 16
FILTERS = 21  # a 3 x 7 matrix, which acts on 7 functions of the colour
_BINS = 9
_LEVELS = 64  # levels of the histograms from which quantiles are computed
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_RING = 4  # width of the ring around the object, in steps of two pixels at an encoder size of 160
_STATISTICS = 2 * (4 * 3 + 3 + 3 * _BINS) + 2
_TONES = 3 * 4 * len(_QUANTILES)
_BORDER_CHANNELS = 48
_CELLS = 4  # border cells per token, in both directions, at the finer of the two scales
_RIM_CELL, _MAX_RIM_CELLS = 2, 160  # side of a cell in pixels, and most cells per side


class ColorGrid(HarmonyModel, ModelMixin, ConfigMixin):
    """Predict a grid of colour transforms and apply it to the foreground at any resolution.

    Filters are maps `(B, 21, h, w)`: a matrix of 3 x 7, row by row, which maps the functions
    `(r - 1/2, g - 1/2, b - 1/2, r (1 - r), g (1 - g), b (1 - b), 1)` of a colour to its change. Filters of 0
    change nothing. The linear part expresses exposure and white balance, the quadratic part tone curves.

    Args:
        encoder_size: Side of the square, a multiple of 32, at which the network sees the picture.
        channels: Width of the transformer.
        depth: Number of transformer layers.
        heads: Number of attention heads; must divide `channels`.
        average_mirrored: In evaluation, average the grid with that of the mirrored picture. This takes twice
            the time and lowers the error slightly.
        border_dropout: Share of training samples whose border and rim features are replaced by zeros. An
            object pasted from another photograph has no border in common with the background, so the network
            must not depend on these features.

    Raises:
        InputError: `encoder_size` is not a multiple of 32, or `channels` is not a multiple of `heads`.

    Example:
        >>> model = ColorGrid(encoder_size=64, channels=32, depth=1, heads=2).eval()
        >>> composite, mask = torch.rand(1, 3, 90, 120), torch.ones(1, 1, 90, 120)
        >>> filters = model.predict_filters(composite, mask)
        >>> filters.shape, model.apply_filters(composite, filters, mask).shape
        (torch.Size([1, 21, 4, 4]), torch.Size([1, 3, 90, 120]))
    """

    origin = Origin(title="ColorGrid, the default model of Harmony Diffusion", paper="")
    working_size = 320
    keeps_shape = False
    antialias = True  # of the thumbnail; a window is resized to a square without keeping its aspect ratio
    context = 0.2
    predicts_filters = True
    filter_upsampling = "bilinear"
    # These layers cast their input to the type of their weights. They hold 0.3 % of all weights.
    _skip_layerwise_casting_patterns = ["borders", "rim"]  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        encoder_size: int = 160,
        channels: int = 160,
        depth: int = 3,
        heads: int = 5,
        average_mirrored: bool = False,
        border_dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if encoder_size % 32:
            raise InputError("encoder_size", f"must be a multiple of 32, got {encoder_size}")
        if channels % heads:
            raise InputError("channels", f"must be a multiple of heads, got {channels} and {heads}")
        self.encoder_size, self.average_mirrored = encoder_size, average_mirrored
        self.border_dropout = border_dropout
        self.backbone = Lite0Pyramid()
        low, middle, high = self.backbone.out_channels
        self.borders = nn.ModuleList(BorderPairs() for _ in range(2))
        self.rim = RimPairs()
        self.embed = nn.Linear(2 * low + middle + high + 13 + 3 * (_BORDER_CHANNELS + 1), channels)
        self.position = nn.Parameter(torch.randn((encoder_size // STRIDE) ** 2, channels) * 0.02)
        self.embed_statistics = nn.Sequential(
            nn.Linear(_STATISTICS + 3 * (_BORDER_CHANNELS + 1) + _TONES, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )
        self.layers = nn.ModuleList(TransformerLayer(channels, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.to_local, self.to_global = nn.Linear(channels, FILTERS), nn.Linear(channels, FILTERS)
        for layer in (self.to_local, self.to_global):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict float32 maps `(B, 21, encoder_size / 16, encoder_size / 16)`; see the class.

        They are 0 for a mask that covers everything.
        """
        composite, mask = composite.float(), mask.float()
        size = (self.encoder_size, self.encoder_size)
        seen = [composite, mask, region_sums(composite, mask)]
        if composite.shape[-2:] != size:
            seen[:2] = (F.interpolate(x, size, mode="bilinear", antialias=True) for x in seen[:2])
        if not self.average_mirrored or self.training:
            filters = self._predict(*seen)
        else:
            # One batch: the encoder takes two thirds of the time of two calls.
            both = self._predict(*(torch.cat((x, x.flip(3))) for x in seen))
            filters, mirrored = both.chunk(2)
            filters = (filters + mirrored.flip(3)) / 2
        # Without a background there is nothing to agree with.
        return filters * (mask.amin((1, 2, 3), keepdim=True) < 1)

    def _predict(self, small: Tensor, small_mask: Tensor, sums: Tensor) -> Tensor:
        """Predict from the picture and its mask at the encoder's size, and from `region_sums`."""
        dtype, side = self.position.dtype, self.encoder_size // STRIDE
        features = self._regions(self.backbone(small.to(dtype)), small_mask)
        moments = region_moments(sums, side * _CELLS)
        pairs, pairs_of_all = [], []
        for scale, border in enumerate(self.borders):
            local, overall = border(F.avg_pool2d(moments, 2**scale), side)
            pairs.append(local)
            pairs_of_all.append(overall)
        local, overall = self.rim(sums, side)
        pairs.append(local)
        pairs_of_all.append(overall)
        if self.training and self.border_dropout:
            kept = (torch.rand(len(small), 1, device=small.device) >= self.border_dropout).float()
            pairs = [part * kept[..., None, None] for part in pairs]
            pairs_of_all = [part * kept for part in pairs_of_all]
        cells = torch.cat((features, cell_colors(F.avg_pool2d(moments, _CELLS)), *pairs), 1)
        tokens = self.embed(cells.flatten(2).mT.to(dtype)) + self.position
        tones = tone_quantiles(small, small_mask)
        statistics = torch.cat((region_statistics(small, small_mask), *pairs_of_all, tones), 1)
        statistics = self.embed_statistics(statistics.to(dtype))[:, None]
        tokens = torch.cat((statistics, tokens + statistics), 1)  # (B, 1 + h w, channels)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens)
        filters = self.to_local(tokens[:, 1:]) + self.to_global(tokens[:, :1])
        return filters.mT.unflatten(2, (side, side)).float()

    def _regions(self, levels: list[Tensor], mask: Tensor) -> Tensor:
        """Join the features of the encoder, the finest separately for each region, `(B, C, h, w)`."""
        low, middle, high = (level.float() for level in levels)
        side = middle.shape[-1]
        weight = F.adaptive_avg_pool2d(mask, low.shape[-1])
        inside, outside = (_pool(low, part, side) for part in (weight, 1 - weight))
        high = F.interpolate(high, middle.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat((inside, outside, middle, high), 1)

    def with_encoder_size(self, encoder_size: int) -> "ColorGrid":
        """Return a model of another `encoder_size` with the same weights; its positions are interpolated.

        Small pictures train faster. A short training at the larger size afterwards adapts the weights to it.

        Raises:
            InputError: `encoder_size` is not a multiple of 32.
        """
        settings = {key: value for key, value in self.config.items() if not key.startswith("_")}
        other = ColorGrid(**{**settings, "encoder_size": encoder_size}).to(self.position)
        weights = self.state_dict()
        before, after = (size // STRIDE for size in (self.encoder_size, encoder_size))
        grid = weights["position"].float().mT.unflatten(1, (before, before))[None]
        grid = F.interpolate(grid, (after, after), mode="bilinear", align_corners=False)
        weights["position"] = grid[0].flatten(1).mT.to(self.position)
        other.load_state_dict(weights)
        return other.train(self.training)

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply maps `(B, 21, h, w)`, resized bilinearly."""
        return _transform(image, filters)


class BorderPairs(nn.Module):
    """Compare the colours on either side of the mask's border, cell by cell.

    A mask may be slightly too large or too small, and an object may touch or blend into its surroundings. One
    material then has two colours across the border, and their difference is the best evidence of the edit.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = _BORDER_CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(17, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU()
        )

    def forward(self, moments: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Average the features of the pairs of colours.

        Args:
            moments: `(B, 14, h, w)`, see `region_moments`.
            side: Number of cells per side of the result.

        Returns:
            `(B, 49, side, side)` and, over the whole border, `(B, 49)`; the last channel is the border area.
        """
        inside, outside = moments[:, :7], moments[:, 7:]
        weight = 2 * torch.minimum(inside[:, :1], outside[:, :1])
        means, deviations = zip(*(_mean_and_deviation(part) for part in (inside, outside)), strict=True)
        ratio = (means[0] + 0.03).log() - (means[1] + 0.03).log()
        shares = torch.cat((inside[:, :1], outside[:, :1]), 1)
        # Where one side is missing, the ratio is meaningless and its weight is 0.
        pairs = torch.cat((*(2 * mean - 1 for mean in means), *deviations, ratio, shares), 1)
        dtype = next(self.layers.parameters()).dtype
        features = self.layers(pairs.to(dtype)).float() * weight
        return _join_amount(*(F.adaptive_avg_pool2d(x, side) for x in (features, weight)))


class RimPairs(nn.Module):
    """Compare colours just inside the mask's border with colours just outside and farther away.

    Masks are seldom exact to the pixel, and edge pixels mix the object with its background. Where the rim
    differs from one of its sides only by the edit, it reveals the edit. Such differences exist at the
    scale of pixels, so cells here have 2 x 2 pixels in pictures of any size up to the limit of cells.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = _BORDER_CHANNELS
        self.layers = nn.Sequential(
            nn.Linear(25, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()
        )

    def forward(self, sums: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Average the features of the rim.

        Args:
            sums: `(B, 8, h, w)`, see `region_sums`.
            side: Number of cells per side of the result.

        Returns:
            As `BorderPairs`.
        """
        height, width = sums.shape[-2:]
        near = _add_shifted(sums, 1)  # sums over 3 x 3 cells, then over 9 x 9
        far = _add_shifted(near, 3)
        weight = torch.minimum(near[:, :1], near[:, 4:5]) * (2 / 9)
        # Only few cells are at the rim; compute only these cells.
        weights, places = weight.flatten(1).topk(max(1, height * width // 8), dim=1)  # (B, N)
        everywhere = places[:, None].expand(-1, sums.shape[1], -1)
        near, far = (x.flatten(2).gather(2, everywhere).mT for x in (near, far))  # (B, N, 8)
        regions = (near / 9).split(4, 2) + ((far - near) / 72).split(4, 2)
        shares = [region[..., :1] for region in regions]
        means = [region[..., 1:] / region[..., :1].clamp_min(1e-4) for region in regions]
        near_inside, near_outside, far_inside, far_outside = means
        pairs = ((near_inside, near_outside), (far_inside, near_inside), (far_outside, near_outside))
        # Where one side is missing, the ratio is meaningless; weighted cells have both sides near.
        ratios = [((one + 0.03) / (other + 0.03)).log() for one, other in pairs]
        features = torch.cat((*(2 * mean - 1 for mean in means), *ratios, *shares), 2)
        features = self.layers(features.to(next(self.parameters()).dtype)).float() * weights[..., None]
        cell = places // width * side // height * side + places % width * side // width
        local = features.new_zeros(len(features), side * side, features.shape[2])
        local = local.scatter_add(1, cell[..., None].expand_as(features), features)
        local = local.mT.unflatten(2, (side, side)) * (side * side / (height * width))
        return _join_amount(local, F.adaptive_avg_pool2d(weight, side))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer on tokens `(B, N, channels)`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.expand, self.reduce = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens to tokens."""
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.project(attended.transpose(1, 2).flatten(2))
        return tokens + self.reduce(F.gelu(self.expand(self.norm2(tokens))))


def region_sums(composite: Tensor, mask: Tensor) -> Tensor:
    """Sum the colours of both regions in cells of 2 x 2 pixels, or of more pixels in large pictures.

    Args:
        composite: `(B, 3, H, W)` in [0, 1].
        mask: 1 on the foreground, `(B, 1, H, W)`; its soft edge belongs to neither region.

    Returns:
        `(B, 8, h, w)`: for the foreground, then for the background, its share of the cell and the mean over
        the cell of the colour, where the other region counts as black.
    """
    height, width = (min(length // _RIM_CELL, _MAX_RIM_CELLS) for length in composite.shape[-2:])
    inside, outside = ((part > 0.95).to(composite.dtype) for part in (mask, 1 - mask))
    parts = torch.cat((inside, composite * inside, outside, composite * outside), 1)
    if composite.shape[-2:] == (2 * height, 2 * width):
        parts = parts[..., ::2, :] + parts[..., 1::2, :]  # three times as fast as pooling
        return (parts[..., ::2] + parts[..., 1::2]) / 4
    return F.adaptive_avg_pool2d(parts, (height, width))


def region_moments(sums: Tensor, side: int) -> Tensor:
    """Turn sums `(B, 8, h, w)` of small cells into moments of larger ones.

    Args:
        sums: See `region_sums`.
        side: Number of the larger cells per side.

    Returns:
        `(B, 14, side, side)`: for the foreground, then for the background, its share of the cell, and the
        means over the cell of the colour and of its square, where the other region counts as black. The
        squares are computed from the colours of the small cells.
    """
    parts = []
    for part in sums.split(4, 1):
        parts += [part, part[:, 1:].square() / part[:, :1].clamp_min(1e-4)]
    return F.adaptive_avg_pool2d(torch.cat(parts, 1), side)


def cell_colors(moments: Tensor) -> Tensor:
    """Turn moments `(B, 14, h, w)` into means, deviations and the foreground's share, `(B, 13, h, w)`."""
    parts = []
    for part in (moments[:, :7], moments[:, 7:]):
        mean, deviation = _mean_and_deviation(part)
        parts += [mean - 0.5, deviation]
    return torch.cat((*parts, moments[:, :1]), 1)


def _mean_and_deviation(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, `(B, 3, h, w)` each, of one region; 0 and almost 0 where it is absent."""
    share = moments[:, :1].clamp_min(1e-4)
    mean = moments[:, 1:4] / share
    variance = (moments[:, 4:] / share - mean.square()).clamp_min(0)
    return mean, (variance + 1e-6).sqrt()


def region_statistics(composite: Tensor, mask: Tensor) -> Tensor:
    """Describe the colours of the foreground and of the background.

    Args:
        composite: `(B, 3, H, W)` in [0, 1].
        mask: 1 on the foreground, `(B, 1, H, W)`.

    Returns:
        `(B, 86)`: of each region mean, deviation and the same of the logarithm of each channel, the
        covariances of the channels and soft histograms of 9 bins; then the share of the foreground and its
        root.
    """
    image, weight = composite[..., ::2, ::2].flatten(2), mask[..., ::2, ::2].flatten(2)
    places = torch.linspace(0, 1, _BINS, device=image.device)
    hats = (1 - (image[:, :, None] - places[:, None]).abs() * (_BINS - 1)).clamp_min(0)  # (B, 3, bins, N)
    logarithm = (image + 0.02).log()
    both = torch.cat((weight, 1 - weight), 1)
    both = both / (both.sum(2, keepdim=True) + 1e-3)  # (B, 2, N)
    histograms = both @ hats.flatten(1, 2).mT  # (B, 2, 3 * bins)
    parts = []
    for share, histogram in zip(both.split(1, 1), histograms.unbind(1), strict=True):
        mean, log_mean = ((x * share).sum(2) for x in (image, logarithm))
        centered = image - mean[..., None]
        covariance = (centered * share) @ centered.mT  # (B, 3, 3)
        deviation = (covariance.diagonal(dim1=1, dim2=2).clamp_min(0) + 1e-6).sqrt()
        log_deviation = ((logarithm.square() * share).sum(2) - log_mean.square()).clamp_min(0)
        cross = torch.stack((covariance[:, 0, 1], covariance[:, 0, 2], covariance[:, 1, 2]), 1)
        log_deviation = (log_deviation + 1e-6).sqrt()
        parts += [2 * mean - 1, 4 * deviation, log_mean + 1, 2 * log_deviation, 20 * cross, 3 * histogram]
    area = weight.mean(2)
    return torch.cat((*parts, area, area.sqrt()), 1)


def tone_quantiles(composite: Tensor, mask: Tensor) -> Tensor:
    """Compute quantiles of the tones of the object, of a ring around it, and of the remaining background.

    Args:
        composite: `(B, 3, H, W)` in [0, 1].
        mask: 1 on the foreground, `(B, 1, H, W)`.

    Returns:
        `(B, 84)`: of each region the quantiles 1, 5, 25, 50, 75, 95 and 99 % of red, green, blue and luma,
        from -1 to 1; 0 for a region that is empty.
    """
    composite, mask = composite[..., ::2, ::2], mask[..., ::2, ::2]
    around = dilate(mask, _RING)
    image = composite.flatten(2)
    weights = torch.cat((mask, around - mask, 1 - around), 1).flatten(2)
    red, green, blue = image.split(1, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    level = (torch.cat((image, luma), 1).clamp(0, 1) * (_LEVELS - 1)).round().long()  # (B, 4, N)
    share = weights / weights.sum(2, keepdim=True).clamp_min(1e-3)  # (B, 3, N)
    histograms = image.new_zeros(len(image), 3, 4, _LEVELS).scatter_add(
        3,
        level[:, None].expand(-1, 3, -1, -1),
        share[:, :, None].expand(-1, -1, 4, -1),
    )
    below = histograms.cumsum(3) - histograms
    # A quantile is the number of levels below it; the last level is counted in part.
    shares = histograms.clamp_min(1e-6)
    counts = [((wanted - below) / shares).clamp(0, 1).sum(3) for wanted in _QUANTILES]
    found = torch.stack(counts, 3) * (2 / _LEVELS) - 1  # (B, 3, 4, Q)
    present = (weights.sum(2) > 0.5).to(found.dtype)[:, :, None, None]
    return (found * present).flatten(1)


def _pool(features: Tensor, weight: Tensor, side: int) -> Tensor:
    """Average `(B, C, H, W)` weighted by `(B, 1, H, W)` in `side x side` cells; 0 where the weight is 0."""
    total = F.adaptive_avg_pool2d(features * weight, side)
    return total / (F.adaptive_avg_pool2d(weight, side) + 1e-3)


def _add_shifted(sums: Tensor, reach: int) -> Tensor:
    """Add to each cell of `(B, C, h, w)` the eight cells `reach` away, 0 beyond the frame."""
    for axis in (2, 3):
        zeros = (reach, reach) if axis == 3 else (0, 0, reach, reach)
        padded, length = F.pad(sums, zeros), sums.shape[axis]
        first, middle, last = (padded.narrow(axis, k * reach, length) for k in range(3))
        sums = first + middle + last
    return sums


def _join_amount(local: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """Turn sums `(B, C, h, w)` and weights `(B, 1, h, w)` into means, per cell and overall, and weights."""
    total, all_amount = local.mean((2, 3)), amount.mean((2, 3))
    local = torch.cat((local / (amount + 1e-3), amount), 1)
    return local, torch.cat((total / (all_amount + 1e-4), 5 * all_amount), 1)


def _transform(image: Tensor, filters: Tensor) -> Tensor:
    """Add to each colour of `(B, 3, H, W)` the change that the matrices `(B, 21, h, w)` give."""
    if filters.shape[-2:] != image.shape[-2:]:
        filters = F.interpolate(filters, image.shape[-2:], mode="bilinear", align_corners=False)
    *columns, offset = filters.unflatten(1, (3, 7)).unbind(2)
    functions = torch.cat((image - 0.5, image * (1 - image)), 1).split(1, 1)
    added = offset
    for column, function in zip(columns, functions, strict=True):
        added = torch.addcmul(added, column, function.to(column.dtype))
    return (image + added).to(image.dtype)

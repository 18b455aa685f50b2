"""HT and D-HT: harmonization by transformers, whole or disentangled into reflectance and illumination.

Papers: Guo et al., "Image Harmonization with Transformer", ICCV 2021,
https://openaccess.thecvf.com/content/ICCV2021/papers/Guo_Image_Harmonization_With_Transformer_ICCV_2021_paper.pdf,
and its extension "Transformer for Image Harmonization and Beyond", TPAMI 2022 (HT+, DHT+).  Official code:
https://github.com/zhenglab/HarmonyTransformer (no licence stated).  Changed here: pictures of any size are
mirrored up to a multiple of 8 and get positions on their own grid; a mask that touches every patch excludes
none of them (see `LightGenerator`); the result is pasted on the untouched background (`forward`).

The networks build on the same authors' IIH: they use its encoder, its decoders and the product of two images.
The registry's `dht` and `ht` are the networks of ICCV 2021, which published tables report.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.iih import decoder, encoder
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    init_pix2pix_,
    reflect_to_multiple,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

_STRIDE = 8
_HEADS = 2
_QUERIES = 27
_LIGHT_PATCH, _PLUS_PATCH = 8, 4


def positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Encode the places of a grid by sines and cosines.

    Args:
        height: Rows of the grid; they count from 1, and so do the columns.
        width: Columns of the grid.
        channels: Half of them encode the row and half the column, as sine and cosine of `channels / 4`
            frequencies in turn.
        like: Gives device and type.

    Returns:
        `(1, height * width, channels)`, row by row.
    """
    exponents = torch.arange(0, channels // 2, 2, device=like.device, dtype=torch.float32)
    frequencies = 10000 ** (-2 * exponents / channels)
    codes = []
    for size in (height, width):
        angles = torch.arange(1, size + 1, device=like.device, dtype=torch.float32)[:, None] * frequencies
        codes.append(torch.stack((angles.sin(), angles.cos()), 2).flatten(1))  # (size, channels / 2)
    rows, columns = codes[0][:, None].expand(-1, width, -1), codes[1].expand(height, -1, -1)
    return torch.cat((rows, columns), 2).flatten(0, 1)[None].to(like.dtype)


def tokens(features: Tensor) -> Tensor:
    """Map `(B, C, h, w)` to tokens `(B, h w, C)`, row by row."""
    return features.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention of two heads with a projection of the result."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.project = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: `(B, N, channels)`.
            key: `(B, M, channels)`.
            value: `(B, M, channels)`.
            allowed: False for keys to leave out, True for at least one of each sample, `(B, 1, 1, M)`.

        Returns:
            `(B, N, channels)`.
        """
        projected = (self.query(query), self.key(key), self.value(value))
        heads = [x.unflatten(2, (_HEADS, -1)).transpose(1, 2) for x in projected]
        attended = F.scaled_dot_product_attention(*heads, attn_mask=allowed)
        return self.project(attended.transpose(1, 2).flatten(2))


def feed_forward(channels: int) -> nn.Sequential:
    """Two linear layers around a GELU; the inner width is twice the outer one."""
    return nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward layers, each added and then normalized (post-norm)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(channels), feed_forward(channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x: Tensor, places: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Map tokens `(B, N, channels)` to tokens.

        Args:
            x: `(B, N, channels)`.
            places: Positions of the tokens, `(1, N, channels)`.
            allowed: As in `Attention`.

        Returns:
            `(B, N, channels)`.
        """
        located = x + places
        x = self.norm1(x + self.attention(located, located, x, allowed))
        return self.norm2(x + self.feed_forward(x))


class DecoderLayer(nn.Module):
    """Self-attention, attention to a memory, and feed-forward layers, post-norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention, self.memory_attention = Attention(channels), Attention(channels)
        self.feed_forward = feed_forward(channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self, x: Tensor, places: Tensor, memory: Tensor, memory_places: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Map tokens to tokens.

        Args:
            x: `(B, N, channels)`.
            places: Positions of the tokens, `(1, N, channels)`.
            memory: `(B, M, channels)`.
            memory_places: Positions in the memory, `(1, M, channels)`.
            allowed: Of the memory, as in `Attention`.

        Returns:
            `(B, N, channels)`.
        """
        located = x + places
        x = self.norm1(x + self.attention(located, located, x))
        x = self.norm2(x + self.memory_attention(x + places, memory + memory_places, memory, allowed))
        return self.norm3(x + self.feed_forward(x))


class LightGenerator(CheckpointedModule):
    """Describe the light of the background by 27 tokens.

    Patches of 8x8 pixels that the mask touches are excluded. If the mask touches every patch, the official
    code has no patch left and returns NaN. Here no patch of such a picture is excluded, so that the network
    reads the remaining background (black under a full mask).

    Args:
        channels: Width of the tokens, a multiple of 4.
        layers: Layers of each transformer.
        encode: Let the patches attend to each other first (D-HT; not in DHT+).
    """

    def __init__(self, channels: int, layers: int, encode: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, channels, _LIGHT_PATCH, stride=_LIGHT_PATCH)
        self.encoder = nn.ModuleList(EncoderLayer(channels) for _ in range(layers if encode else 0))
        self.decoder = nn.ModuleList(DecoderLayer(channels) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.queries = nn.Parameter(torch.randn(_QUERIES, channels))

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Map composite `(B, 3, H, W)` and mask `(B, 1, H, W)` to `(B, 27, channels)`; 8 divides H and W."""
        patches = self.embed(composite * (1 - mask))
        places = positions(patches.shape[2], patches.shape[3], patches.shape[1], patches)
        touched = F.max_pool2d(mask, _LIGHT_PATCH).flatten(1) > 0
        allowed = (~touched | touched.all(1, keepdim=True))[:, None, None]
        memory = tokens(patches)
        for layer in self.encoder:
            memory = self.run(layer, memory, places, allowed)
        queries = self.queries.to(memory.dtype)
        x = torch.zeros_like(queries).expand(len(memory), -1, -1)
        for layer in self.decoder:
            x = self.run(layer, x, queries, memory, places, allowed)
        return self.norm(x)


class _Transformer(CheckpointedModule):
    """Shared part of HT and D-HT."""

    origin = Origin(
        title="Image Harmonization with Transformer",
        paper="https://openaccess.thecvf.com/content/ICCV2021/papers/Guo_Image_Harmonization_With_Transformer_ICCV_2021_paper.pdf",
        code="https://github.com/zhenglab/HarmonyTransformer",
        code_license="none (all rights reserved)",
        weights_license="none (all rights reserved)",
    )
    _supports_gradient_checkpointing = True

    def _run_all(self, layers: nn.Sequential | nn.ModuleList, x: Tensor, *context: Tensor) -> Tensor:
        for layer in layers:
            x = self.run(layer, x, *context)
        return x


class HT(_Transformer, HarmonyModel, ModelMixin, ConfigMixin):
    """One transformer between a convolutional encoder and decoder, or between patches.

    Args:
        patches: Embed patches of 4x4 pixels and decode each token separately (HT+) instead of the
            convolutions.
        base_channels: A quarter of the width of the tokens.
        layers: Layers of the transformer.

    Example:
        >>> model = HT(base_channels=4, layers=1).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    @register_to_config
    def __init__(self, patches: bool = False, base_channels: int = 64, layers: int = 9) -> None:
        super().__init__()
        channels = 4 * base_channels
        if patches:
            self.encoder = nn.Sequential(nn.Conv2d(4, channels, _PLUS_PATCH, stride=_PLUS_PATCH))
            to_rgb = nn.ConvTranspose2d(channels, 3, _PLUS_PATCH, stride=_PLUS_PATCH)
            self.decoder = nn.Sequential(to_rgb, nn.Tanh())
        else:
            self.encoder, self.decoder = encoder(base_channels, 0), decoder(base_channels)
        self.transformer = nn.ModuleList(EncoderLayer(channels) for _ in range(layers))
        _init(self)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, in [-1, 1] although it is trained towards [0, 1]."""
        height, width = composite.shape[-2:]
        x = reflect_to_multiple(torch.cat((composite, mask), 1), _STRIDE)
        features = self._run_all(self.encoder, x)
        places = positions(features.shape[2], features.shape[3], features.shape[1], features)
        encoded = self._run_all(self.transformer, tokens(features), places)
        picture = self._run_all(self.decoder, encoded.mT.unflatten(2, features.shape[2:]))
        return picture[..., :height, :width].to(composite.dtype)

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `latest_net_G.pth` of HT or HT+."""
        renames = [
            (r"enc\.model\.([012]\.conv\..+)", r"encoder.\1"),
            *_decoder_keys("dec", "decoder"),
            (r"patch_to_embedding\.1\.(.+)", r"encoder.0.\1"),
            (r"dec\.0\.(.+)", r"decoder.0.\1"),
            *_layer_keys("transformer_enc.encoder", "transformer"),
        ]
        converted = rename_keys(_split_projections(state_dict), renames, "HT")
        if "patch_to_embedding.1.weight" in state_dict:
            converted["encoder.0.weight"] = _as_convolution(converted["encoder.0.weight"], _PLUS_PATCH)
        return converted


class DHT(_Transformer, HarmonyModel, ModelMixin, ConfigMixin):
    """Reflectance by one transformer; illumination by another, from the reflectance and the light's code.

    Args:
        encode_light: Let the patches of the background attend to each other (D-HT; not in DHT+).
        base_channels: A quarter of the width of the tokens.
        layers: Layers of each transformer.

    Example:
        >>> model = DHT(base_channels=4, layers=1).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    @register_to_config
    def __init__(self, encode_light: bool = True, base_channels: int = 64, layers: int = 9) -> None:
        super().__init__()
        channels = 4 * base_channels
        self.encoder = encoder(base_channels, 0)
        self.reflectance_transformer = nn.ModuleList(EncoderLayer(channels) for _ in range(layers))
        self.reflectance_decoder = decoder(base_channels)
        self.light = LightGenerator(channels, layers, encode_light)
        self.illumination_transformer = nn.ModuleList(DecoderLayer(channels) for _ in range(layers))
        self.illumination_norm = nn.LayerNorm(channels)
        self.illumination_decoder = decoder(base_channels)
        _init(self)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, in [0, 1]."""
        reflectance, illumination = self.decompose(composite, mask)
        return reflectance * illumination

    def decompose(self, composite: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return harmonized reflectance and illumination, both `(B, 3, H, W)` in [0, 1]."""
        height, width = composite.shape[-2:]
        x = reflect_to_multiple(torch.cat((composite, mask), 1), _STRIDE)
        features = self._run_all(self.encoder, x)
        grid = features.shape[2:]
        places = positions(grid[0], grid[1], features.shape[1], features)
        encoded = self._run_all(self.reflectance_transformer, tokens(features), places)
        light = self.light(x[:, :3], x[:, 3:])
        queries = self.light.queries.to(light.dtype)
        lit = self._run_all(self.illumination_transformer, encoded, places, light, queries)
        lit = self.illumination_norm(lit)
        pictures = (
            self._run_all(self.reflectance_decoder, encoded.mT.unflatten(2, grid)),
            self._run_all(self.illumination_decoder, lit.mT.unflatten(2, grid)),
        )
        reflectance, illumination = (p[..., :height, :width] / 2 + 0.5 for p in pictures)
        return reflectance.to(composite.dtype), illumination.to(composite.dtype)

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `latest_net_G.pth` of D-HT or DHT+."""
        renames = [
            (r"reflectance_enc\.model\.([012]\.conv\..+)", r"encoder.\1"),
            *_decoder_keys("reflectance_dec", "reflectance_decoder"),
            *_decoder_keys("illumination_dec", "illumination_decoder"),
            *_layer_keys("reflectance_transformer_enc.encoder", "reflectance_transformer"),
            (r"light_generator\.patch_embedding\.0\.(.+)", r"light.embed.\1"),
            *_layer_keys("light_generator.transformer_enc.encoder", "light.encoder"),
            *_layer_keys("light_generator.transformer_dec.decoder", "light.decoder"),
            (r"light_generator\.transformer_dec\.decoder\.norm\.(.+)", r"light.norm.\1"),
            (r"light_generator\.light_embed\.weight", "light.queries"),
            *_layer_keys("illumination_render.decoder", "illumination_transformer"),
            (r"illumination_render\.decoder\.norm\.(.+)", r"illumination_norm.\1"),
        ]
        converted = rename_keys(_split_projections(state_dict), renames, "D-HT")
        if "light.embed.weight" in converted:
            converted["light.embed.weight"] = _as_convolution(converted["light.embed.weight"], _LIGHT_PATCH)
        return converted


def _init(module: nn.Module) -> None:
    """The official initialization: N(0, 0.02) but for the attention's inputs, which are Xavier's."""
    init_pix2pix_(module)
    for attention in module.modules():
        if isinstance(attention, Attention):
            # Xavier's for the matrix of all three, of 3 C x C.
            bound = (6 / (4 * attention.query.in_features)) ** 0.5
            for linear in (attention.query, attention.key, attention.value):
                nn.init.uniform_(linear.weight, -bound, bound)


def _split_projections(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the stacked projections of query, key and value."""
    split = {}
    for key, tensor in state_dict.items():
        if "attn.in_proj_" in key:
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[key.replace("in_proj_", f"{name}.")] = part.clone()
        else:
            split[key] = tensor
    return split


def _as_convolution(weight: Tensor, side: int) -> Tensor:
    """Turn the embedding of flattened patches (row, column, channel) into a convolution's kernel."""
    return weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2).contiguous()


def _decoder_keys(official: str, ours: str) -> list[tuple[str, str | None]]:
    """Return renames of a decoder; the official one begins with an empty block, so its numbers are higher."""
    return [
        (rf"{official}\.model\.{layer}\.((?:conv|norm)\..+)", rf"{ours}.{layer - 1}.\1")
        for layer in (2, 4, 5)
    ]


def _layer_keys(official: str, ours: str) -> list[tuple[str, str | None]]:
    layer = official.replace(".", r"\.") + r"\.layers\.(\d+)\."
    keys: list[tuple[str, str | None]] = [
        (layer + r"linear1\.(.+)", rf"{ours}.\1.feed_forward.0.\2"),
        (layer + r"linear2\.(.+)", rf"{ours}.\1.feed_forward.2.\2"),
        (layer + r"(norm[123]\..+)", rf"{ours}.\1.\2"),
    ]
    for attention, name in (("self_attn", "attention"), ("multihead_attn", "memory_attention")):
        keys += [
            (layer + attention + r"\.((?:query|key|value)\..+)", rf"{ours}.\1.{name}.\2"),
            (layer + attention + r"\.out_proj\.(.+)", rf"{ours}.\1.{name}.project.\2"),
        ]
    return keys

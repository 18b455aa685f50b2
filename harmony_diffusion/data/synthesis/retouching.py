"""Random edits of a photographer or a faulty workflow, batched.

An edit is a set of parameters with one row per sample. It is applied to colours `(B, 3, N)` in [0, 1].
Results are not clamped, so that clipping can be measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws
from harmony_diffusion.data.synthesis.color_transfer import interpolate, mix_channels

Parameters = dict[str, Tensor]
CURVE_KNOTS = 7
LUT_NODES = 5
DISPLAY_GAMMA = 2.2
# A tenth of the edits are as strong as a wrong exposure or a creative look.
WIDE_SHARE, WIDE_EXPOSURE = 0.1, 1.5  # exposure in EV
_LUMA = (0.299, 0.587, 0.114)
# Linear Adobe RGB (1998) to linear sRGB, both D65 (from the primaries in IEC 61966-2-1 and Adobe's
# specification). The inverse simulates an ignored Adobe RGB profile, the matrix a wrongly assigned one.
_ADOBE_TO_SRGB = ((1.39836, -0.39836, 0.0), (0.0, 1.0, 0.0), (0.0, -0.04293, 1.04293))


def draw_retouch(draws: KeyedDraws, candidates: int, strength: float = 1.0) -> Parameters:
    """Draw edits: exposure, white balance, tone curve, contrast, saturation, hue, smooth 3-D LUT, profile.

    Args:
        draws: Random draws for B samples.
        candidates: Number of edits per sample, K.
        strength: Factor on the strength of the edits.

    Returns:
        Parameters with B * K rows, the candidates of one sample in a row.
    """

    def normal(name: str, std: float, *shape: int, used: float = 0.7) -> Tensor:
        # An editor usually moves some of the sliders and rarely all.
        on = draws.chance(f"retouch/{name}/on", used, candidates)
        values = draws.normal(f"retouch/{name}", candidates, *shape, std=std)
        return (values * (on * scale).view(*on.shape, *[1] * len(shape))).flatten(0, 1)

    scale = draws.uniform("retouch/strength", candidates, low=0.6, high=1.5) * strength
    temperature, tint = normal("temperature", 0.22), normal("tint", 0.08)
    exposure = normal("exposure", 0.6)
    far = draws.uniform("retouch/exposure/far", candidates, low=-WIDE_EXPOSURE, high=WIDE_EXPOSURE) * strength
    is_far = draws.chance("retouch/exposure/wide", WIDE_SHARE, candidates)
    exposure = torch.where(is_far > 0, far, exposure.view_as(far)).flatten()
    lut_scale = 1 + 1.5 * draws.chance("retouch/lut/wide", WIDE_SHARE, candidates).flatten()
    log_gain = torch.stack((temperature + tint, -tint, tint - temperature), 1) + exposure[:, None] * 0.693
    steps = F.softmax(normal("curve", 0.30, 1, CURVE_KNOTS - 1), 2)
    # The curves of the channels differ slightly, as in film and cross-processing.
    steps = F.softmax(steps.log() + normal("split", 0.10, 3, CURVE_KNOTS - 1, used=0.4), 2)
    curve = F.pad(steps.cumsum(2), (1, 0))
    lift = normal("lift", 0.03, 1, 1, used=0.3).abs()
    return {
        "gain": (log_gain / DISPLAY_GAMMA).exp().clamp(0.3, 3.0)[..., None].float(),
        "shoulder": draws.uniform("retouch/shoulder", candidates, 1, 1).flatten(0, 1).float(),
        "curve": (lift + curve * (1 - 1.5 * lift)).float(),
        "contrast": normal("contrast", 0.22, 1, 1).exp().float(),
        "pivot": draws.uniform("retouch/pivot", candidates, 1, 1, low=0.3, high=0.6).flatten(0, 1).float(),
        "saturation": normal("saturation", 0.35, 1, 1).exp().clamp(0, 2.5).float(),
        "mixture": (_draw_luma_error(draws, candidates) @ hue_matrix(normal("hue", 0.10, used=0.3))).float(),
        "lut": (
            normal("lut", 0.05, 3, LUT_NODES, LUT_NODES, LUT_NODES, used=0.4) * lut_scale.view(-1, 1, 1, 1, 1)
        ).float(),
        "profile": _draw_profile(draws, candidates).float(),
    }


def retouch(colors: Tensor, edit: Parameters) -> Tensor:
    """Apply edits.

    Args:
        colors: `(B, 3, N)` in [0, 1].
        edit: Parameters with B rows, on the device of `colors`.

    Returns:
        `(B, 3, N)`, not clamped.
    """
    colors = mix_channels(colors.clamp_min(1e-4) ** DISPLAY_GAMMA, edit["profile"])
    colors = relight(colors.clamp_min(1e-6) ** (1 / DISPLAY_GAMMA), edit["gain"], edit["shoulder"])
    knots = torch.linspace(0, 1, CURVE_KNOTS, device=colors.device).expand_as(edit["curve"])
    colors = interpolate(colors, knots, edit["curve"])
    colors = edit["pivot"] + (colors - edit["pivot"]) * edit["contrast"]
    grey = sum(weight * colors[:, c : c + 1] for c, weight in enumerate(_LUMA))
    colors = mix_channels(grey + (colors - grey) * edit["saturation"], edit["mixture"])
    place = (colors.clamp(0, 1) * 2 - 1).mT[:, None, None]  # (B, 1, 1, N, 3)
    return colors + F.grid_sample(edit["lut"], place, align_corners=True)[:, :, 0, 0]


def relight(colors: Tensor, gain: Tensor, shoulder: Tensor) -> Tensor:
    """Multiply colours by gains.

    With a shoulder of 1, white stays white and light tones are compressed. With a shoulder of 0, they clip. A
    gain of display values is a gain of linear light raised to 1 / 2.2.
    """
    compression = colors.clamp(0, 1).mul_((gain - 1).mul_(shoulder)).add_(1).clamp_min_(0.1)
    return (colors * gain).div_(compression)


def hue_matrix(angle: Tensor) -> Tensor:
    """Return matrices `(B, 3, 3)` that rotate colours around the grey axis by `angle`, `(B,)` in radians.

    Rodrigues' rotation formula.
    """
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    cross = torch.tensor(((0.0, -1, 1), (1, 0, -1), (-1, 1, 0)), dtype=angle.dtype) / 3**0.5
    return cos * torch.eye(3, dtype=angle.dtype) + sin * cross + (1 - cos) / 3


def _draw_profile(draws: KeyedDraws, candidates: int) -> Tensor:
    """Draw channel matrices for linear light: mostly the identity, else a wrong colour profile."""
    kinds = torch.eye(3).repeat(3, 1, 1)
    kinds[1] = torch.tensor(_ADOBE_TO_SRGB)
    kinds[2] = torch.linalg.inv(kinds[1].double()).float()
    return kinds[draws.choice("retouch/profile", (0.9, 0.05, 0.05), candidates).flatten()]


def _draw_luma_error(draws: KeyedDraws, candidates: int) -> Tensor:
    """Draw channel matrices for display values: mostly the identity, else BT.601 and BT.709 confused."""
    encode, decode = _luma_chroma(*_LUMA), torch.linalg.inv(_luma_chroma(0.2126, 0.7152, 0.0722))
    wrong = decode @ encode
    kinds = torch.stack((torch.eye(3, dtype=torch.float64), wrong, torch.linalg.inv(wrong)))
    return kinds[draws.choice("retouch/luma", (0.94, 0.03, 0.03), candidates).flatten()]


def _luma_chroma(red: float, green: float, blue: float) -> Tensor:
    """Return the matrix from RGB to luma, blue difference and red difference."""
    luma = torch.tensor((red, green, blue), dtype=torch.float64)
    unit = torch.eye(3, dtype=torch.float64)
    return torch.stack((luma, (unit[2] - luma) / (1 - blue) / 2, (unit[0] - luma) / (1 - red) / 2))

"""HDNet written the direct way, under the official parameter names: the reference for `HDNet`.

Equality is tested in `test_hdnet.py`. To time both at 256 x 256, turn by turn:

    PYTHONPATH=. python tests/models/hdnet_plain.py --threads 1 --base-channels 32
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-5


def nearest(mask, x):
    return F.interpolate(mask, size=x.shape[-2:], mode="nearest")


class PlainRAIN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.foreground_gamma = nn.Parameter(torch.zeros(channels))
        self.foreground_beta = nn.Parameter(torch.zeros(channels))
        self.background_gamma = nn.Parameter(torch.zeros(channels))
        self.background_beta = nn.Parameter(torch.zeros(channels))

    @staticmethod
    def statistics(x, region):
        area = region.sum((2, 3), keepdim=True) + EPS
        mean = (x * region).sum((2, 3), keepdim=True) / area
        variance = (region * (x - mean) ** 2).sum((2, 3), keepdim=True) / area
        return mean, torch.sqrt(variance + EPS)

    def forward(self, x, mask):
        mask = nearest(mask, x)
        background_mean, background_std = self.statistics(x, 1 - mask)
        foreground_mean, foreground_std = self.statistics(x, mask)
        gamma_b, beta_b = (
            self.background_gamma[None, :, None, None],
            self.background_beta[None, :, None, None],
        )
        gamma_f, beta_f = (
            self.foreground_gamma[None, :, None, None],
            self.foreground_beta[None, :, None, None],
        )
        background = (x - background_mean) / background_std * (1 + gamma_b) + beta_b
        foreground = (x - foreground_mean) / foreground_std * background_std + background_mean
        foreground = foreground * (1 + gamma_f) + beta_f
        return foreground * mask + background * (1 - mask)


class PlainLocalDynamics(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Conv1d(2 * channels, channels, 1)

    def forward(self, x, mask):
        mask = nearest(mask, x)
        query, support = (x * mask).flatten(2), (x * (1 - mask)).flatten(2)
        similarity, index = torch.topk(query.transpose(1, 2) @ support, 1, dim=-1)
        selected = torch.stack([s[:, i] for s, i in zip(support, index[..., 0], strict=True)])
        fused = torch.softmax(similarity[..., 0], dim=-1)[:, None] * selected
        foreground = self.linear(torch.cat([fused, query], 1)).view_as(x)
        return foreground * mask + x * (1 - mask)


class PlainMGD(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv_kernel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, 4, 1),
            nn.Sigmoid(),
            nn.Conv2d(4, 2 * channels * channels, 1, groups=2),
        )
        self.conv_guide = nn.Conv2d(channels, 2, 1)  # in the official state dict, never used

    def forward(self, x, mask):
        mask = nearest(mask, x)
        batch, channels, height, width = x.shape
        kernel = self.conv_kernel(x).view(batch, 2, channels, channels)
        stacked = x.reshape(1, batch * channels, height, width)
        foreground, background = (
            F.conv2d(stacked, kernel[:, i].reshape(-1, channels, 1, 1), groups=batch).view_as(x)
            for i in range(2)
        )
        return foreground * mask + background * (1 - mask)


def down(channels_in, channels_out, kernel, stride, norm=True):
    layers = [nn.LeakyReLU(0.2), nn.Conv2d(channels_in, channels_out, kernel, stride, 1, bias=False)]
    return nn.Sequential(*layers, *([nn.InstanceNorm2d(channels_out)] if norm else []))


def up(channels_in, channels_out, kernel, stride):
    return nn.Sequential(
        nn.ReLU(), nn.ConvTranspose2d(channels_in, channels_out, kernel, stride, 1, bias=False)
    )


class HDNetPlain(nn.Module):
    """`forward` takes and returns [0, 1]; height and width must be multiples of 8."""

    def __init__(self, base_channels=32):
        super().__init__()
        n = base_channels
        self.model_layer0 = nn.Conv2d(3, n, 3, 1, 1, bias=False)
        self.model_layer1 = down(n, 2 * n, 4, 2)
        self.model_layer2 = down(2 * n, 4 * n, 3, 1)
        self.model_layer3 = down(4 * n, 8 * n, 4, 2)
        self.model_layer4 = down(8 * n, 8 * n, 3, 1)
        self.model_layer5 = down(8 * n, 8 * n, 4, 2)
        self.model_layer6 = down(8 * n, 8 * n, 3, 1)
        self.model_layer71 = down(8 * n, 8 * n, 3, 1, norm=False)
        self.LD = PlainLocalDynamics(8 * n)
        for name, channels_in, channels_out, kernel, stride in [
            ("72", 8 * n, 8 * n, 3, 1),
            ("8", 16 * n, 8 * n, 3, 1),
            ("9", 16 * n, 8 * n, 4, 2),
            ("10", 16 * n, 8 * n, 3, 1),
            ("11", 16 * n, 4 * n, 4, 2),
            ("12", 8 * n, 2 * n, 3, 1),
            ("13", 4 * n, n, 4, 2),
        ]:
            setattr(self, f"model_layer{name}", up(channels_in, channels_out, kernel, stride))
            setattr(self, f"model_layer{name}norm", PlainRAIN(channels_out))
        self.model_layer11att = PlainMGD(8 * n)
        self.model_layer12att = PlainMGD(4 * n)
        self.model_layer13att = PlainMGD(2 * n)
        self.model_out = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * n, 3, 3, 1, 1), nn.Tanh())

    def forward(self, composite, mask):
        x = 2 * composite - 1
        skips = [self.model_layer0(x)]
        for name in "123456":
            skips.append(getattr(self, f"model_layer{name}")(skips[-1]))
        x = self.LD(self.model_layer71(skips[-1]), mask)
        x = self.model_layer72norm(self.model_layer72(x), mask)
        for name in ["8", "9", "10", "11", "12", "13"]:
            if name != "8":
                x = getattr(self, f"model_layer{int(name) - 1}att")(x, mask) if name in ("12", "13") else x
            if int(name) <= 11:
                x = torch.cat([F.leaky_relu(skips[14 - int(name)], 0.2), x], 1)
            x = getattr(self, f"model_layer{name}norm")(getattr(self, f"model_layer{name}")(x), mask)
            if int(name) >= 11:
                x = torch.cat([F.leaky_relu(skips[13 - int(name)], 0.2), x], 1)
        x = self.model_out(self.model_layer13att(x, mask))
        return mask * (x + 1) / 2 + (1 - mask) * composite


def time_both(base_channels, threads, repeats):
    """Return seconds of CPU a forward pass of the plain network and of `HDNet`, one pair a repeat."""
    from harmony_diffusion.models.hdnet import HDNet

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plain, fast = HDNetPlain(base_channels).eval(), HDNet(base_channels).eval()
    fast.load_state_dict(HDNet.convert_official(plain.state_dict()))
    composite, mask = torch.rand(1, 3, 256, 256), torch.zeros(1, 1, 256, 256)
    mask[..., 64:192, 80:176] = 1  # 19 % of the frame
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            pair = []
            for network in (plain, fast):
                start = time.process_time()
                network(composite, mask)
                pair.append(time.process_time() - start)
            seconds.append(pair)
    return seconds[2:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-channels", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    pairs = time_both(arguments.base_channels, arguments.threads, arguments.repeats)
    plain_best, fast_best = (min(pair[i] for pair in pairs) for i in range(2))
    ratios = sorted(plain / fast for plain, fast in pairs)
    print(
        f"{arguments.threads} threads: plain {plain_best:.3f} s, HDNet {fast_best:.3f} s (best), "
        f"ratio of the best {plain_best / fast_best:.2f}, median ratio {ratios[len(ratios) // 2]:.2f}"
    )

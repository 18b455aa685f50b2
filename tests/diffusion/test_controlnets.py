import pytest
import torch
from diffusers import ControlNetModel

from harmony_diffusion.diffusion.controlnets import CONTROL_INPUTS, control_channels, make_controlnet
from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.errors import CheckpointError, InputError


@pytest.fixture(scope="module")
def unet():
    return random_components()["unet"]


def inputs(channels):
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, channels, 8, 8), (1, 77, 32), (1, 3, 64, 64))
    sample, text, image = (torch.randn(shape, generator=generator) for shape in shapes)
    return sample, torch.tensor(5), text, image


@pytest.mark.parametrize("control_input", CONTROL_INPUTS)
def test_new_controlnet_adds_nothing_and_can_learn(control_input, unet):
    channels = control_channels(unet)[control_input]
    net = make_controlnet(
        unet, control_input=control_input, conditioning_embedding_out_channels=(8, 8, 16, 16)
    )
    assert type(net) is ControlNetModel and net.config.in_channels == channels == net.conv_in.in_channels
    down, middle = net(*inputs(channels), return_dict=False)
    assert not middle.any() and not any(tensor.any() for tensor in down)
    # Through the zero convolutions, gradients reach their own weights at once.
    (middle.sum() + sum(tensor.sum() for tensor in down)).backward()
    assert net.controlnet_mid_block.weight.grad.abs().max() > 0


@pytest.mark.parametrize("control_input", CONTROL_INPUTS)
def test_controlnet_starts_from_the_encoder(control_input, unet):
    channels = control_channels(unet)[control_input]
    net = make_controlnet(
        unet, control_input=control_input, conditioning_embedding_out_channels=(8, 8, 16, 16)
    )
    assert torch.equal(net.conv_in.weight, unet.conv_in.weight[:, :channels])
    assert torch.equal(net.conv_in.bias, unet.conv_in.bias)
    theirs = unet.state_dict()
    for key, value in net.state_dict().items():
        if key.startswith(("down_blocks", "mid_block", "time_embedding")):
            assert torch.equal(value, theirs[key]), key


def test_unit_embedding_hands_the_control_image_on_at_its_own_scale(unet):
    torch.manual_seed(0)
    image = torch.rand(4, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    scales = []
    for unit in (False, True):
        net = make_controlnet(unet, conditioning_embedding_out_channels=(16, 32, 64, 64), unit_embedding=unit)
        embedding = net.controlnet_cond_embedding
        features = torch.nn.functional.silu(embedding.conv_in(image))
        for block in embedding.blocks:
            features = torch.nn.functional.silu(block(features))
        scales.append((features - features.mean((2, 3), keepdim=True)).std().item() / image.std().item())
        down, middle = net(*inputs(4), return_dict=False)
        assert not middle.any() and not any(tensor.any() for tensor in down)
    assert scales[0] < 0.03 and 0.3 < scales[1] < 4


def test_controlnet_loads_as_diffusers_own(unet, tmp_path):
    net = make_controlnet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    net.controlnet_mid_block.weight.data.normal_()
    net.save_pretrained(tmp_path)
    loaded = ControlNetModel.from_pretrained(tmp_path)
    expected = net(*inputs(4)).mid_block_res_sample
    assert expected.any() and torch.equal(loaded(*inputs(4)).mid_block_res_sample, expected)


def test_type_follows_the_unet():
    unet = random_components(dtype=torch.bfloat16)["unet"]
    assert unet.dtype == make_controlnet(unet).dtype == torch.bfloat16


def test_what_is_no_inpainting_unet_is_refused(unet):
    with pytest.raises(InputError, match="control_input"):
        make_controlnet(unet, control_input="pixels")
    unet = random_components()["unet"]
    unet.register_to_config(in_channels=4)
    with pytest.raises(CheckpointError, match="4 input channels"):
        make_controlnet(unet)

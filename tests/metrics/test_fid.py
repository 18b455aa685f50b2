import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from harmony_diffusion.errors import CheckpointError, InputError, InputNote
from harmony_diffusion.metrics.fid import (
    compare_features,
    extract_features,
    frechet_distance,
    kid_distances,
    load_extractor,
)
from harmony_diffusion.metrics.inception import FIDInception
from harmony_diffusion.metrics.lpips import LPIPS


class TinyNetwork(nn.Module):
    """Six features of an image in [0, 255]."""

    num_features = 6

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 6, 3, stride=2)

    def forward(self, images):
        x = torch.relu(self.first(images.to(self.first.weight.dtype) / 128 - 1))
        return self.second(x).mean((2, 3))


@pytest.fixture(scope="module")
def pictures():
    """Two sets of 40 and 50 smooth pictures of 24x32."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for count, level in ((40, 0.45), (50, 0.55)):
        coarse = (torch.rand(count, 3, 4, 5, generator=generator) * 0.8 + level - 0.4).clamp(0, 1)
        images = nn.functional.interpolate(coarse, (24, 32), mode="bilinear") * 255
        sets.append(images.round().to(torch.uint8))
    return sets


def as_arrays(images):
    return [image.permute(1, 2, 0).numpy() for image in images]


def test_fid_and_kid_agree_with_torchmetrics(pictures):
    fid_class = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    kid_class = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance
    network = TinyNetwork().double().eval()
    fid = fid_class(feature=network, input_img_size=(3, 24, 32)).set_dtype(torch.float64)
    kid = kid_class(feature=network, subsets=1, subset_size=40)
    for metric in (fid, kid):
        metric.update(pictures[1][:40] if metric is kid else pictures[1], real=True)
        metric.update(pictures[0], real=False)
    generated, real = (extract_features(as_arrays(p), network, resize="none") for p in pictures)
    assert frechet_distance(generated, real) == pytest.approx(fid.compute().item(), rel=1e-6)
    ours = kid_distances(generated, real[:40], subsets=100, subset_size=40)
    assert ours.shape == (1,)
    assert ours.item() == pytest.approx(kid.compute()[0].item(), rel=1e-6)


def test_fid_agrees_with_the_formula_by_a_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    generator = np.random.default_rng(0)
    a, b = (
        generator.normal(size=(60, 5)),
        generator.normal(1, 2, size=(80, 5)) @ generator.normal(size=(5, 5)),
    )
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(first + second - 2 * np.real(linalg.sqrtm(first @ second)))
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-6)


def test_fid_of_fewer_images_than_features_is_finite_and_zero_for_equal_sets():
    features = torch.rand(10, 40, generator=torch.Generator().manual_seed(1))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(features, features + 1) == pytest.approx(40)


def test_kid_is_unbiased():
    generator = torch.Generator().manual_seed(2)
    values = [
        kid_distances(*torch.randn(2, 10, 4, generator=generator), subsets=1, subset_size=10).item()
        for _ in range(2000)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_few_images_are_refused_unless_forced(pictures):
    generated, real = (torch.rand(n, 3) for n in (40, 2048))
    options = {"extractor": "tiny", "resize": "none"}
    with pytest.raises(InputError, match="40 generated and 2,048 real: below 2,048"):
        compare_features(generated, real, **options)
    with pytest.warns(InputNote, match="Rely on KID"):
        result = compare_features(generated, real, force=True, **options)
    assert (result.generated, result.real, result.features) == (40, 2048, 3)
    assert (result.extractor, result.resize, result.kid_subset_size) == ("tiny", "none", 40)
    with pytest.raises(InputError, match="1 generated"):
        compare_features(generated[:1], real, force=True, **options)


def test_enough_images_are_compared_without_a_warning(recwarn):
    generated, real = torch.rand(2, 2048, 3, generator=torch.Generator().manual_seed(0))
    result = compare_features(generated, real, extractor="tiny", resize="none")
    assert result.kid_subset_size == 1000 and abs(result.kid) < 5 * result.kid_deviation and not recwarn.list


def test_resize_modes_are_those_of_the_published_tools():
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)

    def seen(mode):
        return extract_features([image], lambda x: x, resize=mode, size=30).view(3, 30, 30)

    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    for mode, antialias in (("bilinear", False), ("bilinear-antialias", True)):
        expected = nn.functional.interpolate(tensor, (30, 30), mode="bilinear", antialias=antialias)[0]
        assert torch.allclose(seen(mode), expected, atol=1e-3)
    red = Image.fromarray(image[..., 0].astype(np.float32)).resize((30, 30), Image.Resampling.BICUBIC)
    assert np.allclose(seen("clean")[0], np.asarray(red).clip(0, 255))
    assert (seen("clean") - seen("bilinear")).abs().mean() > 5


def test_bad_extractors_are_refused(pictures):
    with pytest.raises(InputError, match="one row of features"):
        extract_features(as_arrays(pictures[0]), lambda x: x[:1], resize="none")
    with pytest.raises(InputError, match="images: is empty"):
        extract_features([], TinyNetwork())
    with pytest.raises(InputError, match="have several sizes"):
        extract_features(
            [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], TinyNetwork(), resize="none"
        )
    with pytest.raises(InputError, match="is 'box'"):
        extract_features(as_arrays(pictures[0]), TinyNetwork(), resize="box")


def test_torchscript_is_opened_and_named_by_its_hash(tmp_path, pictures):
    import hashlib

    path = tmp_path / "tiny.pt"
    torch.jit.save(torch.jit.trace(TinyNetwork(), torch.zeros(1, 3, 24, 32)), str(path))
    network, name = load_extractor(path)
    assert name == f"tiny.pt sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    expected = extract_features(as_arrays(pictures[0]), TinyNetwork(), resize="none")
    assert torch.allclose(
        extract_features(as_arrays(pictures[0]), network, resize="none"), expected, atol=1e-6
    )
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(CheckpointError, match="is not a TorchScript"):
        load_extractor(tmp_path / "text.pt")
    with pytest.raises(InputError, match="does not exist"):
        load_extractor(tmp_path / "absent.pt")


def test_inception_has_the_published_size_and_loads_its_weights(tmp_path):
    torch.manual_seed(0)
    network = FIDInception().eval()
    # Keras counts 21,802,784 without the classifier: 21,751,136 of convolutions and three values for each of
    # 17,216 normalized channels; with a scale for each channel there are these to train.
    assert sum(p.numel() for p in network.parameters()) == 21_751_136 + 2 * 17_216
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    images = torch.rand(1, 3, 299, 299) * 255
    with torch.no_grad():
        expected = network(images)
    assert expected.shape == (1, 2048) and len(norms) == 94
    path = tmp_path / "inception.safetensors"
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    loaded, name = load_extractor(path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-6 * expected.max().item())
    network.fold_norms()
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    assert name.startswith("FIDInception sha256:")
    del state["Mixed_7c.branch1x1.conv.weight"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"Mixed_7c\.branch1x1\.conv\.weight"):
        load_extractor(path)


def write_lpips_files(folder):
    generator = torch.Generator().manual_seed(3)
    shapes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    backbone, heads = {"classifier.1.bias": torch.zeros(2)}, {}
    for i, (name, (after, before, kernel)) in enumerate(zip((0, 3, 6, 8, 10), shapes, strict=True)):
        weight = torch.randn(after, before, kernel, kernel, generator=generator) / (before * kernel**2) ** 0.5
        backbone[f"features.{name}.weight"] = weight
        backbone[f"features.{name}.bias"] = torch.randn(after, generator=generator) / 10
        heads[f"lin{i}.model.1.weight"] = torch.rand(1, after, 1, 1, generator=generator)
    torch.save(backbone, folder / "alexnet.pth")
    save_file(heads, folder / "heads.safetensors")
    return backbone, heads


def test_lpips_agrees_with_the_definition(tmp_path):
    backbone, heads = write_lpips_files(tmp_path)
    first, second = torch.rand(2, 2, 3, 64, 72, generator=torch.Generator().manual_seed(4)).double() * 255
    model = LPIPS.from_files(tmp_path / "alexnet.pth", tmp_path / "heads.safetensors").double()
    single = LPIPS.from_files(tmp_path / "alexnet.pth", tmp_path / "heads.safetensors")
    backbone, heads = ({key: value.double() for key, value in part.items()} for part in (backbone, heads))

    def layers(images):
        # AlexNet as one sequence, numbered as in its checkpoint.
        mean, deviation = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).double()
        x = (images * 2 / 255 - 1 - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
        for number in range(12):
            if f"features.{number}.weight" in backbone:
                weight, bias = backbone[f"features.{number}.weight"], backbone[f"features.{number}.bias"]
                stride, padding = (4, 2) if number == 0 else (1, weight.shape[-1] // 2)
                x = nn.functional.conv2d(x, weight, bias, stride, padding)
            elif number in (2, 5):
                x = nn.functional.max_pool2d(x, 3, 2)
            else:
                x = x.clamp_min(0)
                yield nn.functional.normalize(x, dim=1)

    expected = torch.zeros(2, dtype=torch.float64)
    for i, (a, b) in enumerate(zip(layers(first), layers(second), strict=True)):
        expected += ((a - b) ** 2 * heads[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
    assert torch.allclose(model(first, second), expected, rtol=1e-6, atol=0)
    assert torch.allclose(single(first, second).double(), expected, rtol=1e-4, atol=0)
    assert (model(first, first) == 0).all() and (expected > 0.01).all()


def test_bad_lpips_weights_are_refused(tmp_path):
    backbone, _ = write_lpips_files(tmp_path)
    heads = tmp_path / "heads.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        LPIPS.from_files(tmp_path / "absent.pth", heads)
    with pytest.raises(CheckpointError, match=r"lacks features\.0\.weight"):
        LPIPS.from_files(heads, heads)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        LPIPS.from_files(tmp_path / "text.pth", heads)
    torch.save(backbone | {"features.0.weight": torch.zeros(2, 2)}, tmp_path / "alexnet.pth")
    with pytest.raises(CheckpointError, match="do not fit AlexNet"):
        LPIPS.from_files(tmp_path / "alexnet.pth", heads)
    with pytest.raises(ValueError, match="must both be"):
        LPIPS()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 65))

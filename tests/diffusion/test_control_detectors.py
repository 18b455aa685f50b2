import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tiny_diffusion import call, make_pipe

from harmony_diffusion.diffusion.control_detectors import controlnet_aux_canny, detector_image
from harmony_diffusion.diffusion.control_images import canny_image
from harmony_diffusion.diffusion.control_settings import ControlSettings, load_control_settings
from harmony_diffusion.errors import InputError, InputTypeError, MissingDependencyError


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 16, 20, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(128, 192), mode="bicubic").clamp(0, 1)
    mask = torch.zeros(2, 1, 128, 192)
    mask[..., 20:100, 30:150] = 1
    return image, mask


@pytest.fixture
def controlnet_aux(monkeypatch):
    """The installed controlnet-aux, without what its `__init__` imports where torchvision is absent."""
    spec = importlib.util.find_spec("controlnet_aux")
    if spec is None:
        pytest.skip("needs `pip install --no-deps controlnet-aux`")
    if importlib.util.find_spec("torchvision") is None:
        package = types.ModuleType("controlnet_aux")
        package.__path__ = list(spec.submodule_search_locations)
        monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    yield
    for name in [name for name in sys.modules if name.startswith("controlnet_aux.")]:
        del sys.modules[name]


@pytest.mark.parametrize("silhouette", [True, False])
@pytest.mark.parametrize("thresholds", [(100, 200), (20, 60)])
def test_canny_of_controlnet_aux_equals_ours_at_multiples_of_64(controlnet_aux, pair, silhouette, thresholds):
    drawn = detector_image(*pair, controlnet_aux_canny(*thresholds), silhouette=silhouette)
    low, high = thresholds
    ours = canny_image(*pair, low_threshold=low, high_threshold=high, silhouette=silhouette)
    assert torch.equal(drawn, ours) and ours.any()


def test_a_detector_object_of_controlnet_aux_keeps_the_size(controlnet_aux, pair):
    from controlnet_aux.canny import CannyDetector

    image, mask = (tensor[..., :100, :] for tensor in pair)
    assert torch.equal(detector_image(*pair, CannyDetector()), canny_image(*pair))
    assert detector_image(image, mask, CannyDetector()).shape == image.shape


def test_settings_with_this_backend_draw_and_are_saved(controlnet_aux, pair, tmp_path):
    settings = ControlSettings("high", canny_backend="controlnet_aux")
    assert torch.equal(settings.draw(*pair), ControlSettings("high").draw(*pair))
    settings.save(tmp_path)
    assert load_control_settings(tmp_path) == settings
    with pytest.raises(InputError, match="canny_backend"):
        ControlSettings("high", canny_backend="pillow")


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    monkeypatch.delitem(sys.modules, "controlnet_aux.canny", raising=False)
    with pytest.raises(MissingDependencyError, match=r"harmony-diffusion\[controlnet-aux\]"):
        controlnet_aux_canny()


def find_edges(image):
    return image.filter(ImageFilter.FIND_EDGES)


@pytest.mark.parametrize(
    "detector",
    [
        find_edges,
        lambda image: np.asarray(find_edges(image)),
        lambda image: np.asarray(find_edges(image)).astype(np.float64) / 255,
    ],
    ids=["pil", "uint8", "float"],
)
def test_any_function_from_image_to_image_draws(pair, detector):
    image, mask = pair
    drawn = detector_image(image, mask, detector)
    pixels = (image[0] * mask[0] * 255).round().byte().permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(pixels).filter(ImageFilter.FIND_EDGES))
    assert np.array_equal((drawn[0].permute(1, 2, 0) * 255).round().byte().numpy(), expected)


def test_grey_and_smaller_answers_fill_the_frame(pair):
    drawn = detector_image(*pair, lambda image: np.asarray(image.convert("L").resize((48, 32))))
    assert drawn.shape == pair[0].shape and torch.equal(drawn[:, 0], drawn[:, 2])


@pytest.mark.parametrize(
    ("detector", "kind", "words"),
    [
        ("canny", InputTypeError, "expected a function"),
        (lambda image: "edges", InputTypeError, "returns a str"),
        (lambda image: np.zeros((4, 4, 2)), InputError, "returns the shape"),
        (lambda image: np.full((4, 4), 7.0), InputError, "outside"),
    ],
)
def test_detectors_that_draw_nothing_usable_are_refused(pair, detector, kind, words):
    with pytest.raises(kind, match=words):
        detector_image(*pair, detector)


def test_the_pipeline_draws_by_the_detector_it_is_given(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    seen = []

    def detector(image):
        seen.append(image.size)
        return find_edges(image)

    usual = call(pipe).images[0]
    pipe.control_detector = detector
    own = call(pipe).images[0]
    assert seen == [(64, 64)] and not np.array_equal(usual, own)
    with pytest.raises(InputTypeError, match="control_detector"):
        pipe.control_detector = "canny"
        call(pipe)

"""The registry: one line for each model. Tests, commands, training and evaluation iterate over it."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harmony_diffusion.errors import CheckpointError, InputTypeError
from harmony_diffusion.models.bargain_net import BargainNet
from harmony_diffusion.models.cdt_net import CDTNet, CDTNetSim
from harmony_diffusion.models.classical import MKL, Identity, Reinhard
from harmony_diffusion.models.classical_poisson import Poisson
from harmony_diffusion.models.classical_transport import IDT, HistogramMatching
from harmony_diffusion.models.color_grid import ColorGrid
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.dccf import DCCF
from harmony_diffusion.models.dht import DHT, HT
from harmony_diffusion.models.dih import DIH
from harmony_diffusion.models.dovenet import DoveNet
from harmony_diffusion.models.gknet import GKNet
from harmony_diffusion.models.harmonizer import Harmonizer
from harmony_diffusion.models.hdnet import HDNet
from harmony_diffusion.models.hub_files import INDEX, download_model, looks_like_repository
from harmony_diffusion.models.idih import IDIH
from harmony_diffusion.models.idih_hrnet import IDIHHRNet
from harmony_diffusion.models.iih import IIH
from harmony_diffusion.models.imrsf_dam_gct import IMRSFDAMGCT
from harmony_diffusion.models.is2am import IS2AM
from harmony_diffusion.models.pct_net import PCTNet
from harmony_diffusion.models.rain_net import RainNet
from harmony_diffusion.models.s2am import S2AM
from harmony_diffusion.models.s2cr_net import S2CRNet
from harmony_diffusion.models.weight_files import (
    check_model_folder,
    describe_missing,
    did_you_mean,
    first_line,
    list_some,
)
from harmony_diffusion.paths import find, is_folder

MODELS: dict[str, Callable[..., HarmonyModel]] = {
    "identity": Identity,
    "reinhard": Reinhard,
    "mkl": MKL,
    "idt": IDT,
    "histogram_matching": HistogramMatching,
    "poisson": Poisson,
    "color_grid": ColorGrid,
    "harmonizer": Harmonizer,
    "harmonizer_lite": partial(Harmonizer, encoder="efficientnet_lite0"),
    "hdnet": HDNet,
    "hdnet_lite": partial(HDNet, base_channels=8),
    "rain_net": RainNet,
    "dovenet": DoveNet,
    "s2am": S2AM,
    "dih": DIH,
    "idih": IDIH,
    "idih_hrnet": IDIHHRNet,
    "is2am": IS2AM,
    "dccf": DCCF,
    "dccf_is2am": partial(DCCF, base="is2am"),
    "pct_net": PCTNet,
    "pct_net_vit": partial(PCTNet, base="vit"),
    "cdt_net": CDTNet,
    "cdt_net_sim": CDTNetSim,
    "s2cr_net": S2CRNet,
    "s2cr_net_vgg": partial(S2CRNet, base="vgg16"),
    "gknet": GKNet,
    "imrsf_dam_gct": IMRSFDAMGCT,
    "bargain_net": BargainNet,
    "iih": IIH,
    "iih_lt_gd": partial(IIH, guide_blocks=0),
    "iih_base": partial(IIH, light_transfer=False, guidance=False),
    "dht": DHT,
    "ht": HT,
    "dht_plus": partial(DHT, encode_light=False),
    "ht_plus": partial(HT, patches=True),
}

DEFAULT_MODEL = "color_grid"
WEIGHTS = Path(__file__).parents[1] / "weights"  # of the package, in folders named after registry names


def model_class(name: str) -> type[HarmonyModel]:
    """Return the class behind a registry name.

    Raises:
        CheckpointError: The name is not in the registry.
    """
    if name not in MODELS:
        near = did_you_mean(str(name), MODELS)
        raise CheckpointError(f"No model is called {name!r}.{near} Known: {', '.join(MODELS)}.")
    entry = MODELS[name]
    return entry.func if isinstance(entry, partial) else entry  # type: ignore[return-value]


def create_model(name: str, **config: Any) -> HarmonyModel:
    """Build a model by its registry name; a network gets random weights.

    Args:
        name: Key of `MODELS`.
        config: Constructor arguments of the model.

    Returns:
        The model, in training mode like every new `torch.nn.Module`.

    Raises:
        CheckpointError: The name is not in the registry.

    Example:
        >>> create_model("identity").num_parameters()
        0
    """
    model_class(name)
    return MODELS[name](**config)


def list_models(has_weights: bool | None = None) -> list[str]:
    """List the registry names, in the order of the registry.

    Args:
        has_weights: True lists models with trained weights in the package. False lists all others: classical
            methods, which need no weights, and networks without included weights. None lists every model.

    Returns:
        Names for `create_model`.

    Example:
        >>> list_models(has_weights=True)
        ['color_grid', 'harmonizer_lite']
    """
    shipped = {name for name in MODELS if (WEIGHTS / name / "config.json").is_file()}
    return [name for name in MODELS if has_weights is None or has_weights == (name in shipped)]


def has_weights(name: str) -> bool:
    """Return True if trained weights of a registry model come with the package."""
    return (WEIGHTS / name / "config.json").is_file()


def load_model(
    name_or_path: str | os.PathLike[str] = "default", *, revision: str | None = None
) -> HarmonyModel:
    """Load a model that is ready to harmonize: by its registry name, from a saved folder or from the Hub.

    A repository on the Hub is only data: its settings and safetensors files are downloaded, no code in it is
    run. The class is the one of this library that its `config.json` names.

    Args:
        name_or_path: `"default"`, the registry name of a method that needs no weights or whose weights come
            with the package, a folder written by `save_pretrained`, whose `config.json` names a class of the
            registry, or `owner/name` on the Hub; `owner/name@revision` for one revision of it.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The model in evaluation mode, in float32.

    Raises:
        InputTypeError: `name_or_path` is not a string or path.
        CheckpointError: Unknown name, a network without weights, or a folder or repository that does not hold
            a model of the registry with all its weights. The message states what was found.

    Example:
        >>> load_model("identity").training
        False
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputTypeError(
            "name_or_path",
            f"is a {type(name_or_path).__name__}, expected a name or the path of a folder",
        )
    name = DEFAULT_MODEL if str(name_or_path) == "default" else str(name_or_path)
    path = WEIGHTS / name if name in MODELS and has_weights(name) else Path(name)
    check_path(path)
    # A folder without config.json does not hide a method of the same name.
    if path.is_dir() and (name not in MODELS or (path / "config.json").is_file()):
        return _load_folder(path)
    if name not in MODELS and looks_like_repository(name):
        return _load_folder(download_model(name, _known_classes(), {"revision": revision}))
    if name not in MODELS:
        raise CheckpointError(describe_missing(name, ["default", *MODELS]))
    model = create_model(name)
    if model.num_parameters() > 0:
        raise CheckpointError(
            f"{name} is a network and no weights come with it. Give a folder written by "
            "`save_pretrained`, or choose a method without weights (see `harmony models`)."
        )
    return model.eval()


def is_model(name_or_path: str | os.PathLike[str]) -> bool:
    """Return True for a registry name, and for a folder that holds no pipeline: what `load_model` can open.

    Raises:
        InputError: The file system does not say what lies there.
    """
    name = os.fspath(name_or_path)
    return name in ("default", *MODELS) or (is_folder(name) and not Path(name, INDEX).is_file())


def check_path(path: str | os.PathLike[str]) -> None:
    """Check that the file system can say what lies at a path, if anything.

    Raises:
        CheckpointError: It cannot: the name is too long or a loop of links, or its folder may not be read.
    """
    find(path, lambda path, reason, fix: CheckpointError(f"{os.fspath(path)}: {reason}. {fix}"))


def _known_classes() -> dict[str, type[HarmonyModel]]:
    return {model_class(name).__name__: model_class(name) for name in MODELS}


def _load_folder(path: Path) -> HarmonyModel:
    known = _known_classes()
    cls = known[check_model_folder(path, known)]
    try:
        loaded: Any = cls.from_pretrained(path, torch_dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # diffusers, safetensors and torch raise a dozen types on a damaged folder
        raise CheckpointError(f"{path}: cannot be opened as {cls.__name__}: {first_line(error)}") from error
    model, report = loaded
    # diffusers only warns and leaves random values where weights are missing.
    wrong = {"missing": report["missing_keys"], "extra": report["unexpected_keys"]}
    if any(wrong.values()):
        parts = [f"{len(keys)} {kind}: {list_some(sorted(keys), 5)}" for kind, keys in wrong.items() if keys]
        raise CheckpointError(f"{path}: its weights do not fit {cls.__name__}. {'; '.join(parts)}.")
    # Tensors mapped to the file are unaligned, and matrix products with them round differently.
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model.eval()

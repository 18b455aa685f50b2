"""Photographs with prompts as training data of the diffusion method, encoded in each step or in advance."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import default_collate

from harmony_diffusion.data.captions import prompts_from_captions, prompts_from_column, read_captions
from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.layouts import list_dataset
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.record_files import read_ids
from harmony_diffusion.data.sample import Problem
from harmony_diffusion.data.synthesis.composites import SyntheticComposites, reference_colors
from harmony_diffusion.data.synthesis.placement import IN_PLACE
from harmony_diffusion.data.training_set import (
    Item,
    PairSet,
    PhotographSet,
    TrainingSet,
    numbers_item,
)
from harmony_diffusion.data.transforms import WHOLE_FRAMES
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.training.diffusion_step import embed_prompts, encode_images
from harmony_diffusion.training.validation import Triple

REFERENCES = 2048  # photographs whose foreground colours are transferred


@dataclass
class DiffusionData:
    """Samples, their prompts, and the perturbation of their foregrounds.

    Attributes:
        samples: Crops with masks; of composites, if the data set has them.
        prompts: One for each source.
        composer: Perturbs the foregrounds of photographs; None to leave them.
        facts: Facts for the model card.
    """

    samples: TrainingSet
    prompts: list[str]
    composer: SyntheticComposites | None
    facts: dict[str, object]

    def images(self, items: Item, device: torch.device) -> Triple:
        """Return float images from a batch of the loader, and composites from photographs."""
        real, mask = (items[name].to(device, non_blocking=True) for name in ("real", "mask"))
        if self.composer is not None:
            made = self.composer(real, mask, items["key"])
            return Triple(made.composite, made.mask, made.real)
        real, mask = real.float() / 255, mask.float() / 255
        composite = items["composite"].to(device).float() / 255 if "composite" in items else real
        return Triple(composite, mask, real)


def open_data(
    path: Path,
    split: str,
    resolution: int,
    *,
    filters: Mapping[str, list[str]] | None = None,
    captions: Path | None = None,
    caption_column: str | None = None,
    perturb: bool = False,
    decoupled: bool = False,
    composer: SyntheticComposites | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    ids: Path | None = None,
    whole_frames: float = WHOLE_FRAMES,
    mirror: bool = True,
) -> DiffusionData:
    """List a data set with its prompts.

    Args:
        path: Photographs with masks, or composites with ground truth, which come without prompts.
        split: Part of it.
        resolution: Side of the crops.
        filters: Accepted values by column.
        captions: File or folder of captions (`read_captions`).
        caption_column: Column that holds the prompts instead.
        perturb: Perturb colour and light of the foregrounds of photographs.
        decoupled: Also move objects, mirror backgrounds and change masks, as `train_discriminative.py` does,
            so that pixels at the border do not show the true colours.
        composer: What perturbs; by default one that transfers the colours of these photographs.
        skip_bad: Skip unusable files.
        limit: Use only the first N samples.
        ids: File of names, one a line: take these photographs only, whether others are there or not.
        whole_frames: Share of samples that are whole pictures, resized to squares; the others are crops.
        mirror: Mirror half of the samples.

    Raises:
        InputError: Nothing usable, or names or prompts that are missing.
    """
    problems: list[Problem] | None = [] if skip_bad or ids else None
    listing = list_dataset(path, split, filters=filters or None, problems=problems)
    facts: dict[str, object] = {"data set": f"{path.name}, split {split}"}
    geometry: dict[str, Any] = {"whole": whole_frames, "mirror": mirror}
    if listing.samples:
        if captions or caption_column:
            raise InputError(path, "holds composites, which have no captions")
        samples = listing.samples[:limit]
        facts["samples"] = len(samples)
        facts["prompts"] = "empty"
        pairs = PairSet(samples, resolution, None, skip_bad, **geometry)
        return DiffusionData(pairs, [""] * len(samples), None, facts)
    photographs = listing.photographs
    if ids:
        wanted = set(read_ids(ids))
        photographs = [photograph for photograph in photographs if photograph.name in wanted]
        if missing := sorted(wanted - {photograph.name for photograph in photographs}):
            reason = f"names {len(missing)} photographs that are not there, as {missing[0]}"
            raise InputError(ids, reason)
    photographs = photographs[:limit]
    facts |= _facts(photographs)
    prompts = [""] * len(photographs)
    if captions:
        root = path if path.is_dir() else path.parent
        prompts = prompts_from_captions(photographs, root, read_captions(captions))
    elif caption_column:
        prompts = prompts_from_column(photographs, caption_column)
    facts["prompts"] = (
        captions.name if captions else f"column {caption_column}" if caption_column else "empty"
    )
    if perturb and composer is None:
        colors = reference_colors(photographs, REFERENCES, skip_bad)
        if decoupled:
            composer = SyntheticComposites(colors)
        else:
            # The condition may differ from the target in colour and light only.
            composer = SyntheticComposites(colors, jittered=0.0, imperfect=False, placements=IN_PLACE)
    samples_of_photographs = PhotographSet(photographs, resolution, None, skip_bad, **geometry)
    return DiffusionData(samples_of_photographs, prompts, composer if perturb else None, facts)


def _facts(photographs: list[Photograph]) -> dict[str, object]:
    def counts(values: Iterable[str]) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(Counter(values).items()))

    return {
        "samples": len(photographs),
        "by source": counts(photograph.subset for photograph in photographs),
        "by class of licence": counts(
            photograph.record.get("licence_class", "not told") for photograph in photographs
        ),
    }


class PrecomputedSet:
    """Samples with latents and text embeddings from `precompute`.

    Epoch N takes variant `N % variants` of each photograph: its crop and its perturbation are those of the
    variant; timestep, noise and dropped prompts are drawn anew in every epoch.

    Args:
        folder: What `precompute` has filled.
        samples: The photographs, for their order.
        variants: Number of variants.
    """

    def __init__(self, folder: Path, samples: PhotographSet, variants: int) -> None:
        self.folder, self.samples, self.variants = folder, samples, variants
        self.empty = load_file(_file(folder, "text", "empty"))["text"]

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.samples)

    def sample_at(self, seed: int, epoch: int, index: int) -> Item:
        """Return `latents`, `image_latents`, `composite`, `mask`, `text`, `empty_text`, and numbers."""
        source = self.samples.order(seed, epoch, index)
        stored = load_file(_file(self.folder, str(epoch % self.variants), str(source)))
        text = load_file(_file(self.folder, "text", str(source)))["text"]
        numbers = numbers_item(key=sample_key(seed, epoch, index), source=source, skipped=0)
        return stored | numbers | {"text": text, "empty_text": self.empty}


def precompute(
    folder: Path,
    data: DiffusionData,
    models: Mapping[str, Any],
    *,
    variants: int,
    image_channel: str,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> int:
    """Compute the latents and text embeddings that are not in a folder yet.

    Args:
        folder: Where they are kept: one file a photograph and variant, and one a prompt.
        data: Photographs.
        models: `vae`, `tokenizer` and `text_encoder`.
        variants: Crops and perturbations of each photograph.
        image_channel: See `encode_images`.
        batch_size: Images encoded at once.
        seed: Of crops and perturbations.
        rank: Which process this is; each does its share.
        processes: How many there are.

    Returns:
        How many files were written.

    Raises:
        InputError: The data are no photographs, or the folder holds those of other settings or models.
    """
    samples, vae = data.samples, models["vae"]
    if not isinstance(samples, PhotographSet):
        raise InputError("precompute", "works on photographs; these are composites")
    settings = {
        "photographs": _digest(photograph.name for photograph in samples.photographs),
        "prompts": _digest(data.prompts),
        "size": samples.size,
        "perturbed": _perturbation(data.composer),
        "image_channel": image_channel,
        "seed": seed,
        "whole_frames": samples.whole,
        "mirror": samples.mirror,
        "vae": _digest_weights(vae),
        "text_encoder": _digest_weights(models["text_encoder"]),
    }
    _check_settings(folder, settings, rank)
    written = 0
    prompts = {"empty": ""} | {str(source): prompt for source, prompt in enumerate(data.prompts)}
    wanted = [(name, _file(folder, "text", name)) for name in list(prompts)[rank::processes]]
    for batch in _batches([pair for pair in wanted if not pair[1].is_file()], batch_size):
        embeds = embed_prompts(models["tokenizer"], models["text_encoder"], [prompts[n] for n, _ in batch])
        for (_, path), text in zip(batch, embeds, strict=True):
            _write(path, {"text": text})
        written += len(batch)
    for variant in range(variants):
        paths = [_file(folder, str(variant), str(source)) for source in range(len(samples))]
        missing = [source for source in range(rank, len(samples), processes) if not paths[source].is_file()]
        for sources in _batches(missing, batch_size):
            keys = [sample_key(seed, variant, source) for source in sources]
            items = [
                samples.item(source, key) | numbers_item(key=key)
                for source, key in zip(sources, keys, strict=True)
            ]
            images = data.images(default_collate(items), vae.device)
            latents, mask, image_latents = encode_images(vae, images, image_channel)
            pixels = ((255 * part).round().to(torch.uint8) for part in (images.composite, images.mask))
            parts = zip(latents, mask, image_latents, *pixels, strict=True)
            names = ("latents", "latent_mask", "image_latents", "composite", "mask")
            for source, tensors in zip(sources, parts, strict=True):
                _write(paths[source], dict(zip(names, tensors, strict=True)))
            written += len(sources)
    return written


def _perturbation(composer: SyntheticComposites | None) -> bool | str:
    return "decoupled" if composer is not None and composer.imperfect else composer is not None


def _check_settings(folder: Path, settings: dict[str, Any], rank: int) -> None:
    path = folder / "settings.json"
    if path.is_file():
        found = {"whole_frames": WHOLE_FRAMES, "mirror": True} | json.loads(path.read_text("utf-8"))
        differing = [name for name in settings if found.get(name) != settings[name]]
        if differing:
            raise InputError(folder, f"was computed with other {', '.join(differing)}", "Take another folder")
    elif rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode(), overwrite=True)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous), overwrite=True)


def _file(folder: Path, group: str, name: str) -> Path:
    return folder / group / f"{name}.safetensors"


def _batches(values: list[Any], size: int) -> Iterable[list[Any]]:
    return (values[begin : begin + size] for begin in range(0, len(values), size))


def _digest(values: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:16]


def _digest_weights(model: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]

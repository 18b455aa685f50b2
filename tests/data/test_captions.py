from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip import save_tiny_blip
from tiny_pictures import picture

from harmony_diffusion.data.captions import (
    generate_captions,
    load_captioner,
    picture_key,
    prepare_picture,
    prompts_from_captions,
    prompts_from_column,
    read_captions,
)
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.images.sources import ArchiveMember, Content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_blip(tmp_path_factory.mktemp("blip") / "tiny")


@pytest.fixture(scope="module")
def captioner(folder):
    return load_captioner(folder)


def pixels(processor, count=6):
    return torch.stack([prepare_picture(processor, Image.fromarray(picture(n))) for n in range(count)])


def test_captions_are_those_of_a_greedy_search_by_hand(captioner):
    processor, model = captioner
    values = pixels(processor)
    captions = generate_captions(processor, model, values, max_new_tokens=8, num_beams=1)
    assert len(set(captions)) > 2
    for row, caption in zip(values, captions, strict=True):
        seen = model.vision_model(row[None]).last_hidden_state
        tokens = [processor.tokenizer.convert_tokens_to_ids("[DEC]")]
        while len(tokens) < 9 and tokens[-1] != processor.tokenizer.sep_token_id:
            logits = model.text_decoder(torch.tensor([tokens]), encoder_hidden_states=seen).logits
            tokens.append(int(logits[0, -1].argmax()))
        assert caption == processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_pictures_are_scaled_and_normalised_as_the_processor_says(captioner):
    processor, _ = captioner
    grey = prepare_picture(processor, Image.new("RGB", (70, 50), (51, 102, 204)))
    mean, std = (
        np.array(values)
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    expected = (np.array([0.2, 0.4, 0.8]) - mean) / std
    assert grey.shape == (3, 32, 32) and np.allclose(grey.amax((1, 2)), expected, atol=1e-3)


def test_batch_equals_loop(captioner):
    processor, model = captioner
    values = pixels(processor)
    for options in ({"num_beams": 1}, {"num_beams": 3}, {"beginning": "a photo of", "num_beams": 2}):
        together = generate_captions(processor, model, values, max_new_tokens=6, **options)
        alone = [
            generate_captions(processor, model, row[None], max_new_tokens=6, **options)[0] for row in values
        ]
        assert together == alone


def test_captions_begin_as_asked(captioner):
    processor, model = captioner
    captions = generate_captions(
        processor, model, pixels(processor), beginning="a photo of", max_new_tokens=5
    )
    assert all(caption.startswith("a photo of") for caption in captions) and len(set(captions)) > 1


def test_a_captioner_of_half_precision_captions(folder):
    processor, model = load_captioner(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert len(generate_captions(processor, model, pixels(processor), max_new_tokens=4)) == 6


def test_what_is_no_captioner_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be loaded.*Give the folder of a BLIP captioner"):
        load_captioner(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_captioner("nobody/no-captioner")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="of the kind bert, expected blip"):
        load_captioner(tmp_path)


def test_photographs_are_named_by_their_place():
    root = Path("/data/set")
    assert picture_key(root / "train" / "a.jpg", root) == "train/a.jpg"
    assert picture_key(Path("/other/a.jpg"), root) == "/other/a.jpg"
    assert picture_key(ArchiveMember(root / "a.zip", "b/c.jpg"), root) == "a.zip/b/c.jpg"
    assert picture_key(Content("c.jpg", b""), root) == "c.jpg"


def photograph(name, **record):
    return Photograph(name, "s", Path("/data") / f"{name}.jpg", Path("m.png"), record)


def test_captions_become_prompts(tmp_path):
    (tmp_path / "captions-0-of-2.jsonl").write_text('{"image": "a.jpg", "caption": "a cat"}\n')
    (tmp_path / "captions-1-of-2.jsonl").write_text('{"image": "b.jpg", "caption": "a dög"}\n{"image": "c.j')
    captions = read_captions(tmp_path)
    assert captions == {"a.jpg": "a cat", "b.jpg": "a dög"}
    assert read_captions(tmp_path / "captions-0-of-2.jsonl") == {"a.jpg": "a cat"}
    photographs = [photograph("b"), photograph("a"), photograph("b")]
    assert prompts_from_captions(photographs, Path("/data"), captions) == ["a dög", "a cat", "a dög"]
    with pytest.raises(InputError, match="c.jpg: and 1 more of 3 photographs have no caption"):
        prompts_from_captions([photograph("a"), photograph("c"), photograph("d")], Path("/data"), captions)


def test_columns_become_prompts():
    photographs = [photograph("a", Label="Cat"), photograph("b", Label="Dog")]
    assert prompts_from_column(photographs, "Label") == ["Cat", "Dog"]
    with pytest.raises(InputError, match="a: has no column Title; there are Label"):
        prompts_from_column(photographs, "Title")


def test_what_is_no_caption_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match="holds no captions"):
            read_captions(path)
    (tmp_path / "c.jsonl").write_text('{"image": "a.jpg", "caption": "a"}\n{"image": "a.jpg"}\n')
    with pytest.raises(InputError, match="c.jsonl:2: lacks the string"):
        read_captions(tmp_path)

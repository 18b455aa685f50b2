"""A real BLIP captioner of random weights, with its tokenizer, made without any download."""

from pathlib import Path

import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip import BlipImageProcessorPil

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the of photo cat dog man sofa street red blue on in ##s".split()


def save_tiny_blip(folder: Path) -> Path:
    """Write a captioner of 32x32 pictures that says something else of every picture."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    # As in the published ones: the token captions begin with is added to BERT's.
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # The usual random weights are so small that every picture would look the same.
    shape["initializer_range"] = 0.5
    config = BlipConfig(
        text_config={
            **shape,
            "encoder_hidden_size": 16,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 40,
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return folder

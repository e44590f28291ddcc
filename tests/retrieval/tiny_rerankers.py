"""Folders of untrained rerankers, made from words: a sequence classifier and a T5. No download."""

import json
from pathlib import Path

TEXT = "query document what is the otter heron a an of in and river lake bird mammal fish fur legs grey brown"


def edit(path: Path, **values) -> None:
    """Change entries of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def make_classifier(folder: Path, plain: Path, *, labels: int = 1) -> Path:
    """Write a sequence classifier over the encoder and tokenizer in `plain`, with large random output weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(plain, num_labels=labels)
        torch.nn.init.normal_(model.classifier.weight)
        torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


def make_t5(folder: Path, *, score_token: bool = True) -> Path:
    """Write a T5 for text generation: 16 dimensions, 2 layers, a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    special = ["<pad>", "</s>", "<unk>", *(["<extra_id_10>"] if score_token else [])]
    vocabulary = {word: number for number, word in enumerate([*special, ":", *TEXT.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
        model_max_length=40,
    )
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder

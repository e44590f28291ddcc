"""Transformers with random weights, small enough to differentiate in milliseconds, and sequences for them."""

import torch
from transformers import AutoModelForSequenceClassification as Classifier
from transformers import (
    BertConfig,
    CamembertConfig,
    ElectraConfig,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

WORDS = 50
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # with 0.02 a model of this size reads the same from every text
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
KINDS = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "xlm-roberta": XLMRobertaConfig,
    "camembert": CamembertConfig,
    "electra": ElectraConfig,
}


def classifier(kind="bert", *, labels=1, seed=0, **changes):
    """A sequence classifier in eval mode."""
    more = {"embedding_size": 16} if kind == "electra" else {}
    config = KINDS[kind](**(SIZES | more | changes), num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier.from_config(config).eval()


def t5_config():
    """A T5 of two layers each, without dropout."""
    return T5Config(
        vocab_size=WORDS,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def sequences(lengths, *, seed=0, width=None):
    """Random sequences of 3 and more tokens, padded with 0 to the longest or to `width`."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, WORDS, (length,), generator=generator)
        ids[row, 0], ids[row, 1] = 2, 3  # [CLS] [INT]
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def rows(features, chosen):
    """The sequences with these numbers."""
    return {name: values[chosen] for name, values in features.items()}

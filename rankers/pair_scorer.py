"""Models that read a query and a document as one sequence of tokens, and give one score for each sequence.

Three ways to a score over the encoders of Hugging Face, and a fourth that reads a query and two documents and scores
both. All take token tensors and return float32 scores, and the linear layer that makes the scores computes in float32
under autocast and in a bf16 copy too: rounded to bf16, the scores of a hundred documents would often be equal.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rankers.first_token import compute_first_token_only

POOLING = ("first", "mean")

Features = Mapping[str, Tensor]  # "input_ids", "attention_mask" and perhaps "token_type_ids", each (n, tokens)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever its input and autocast say."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the float32 outputs of `input` (…, in_features)."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return linear(input.float(), self.weight.float(), bias)


class PairScorer(nn.Module):
    """A transformer whose linear output layer gives the scores.

    Attributes:
        transformer: the model of transformers that reads the tokens.
        architecture: the name of this way to a score, as saved folders state it.
    """

    architecture = ""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def settings(self) -> dict[str, Any]:
        """Return what besides the weights decides the scores, as JSON values."""
        return {}


class ClassifierScorer(PairScorer):
    """A sequence classifier with one label, its logit being the score, or two: the second's logit minus the first's.

    A difference of logits is the log-odds of label 1 ("relevant") against label 0.
    """

    architecture = "classifier"

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        check_classifier(transformer)

    def forward(self, features: Features, sizes: Sequence[int] | None = None) -> Tensor:
        """Return the (n,) scores of n sequences; `sizes` changes nothing here."""
        return difference(self.transformer(**features).logits)


class PairwiseScorer(PairScorer):
    """A sequence classifier over a query and two documents, whose two labels are the scores of the two.

    PairRanker's joint encoding (Jiang et al. 2023, arXiv:2306.02561, section 3), here over any sequence classifier.
    """

    architecture = "pairwise"

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        check_classifier(transformer)
        labels = transformer.config.num_labels
        if labels != 2:
            raise ValueError(f"the pairwise classifier has {labels} labels; wanted 2 (the first document, the second)")

    def forward(self, features: Features, sizes: Sequence[int] | None = None) -> Tensor:
        """Return the (n, 2) scores of the documents of n sequences; `sizes` changes nothing here."""
        scores: Tensor = self.transformer(**features).logits.float()
        return scores


class EncoderScorer(PairScorer):
    """The encoder of an encoder-decoder model, a pooled token state, and a linear layer to one score.

    RankT5's encoder variant (Zhuang et al. 2022, arXiv:2210.10634, section 4.2).
    """

    architecture = "encoder"

    def __init__(self, transformer: Any, pooling: str = "first") -> None:
        super().__init__(transformer)
        if pooling not in POOLING:
            raise ValueError(f"unknown pooling {pooling!r}; wanted one of {', '.join(POOLING)}")
        self.pooling = pooling
        self.head = Float32Linear(transformer.config.d_model, 1)

    def settings(self) -> dict[str, Any]:
        """Return the pooling."""
        return {"pooling": self.pooling}

    def forward(self, features: Features, sizes: Sequence[int] | None = None) -> Tensor:
        """Return the (n,) scores of n sequences; `sizes` changes nothing here."""
        states = self.transformer(**features).last_hidden_state
        pooled = states[:, 0]
        if self.pooling == "mean":
            where = features["attention_mask"].unsqueeze(-1)
            pooled = (states.float() * where).sum(dim=1) / where.sum(dim=1)
        scores: Tensor = self.head(pooled)[:, 0]
        return scores


class EncoderDecoderScorer(PairScorer):
    """The logit of one token of the vocabulary at the first step of the decoder.

    RankT5's encoder-decoder variant (arXiv:2210.10634, section 4.1), there with `<extra_id_10>`.
    """

    architecture = "encoder_decoder"

    def __init__(self, transformer: Any, token_id: int) -> None:
        super().__init__(transformer)
        words = transformer.config.vocab_size
        if not 0 <= token_id < words:
            raise ValueError(f"the token whose logit is the score is {token_id}; the model has {words} tokens")
        self.token_id = token_id
        _compute_in_float32(transformer.get_output_embeddings())

    def settings(self) -> dict[str, Any]:
        """Return the token whose logit is the score."""
        return {"token_id": self.token_id}

    def forward(self, features: Features, sizes: Sequence[int] | None = None) -> Tensor:
        """Return the (n,) scores of n sequences; `sizes` changes nothing here."""
        tokens = features["input_ids"]
        first = tokens.new_full((len(tokens), 1), self.transformer.config.decoder_start_token_id)
        logits: Tensor = self.transformer(**features, decoder_input_ids=first, use_cache=False).logits
        return logits[:, 0, self.token_id].float()


def check_classifier(transformer: Any) -> None:
    """Refuse a sequence classifier whose logits are no score (ValueError), and have it compute what scores need.

    That is an output layer in float32, and of the last layer the first token alone.
    """
    labels = transformer.config.num_labels
    if labels not in (1, 2):
        raise ValueError(f"the classifier has {labels} labels; wanted 1 (a score) or 2 (irrelevant, relevant)")
    encoder = set(transformer.base_model.modules())
    layers = [module for module in transformer.modules() if isinstance(module, nn.Linear) and module not in encoder]
    if not layers or layers[-1].out_features != labels:
        raise ValueError(f"{type(transformer).__name__} does not end in a linear layer with {labels} outputs")
    _compute_in_float32(layers[-1])
    compute_first_token_only(transformer)


def difference(logits: Tensor) -> Tensor:
    """Return the (n,) float32 scores that (n, 1) or (n, 2) logits mean."""
    logits = logits.float()
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def low_precision(scorer: PairScorer) -> PairScorer:
    """Return a bf16 copy of a scorer for inference, its output layer in float32."""
    found = copy.deepcopy(scorer).to(torch.bfloat16).eval()
    for ours, theirs in zip(found.modules(), scorer.modules(), strict=True):
        if isinstance(ours, Float32Linear):  # of its own again: it may share its weights with the word vectors
            for name, weight in theirs.named_parameters():
                setattr(ours, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
    return found


def _compute_in_float32(layer: nn.Module) -> None:
    if type(layer) is nn.Linear:
        layer.__class__ = Float32Linear

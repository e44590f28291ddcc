"""The last layer of an encoder for the first token alone, which is all that a sequence classifier reads of it.

Keys and values come from all tokens of a sequence, but only the first token's query meets them, and only its state
goes through the output and feed-forward layers. Of a layer's twelve d x d products per token two are left, so a model
of six layers saves a seventh of its arithmetic, forward and backward. Scores and gradients are those of the whole
layer up to rounding.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Encoders built as BERT is: learned positions, keys without rotation, one full attention in every layer, arguments that
# reach it, and classifiers that read the state of the first token.
BERT_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def compute_first_token_only(transformer: Any) -> None:
    """Let the last layer of a sequence classifier give the first token's state only, if it is of a known type.

    Afterwards the base model's `last_hidden_state` is (n, 1, hidden); copies of the model compute the same way, its
    saved folders are as before.
    """
    config = transformer.config
    if config.model_type in BERT_TYPES and not config.is_decoder:
        layer = transformer.base_model.encoder.layer[-1]
        layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **kwargs: Any) -> Tensor:
    """Return the (n, 1, hidden) states of the first tokens from the (n, tokens, hidden) states below."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = sys.modules[type(layer).__module__].eager_attention_forward
    attention = layer.attention.self
    first = hidden_states[:, :1]
    if attention_mask is not None and attention_mask.dim() == 4:  # (n, 1, queries, keys)
        attention_mask = attention_mask[:, :, :1]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
    states, _weights = attend(
        attention,
        _heads(attention.query(first), attention),
        _heads(attention.key(hidden_states), attention),
        _heads(attention.value(hidden_states), attention),
        attention_mask,
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
        **kwargs,
    )
    states = layer.attention.output(states.flatten(2), first)
    found: Tensor = layer.feed_forward_chunk(states)
    return found


def _heads(states: Tensor, attention: Any) -> Tensor:
    """Return (n, heads, tokens, head_dim) of (n, tokens, hidden)."""
    return states.view(*states.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

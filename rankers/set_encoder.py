"""The Set-Encoder: a cross-encoder whose documents see each other, in no order (Schlatt et al. 2024, arXiv:2404.06912).

Every document of a list is a sequence of its own, `[CLS] [INT] query [SEP] document [SEP]`. In each self-attention
layer the queries come from the tokens of the sequence; keys and values come from these and from the [INT] states of
all other documents of the list. Positions begin anew in every sequence, so nothing tells the order of the documents:
scores of a reordered list are the reordered scores.

A model that has learned from lists of 8 reads lists of 100 badly as it is: the others take 14 times the attention that
they had. With a `set_size` of s the n - 1 others of a document count as s - 1, whatever n is:

    logit of another's [INT] key  +  log((s - 1) / (n - 1))

which changes nothing in lists of s documents. (The public implementation makes every list one of 100 documents, with
[INT] states drawn from a normal distribution; this does the same to the attention, and nothing is left to chance.)

The attention of transformers is a function that can be exchanged, and what the caller of a model adds to the call
reaches it. So the key of a document's [INT] state, which is row 1 of the keys, is appended to the keys of the others.
A list that is padded to the longest one appends masked copies; padding documents are never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rankers.first_token import BERT_TYPES
from rankers.lists import valid_entries
from rankers.pair_scorer import Features, PairScorer, check_classifier, difference

INTERACTION_INDEX = 1  # where [INT] stands in a sequence
_PREFIX = "rankwright_set_"


class Interaction(NamedTuple):
    """Which sequences see the [INT] states of which others."""

    others: Tensor  # (n, longest list) long: the sequences of the same list, any number at padding
    where: Tensor  # (n, longest list) bool: True where `others` names another document of the list
    offsets: Tensor  # (n,) float32: added to the logits of the others' keys


def interaction(
    sizes: Sequence[int], *, set_size: int | None = None, device: torch.device | str | None = None
) -> Interaction:
    """Return who sees whom in lists that lie behind one another, `sizes[i]` documents in list i.

    A list of no documents is allowed. A document does not see its own [INT] state a second time.

    Args:
        sizes: documents of each list.
        set_size: as how many documents each list counts, at least 2; None: as many as it has.
        device: of the result.
    """
    is_real = valid_entries(sizes, device=device)
    lengths = torch.as_tensor(sizes, dtype=torch.long, device=device)
    starts = lengths.cumsum(0) - lengths
    members = torch.where(is_real, starts[:, None] + torch.arange(is_real.shape[1], device=device), 0)
    others = members.repeat_interleave(lengths, dim=0)
    own = torch.arange(len(others), device=device)[:, None]
    weights = torch.ones(len(lengths), device=device)
    if set_size is not None:
        weights = (set_size - 1) / (lengths - 1).clamp(min=1)
    offsets = weights.log().repeat_interleave(lengths)
    return Interaction(others, is_real.repeat_interleave(lengths, dim=0) & (others != own), offsets)


class SetScorer(PairScorer):
    """A sequence classifier over lists, whose documents share the states of their [INT] tokens.

    Attributes:
        attention: the name of the attention of transformers that it extends.
        set_size: as how many documents each list counts, at least 2: those of the lists that it learns from; None: as
            many as it has, which is the paper's formula.
    """

    architecture = "set"

    def __init__(self, transformer: Any, attention: str = "sdpa", set_size: int | None = None) -> None:
        super().__init__(transformer)
        if set_size is not None and set_size < 2:
            raise ValueError(f"set_size must be at least 2 documents, got {set_size}")
        self.set_size = set_size
        check_classifier(transformer)
        kind = transformer.config.model_type
        if kind not in BERT_TYPES:
            raise ValueError(f"a Set-Encoder needs an encoder of type {', '.join(BERT_TYPES)}; this one is {kind}")
        self.use_attention(attention)

    def settings(self) -> dict[str, Any]:
        """Return the size that every list counts as, if there is one."""
        return {} if self.set_size is None else {"set_size": self.set_size}

    def use_attention(self, name: str) -> None:
        """Extend the attention that is registered in transformers under `name`, such as "sdpa"."""
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, eager_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        extended = sharing_attention(ALL_ATTENTION_FUNCTIONS[name])
        AttentionInterface.register(_PREFIX + name, extended)
        AttentionMaskInterface.register(_PREFIX + name, eager_mask)
        self.transformer.set_attn_implementation(_PREFIX + name)
        self.attention = name

    def forward(self, features: Features, sizes: Sequence[int] | None = None) -> Tensor:
        """Return the scores of lists of sequences.

        Args:
            features: (n, tokens) tensors; [INT] is the second token of each sequence.
            sizes: how many of the n sequences each list has, one list after the other; None: each is alone, which
                makes this a plain cross-encoder.

        Returns:
            (n,) float32 scores.

        Raises:
            ValueError: if the sizes do not add up to n.
        """
        count = len(features["input_ids"])
        if sizes is None:
            return difference(self.transformer(**features).logits)
        if sum(sizes) != count:
            raise ValueError(f"got {count} sequences for lists that hold {sum(sizes)}")
        shared = interaction(sizes, set_size=self.set_size, device=features["input_ids"].device)
        return difference(self.transformer(**features, interaction=shared).logits)


def sharing_attention(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function that appends the others' [INT] keys and values and then calls `attention`.

    Without an `interaction` among its arguments it is `attention` itself.
    """

    def extended(
        module: torch.nn.Module,
        query: Tensor,  # (n, heads, tokens, head_dim), as key and value; one token in the last layer
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # (n, 1, query's tokens, tokens), added to the logits
        interaction: Interaction | None = None,
        **kwargs: Any,
    ) -> Any:
        if interaction is not None:
            attention_mask = _extended_mask(attention_mask, key, interaction)
            key, value = (_with_others(states, interaction.others) for states in (key, value))
        return attention(module, query, key, value, attention_mask, **kwargs)

    return extended


def _with_others(states: Tensor, others: Tensor) -> Tensor:
    # (n, longest list, heads, head_dim); not [others]: the gradient of that is summed in any order
    shared = states[:, :, INTERACTION_INDEX].index_select(0, others.flatten())
    shared = shared.reshape(*others.shape, *shared.shape[1:])
    return torch.cat([states, shared.transpose(1, 2)], dim=2)


def _extended_mask(mask: Tensor | None, key: Tensor, interaction: Interaction) -> Tensor:
    """Return the (n, 1, 1, tokens + longest list) mask; all rows of a mask over padding alone are equal."""
    n, _, tokens, _ = key.shape
    own = key.new_zeros((n, 1, 1, tokens)) if mask is None else mask[:, :, :1].to(key.dtype)
    lowest = torch.finfo(key.dtype).min
    offsets = interaction.offsets.to(key.dtype)[:, None].expand(interaction.where.shape)
    others = offsets.masked_fill(~interaction.where, lowest)[:, None, None]
    return torch.cat([own, others], dim=3)


def novelty_labels(grades: ArrayLike, groups: ArrayLike) -> NDArray[np.float32]:
    """Return the labels of one list for training a ranker to show each thing once.

    In each group of near-duplicates the best document keeps its grade, the first one of equals, and the others get 0.
    (The paper keeps the best-scored document; with grades alone, the best-graded one.)

    Args:
        grades: (docs,) grades or teacher's scores >= 0.
        groups: (docs,) whole numbers; documents with the same number >= 0 are duplicates, a negative one has none.

    Raises:
        ValueError: if the shapes differ, a grade is negative or not a number, or a group is not a whole number.
    """
    labels, numbers = np.array(grades, dtype=np.float32), np.asarray(groups)
    if labels.ndim != 1 or labels.shape != numbers.shape:
        raise ValueError(f"got grades of shape {labels.shape} and groups of {numbers.shape}; wanted one of each a doc")
    if len(labels) and not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"groups must be whole numbers, got {numbers.dtype}")
    if not (np.isfinite(labels) & (labels >= 0)).all():
        raise ValueError("grades must be finite and >= 0: 0 is what a repeated document gets")
    for group in np.unique(numbers[numbers >= 0]) if len(labels) else []:
        members = np.flatnonzero(numbers == group)
        best = members[labels[members].argmax()]
        labels[members[members != best]] = 0
    return labels

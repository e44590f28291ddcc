"""Heads: small maps that are trained over finished embeddings while the encoder stays as it is, and their export.

    linear   h(x) = W x                          W = I at the start
    mlp      h(x) = x + V relu(U x + b)          V = 0 at the start

Both change nothing before they are trained. Where the encoder's vectors have length 1, so have a head's. A head stands
on both sides, or on the query side alone, so that an index of documents stays as it is.

Import this module only where torch is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from retrieval.encoder import Encoder
from retrieval.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module

Kind = Literal["linear", "mlp"]
Sides = Literal["query", "both"]


class Head(nn.Module):
    """A map of embeddings that keeps their dimension.

    Args:
        dim: dimensions of an embedding.
        kind: linear or mlp.
        sides: "query", or "both": one map for queries and documents.
        hidden: units of an mlp.
        unit: whether the vectors have length 1, before and after.
        seed: of an mlp's first layer.

    """

    def __init__(
        self,
        dim: int,
        kind: Kind = "linear",
        *,
        sides: Sides = "query",
        hidden: int = 128,
        unit: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.kind, self.sides, self.unit = dim, kind, sides, unit
        if kind == "linear":
            self.weight = nn.Parameter(torch.eye(dim))
        else:
            random = torch.Generator().manual_seed(seed)
            self.first = nn.Parameter(torch.randn(hidden, dim, generator=random) * (2 / dim) ** 0.5)
            self.offset = nn.Parameter(torch.zeros(hidden))
            self.second = nn.Parameter(torch.zeros(dim, hidden))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return h of (n, dim) vectors."""
        if self.kind == "linear":
            found = vectors @ self.weight.T
        else:
            found = vectors + torch.relu(vectors @ self.first.T + self.offset) @ self.second.T
        mapped: Tensor = normalize(found, dim=1) if self.unit else found
        return mapped

    def queries(self, vectors: Tensor) -> Tensor:
        """Return what queries are compared by."""
        mapped: Tensor = self(vectors)
        return mapped

    def documents(self, vectors: Tensor) -> Tensor:
        """Return what documents are compared by: with a head on the query side alone, the vectors as they are."""
        return self.queries(vectors) if self.sides == "both" else vectors

    def modules_for_export(self) -> list[Module]:
        """Return sentence-transformers' own modules that compute the same map.

        An mlp is two `Dense` layers: the first also carries x along, as relu(x) and relu(-x), whose difference it is.
        """
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize

        identity, tail = torch.eye(self.dim), [Normalize()] if self.unit else []
        if self.kind == "linear":
            weight = self.weight.detach().cpu().clone()
            return [Dense(self.dim, self.dim, bias=False, activation_function=nn.Identity(), init_weight=weight), *tail]
        first, offset, second = (p.detach().cpu() for p in (self.first, self.offset, self.second))
        wide = len(first) + 2 * self.dim
        up = Dense(
            self.dim,
            wide,
            activation_function=nn.ReLU(),
            init_weight=torch.cat([first, identity, -identity]),
            init_bias=torch.cat([offset, torch.zeros(2 * self.dim)]),
        )
        down = Dense(
            wide,
            self.dim,
            bias=False,
            activation_function=nn.Identity(),
            init_weight=torch.cat([second, identity, -identity], dim=1),
        )
        return [up, down, *tail]


def refuse_cut_models(encoder: Encoder) -> None:
    """Refuse an encoder whose embeddings are cut behind its last module: no head can stand behind that."""
    if encoder.model.truncate_dim is not None:
        raise InputError(f"{encoder.source} cuts its embeddings (truncate_dim); heads need a model without that")


def with_head(encoder: Encoder, head: Head) -> Encoder:
    """Return an encoder whose vectors are the head's; it shares the weights of `encoder`.

    The head stands behind the encoder's own modules; on the query side alone it stands in a `Router`, which lets
    documents through, so that `encode_query` and `encode_document` of plain sentence-transformers differ by it.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Router

    refuse_cut_models(encoder)
    tail = head.modules_for_export()
    if head.sides == "query":
        through = Normalize() if head.unit else _pass_through(head.dim)  # a route holds at least one module
        after = [tail.pop()] if isinstance(tail[-1], Normalize) else []
        tail = [Router.for_query_document(tail, [through]), *after]
    old: Any = encoder.model
    model: SentenceTransformer = SentenceTransformer(
        modules=[*old, *tail],
        device=str(old.device),
        prompts={name: prompt for name, prompt in old.prompts.items() if prompt is not None},
        default_prompt_name=old.default_prompt_name,
        similarity_fn_name=old.similarity_fn_name,
    )
    return Encoder(
        model,
        source=encoder.source,
        query=encoder.query,
        document=encoder.document,
        precision=encoder.precision,
        pooling=encoder.pooling,
        batch_tokens=encoder.batch_tokens,
    )


def export_head(encoder: Encoder, head: Head, folder: Path, *, card: str) -> None:
    """Publish encoder and head together as `folder/model`, a sentence-transformers folder of stock modules."""
    with_head(encoder, head).save(folder / "model", card=card)


def _pass_through(dim: int) -> Module:
    """Return a module that changes nothing."""
    from sentence_transformers.sentence_transformer.modules import Dense

    return Dense(dim, dim, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(dim))

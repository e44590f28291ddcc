"""Real rows for the adapters' tests, and what their values are compared with."""

import inspect

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from rankers.losses import LOSSES, LossEntry

NAMES = ["sort", "argsort", "mean", "median", "clip", "unique", "outer", "hypot", "linspace", "take", "cumsum", "where"]


def real_rows():
    """(summary of a function, what its documentation says of its arguments)."""
    found = []
    for name in NAMES:
        paragraphs = inspect.getdoc(getattr(np, name)).split("\n\n")
        summary, *rest = (p for p in paragraphs if not p.startswith(f"{name}("))
        found.append((" ".join(summary.split()), " ".join(rest[0].split())))
    return found


QUERIES, DOCUMENTS = map(list, zip(*real_rows(), strict=True))
NEGATIVES = [DOCUMENTS[(place + 5) % len(DOCUMENTS)] for place in range(len(DOCUMENTS))]

TEACHERS = [name for name, entry in LOSSES.items() if entry.labels == "teacher"]
SETTINGS = [
    *((name, {}) for name in LOSSES if name not in TEACHERS),
    ("infonce", {"symmetric": True, "temperature": 0.1}),
    ("bixse", {"scale": 5.0}),
    ("sl_at_k", {"k": 2}),
]


def tokenised(model, *columns):
    return [model.preprocess(list(column)) for column in columns]


def vectors(model, texts):
    return model.encode(list(texts), convert_to_tensor=True, convert_to_numpy=False)


def cosines(model, queries, documents):
    return normalize(vectors(model, queries)) @ normalize(vectors(model, documents)).T


def logits(model, *lists):
    return [
        torch.from_numpy(model.predict([(query, text) for text in texts], activation_fn=nn.Identity()))
        for query, texts in lists
    ]


def close(found, wanted):
    assert found.shape == ()
    torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-4, atol=1e-5)


def taught(scores, labels, *, where=None, reduction="mean"):
    """A teacher's loss that compares no documents: squared error."""
    where = torch.ones_like(labels, dtype=torch.bool) if where is None else where
    return ((scores - labels) ** 2)[where].mean()


def counting(scores, labels, *, where=None, state=None, reduction="mean"):
    """A loss that counts how often it has seen each query."""
    value = (scores * labels).sum()
    return value if state is None else (value * state["seen"].sum(), {"seen": state["seen"] + 1})


def entry_of(fn, **values):
    given = {"use": "tests", "needs": "rows", "cost": "linear", "paper": "none", "defaults": {}, "labels": "binary"}
    return LossEntry(name=fn.__name__, fn=fn, **given | values)

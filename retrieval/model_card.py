"""The README.md of a model that a run publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval.cross_encoder import CrossEncoder
from retrieval.encoder import Encoder
from retrieval.reranker_config import RerankerConfig
from retrieval.run_folder import settings_hash
from retrieval.train_config import TrainConfig


def model_card(
    config: TrainConfig, encoder: Encoder, loss_settings: Mapping[str, Any], dev: Mapping[str, float]
) -> str:
    """Return the card of a dual encoder: what it was trained on, how, what it reached on dev, and how to use it."""
    settings, rows = _settings(loss_settings), _scores(dev)
    data = ", ".join([config.data, *config.rows])
    return f"""---
tags: [sentence-transformers, sentence-similarity, feature-extraction, dense-retrieval]
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# A dual encoder trained with Rankwright

| | |
|---|---|
| start model | `{config.model}` |
| training data | `{data}`, split `{config.train_split}` |
| loss | `{config.loss}` ({settings}) |
| batch | {config.per_device_train_batch_size} queries × {config.gradient_accumulation_steps} |
| learning rate | {config.learning_rate:g}, warm-up {config.warmup_ratio:g} |
| epochs, or steps | {config.num_train_epochs:g} epochs, or {config.max_steps} steps when > 0 |
| seed | {config.seed} |
| lengths (query, document) | {encoder.query.max_length}, {encoder.document.max_length} tokens |
| prompts (query, document) | {encoder.query.prompt!r}, {encoder.document.prompt!r} |
| dimensions | {encoder.dim} |
| settings | {settings_hash(config)} |

Measured on the dev split, from which the model was chosen:

| | |
|---|---|
{rows}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode_query(["…"])
documents = model.encode_document(["title text"])
model.similarity(queries, documents)
```
"""


def reranker_card(
    config: RerankerConfig, reranker: CrossEncoder, loss_settings: Mapping[str, Any], dev: Mapping[str, float]
) -> str:
    """Return the card of a reranker."""
    data = ", ".join([config.data, *config.rows])
    filled = "BM25's top 100" if config.run is None else f"`{config.run}`"
    # What another library opens as a plain classifier, and scores wrongly, does not say that it is one of its own.
    is_plain = reranker.model.architecture == "classifier"
    library = "\nlibrary_name: sentence-transformers" if is_plain else ""
    return f"""---
tags: [{"sentence-transformers, cross-encoder, " if is_plain else ""}reranker, text-ranking]{library}
pipeline_tag: text-ranking
---

# A reranker trained with Rankwright

| | |
|---|---|
| start model | `{config.model}` |
| architecture | {reranker.model.architecture} |
| training data | `{data}`, split `{config.train_split}` |
| loss | `{config.loss}` ({_settings(loss_settings)}) |
| lists | {config.num_positives} relevant + {config.num_negatives} others, filled from {filled} |
| batch | {config.per_device_train_batch_size} lists × {config.gradient_accumulation_steps} |
| learning rate | {config.learning_rate:g}, warm-up {config.warmup_ratio:g} |
| epochs, or steps | {config.num_train_epochs:g} epochs, or {config.max_steps} steps when > 0 |
| seed | {config.seed} |
| lengths (query, pair) | {reranker.pairs.query_max_length or "no limit"}, {reranker.pairs.max_length} tokens |
| settings | {settings_hash(config)} |

Measured on the dev split, from which the model was chosen:

| | |
|---|---|
{_scores(dev)}

```python
from retrieval import load_reranker

reranker = load_reranker("path/to/this/folder")
reranker.score(["a query"], [["title text", "title text"]])   # larger is better
```
"""


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _scores(dev: Mapping[str, float]) -> str:
    return "\n".join(f"| {name} | {value:.4f} |" for name, value in dev.items()) or "| not validated | |"

"""Every loss of `rankers` inside sentence-transformers' own trainers.

    SentenceTransformerTrainer(model, train_dataset=rows, loss=SentenceTransformerLoss(model, "sl_at_k", k=20))
    CrossEncoderTrainer(model, train_dataset=lists, loss=CrossEncoderLoss(model, "softmax_ce"))

One line of a training script changes; what the columns of its dataset mean stands in the two classes. Each process has
a matrix of its own. The trainers' checkpoints hold the model alone: learned settings, and the states that some losses
keep for each query (found again by its text), start anew when a run is resumed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retrieval.cells import CellTargets
from retrieval.errors import InputError, require
from retrieval.labelled_columns import Matrix, in_batch, own_lists, text_keys

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from rankers.losses import RankingLoss
else:
    try:
        from torch.nn import Module
    except ModuleNotFoundError:  # the base install: whoever makes a loss is told which extra it needs
        Module = object


class _Adapter(Module):
    """What both adapters hold: the model, the loss, the state of each query, what a model card shows."""

    def __init__(self, model: Module, loss: str | RankingLoss, settings: Mapping[str, Any]) -> None:
        from rankers.losses import RankingLoss, build

        super().__init__()
        if not isinstance(loss, str | RankingLoss):
            raise InputError(f"loss must be the name of a loss or a RankingLoss, got {type(loss).__name__}")
        if settings and not isinstance(loss, str):
            raise InputError(f"a built loss has its settings; give {', '.join(settings)} to build() instead")
        self.model = model
        # Not `loss`: model cards would list what is called so as a loss of the trainer.
        self.ranking_loss: RankingLoss = build(loss, **settings) if isinstance(loss, str) else loss
        self._states: dict[Hashable, dict[str, float]] = {}

    def get_config_dict(self) -> dict[str, Any]:
        """Return what a model card shows: the loss and its settings, learned ones as they are now."""
        learned = {name: float(value.detach()) for name, value in self.ranking_loss.learned.items()}
        shown = {"loss": self.ranking_loss.entry.name, **self.ranking_loss.settings, **learned}
        return shown | ({"learned": sorted(learned)} if learned else {})

    @property
    def citation(self) -> str:
        """The source of the loss, as a BibTeX entry for a model card."""
        entry = self.ranking_loss.entry
        return f"\n@misc{{rankwright_{entry.name},\n    title={{{entry.name}}},\n    note={{{entry.paper}}}\n}}\n"

    def _value(
        self, scores: Tensor, labels: Tensor, where: Tensor, queries: Sequence[Hashable], **at_call: Tensor
    ) -> Tensor:
        """Return the () loss; a loss that has a state finds that of each query again by its text."""
        import torch

        first = self.ranking_loss.entry.state
        if not first:
            return self.ranking_loss(scores, labels, where, **at_call)  # type: ignore[no-any-return]
        known = [self._states.get(query, first) for query in queries]
        state = {name: torch.tensor([one[name] for one in known], device=scores.device) for name in first}
        value, state = self.ranking_loss(scores, labels, where, state=state, **at_call)
        if torch.is_grad_enabled():  # evaluation leaves no trace
            for query, *numbers in zip(queries, *(state[name].tolist() for name in first), strict=True):
                self._states[query] = dict(zip(first, numbers, strict=True))
        return value  # type: ignore[no-any-return]


class SentenceTransformerLoss(_Adapter):
    """Any Rankwright loss in `SentenceTransformerTrainer`, with in-batch negatives.

    The queries of a batch are scored against the distinct documents of all its rows and columns. The rules are those
    of Rankwright's own batches: texts that are one to the tokenizer are one document, so a duplicate of a positive is
    no negative; a query that stands in several rows knows what all of them say of it.

    Prompts are the trainer's (`args.prompts`), the similarity is the model's: "cosine" normalises the embeddings, "dot"
    does not. The losses' default temperatures are meant for cosines; give temperature=1, or more, for longer vectors.

    Args:
        model: the SentenceTransformer that is trained.
        loss: a name of `rankers.losses.LOSSES`, or what `build` returned.
        settings: of the loss. An `nn.Parameter` of shape () is learned by the trainer.

    Requirements:
        1. Text columns in the order query, positive, negatives; their names do not matter.
        2. A column label where the loss is for graded labels or a teacher's scores. What it may hold depends on the
           loss: `LOSSES[name].labels` is "binary" (0/1 or grades), "probability" (0 to 1), "grade" (0, 1, …) or
           "teacher" (any number).

    Inputs:
        +-----------------------------------------------+-----------------------+-------------------------------+
        | Texts                                         | Labels                | Means                         |
        +===============================================+=======================+===============================+
        | (anchor, positive)                            | none                  | 1 at the positive, else 0     |
        +-----------------------------------------------+-----------------------+-------------------------------+
        | (anchor, positive, negative_1, …, negative_n) | none                  | 1 at the positive, else 0     |
        +-----------------------------------------------+-----------------------+-------------------------------+
        | (query, document)                             | label                 | label at the document, else 0 |
        +-----------------------------------------------+-----------------------+-------------------------------+
        | (query, document_1, …, document_n)            | [label_1, …, label_n] | each its label, documents of  |
        |                                               |                       | other rows 0                  |
        +-----------------------------------------------+-----------------------+-------------------------------+
        | (query, document_1, …, document_n),           | [score_1, …, score_n] | a row's own documents only    |
        | a loss of a teacher's scores                  |                       |                               |
        +-----------------------------------------------+-----------------------+-------------------------------+

    Example:
        ::

            from datasets import Dataset
            from retrieval import SentenceTransformerLoss
            from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

            model = SentenceTransformer("BAAI/bge-small-en-v1.5")
            rows = Dataset.from_dict({
                "anchor": ["sort an array in place", "largest entry of an array"],
                "positive": ["ndarray.sort: Sort an array in-place.", "max: Return the maximum of an array."],
            })
            loss = SentenceTransformerLoss(model, "sl_at_k", k=20)
            SentenceTransformerTrainer(model=model, train_dataset=rows, loss=loss).train()

    Raises:
        InputError: without sentence-transformers; at another model; in training, when the columns do not fit the loss.
        ValueError: at an unknown loss, setting or value; in training, at labels that the loss refuses.

    """

    def __init__(self, model: Any, loss: str | RankingLoss, **settings: Any) -> None:
        library = _library()
        if not isinstance(model, library.SentenceTransformer):
            raise InputError(f"SentenceTransformerLoss trains a SentenceTransformer, got {type(model).__name__}")
        super().__init__(model, loss, settings)
        self.similarity = str(model.similarity_fn_name)
        self._all_pairs = library.SimilarityFunction.to_similarity_fn(self.similarity)
        self._own_pairs = library.SimilarityFunction.to_similarity_pairwise_fn(self.similarity)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Return the () loss of a batch; `sentence_features` are its columns, tokenised."""
        import torch

        columns = list(sentence_features)
        if len(columns) < 2:
            raise InputError(f"SentenceTransformerLoss takes text columns (query, document, …), got {len(columns)}")
        texts = [text_keys(column) for column in columns]  # first: a model may change what it is given
        vectors = [self.model(column)["sentence_embedding"] for column in columns]
        rows = len(vectors[0])
        queries, *documents = (
            [(number, row) for row in range(rows)] if known is None else known for number, known in enumerate(texts)
        )
        matrix = in_batch(self.ranking_loss, queries, documents, labels)
        scores = self._scores(vectors[0], vectors[1:], matrix)
        at_call = {}
        if self.ranking_loss.settings.get("symmetric"):
            at_call["where_columns"] = CellTargets.of(matrix.labels, matrix.where, queries).where_columns(0, rows)
        arrays = {"labels": matrix.labels, "where": matrix.where, **at_call}
        tensors = {name: torch.from_numpy(array).to(scores.device) for name, array in arrays.items()}
        return self._value(scores, queries=queries, **tensors)

    def _scores(self, queries: Tensor, columns: Sequence[Tensor], matrix: Matrix) -> Tensor:
        """Return the (rows, docs) similarities, in full precision: bfloat16's 3 digits would tie documents."""
        import torch

        with torch.autocast(queries.device.type, enabled=False):
            queries, *columns = (v if v.dtype == torch.float64 else v.float() for v in (queries, *columns))
            if matrix.documents is None:
                return torch.stack([self._own_pairs(queries, column) for column in columns], dim=1)
            # index_select and not [documents]: the gradient of the latter is summed in any order
            chosen = torch.from_numpy(matrix.documents).to(queries.device)
            scores: Tensor = self._all_pairs(queries, torch.cat(columns).index_select(0, chosen))
            return scores

    def get_config_dict(self) -> dict[str, Any]:
        """Return what a model card shows."""
        return super().get_config_dict() | {"similarity": self.similarity}


class CrossEncoderLoss(_Adapter):
    """Any Rankwright loss in `CrossEncoderTrainer`: each query's own documents are its list.

    Scores are the model's logits, without activation. As these are not bounded, a loss given by name has temperature 1,
    whatever its default; give `temperature` or `scale` for another one. A loss that is already built keeps its own.

    Args:
        model: the CrossEncoder that is trained, with one output.
        loss: a name of `rankers.losses.LOSSES`, or what `build` returned.
        mini_batch_size: pairs in a forward pass; None: as many as the batch has rows.
        settings: of the loss. An `nn.Parameter` of shape () is learned by the trainer.

    Requirements:
        1. Columns in the order query, documents; their names do not matter. Lists may differ in length.
        2. What a column label may hold depends on the loss: `LOSSES[name].labels` is "binary" (0/1 or grades),
           "probability" (0 to 1), "grade" (0, 1, …) or "teacher" (any number).

    Inputs:
        +-----------------------------------------------+---------------------------------+---------------+
        | Texts                                         | Labels                          | Model outputs |
        +===============================================+=================================+===============+
        | (query, [document_1, …, document_n])          | [label_1, …, label_n]           | 1             |
        +-----------------------------------------------+---------------------------------+---------------+
        | (anchor, positive, negative_1, …, negative_n) | none: 1 at the positive, else 0 | 1             |
        +-----------------------------------------------+---------------------------------+---------------+
        | (query, document_1, …, document_n)            | [label_1, …, label_n]           | 1             |
        +-----------------------------------------------+---------------------------------+---------------+
        | (query, document), a loss that does not       | label                           | 1             |
        | compare a query's documents                   |                                 |               |
        +-----------------------------------------------+---------------------------------+---------------+

    Example:
        ::

            from datasets import Dataset
            from retrieval import CrossEncoderLoss
            from sentence_transformers import CrossEncoder, CrossEncoderTrainer

            model = CrossEncoder("microsoft/MiniLM-L12-H384-uncased", num_labels=1)
            lists = Dataset.from_dict({
                "query": ["sort an array in place", "largest entry of an array"],
                "docs": [
                    ["ndarray.sort: Sort an array in-place.", "sort: Return a copy, sorted.", "min: Smallest entry."],
                    ["max: Return the maximum.", "min: Smallest entry."],
                ],
                "labels": [[2, 1, 0], [1, 0]],
            })
            loss = CrossEncoderLoss(model, "softmax_ce")
            CrossEncoderTrainer(model=model, train_dataset=lists, loss=loss).train()

    Raises:
        InputError: without sentence-transformers; at another model or a loss that compares the columns of a matrix; in
            training, when the columns do not fit the loss.
        ValueError: at an unknown loss, setting or value; in training, at labels that the loss refuses.

    """

    def __init__(
        self, model: Any, loss: str | RankingLoss, *, mini_batch_size: int | None = None, **settings: Any
    ) -> None:
        library = _library()
        from rankers.losses import LOSSES

        if not isinstance(model, library.CrossEncoder):
            raise InputError(f"CrossEncoderLoss trains a CrossEncoder, got {type(model).__name__}")
        if model.num_labels != 1:
            raise InputError(f"CrossEncoderLoss needs a model with num_labels=1, got {model.num_labels}")
        if mini_batch_size is not None and mini_batch_size < 1:
            raise InputError(f"mini_batch_size must be >= 1, got {mini_batch_size}")
        takes = LOSSES[loss].settings if isinstance(loss, str) and loss in LOSSES else ()
        if "temperature" in takes and not {"temperature", "scale"} & settings.keys():
            settings["temperature"] = 1.0
        super().__init__(model, loss, settings)
        if self.ranking_loss.settings.get("symmetric"):
            raise InputError("symmetric=True asks each document for its query; a cross-encoder's lists share none")
        self.mini_batch_size = mini_batch_size

    def forward(
        self,
        inputs: Sequence[Sequence[Any]],
        labels: Tensor | Sequence[Tensor] | None = None,
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Return the () loss of a batch; `inputs` are its columns, as texts."""
        import torch

        from rankers.lists import pad_groups

        if len(inputs) < 2:
            raise InputError(f"CrossEncoderLoss takes columns (query, documents) or more, got {len(inputs)}")
        queries, *columns = inputs
        documents, grades = own_lists(self.ranking_loss.entry, columns, labels)
        pairs = [(query, document) for query, own in zip(queries, documents, strict=True) for document in own]
        if not pairs:
            raise InputError("no query of the batch has a document")
        logits = self._logits(pairs, self.mini_batch_size or len(queries), prompt, task)
        padded = pad_groups(logits, torch.from_numpy(grades), [len(own) for own in documents])
        return self._value(*padded, [repr(query) for query in queries])

    def _logits(self, pairs: Sequence[tuple[Any, Any]], size: int, prompt: str | None, task: str | None) -> Tensor:
        """Return (pairs,) logits, computed `size` at a time."""
        import torch
        from sentence_transformers.util import batch_to_device

        model: Any = self.model
        parts = []
        for start in range(0, len(pairs), size):
            features = model.preprocess(pairs[start : start + size], prompt=prompt, task=task)
            parts.append(model(batch_to_device(features, model.device))["scores"].view(-1))
        return torch.cat(parts)

    def get_config_dict(self) -> dict[str, Any]:
        """Return what a model card shows."""
        return super().get_config_dict() | {"mini_batch_size": self.mini_batch_size}


def _library() -> Any:
    require("torch", "train")
    return require("sentence_transformers", "train")

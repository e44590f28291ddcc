"""Tiny random models of both kinds, and a trainer of two steps for either."""

import copy

import pytest

from retrieval import SentenceTransformerLoss
from retrieval.models import resolve_model

torch = pytest.importorskip("torch", reason="needs the train extra")
library = pytest.importorskip("sentence_transformers", reason="needs the train extra")


@pytest.fixture(scope="session")
def bert(minilm, tmp_path_factory) -> str:
    """Random weights, 2 layers of 32 dimensions, with the tokenizer of MiniLM."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(minilm))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.1,  # with BERT's 0.02 a model of this size makes all texts one vector
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def loaded(bert):
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = library.SentenceTransformer(modules=[Transformer(bert), Pooling(32)], device="cpu")
        cross_encoder = library.CrossEncoder(bert, num_labels=1, device="cpu")
        with torch.no_grad():  # else all logits of a new head are within 0.1
            cross_encoder.model.classifier.weight.mul_(20)
    return encoder.eval(), cross_encoder.eval()


@pytest.fixture
def encoder(loaded):
    return copy.deepcopy(loaded[0])


@pytest.fixture
def cross_encoder(loaded):
    return copy.deepcopy(loaded[1])


@pytest.fixture
def trainer_of(tmp_path):
    """Makes a trainer of two steps over the real rows, which leaves no file outside `tmp_path`."""
    datasets = pytest.importorskip("datasets", reason="needs the dev extra")
    pytest.importorskip("accelerate", reason="needs the dev extra")

    def make(loss, columns, **changes):
        family = "SentenceTransformer" if isinstance(loss, SentenceTransformerLoss) else "CrossEncoder"
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 6,
            "learning_rate": 1e-3,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return getattr(library, f"{family}Trainer")(
            model=loss.model,
            args=getattr(library, f"{family}TrainingArguments")(**arguments | changes),
            train_dataset=datasets.Dataset.from_dict(columns),
            loss=loss,
        )

    return make

"""Our losses of a cross-encoder have the value of padded lists; making either kind of adapter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapter_rows import (
    DOCUMENTS,
    QUERIES,
    SETTINGS,
    close,
    logits,
)
from torch import nn

from rankers.lists import pad_lists
from rankers.losses import LOSSES, build
from retrieval import CrossEncoderLoss, InputError, SentenceTransformerLoss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "settings"), [case for case in SETTINGS if "symmetric" not in case[1]])
def test_it_is_the_loss_of_the_padded_logits_at_temperature_one(cross_encoder, name, settings):
    lists = [(QUERIES[0], DOCUMENTS[:3]), (QUERIES[1], DOCUMENTS[1:2]), (QUERIES[2], DOCUMENTS[4:6])]
    labels = [[1, 0, 0], [1], [0, 1]]
    loss = CrossEncoderLoss(cross_encoder, name, **settings)
    value = loss([[query for query, _ in lists], [texts for _, texts in lists]], [torch.tensor(row) for row in labels])
    warm = settings if "scale" in settings else {"temperature": 1.0, **settings}
    close(value, build(name, **warm)(*pad_lists(logits(cross_encoder, *lists), labels)))


@pytest.mark.parametrize("mini_batch_size", [None, 1, 4, 100])
def test_pairs_go_through_the_model_a_few_at_a_time(cross_encoder, mini_batch_size):
    inputs = [QUERIES[:3], [DOCUMENTS[:4], [], DOCUMENTS[4:6]]]
    labels = [torch.tensor([1, 0, 0, 0]), torch.tensor([]), torch.tensor([0, 1])]
    sizes, forward = [], cross_encoder.forward

    def counted(features, **more):
        sizes.append(len(features["input_ids"]))
        return forward(features, **more)

    scores = logits(cross_encoder, (QUERIES[0], DOCUMENTS[:4]), (QUERIES[2], DOCUMENTS[4:6]))
    cross_encoder.forward = counted
    value = CrossEncoderLoss(cross_encoder, "infonce", mini_batch_size=mini_batch_size)(inputs, labels)
    assert sizes == {None: [3, 3], 1: [1] * 6, 4: [4, 2], 100: [6]}[mini_batch_size]
    close(value, build("infonce", temperature=1)(*pad_lists([*scores, []], [[1, 0, 0, 0], [0, 1], []])))
    value.backward()
    gradients = [parameter.grad for parameter in cross_encoder.parameters() if parameter.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_temperature_is_the_users_if_given(cross_encoder):
    assert CrossEncoderLoss(cross_encoder, "infonce").ranking_loss.settings["temperature"] == 1
    assert CrossEncoderLoss(cross_encoder, "infonce", temperature=0.2).ranking_loss.settings["temperature"] == 0.2
    scaled = CrossEncoderLoss(cross_encoder, "infonce", scale=3.0).ranking_loss.settings
    assert (scaled["scale"], "temperature" in scaled) == (3.0, False)
    assert CrossEncoderLoss(cross_encoder, build("infonce")).ranking_loss.settings["temperature"] == 0.05
    assert "scale" not in CrossEncoderLoss(cross_encoder, "bixse").ranking_loss.settings


def test_columns_are_each_rows_list(cross_encoder):
    columns = [QUERIES[:2], DOCUMENTS[:2], [DOCUMENTS[5], DOCUMENTS[1]], DOCUMENTS[6:8]]  # row 2 brings a text twice
    lists = (QUERIES[0], [DOCUMENTS[i] for i in (0, 5, 6)]), (QUERIES[1], [DOCUMENTS[i] for i in (1, 7)])
    scores = logits(cross_encoder, *lists)
    value = CrossEncoderLoss(cross_encoder, "infonce")(columns)
    close(value, build("infonce", temperature=1)(*pad_lists(scores, [[1, 0, 0], [1, 0]])))
    graded = CrossEncoderLoss(cross_encoder, "softmax_ce")(columns, [torch.tensor([3, 1, 0]), torch.tensor([2, 2, 1])])
    close(graded, build("softmax_ce", temperature=1)(*pad_lists(scores, [[3, 1, 0], [2, 1]])))


def test_pairs_with_a_label(cross_encoder):
    value = CrossEncoderLoss(cross_encoder, "bixse")([QUERIES[:2], DOCUMENTS[:2]], torch.tensor([1.0, 0.5]))
    scores = logits(cross_encoder, (QUERIES[0], DOCUMENTS[:1]), (QUERIES[1], DOCUMENTS[1:2]))
    close(value, build("bixse", temperature=1)(*pad_lists(scores, [[1.0], [0.5]])))


def test_a_prompt_goes_before_the_pair(cross_encoder):
    inputs, labels = [QUERIES[:1], [DOCUMENTS[:2]]], [torch.tensor([1, 0])]
    loss = CrossEncoderLoss(cross_encoder, "infonce")
    plain, prompted = loss(inputs, labels), loss(inputs, labels, prompt="find: ", task=None)
    scores = cross_encoder.predict(
        [(QUERIES[0], text) for text in DOCUMENTS[:2]], prompt="find: ", activation_fn=nn.Identity()
    )
    close(prompted, build("infonce", temperature=1)(torch.from_numpy(scores)[None], torch.tensor([[1.0, 0.0]])))
    assert plain != prompted


def test_a_cross_encoders_lists_that_do_not_fit(cross_encoder):
    loss = CrossEncoderLoss(cross_encoder, "softmax_ce")
    with pytest.raises(InputError, match="softmax_ce needs a column label: for each query a list"):
        loss([QUERIES[:1], [DOCUMENTS[:2]]])
    with pytest.raises(InputError, match="row 0 of the batch has 2 documents but 3 labels"):
        loss([QUERIES[:1], [DOCUMENTS[:2]]], [torch.ones(3)])
    with pytest.raises(InputError, match="softmax_ce compares a row's own documents, and each row has one"):
        loss([QUERIES[:2], DOCUMENTS[:2]], torch.ones(2))
    with pytest.raises(InputError, match=r"takes columns \(query, documents\) or more, got 1"):
        loss([QUERIES[:2]])
    with pytest.raises(InputError, match="no query of the batch has a document"):
        loss([QUERIES[:1], [[]]], [torch.tensor([])])


# --- making one ------------------------------------------------------------------------------------------------------


def test_impossible_losses_are_refused_when_they_are_made(encoder, cross_encoder):
    for make, model, other in (
        (SentenceTransformerLoss, encoder, cross_encoder),
        (CrossEncoderLoss, cross_encoder, encoder),
    ):
        with pytest.raises(InputError, match=rf"{make.__name__} trains a \w+, got {type(other).__name__}"):
            make(other, "infonce")
        with pytest.raises(ValueError, match="unknown loss 'info_nce'; did you mean 'infonce'"):
            make(model, "info_nce")
        with pytest.raises(ValueError, match="unknown setting 'temprature' of infonce; did you mean 'temperature'"):
            make(model, "infonce", temprature=1)
        with pytest.raises(InputError, match="loss must be the name of a loss or a RankingLoss, got function"):
            make(model, LOSSES["infonce"].fn)
        with pytest.raises(InputError, match=r"a built loss has its settings; give symmetric to build\(\) instead"):
            make(model, build("infonce"), symmetric=True)
    with pytest.raises(InputError, match="symmetric=True asks each document for its query"):
        CrossEncoderLoss(cross_encoder, "infonce", symmetric=True)
    with pytest.raises(InputError, match="mini_batch_size must be >= 1, got 0"):
        CrossEncoderLoss(cross_encoder, "infonce", mini_batch_size=0)
    cross_encoder.model.config.num_labels = 2
    with pytest.raises(InputError, match="needs a model with num_labels=1, got 2"):
        CrossEncoderLoss(cross_encoder, "infonce")


@pytest.mark.parametrize("make", [SentenceTransformerLoss, CrossEncoderLoss])
def test_without_the_library_it_names_the_extra(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"sentence_transformers is not installed; .* 'rankwright\[train\]'"):
        make(None, "infonce")


def test_without_torch_it_can_be_imported_and_names_the_extra():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from blocked_imports import block_extras; block_extras()\n"
        "from retrieval import CrossEncoderLoss, SentenceTransformerLoss\n"
        "for make in (CrossEncoderLoss, SentenceTransformerLoss):\n"
        "    try: make(None, 'infonce')\n"
        "    except Exception as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout == "torch is not installed; run: pip install 'rankwright[train]'\n" * 2


def test_what_a_model_card_shows(encoder, cross_encoder):
    heat = nn.Parameter(torch.tensor(0.5))
    shown = SentenceTransformerLoss(encoder, "sl_at_k", k=20, temperature=heat).get_config_dict()
    assert shown.items() >= {"loss": "sl_at_k", "k": 20, "temperature": 0.5, "similarity": "cosine"}.items()
    assert shown["learned"] == ["temperature"]
    assert set(shown) == {"loss", "learned", "similarity", *LOSSES["sl_at_k"].defaults}
    other = CrossEncoderLoss(cross_encoder, "softmax_ce", mini_batch_size=8)
    assert other.get_config_dict()["mini_batch_size"] == 8
    assert "learned" not in other.get_config_dict()
    json.dumps([shown, other.get_config_dict()])
    assert LOSSES["softmax_ce"].paper in other.citation
    assert other.citation.startswith("\n@misc{rankwright_softmax_ce,\n")
    assert other.citation.count("{") == other.citation.count("}")

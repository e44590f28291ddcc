"""Folders of rerankers: which are opened, as what, and which are refused."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_rerankers import edit, make_classifier, make_t5

from retrieval.errors import InputError

torch = pytest.importorskip("torch", reason="needs the train extra")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the train extra")

from safetensors.torch import load_file, save_file  # noqa: E402

from rankers.pair_scorer import ClassifierScorer, EncoderDecoderScorer, EncoderScorer  # noqa: E402
from rankers.set_encoder import SetScorer  # noqa: E402
from retrieval.cross_encoder import CrossEncoder  # noqa: E402
from retrieval.cross_encoder_models import choose_attention, load_scorer, save_scorer  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def plain(tiny_model, tmp_path) -> Path:
    """A copy of a plain encoder of Hugging Face that a test may break."""
    return Path(shutil.copytree(f"{tiny_model}-bert", tmp_path / "plain"))


@pytest.fixture
def bert(plain, tmp_path) -> Path:
    return make_classifier(tmp_path / "bert", plain)


@pytest.fixture
def t5(tmp_path) -> Path:
    return make_t5(tmp_path / "t5")


def load(place, **settings):
    return load_scorer(str(place), CPU, **settings)


def save(loaded, folder, **settings):
    save_scorer(loaded.scorer, loaded.tokenizer, folder, settings=settings, card="# A card")
    return folder


def refusal(place, **settings) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        load(place, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(path: Path, name: str) -> None:
    weights = load_file(path)
    assert any(key.startswith(name) for key in weights)
    save_file(
        {key: value for key, value in weights.items() if not key.startswith(name)}, path, metadata={"format": "pt"}
    )


# --- what is opened, as what -----------------------------------------------------------------------------------------


def test_each_folder_is_opened_as_what_it_is(bert, plain, t5, tiny_model):
    assert type(load(bert).scorer) is ClassifierScorer
    assert type(load(plain).scorer) is ClassifierScorer
    assert type(load(tiny_model).scorer) is ClassifierScorer
    assert type(load(t5).scorer) is EncoderDecoderScorer
    assert type(load(t5, architecture="encoder").scorer) is EncoderScorer
    assert type(load(bert, architecture="set").scorer) is SetScorer
    assert type(load(plain, architecture="set").scorer) is SetScorer


def test_an_encoder_gets_an_output_layer_that_the_seed_draws(tiny_model):
    before = torch.random.get_rng_state()
    heads = [load(tiny_model, seed=seed).scorer.transformer.classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].shape == (1, 32)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_encoder_keeps_its_pooler_and_layers(plain):
    kept = load(plain).scorer.transformer.bert.state_dict()
    weights = load_file(plain / "model.safetensors")
    assert "pooler.dense.weight" in weights
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())
    without(plain / "model.safetensors", "pooler")
    again = load(plain).scorer.transformer.bert.state_dict()
    assert not torch.equal(again["pooler.dense.weight"], weights["pooler.dense.weight"])


def test_a_set_encoder_adds_one_word_that_begins_as_cls(bert):
    loaded = load(bert, architecture="set")
    token = loaded.tokenizer.convert_tokens_to_ids("[INT]")
    vectors = loaded.scorer.transformer.get_input_embeddings().weight
    assert token == len(vectors) - 1 == load(bert).scorer.transformer.config.vocab_size
    assert torch.equal(vectors[token], vectors[loaded.tokenizer.cls_token_id])
    assert loaded.tokenizer.tokenize("[INT] otter") == ["[INT]", "otter"]


def test_a_saved_set_encoder_is_read_back_as_one_and_by_others_as_the_plain_model(bert, tmp_path):
    from transformers import AutoModelForSequenceClassification

    loaded = load(bert, architecture="set")
    again = load(save(loaded, tmp_path / "set"))
    assert type(again.scorer) is SetScorer
    plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "set", output_loading_info=True)
    assert not any(report.values())
    ours = loaded.scorer.transformer.state_dict()
    for others in (again.scorer.transformer.state_dict(), plain.state_dict()):
        assert others.keys() == ours.keys()
        assert all(torch.equal(others[name], weight) for name, weight in ours.items())


def test_what_a_folder_states(bert, t5, tmp_path):
    save(load(bert), tmp_path / "one", query_max_length=7)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["rankwright"] == {"architecture": "classifier", "query_max_length": 7}
    assert load(tmp_path / "one").settings["query_max_length"] == 7
    assert (tmp_path / "one" / "README.md").read_text() == "# A card"
    model = sentence_transformers.CrossEncoder(str(tmp_path / "one"), device="cpu")
    assert isinstance(model.activation_fn, torch.nn.Identity)
    save(load(t5), tmp_path / "two")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["rankwright"] == {"architecture": "encoder_decoder", "token_id": 3}
    assert "sentence_transformers" not in config


def test_an_encoder_head_is_saved_beside_its_encoder(t5, tmp_path):
    loaded = load(t5, architecture="encoder", pooling="mean", seed=3)
    again = load(save(loaded, tmp_path / "saved")).scorer
    assert again.settings() == {"pooling": "mean"}
    assert torch.equal(again.head.weight, loaded.scorer.head.weight)
    (tmp_path / "saved" / "head.safetensors").write_bytes(b"cut off")
    assert "head.safetensors: cannot be read" in refusal(tmp_path / "saved")
    (tmp_path / "saved" / "head.safetensors").unlink()
    assert "is the folder complete?" in refusal(tmp_path / "saved")


def test_training_and_inference_have_their_attention(bert, t5):
    for architecture, names in (("classifier", ("rankwright_plain", "sdpa")), ("set", ("rankwright_plain", "sdpa"))):
        scorer = load(bert, architecture=architecture).scorer
        for training, name in zip((True, False), names, strict=True):
            choose_attention(scorer, training=training)
            chosen = scorer.transformer.config._attn_implementation
            assert chosen == (name if architecture == "classifier" else f"rankwright_set_{name}")
    scorer = load(t5).scorer
    before = scorer.transformer.config._attn_implementation
    choose_attention(scorer, training=True)  # its attention adds position biases, which the plain one does not know
    assert scorer.transformer.config._attn_implementation == before


# --- refused ---------------------------------------------------------------------------------------------------------


def test_pickled_weights_and_code_are_refused(bert, tmp_path):
    edit(bert / "tokenizer_config.json", auto_map={"AutoTokenizer": "tokens.Evil"})
    assert "brings code of its own (auto_map)" in refusal(bert)
    pickled = Path(shutil.copytree(tmp_path / "plain", tmp_path / "pickled"))
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "pytorch_model.bin: is pickled, which can run code" in refusal(pickled)


@pytest.mark.parametrize("name", ["classifier", "bert.encoder.layer.1.output"])
def test_a_classifier_that_lacks_weights_is_refused(bert, name):
    without(bert / "model.safetensors", name)
    assert f"its weights lack {name}" in refusal(bert)


def test_an_encoder_that_lacks_a_layer_is_refused(plain):
    without(plain / "model.safetensors", "encoder.layer.1.output")
    assert "its weights lack bert.encoder.layer.1.output.LayerNorm.bias (4 entries in all)" in refusal(plain)


def test_damaged_files_are_refused(bert):
    for name, contents, message in (
        ("model.safetensors", b"cut off", "cannot be loaded as a reranker"),
        ("config.json", b"{", "config.json: cannot be read as JSON"),
        ("config.json", b"[]", "config.json: is no config of a model"),
        ("config.json", b'{"rankwright": 3}', "config.json: is no config of a model"),
    ):
        before = (bert / name).read_bytes()
        (bert / name).write_bytes(contents)
        assert message in refusal(bert)
        (bert / name).write_bytes(before)
    load(bert)
    (bert / "config.json").unlink()
    assert "holds no transformer (no config.json)" in refusal(bert)


@pytest.mark.parametrize("contents", ["[]", "{}", '[{"path": ""}]', "3"])
def test_a_damaged_list_of_modules_is_refused(bert, contents):
    (bert / "modules.json").write_text(contents)
    assert "modules.json" in refusal(bert)


def test_what_makes_no_score_is_refused(plain, bert, tmp_path):
    three = make_classifier(tmp_path / "three", plain, labels=3)
    assert "the classifier has 3 labels; wanted 1 (a score) or 2 (irrelevant, relevant)" in refusal(three)
    edit(plain / "config.json", architectures=["BertForCausalLM"])
    assert "is a BertForCausalLM, which prompts its scores" in refusal(plain)
    edit(bert / "config.json", rankwright={"architecture": "late"})
    assert "is of the architecture 'late', which this version does not know" in refusal(bert)


def test_modules_behind_the_transformer_of_a_cross_encoder_are_refused(bert):
    kind = "sentence_transformers.base.modules."
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{kind}transformer.Transformer"}]
    modules.append({"idx": 1, "name": "1", "path": "1_Dense", "type": f"{kind}dense.Dense"})
    (bert / "modules.json").write_text(json.dumps(modules))
    (bert / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    assert "makes its scores through Dense; wanted a sequence classifier" in refusal(bert)


def test_an_architecture_that_does_not_fit_is_refused(bert, t5, tmp_path):
    assert "is a t5; wanted the architecture encoder or encoder_decoder, got set" in refusal(t5, architecture="set")
    saved = save(load(t5), tmp_path / "saved")
    assert "holds the architecture encoder_decoder; it cannot be loaded as encoder" in refusal(
        saved, architecture="encoder"
    )
    assert "holds the architecture classifier; it cannot be loaded as encoder" in refusal(bert, architecture="encoder")
    assert "unknown pooling 'max'" in refusal(t5, architecture="encoder", pooling="max")
    bare = make_t5(tmp_path / "bare", score_token=False)
    assert "has a tokenizer without <extra_id_10>, whose logit is the score" in refusal(bare)


def test_a_tokenizer_without_its_files_is_refused(bert):
    (bert / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(bert)


def test_a_tokenizer_without_a_token_that_is_needed_is_refused(bert, tmp_path):
    saved = save(load(bert, architecture="set"), tmp_path / "set")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, saved / name)
    assert "is a Set-Encoder whose tokenizer lacks [INT]; are its files complete?" in refusal(saved)
    edit(bert / "tokenizer_config.json", pad_token=None)
    assert "has a tokenizer without a padding token" in refusal(bert)


def test_word_vectors_are_refused(wordllama):
    with pytest.raises(InputError, match="is a table of word vectors; a reranker needs a transformer"):
        CrossEncoder.load(wordllama)


def test_an_existing_folder_is_not_overwritten(bert, tmp_path):
    from indexes.storage import StorageError

    loaded = load(bert)
    with pytest.raises(StorageError, match="exists already"):
        save(loaded, bert)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "plain"]

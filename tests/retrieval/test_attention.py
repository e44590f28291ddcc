import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from retrieval.attention import plain_attention, set_attention
from retrieval.encoder import Encoder


def inputs(*, heads=4, key_heads=4, length=7, batch=3, dtype=torch.float64):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, length, 8, dtype=dtype)
    k, v = (torch.randn(batch, key_heads, length, 8, dtype=dtype) for _ in range(2))
    valid = torch.arange(length) < torch.tensor([[length], [3], [1]])
    mask = torch.zeros(batch, 1, length, length, dtype=dtype).masked_fill(
        ~valid[:, None, None, :], torch.finfo(dtype).min
    )
    return q, k, v, mask


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_torchs_fused_attention(masked, scaling):
    q, k, v, mask = inputs()
    mask = mask if masked else None
    found, weights = plain_attention(nn.Module(), q, k, v, mask, scaling=scaling)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=weights.dtype))


def test_padding_gets_no_weight_and_no_gradient():
    q, k, v, mask = inputs()
    v.requires_grad_()
    found, weights = plain_attention(nn.Module(), q, k, v, mask)
    assert not weights[1, :, :, 3:].any()
    found.sum().backward()
    assert not v.grad[1, :, 3:].any()


def test_key_heads_are_shared_by_groups_of_heads():
    q, k, v, mask = inputs(heads=4, key_heads=2)
    found, _ = plain_attention(nn.Module(), q, k, v, mask)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_dropout_is_applied_to_the_weights_while_training_alone():
    q, k, v, mask = inputs(length=20, batch=3)
    layer = nn.Module()
    torch.manual_seed(0)
    _, weights = plain_attention(layer.train(), q, k, v, mask, dropout=0.5)
    assert 0.4 < float((weights[0] == 0).double().mean()) < 0.6
    _, weights = plain_attention(layer.eval(), q, k, v, mask, dropout=0.5)
    assert not (weights[0] == 0).any()


@pytest.fixture
def encoder(tiny_model) -> Encoder:
    return Encoder.load(tiny_model, precision="fp32", device="cpu")


TEXTS = ["a slow river of packed ice", "the otter", "oil wax and a soft cloth for the leather seat of a horse rider"]


def embeddings(encoder) -> torch.Tensor:
    with torch.no_grad():
        return encoder.forward(encoder.tokenize(TEXTS, encoder.document))


def test_a_model_makes_the_same_vectors_with_either(encoder):
    before = embeddings(encoder)
    set_attention(encoder.model, training=True)
    assert encoder.model[0].auto_model.config._attn_implementation == "rankwright_plain"
    plain = embeddings(encoder)
    set_attention(encoder.model, training=False)
    assert encoder.model[0].auto_model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(plain, before, atol=1e-6, rtol=0)
    assert torch.equal(embeddings(encoder), before)


def test_the_choice_is_not_saved_with_the_model(encoder, tmp_path):
    set_attention(encoder.model, training=True)
    encoder.model.save(str(tmp_path / "saved"), create_model_card=False)
    assert "rankwright" not in "".join(path.read_text() for path in (tmp_path / "saved").glob("*.json"))


def test_a_model_with_an_attention_of_its_own_keeps_it(recwarn, caplog):
    from transformers import MPNetConfig, MPNetModel, T5Config, T5EncoderModel

    config = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    mpnet = MPNetModel(MPNetConfig(**config, intermediate_size=8))
    t5 = T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for own in (mpnet, t5):
        before = own.config._attn_implementation

        class Model(list):
            device = torch.device("cpu")

        class First:
            auto_model = own

        for training in (True, False):
            set_attention(Model([First()]), training=training)
            assert own.config._attn_implementation == before
    assert not caplog.records


def test_a_model_without_a_transformer_is_left_alone():
    class Model(list):
        device = torch.device("cpu")

    set_attention(Model([nn.EmbeddingBag(3, 2)]), training=True)

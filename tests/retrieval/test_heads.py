"""Heads: what they are before training, their arithmetic by hand, and that an export computes the same."""

import json

import numpy as np
import pytest
import torch
from static_files import make_static

from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.heads import Head, export_head, refuse_cut_models, with_head

TEXTS = ["the otter eats fish", "a tall tree with red leaves", "heavy snow and long frost"]
ALL = [(kind, sides) for kind in ("linear", "mlp") for sides in ("query", "both")]


@pytest.fixture(scope="module")
def encoder(tiny_model) -> Encoder:
    return Encoder.load(tiny_model, precision="fp32", device="cpu")


def moved(head: Head, seed: int = 1) -> Head:
    """A head as training might leave it."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return head


@pytest.mark.parametrize(("kind", "sides"), ALL)
def test_a_new_head_changes_nothing(kind, sides):
    vectors = torch.nn.functional.normalize(torch.randn(5, 7), dim=1)
    head = Head(7, kind, sides=sides)
    torch.testing.assert_close(head.queries(vectors), vectors)
    torch.testing.assert_close(head.documents(vectors), vectors)


def test_a_linear_head_by_hand():
    head = Head(2, unit=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
    assert head(torch.tensor([[4.0, 5.0]])).tolist() == [[4 + 10, 15]]
    unit = Head(2)
    unit.load_state_dict(head.state_dict())
    length = (14**2 + 15**2) ** 0.5
    torch.testing.assert_close(unit(torch.tensor([[4.0, 5.0]])), torch.tensor([[14 / length, 15 / length]]))


def test_an_mlp_by_hand():
    head = Head(2, "mlp", hidden=1, unit=False)
    with torch.no_grad():
        head.first.copy_(torch.tensor([[1.0, -1.0]]))
        head.offset.copy_(torch.tensor([0.5]))
        head.second.copy_(torch.tensor([[2.0], [0.0]]))
    # relu(3 - 1 + 0.5) = 2.5, relu(1 - 3 + 0.5) = 0
    assert head(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).tolist() == [[3 + 5, 1], [1, 3]]


def test_sides_decide_whether_documents_move():
    vectors = torch.eye(3)
    assert torch.equal(moved(Head(3, sides="query")).documents(vectors), vectors)
    both = moved(Head(3, sides="both"))
    assert torch.equal(both.documents(vectors), both.queries(vectors))
    assert not torch.allclose(both.documents(vectors), vectors, atol=1e-3)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_gradients_are_those_of_finite_differences(kind, unit):
    head = moved(Head(3, kind, hidden=4, unit=unit)).double()
    vectors = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names, values = zip(*head.named_parameters(), strict=True)

    def mapped(*weights):
        return torch.func.functional_call(head, dict(zip(names, weights, strict=True)), (vectors,))

    assert torch.autograd.gradcheck(mapped, [value.detach().requires_grad_() for value in values])


@pytest.mark.parametrize(("kind", "sides"), ALL)
def test_an_export_gives_the_heads_vectors_in_plain_sentence_transformers(kind, sides, encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    head = moved(Head(encoder.dim, kind, sides=sides, hidden=9))
    with torch.no_grad():
        queries = head.queries(torch.from_numpy(encoder.encode_query(TEXTS))).numpy()
        documents = head.documents(torch.from_numpy(encoder.encode_document(TEXTS))).numpy()
    export_head(encoder, head, tmp_path / "run", card="# A card\n")

    plain = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    np.testing.assert_allclose(plain.encode_query(TEXTS), queries, atol=1e-6)
    np.testing.assert_allclose(plain.encode_document(TEXTS), documents, atol=1e-6)
    np.testing.assert_allclose(plain.encode(TEXTS), documents, atol=1e-6)  # without a task: a document
    assert (sides == "query") == (np.abs(queries - documents).max() > 1e-2)

    ours = Encoder.load(tmp_path / "run", precision="fp32", device="cpu")
    np.testing.assert_allclose(ours.encode_query(TEXTS), queries, atol=1e-6)
    np.testing.assert_allclose(ours.encode_document(TEXTS), documents, atol=1e-6)
    assert ours.dim == encoder.dim


@pytest.mark.parametrize("sides", ["query", "both"])
def test_an_export_holds_stock_modules_and_safetensors_alone(sides, encoder, tmp_path):
    export_head(encoder, Head(encoder.dim, "mlp", sides=sides), tmp_path, card="# A card\n")
    model = tmp_path / "model"
    kinds = [module["type"] for module in json.loads((model / "modules.json").read_text())]
    for path in model.rglob("router_config.json"):
        kinds += json.loads(path.read_text())["types"].values()
    assert all(kind.startswith("sentence_transformers.") for kind in kinds)
    weights = {path.suffix for path in model.rglob("*") if path.is_file()}
    assert weights <= {".json", ".txt", ".safetensors", ".md"}
    assert (model / "README.md").read_text() == "# A card\n"


def test_prompts_and_lengths_of_the_encoder_go_along(tiny_model, tmp_path):
    encoder = Encoder.load(
        tiny_model, precision="fp32", device="cpu", query_prompt="query: ", query_max_length=9, document_max_length=20
    )
    export_head(encoder, Head(encoder.dim), tmp_path, card="")
    again = Encoder.load(tmp_path, precision="fp32", device="cpu")
    assert (again.query, again.document) == (encoder.query, encoder.document)


def test_the_encoder_itself_stays_as_it_is(encoder):
    before, modules = encoder.encode_query(TEXTS), len(encoder.model)
    with_head(encoder, moved(Head(encoder.dim)))
    assert len(encoder.model) == modules
    np.testing.assert_array_equal(encoder.encode_query(TEXTS), before)


def test_vectors_of_any_length_stay_so_on_the_side_without_a_head(tmp_path):
    """A model that compares by dot product: its vectors have no unit length, and neither have the head's."""
    from sentence_transformers import SentenceTransformer

    static = Encoder.load(make_static(tmp_path), device="cpu")
    model = SentenceTransformer(modules=[static.model[0]], device="cpu", similarity_fn_name="dot")
    encoder = Encoder(model, source="static", query=static.query, document=static.document)
    assert abs(np.linalg.norm(encoder.encode_query(["a b"])) - 1) > 1
    head = moved(Head(2, unit=False))
    headed = with_head(encoder, head)
    np.testing.assert_allclose(headed.encode_document(["a b"]), encoder.encode_document(["a b"]), rtol=1e-6)
    expected = encoder.encode_query(["a b"]) @ head.weight.detach().numpy().T
    np.testing.assert_allclose(headed.encode_query(["a b"]), expected, rtol=1e-6)


def test_a_model_with_a_route_for_each_side_is_not_trained(encoder):
    headed = with_head(encoder, Head(encoder.dim))
    tokens = headed.tokenize(TEXTS, headed.query)
    with pytest.raises(InputError, match="has a route for each side"):
        headed.forward(tokens)


def test_a_model_that_cuts_its_vectors_is_refused(tiny_model):
    encoder = Encoder.load(tiny_model, device="cpu")
    encoder.model.truncate_dim = 8
    with pytest.raises(InputError, match="truncate_dim"):
        refuse_cut_models(encoder)

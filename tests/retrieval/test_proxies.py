"""The branch of global proxies and their bank."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_steps import BATCHES, TEMPERATURE, Table, infonce_by_hand

from rankers.engine import View, Views
from rankers.losses import build
from retrieval import proxies as module
from retrieval.proxies import ProxyBank, ProxyBranch, WithProxies
from retrieval.steps import backward

DIM, PROXY = 3, 2
VIEWS = Views((View(0, DIM), View(DIM, DIM + PROXY, weight=0.5)))


def test_the_branch_starts_orthonormal_and_draws_none_of_the_run_s_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    branch, same, other = ProxyBranch(8, 4, 0), ProxyBranch(8, 4, 0), ProxyBranch(8, 4, 1)
    assert torch.equal(before, torch.get_rng_state())
    weight = branch.linear.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4))
    assert torch.equal(weight, same.linear.weight)
    assert not torch.equal(weight, other.linear.weight)
    found = branch(torch.randn(5, 8))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_the_proxies_loss_is_the_same_loss_over_the_same_batch():
    encoder, branch = Table(), ProxyBranch(DIM, PROXY, 0)
    loss = build("infonce", temperature=TEMPERATURE)
    value = backward(WithProxies(encoder, branch), loss, BATCHES, views=VIEWS)
    table = encoder.model.weight.detach()
    z = branch(table).detach().double().numpy()
    expected = infonce_by_hand(table.numpy(), BATCHES)[0] + 0.5 * infonce_by_hand(z, BATCHES)[0]
    assert value == pytest.approx(expected, rel=1e-5)
    assert encoder.model.weight.grad is not None
    assert branch.linear.weight.grad.abs().sum() > 0


def test_proxies_in_chunks_have_the_plain_gradient():
    values, gradients = [], []
    for size in (None, 2):
        encoder, branch = Table(), ProxyBranch(DIM, PROXY, 0)
        source = WithProxies(encoder, branch)
        values.append(backward(source, build("infonce"), BATCHES, views=VIEWS, chunk_size=size))
        gradients.append((encoder.model.weight.grad, branch.linear.weight.grad))
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    for plain, cut in zip(*gradients, strict=True):
        torch.testing.assert_close(cut, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_bank_sees_each_batch_once_and_takes_no_gradient(chunk_size):
    numbered = [
        replace(
            one, batch=replace(one.batch, row_numbers=one.batch.query_numbers, positive_columns=[[]] * len(one.queries))
        )
        for one in BATCHES
    ]
    gradients = []
    bank = ProxyBank(12, PROXY)
    for watching in (None, lambda batch: bank.watch(batch, np.arange(12), DIM)):
        encoder, branch = Table(), ProxyBranch(DIM, PROXY, 0)
        source, loss = WithProxies(encoder, branch), build("infonce")
        backward(source, loss, numbered, views=VIEWS, chunk_size=chunk_size, watching=watching)
        gradients.append(branch.linear.weight.grad)
    assert torch.equal(*gradients)
    z = branch(encoder.model.weight).detach().numpy()
    expected = np.zeros((12, PROXY))
    for one in BATCHES:
        np.add.at(expected, one.batch.query_numbers, z[one.batch.query_numbers])
    np.testing.assert_allclose(bank.arrays()["proxy_sums"], expected, atol=1e-6)


def test_a_bank_by_hand():
    bank = ProxyBank(4, 2)
    assert not bank.proxies().any()
    bank.add(np.array([0, 1, 0, 0]), np.array([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=np.float32))
    bank.close_epoch()
    np.testing.assert_allclose(bank.proxies()[:2], [[2 / 5**0.5, 1 / 5**0.5], [0, 1]], atol=1e-3)
    assert not bank.proxies()[2:].any()
    assert bank.seen == 2
    bank.add(np.array([2]), np.array([[0, -1]], dtype=np.float32))
    bank.close_epoch()  # what the first epoch said is gone
    np.testing.assert_array_equal(bank.proxies(), [[0, 0], [0, 0], [0, -1], [0, 0]])
    assert bank.seen == 1


def test_queries_and_their_own_positives_are_added_and_negatives_are_not():
    bank = ProxyBank(2, 2)
    batch = SimpleNamespace(row_numbers=np.array([4, 2]), positive_columns=[[0, 2], [1]])
    groups = np.array([0, 0, 1, 0, 0])
    watch = bank.watch(batch, groups, 1)
    queries = torch.tensor([[9.0, 1, 0], [9, 0, 1]])
    documents = torch.tensor([[9.0, 0.6, 0.8], [9, 0, -1], [9, 1, 0], [9, -1, 0]])
    watch.embedded(queries, documents)
    np.testing.assert_allclose(bank.arrays()["proxy_sums"], [[2.6, 0.8], [0, 0]], atol=1e-6)


def test_a_large_bank_lies_in_files_that_nobody_has_to_delete(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_IN_MEMORY", 3)
    groups = module._PART + 5
    large, small = ProxyBank(groups, 2, tmp_path / "run"), ProxyBank(groups, 2)
    assert isinstance(large.arrays()["proxies"], np.memmap)
    for bank in (large, small):
        random = np.random.default_rng(0)
        bank.add(np.arange(groups), random.standard_normal((groups, 2)).astype(np.float32))
        bank.close_epoch()
        bank.add(np.array([1]), np.ones((1, 2), dtype=np.float32))
    assert list((tmp_path / "run").iterdir()) == []
    other = ProxyBank(groups, 2)
    other.restore(large.arrays())
    for name, array in small.arrays().items():
        np.testing.assert_array_equal(large.arrays()[name], array)
        np.testing.assert_array_equal(other.arrays()[name], array)

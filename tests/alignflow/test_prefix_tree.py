"""The prefix tree of rows, and attention over it, compared with single rows."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignflow import prefix_tree as module
from alignflow.models.attention import attend_over_trees, shares_prefixes
from alignflow.models.load import decoder_of
from alignflow.models.roles import SharedBase
from alignflow.prefix_tree import prefix_tree, tree_attention
from tests.close import FLOAT64, close
from tests.tiny import FAMILIES, open_base, some_rows, write_model

CPU = torch.device("cpu")
Rows = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=8)


def test_what_rows_begin_with_alike_is_there_once():
    r"""Rows 5 6 7, 5 6 8 9 and 4: the tree is 5-6-7 with 8-9 beside the 7, and 4 beside the 5."""
    tree = prefix_tree([[5, 6, 7], [5, 6, 8, 9], [4]], CPU)
    assert tree.tokens.tolist() == [5, 6, 7, 8, 9, 4]
    assert tree.positions.tolist() == [0, 1, 2, 2, 3, 0]
    assert tree.rows.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 0, 0, 0]]
    assert tree.owners.tolist() == [0, 1, 2, 6, 7, 8]


def test_a_row_that_repeats_or_begins_another_adds_nothing():
    tree = prefix_tree([[1, 2, 3], [1, 2], [1, 2, 3]], CPU)
    assert tree.tokens.tolist() == [1, 2, 3]
    assert tree.rows.tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 2]]


def test_equal_tokens_after_unlike_beginnings_stay_apart():
    assert prefix_tree([[1, 9], [2, 9]], CPU).tokens.tolist() == [1, 9, 2, 9]


@settings(max_examples=100, deadline=None)
@given(rows=Rows)
def test_every_row_can_be_read_back(rows: list[list[int]]):
    tree = prefix_tree(rows, CPU)
    assert len(tree.tokens) == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    for places, row in zip(tree.rows, rows, strict=True):
        assert tree.tokens[places[: len(row)]].tolist() == row
        assert tree.positions[places[: len(row)]].tolist() == list(range(len(row)))
    assert torch.equal(tree.rows.flatten()[tree.owners], torch.arange(len(tree.tokens)))


def one_by_one(query: Tensor, key: Tensor, value: Tensor, places: Sequence[Tensor], scale: float) -> Tensor:
    """Attention of each row alone, by definition, in loops over heads and queries."""
    out = torch.zeros_like(query)
    share = query.shape[1] // key.shape[1]
    for row in places:
        for t, place in enumerate(row):
            for head in range(query.shape[1]):
                seen = row[: t + 1]
                scores = scale * key[seen, head // share] @ query[place, head]
                out[place, head] = torch.exp(scores - scores.logsumexp(0)) @ value[seen, head // share]
    return out


@settings(max_examples=25, deadline=None)
@given(rows=Rows, heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]), queries=st.sampled_from([1, 2, 3, 256]))
def test_attention_over_the_tree_is_that_of_rows_one_by_one(
    rows: list[list[int]], heads: tuple[int, int], queries: int
):
    """Values and gradients, in float64, also where a row is cut into several blocks of queries."""
    tree = prefix_tree(rows, CPU)
    generator = torch.Generator().manual_seed(1)
    given_ = [
        torch.randn(len(tree.tokens), n, 5, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (heads[0], heads[1], heads[1])
    ]
    pull = torch.randn(len(tree.tokens), heads[0], 5, dtype=torch.float64, generator=generator)
    places = [row[: len(tokens)] for row, tokens in zip(tree.rows, rows, strict=True)]
    expected = [one_by_one(*(x[None][0] for x in given_), places, 0.3)]
    expected += torch.autograd.grad(expected[0], given_, pull)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERIES", queries)
        found = [tree_attention(tree, *given_, scale=0.3)]
        found += torch.autograd.grad(found[0], given_, pull)
    for f, e in zip(found, expected, strict=True):
        close(f, e, FLOAT64)


@pytest.fixture(scope="module", params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SharedBase:
    models = open_base(write_model(tmp_path_factory.mktemp(request.param), request.param))
    models.add("policy", trained=True, seed=1)
    return models


def gradients(models: SharedBase) -> list[Tensor]:
    """Return the log-probs of rows of which two share a prompt, and their gradient."""
    batch = some_rows()
    batch.input_ids[1, :6] = batch.input_ids[3, :6]
    logprobs, _ = models.logprobs("policy", batch)
    loss = (logprobs * torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)).sum()
    return [logprobs.detach(), *torch.autograd.grad(loss, models.parameters("policy"))]


def agree_with_padded_rows(models: SharedBase) -> None:
    assert models.shares_prefixes
    shared = gradients(models)
    models.shares_prefixes = False
    padded = gradients(models)
    models.shares_prefixes = True
    assert sum(float(g.abs().sum()) for g in padded[1:]) > 0
    for found, expected in zip(shared, padded, strict=True):
        close(found, expected, 1e-4)


def test_every_family_gets_the_gradients_of_padded_rows(models: SharedBase):
    agree_with_padded_rows(models)


def test_attention_that_is_laid_out_as_rows_gives_the_same(tmp_path: Path):
    """As on a GPU, where each layer's queries, keys and values become padded rows."""
    models = open_base(write_model(tmp_path))
    models.add("policy", trained=True, seed=1)
    models.base.model.set_attn_implementation("eager")
    attend_over_trees(models.base.model)
    agree_with_padded_rows(models)


def test_a_model_that_mixes_tokens_in_its_own_way_is_found_out(tmp_path: Path):
    """A layer that adds the previous state to each: correct on rows, wrong on a flat tree."""
    models = open_base(write_model(tmp_path))
    model = models.base.model
    assert shares_prefixes(model, decoder_of(model))
    layer = decoder_of(model).layers[0].mlp
    layer.register_forward_hook(lambda _, __, out: out + torch.cat([torch.zeros_like(out[:, :1]), out[:, :-1]], 1))
    assert not shares_prefixes(model, decoder_of(model))

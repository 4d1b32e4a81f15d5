"""Randomness is a function of (seed, stream, index) and nothing else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.helpers.random import derive, generator, numpy_generator, permutation


def test_same_place_gives_same_numbers_whatever_was_drawn_between():
    first = torch.randn(8, generator=generator(7, "noise", 3))
    torch.randn(100)
    generator(7, "noise", 4)
    assert torch.equal(first, torch.randn(8, generator=generator(7, "noise", 3)))


def test_seed_stream_and_index_each_change_the_draw():
    places = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 0, 0)]
    assert len({derive(*place) for place in places}) == len(places)


@given(st.integers(0, 2**63 - 1), st.text(max_size=20), st.lists(st.integers(0, 2**40), max_size=3))
def test_derived_seeds_fit_every_generator(seed, stream, index):
    assert 0 <= derive(seed, stream, *index) < 2**63


def test_neighbouring_indices_do_not_run_together():
    # 1:11 and 11:1 must not be the same text.
    assert derive(0, "noise", 1, 11) != derive(0, "noise", 11, 1)


def test_a_permutation_holds_every_item_once_and_differs_by_epoch():
    orders = [permutation(0, "order", epoch, 50) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_numpy_draws_are_reproducible():
    a, b = numpy_generator(1, "crop", 5), numpy_generator(1, "crop", 5)
    assert a.integers(1000, size=5).tolist() == b.integers(1000, size=5).tolist()

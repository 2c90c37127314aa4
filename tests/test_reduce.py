"""The map-reduce: how rows are cut into chunks, and that every row counts once however they are."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as hs

from jaxem._rows import chunks
from jaxem._rows.chunks import FEWEST, GROUP, ROW_ENTRIES, TABLE_ENTRIES, chunk_rows, grouped, sum_over_rows

sizes = given(hs.integers(1, 10**7), hs.integers(1, 1_000), hs.integers(0, 600))


def taken(num_rows, rows):
    """Rows that the loop goes over, counted or not."""
    num_chunks = -(-num_rows // rows)
    return rows * -(-num_chunks // grouped(num_chunks)) * grouped(num_chunks)


@sizes
@example(158_114, 64, 33)  # a cut into equal parts would be of 496 rows, which a product does not like
def test_chunks_are_whole_tiles_within_their_limits(num_rows, num_components, width):
    rows = chunk_rows(num_rows, num_components, width)
    limit = max(FEWEST, TABLE_ENTRIES // num_components)
    limit = max(FEWEST, min(limit, ROW_ENTRIES // width)) if width else limit
    assert 1 <= rows <= limit
    assert rows == num_rows if num_rows <= limit else rows % FEWEST == 0


@sizes
@example(8_705, 64, 0)  # 18 chunks of 512 rows, just more than a group
def test_few_rows_are_taken_for_nothing(num_rows, num_components, width):
    """Of many chunks 2 % of the rows at most; of few, a tile in each."""
    rows = chunk_rows(num_rows, num_components, width)
    num_chunks = -(-num_rows // rows)
    assert taken(num_rows, rows) - num_rows <= max(0.02 * num_rows, num_chunks * FEWEST)


@given(hs.integers(1, 10**5))
def test_groups_hold_all_chunks(num_chunks):
    group = grouped(num_chunks)
    assert 1 <= group <= GROUP
    if num_chunks > 100:
        assert -num_chunks % group <= 0.05 * num_chunks


@settings(max_examples=25, deadline=None)
@given(hs.integers(1, 3_000))
@pytest.mark.parametrize("weighted", [False, True])
def test_every_row_counts_once(weighted, num_rows):
    """Sums of whole numbers, which float32 adds without error."""
    x = np.arange(num_rows) % 101.0
    w = np.arange(num_rows) % 3.0 if weighted else np.ones(num_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "TABLE_ENTRIES", 64)
        found = sum_over_rows(
            lambda x, w: jnp.sum(w * x),
            jnp.asarray(x, jnp.float32),
            jnp.asarray(w, jnp.float32) if weighted else None,
            num_components=1,
            dtype=np.dtype("float32"),
        )
    assert float(found) == float(np.sum(w * x))

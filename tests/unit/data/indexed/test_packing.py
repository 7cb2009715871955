"""megatron-core's own masks and positions are the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmoe.data.batch import NO_LOSS
from distmoe.data.indexed.packing import pack

END = 0


def test_a_window_of_three_documents():
    """a a END | b END | c: the end token belongs to its document, and nothing is predicted across a border."""
    window = pack(np.array([5, 6, END, 7, END, 8]), np.array([6, END, 7, END, 8, 9]), end_token_id=END)
    assert window.segment_ids_S.tolist() == [0, 0, 0, 1, 1, 2]
    assert window.position_ids_S.tolist() == [0, 1, 2, 0, 1, 0]
    assert window.labels_S.tolist() == [6, END, NO_LOSS, END, NO_LOSS, 9]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=24))
def test_positions_loss_and_attention_are_megatrons(text):
    function = pytest.importorskip("megatron.core.datasets.gpt_dataset")._get_ltor_masks_and_position_ids
    tokens = np.array(text[:-1])
    attention, loss, positions = function(torch.from_numpy(tokens), END, True, True, True, True)
    window = pack(tokens, np.array(text[1:]), end_token_id=END)
    assert window.position_ids_S.tolist() == positions.tolist()
    assert (window.labels_S != NO_LOSS).tolist() == (loss > 0).tolist()
    same = window.segment_ids_S[:, None] == window.segment_ids_S[None, :]
    assert (np.tril(np.ones_like(same)) * same).astype(bool).tolist() == (~attention[0]).tolist()

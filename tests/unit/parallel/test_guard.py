"""What the collective guard refuses; split tables of two ranks are written out."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from distmoe.errors import ParallelError
from distmoe.parallel.exchange_call import ExchangeCall
from distmoe.parallel.guard import Intent, compare, explain

CALL = ExchangeCall("layer3/tokens", (1,), "forward", Mock(), (2, 3), (1, 4), (1, 0), (8,), torch.float32)
#            to rank 2, 3         from rank 2, 3
RANK_2 = Intent(0, "layer3/tokens forward", "[8] torch.float32", (1, 4), (1, 0))
RANK_3 = Intent(0, "layer3/tokens forward", "[8] torch.float32", (0, 2), (4, 2))


def test_tables_that_fit_are_accepted():
    compare([RANK_2, RANK_3], CALL)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"receive_counts": (5, 2)}, r"split tables of ranks 2 and 3[\s\S]*sends 4 rows to rank 3, which expects 5"),
        ({"receive_counts": (3, 2)}, r"sends 4 rows to rank 3, which expects 3, in all-to-all layer3/tokens forward"),
        ({"name": "layer3/outputs forward"}, r"different exchanges[\s\S]*layer3/outputs"),
        ({"number": 1}, r"different exchanges[\s\S]*exchange 1"),
        ({"row": "[8] torch.bfloat16"}, r"different rows[\s\S]*bfloat16"),
    ],
)
def test_any_difference_is_named_with_ranks_layer_and_both_values(changed, message):
    with pytest.raises(ParallelError, match=message):
        compare([RANK_2, replace(RANK_3, **changed)], CALL)


def test_torchs_finding_becomes_an_error_in_four_parts_and_nothing_else_does():
    found = RuntimeError(
        "Detected mismatch between collectives on ranks. Rank 1 is running collective: CollectiveFingerPrint(OpType="
        "ALLREDUCE), but Rank 0 is running collective: CollectiveFingerPrint(OpType=BROADCAST)"
    )
    error = explain(found)
    assert error is not None
    assert "ALLREDUCE" in str(error)
    assert "remedy" in str(error)
    assert explain(RuntimeError("Connection closed by peer")) is None

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from distmoe.parallel.exchange_call import ExchangeCall
from distmoe.parallel.watch.whereabouts import BACKWARD, Whereabouts

CALL = ExchangeCall("layer3/tokens", (0, 2), "backward", Mock(), (4, 5, 6, 7), (1,) * 4, (1,) * 4, (8,), torch.float32)
NAME = "all-to-all layer3/tokens backward, task groups 0 2, ranks 4-7"


def test_a_position_names_step_phase_and_the_exchange_under_way():
    here = Whereabouts()
    here.at(BACKWARD, step=17)
    with here.exchange(CALL):
        assert str(here.position) == f"step 17, {BACKWARD}, {NAME}"
    assert str(here.position) == f"step 17, {BACKWARD}"


def test_an_exchange_that_failed_stays_named():
    here = Whereabouts()
    with pytest.raises(RuntimeError), here.exchange(CALL):
        raise RuntimeError("Connection closed by peer")
    assert here.position.collective == NAME


def test_every_place_counts_once_and_the_step_is_kept():
    here = Whereabouts()
    here.at("loading data", step=3)
    here.at(BACKWARD)
    with here.exchange(CALL):
        assert here.position.moves == 3
    assert (here.position.moves, here.position.step) == (4, 3)

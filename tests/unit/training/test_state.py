import json
import random

import numpy as np
import torch
from torch import Tensor

from distmoe.training.selection import BestScore
from distmoe.training.state import TrainerState, rng_state, set_rng_state


def test_progress_survives_json() -> None:
    state = TrainerState(step=7, skipped_steps=1, train_seconds=3.5, best=BestScore(score=0.5, step=5))
    other = TrainerState()
    other.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert other == state


def draws() -> tuple:
    return random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(2).tolist()


def test_generators_continue_where_they_were() -> None:
    np.random.normal()  # legacy generators hold a second Gaussian back: it must survive too
    random.gauss(0, 1)
    saved = {
        key: value if isinstance(value, Tensor) else json.loads(json.dumps(value)) for key, value in rng_state().items()
    }
    expected = draws()
    draws()
    set_rng_state(saved)
    assert draws() == expected

from distmoe.training.selection import BestScore


def test_the_highest_score_wins_and_the_earlier_step_wins_a_tie() -> None:
    best = BestScore()
    assert [best.update(score, step) for step, score in enumerate([0.5, 0.7, 0.7, 0.6])] == [True, True, False, False]
    assert (best.score, best.step) == (0.7, 1)


def test_a_negative_first_score_is_the_best_so_far() -> None:
    assert BestScore().update(-0.2, 5)


def test_early_stop_counts_evaluations_since_the_best() -> None:
    best = BestScore(patience=2)
    best.update(0.5, 1)
    best.update(0.4, 2)
    assert not best.should_stop
    best.update(0.5, 3)
    assert best.should_stop


def test_without_patience_training_never_stops_early() -> None:
    best = BestScore()
    for step in range(100):
        best.update(-float(step), step)
    assert not best.should_stop


def test_counters_survive_a_resume_and_patience_comes_from_the_configuration() -> None:
    best, resumed = BestScore(patience=2), BestScore(patience=3)
    best.update(0.5, 1)
    best.update(0.4, 2)
    resumed.load_state_dict(best.state_dict())
    assert resumed == BestScore(patience=3, score=0.5, step=1, evaluations_without_improvement=1)

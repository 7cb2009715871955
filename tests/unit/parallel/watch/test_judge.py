"""Who is to blame, tick by tick."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distmoe.parallel.watch.judge import GRACE, Judge, Verdict
from distmoe.parallel.watch.sign import Failure, Sign
from distmoe.parallel.watch.whereabouts import BACKWARD, Position

EXCHANGE = "all-to-all layer3/tokens backward, task group 1, ranks 2-3"
CLOSED = Failure("symptom", "Connection closed by peer", 1)


def signs(count: int = 4, **fields: object) -> list[Sign]:
    """Ranks 0 and 1 on node1, 2 and 3 on node2, all in the same exchange."""
    position = Position(BACKWARD, 17, EXCHANGE, 100)
    return [Sign(rank, f"node{1 + rank // 2}", position=position, **fields) for rank in range(count)]


def judged(ticks: int, now: list[Sign], *, dead: tuple[int, ...] = (), patience: float = 600.0) -> Verdict | None:
    """Feeds a judge with 10 s of patience; ranks that are not dead give a new sign per tick."""
    judge, verdict = Judge(silence=10, patience=patience), None
    for tick in range(ticks):
        verdict = judge.tick([sign if sign.rank in dead else replace(sign, beat=tick) for sign in now])
        if verdict is not None:
            break
    return verdict


def test_ranks_that_give_signs_are_left_alone_for_ever():
    assert judged(1000, signs()) is None


def test_a_silent_rank_ends_the_job_after_the_stated_time_and_no_sooner():
    assert judged(10, signs(), dead=(3,)) is None
    verdict = judged(11, signs(), dead=(3,))
    assert verdict is not None
    assert verdict.text.startswith(
        "rank 3 on node2 died, hangs or cannot be reached\n  got:      no sign of life for 10 s"
    )
    assert f"last seen: rank 3 on node2 in step 17, {BACKWARD}, {EXCHANGE}; waiting for it: rank 0" in verdict.text
    assert verdict.code == 1


def test_all_silent_ranks_are_named_by_machine():
    verdict = judged(11, signs(), dead=(1, 2, 3))
    assert verdict is not None
    assert verdict.text.startswith("ranks 1 on node1, 2 3 on node2 died")


def test_a_broken_connection_shortens_the_wait_for_a_silent_rank():
    broken = [replace(sign, failure=CLOSED) if sign.rank == 2 else sign for sign in signs()]
    assert judged(GRACE, broken, dead=(3,)) is None
    verdict = judged(GRACE + 1, broken, dead=(3,))
    assert verdict is not None
    assert verdict.text.startswith("rank 3 on node2 died")


def test_an_exception_of_a_rank_is_the_cause_even_when_others_see_broken_connections():
    own = Failure("cause", "the text of rank 2", 2)
    failed = [replace(sign, failure=own if sign.rank == 2 else CLOSED) for sign in signs()]
    assert judged(1, failed) == Verdict("the text of rank 2", 2)


def test_a_time_out_blames_the_rank_that_is_behind():
    late = Failure("symptom", "Timed out waiting 10000ms for recv", 1)
    behind = replace(signs()[1], position=Position("loading data", 17, "", 90))
    found = [behind if sign.rank == 1 else replace(sign, failure=late) for sign in signs()]
    verdict = judged(GRACE + 2, found)
    assert verdict is not None
    assert verdict.text.startswith("rank 1 on node1 did not come to a collective")
    assert "rank 1 on node1 in step 17, loading data" in verdict.text


def test_a_connection_that_broke_between_living_ranks_says_so():
    broken = [replace(sign, failure=CLOSED) if sign.rank == 2 else sign for sign in signs()]
    verdict = judged(GRACE + 2, broken)
    assert verdict is not None
    assert "rank 2 on node2 to another rank broke, though all ranks are alive" in verdict.text


def test_a_step_that_stands_still_on_all_ranks_ends_before_the_backend_aborts():
    assert judged(3, signs(waited=50.0), patience=54.0) is None
    verdict = judged(3, signs(waited=55.0), patience=54.0)
    assert verdict is not None
    assert "no rank moved for 55 s" in verdict.text


@pytest.mark.parametrize("phase", ["saving a checkpoint (gathers)", "preparing the data"])
def test_standing_still_outside_of_a_step_is_allowed(phase):
    still = [replace(sign, position=Position(phase, 17), waited=1e6) for sign in signs()]
    assert judged(3, still, patience=54.0) is None


def test_a_rank_that_left_in_order_is_not_missed():
    assert judged(100, [replace(sign, left=True) for sign in signs()], dead=(0, 1, 2, 3)) is None


def test_a_sign_survives_its_way_through_the_store():
    sign = replace(signs()[2], failure=CLOSED, beat=7, waited=1.5)
    assert Sign.from_json(sign.to_json()) == sign

"""When a run is started again, and what its end means. The run is a shell script that costs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distmoe.checkpoint.manifest import MANIFEST_NAME
from distmoe.launch.command import Command
from distmoe.launch.supervise import Policy, Supervisor
from distmoe.training.run_folder import RESULT_FILE, STOP_FILE


def supervise(run: Path, script: str, *, restarts: int = 2) -> tuple[int, list[str], list[bool]]:
    """Exit code, what was said, and for each start whether it was a restart."""
    run.mkdir(exist_ok=True)
    said: list[str] = []
    starts: list[bool] = []

    def command(is_restart: bool) -> Command:
        starts.append(is_restart)
        return Command(("bash", "-c", script), {"RUN": str(run), "TURN": str(len(starts))})

    return Supervisor(run, Policy(restarts, 0.01), say=said.append).supervise(command), said, starts


def test_a_finished_run_is_not_started_again(tmp_path: Path) -> None:
    code, said, starts = supervise(tmp_path / "run", f"touch $RUN/{RESULT_FILE}")
    assert (code, starts) == (0, [False])
    assert len(said) == 1  # the command


def test_a_run_that_fails_is_started_again_until_it_ends(tmp_path: Path) -> None:
    code, said, starts = supervise(tmp_path / "run", f"[ $TURN = 3 ] && touch $RUN/{RESULT_FILE} || exit 9")
    assert (code, starts) == (0, [False, True, True])
    assert "ended with code 9; restart 1 of 2 since the start" in said[1]


def test_failures_without_a_new_checkpoint_end_after_the_limit(tmp_path: Path) -> None:
    code, said, starts = supervise(tmp_path / "run", "exit 9")
    assert (code, len(starts)) == (1, 3)
    assert "given up: failure 3 without a new checkpoint" in said[-1]


def test_a_new_checkpoint_sets_the_count_back(tmp_path: Path) -> None:
    save = f"mkdir -p $RUN/checkpoints/step_$TURN; touch $RUN/checkpoints/step_$TURN/{MANIFEST_NAME}; "
    code, _, starts = supervise(tmp_path / "run", f"[ $TURN -gt 5 ] || {{ {save} }}; exit 9")
    # The 5th start saved last: its failure is the first without a new one, and two restarts follow.
    assert (code, len(starts)) == (1, 7)


def test_a_refused_run_is_not_tried_again(tmp_path: Path) -> None:
    code, _, starts = supervise(tmp_path / "run", "exit 2")
    assert (code, len(starts)) == (2, 1)


def test_a_launcher_that_leaves_ranks_behind_has_failed_and_they_are_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = f"if [ $TURN = 1 ]; then sleep 1000 & echo $! > $RUN/pid; else touch $RUN/{RESULT_FILE}; fi"
    code, said, starts = supervise(run, script)
    assert (code, len(starts)) == (0, 2)
    assert "the launcher left ranks behind" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int((run / "pid").read_text()), 0)


def test_pauses_double_up_to_ten_minutes() -> None:
    policy = Policy(20, 10)
    assert [policy.pause_before(attempt) for attempt in (1, 2, 3, 20)] == [10, 20, 40, 600]


def test_a_signal_asks_the_run_to_end_and_is_no_failure(tmp_path: Path) -> None:
    """The stand-in leaves as soon as it is asked through the file; the launcher itself gets no signal."""
    run = tmp_path / "run"
    script = (
        f"trap 'touch $RUN/signalled' TERM INT; touch $RUN/ready; while [ ! -e $RUN/{STOP_FILE} ]; do sleep 0.1; done"
    )

    def send() -> None:
        while not (run / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    code, said, starts = supervise(run, script)
    assert (code, len(starts)) == (128 + signal.SIGTERM, 1)
    assert "SIGTERM: all ranks save at the next step border" in said[1]
    assert not (run / "signalled").exists()


def test_a_request_during_the_start_outlives_a_run_that_removes_the_file_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while the child is being started, before its process is known."""
    monkeypatch.setattr("distmoe.launch.supervise._TICK", 0.1)
    run = tmp_path / "run"

    class Slow(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("distmoe.launch.supervise.subprocess.Popen", Slow)
    wait = f"for _ in {{1..100}}; do [ -e $RUN/{STOP_FILE} ] && exit; sleep 0.1; done; exit 9"
    code, said, starts = supervise(run, f"sleep 0.5; rm $RUN/{STOP_FILE}; {wait}")
    assert (code, len(starts)) == (128 + signal.SIGTERM, 1)
    assert not [line for line in said if "ended with code" in line]


def test_a_signal_before_the_first_start_starts_nothing(tmp_path: Path) -> None:
    def command(is_restart: bool) -> Command:
        os.kill(os.getpid(), signal.SIGINT)
        return Command(("touch", str(tmp_path / "started")))

    said: list[str] = []
    assert Supervisor(tmp_path, Policy(2, 0.01), say=said.append).supervise(command) == 128 + signal.SIGINT
    assert said == ["SIGINT: no other start"]
    assert not (tmp_path / "started").exists()


def test_a_checkpoint_with_the_name_of_the_run_that_was_started_over_is_progress(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step_1").mkdir(parents=True)
    (run / "checkpoints" / "step_1" / MANIFEST_NAME).touch()
    save = f"rm -r $RUN/checkpoints; mkdir -p $RUN/checkpoints/step_1; touch $RUN/checkpoints/step_1/{MANIFEST_NAME}"
    code, _, starts = supervise(run, f"[ $TURN -gt 2 ] || {{ {save}; }}; exit 9", restarts=1)
    assert (code, len(starts)) == (1, 3)


def test_a_second_signal_kills(tmp_path: Path) -> None:
    """In a process of its own: the first request is ignored by its run, the second one must end it."""
    code = (
        "import sys; from pathlib import Path\n"
        "from distmoe.launch.command import Command; from distmoe.launch.supervise import *\n"
        "say = lambda text: print(text, flush=True)\n"
        "sys.exit(Supervisor(Path(sys.argv[1]), Policy(0, 1), say=say).supervise(lambda _: Command(('sleep', '600'))))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "sleep 600\n"
    for _ in range(2):
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline().startswith("SIGINT")
    assert child.wait(timeout=60) == 128 + signal.SIGINT

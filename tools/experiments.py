#!/usr/bin/env python3
"""Trains the arms of a study with several seeds and says which of its claims hold.

python tools/experiments.py ca_mtl --arms B,C,D --seeds 3 data.root=DATA model.pretrained=HF_DIR
python tools/experiments.py ca_mtl --seeds 5 --recipe ca_mtl_demo --out runs/small schedule.num_steps=200
python tools/experiments.py ca_mtl --table                   # only the table and the picture of what has ended
python tools/experiments.py ca_mtl --list-arms               # what can be compared

Every run is one of distmoe/train.py. OUT/runs.jsonl gets a line when a run has ended; the same command again trains
what is missing and goes on with a run that was interrupted. See docs/experiments.md.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distmoe.errors import ConfigError, DistmoeError
from distmoe.studies.intervals import macro, worst
from distmoe.studies.jobs import Job, job_of, order, paid_by
from distmoe.studies.launch import command, side_by_side, train, train_here
from distmoe.studies.ledger import Given, Ledger, Record
from distmoe.studies.picture import draw_study
from distmoe.studies.study import Study, available, load_study
from distmoe.studies.table import study_lines


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description="Compare arms of a study over seeds.")
    result.add_argument("study", help=f"{' | '.join(available())} | path of a YAML file")
    result.add_argument("--arms", default="", help="names, separated by commas; J means J and J.*; default: all")
    result.add_argument("--list-arms", action="store_true", help="print the names for --arms, with titles and recipes")
    result.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (default 3)")
    result.add_argument("--first-seed", type=int, default=0, metavar="K", help="seeds K to K+N-1 (default 0)")
    result.add_argument("--recipe", help="in place of the study's own recipe")
    result.add_argument("--out", type=Path, help="folder of the study (default runs/studies/NAME)")
    result.add_argument("--ranks", type=int, default=1, help="processes of a run (default 1)")
    result.add_argument("--in-process", action="store_true", help="all runs in this process: for small ones")
    result.add_argument("--keep", action="store_true", help="keep checkpoints of runs that have ended")
    result.add_argument("--dry-run", action="store_true", help="check every arm and print its command")
    result.add_argument("--table", action="store_true", help="train nothing; show what has ended")
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="for all arms")
    return result


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_intermixed_args(argv)
    try:
        return run(arguments)
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    if min(arguments.seeds, arguments.ranks) < 1 or arguments.first_seed < 0:
        raise ConfigError(
            "a study needs seeds and ranks",
            got=f"--seeds {arguments.seeds} --first-seed {arguments.first_seed} --ranks {arguments.ranks}",
            expected="at least 1 seed and 1 rank, seeds from 0 on",
            remedy="correct the number",
        )
    if arguments.in_process and arguments.ranks > 1:
        raise ConfigError("a process is one rank", got=f"--in-process --ranks {arguments.ranks}",
                          expected="--ranks 1 with --in-process", remedy="leave one of them away")  # fmt: skip
    study = load_study(arguments.study)
    if arguments.list_arms:
        print("\n".join(study.arm_lines()))
        return 0
    out = arguments.out or Path("runs/studies") / Path(arguments.study).stem
    arms = study.choose([name for name in arguments.arms.split(",") if name])
    given = Given.of(arguments.recipe or study.recipe, arguments.overrides)
    ledger = Ledger(out / "runs.jsonl", None if arguments.table else given)
    if not arguments.table:
        train_all(study, arms, ledger, out, arguments)
    if arguments.dry_run:
        return 0
    if not ledger.records:
        raise ConfigError("no run of this study has ended", got=str(out), expected="a folder with runs.jsonl",
                          remedy="correct --out, or leave --table away")  # fmt: skip
    lines = study_lines(study, ledger.records)
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    light, _ = draw_study(study, ledger.records, out)
    print("\n".join(lines))
    print(f"\ntable: {out / 'table.md'}    picture: {light}    runs: {out / 'runs.jsonl'}")
    return 0


def train_all(study: Study, arms: list[str], ledger: Ledger, out: Path, arguments: argparse.Namespace) -> None:
    """Trains what the ledger does not hold. Every configuration is checked before the first run."""
    wanted = order(study, arms, range(arguments.first_seed, arguments.first_seed + arguments.seeds))

    def job(arm: str, seed: int) -> Job:
        paid = paid_by(study, arm, seed, ledger.records)
        return job_of(
            study, arm, seed, recipe=arguments.recipe, overrides=arguments.overrides, forward_equivalents=paid
        )

    jobs = {place: job(*place) for place in wanted}
    if arguments.dry_run:
        for planned in jobs.values():
            for overrides in planned.runs.values():
                print(shlex.join(command(planned.recipe, overrides, num_ranks=arguments.ranks)))
        return
    # What another arm pays for is known, and compared, when that arm has ended.
    open_ones = [place for place in wanted if study.arms[place[0]].compute_of or ledger.find(jobs[place]) is None]
    began, trained = time.monotonic(), 0
    for number, (arm, seed) in enumerate(open_ones, start=1):
        planned = job(arm, seed)
        record = ledger.find(planned)
        if record is None:
            outcomes = []
            for name, overrides in planned.runs.items():
                folder = out / "runs" / name
                if arguments.in_process:
                    outcomes.append(train_here(planned.recipe, overrides, folder=folder))
                else:
                    outcomes.append(train(planned.recipe, overrides, folder=folder, num_ranks=arguments.ranks))
            record = ledger.add(planned, side_by_side(outcomes))
            trained += 1
            for name in planned.runs if not arguments.keep else ():
                shutil.rmtree(out / "runs" / name / "checkpoints", ignore_errors=True)
        print(progress(record, number, len(open_ones), (time.monotonic() - began) / max(trained, 1)), flush=True)


def progress(record: Record, number: int, count: int, seconds_per_run: float) -> str:
    """One line about a run that has ended, and how long the others may take."""
    minutes = (count - number) * seconds_per_run / 60
    return (
        f"[{number}/{count}] arm {record['arm']} seed {record['seed']}: macro {macro(record):.4f}, "
        f"worst task {worst(record):.4f}, {record['seconds']:.0f} s of training; about {minutes:.0f} min to go"
    )


if __name__ == "__main__":
    code = main()
    if "--in-process" in sys.argv:
        from distmoe.engine.distributed import shut_down

        shut_down(exit_code=code)
    sys.exit(code)

from __future__ import annotations

import json

import pytest

from distmoe.errors import ConfigError
from distmoe.studies.jobs import Job
from distmoe.studies.ledger import Given, Ledger
from tests.unit.studies.records import record

JOB = Job("D", 1, "demo", {"D-1": ("run.seed=1", "optimizer.lr=1e-4")})
OUTCOME = {"tasks": {"t": 0.5}}


def test_a_run_that_has_ended_is_found_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert Ledger(path).find(JOB) is None
    Ledger(path).add(JOB, OUTCOME)
    assert Ledger(path).find(JOB)["tasks"] == {"t": 0.5}
    assert Ledger(path).find(Job("D", 2, "demo", JOB.runs)) is None
    assert len(path.read_text().splitlines()) == 1


def test_a_run_with_other_settings_is_refused_with_both(tmp_path):
    ledger = Ledger(tmp_path / "runs.jsonl")
    ledger.add(JOB, OUTCOME)
    with pytest.raises(ConfigError) as refused:
        ledger.find(Job("D", 1, "demo", {"D-1": ("run.seed=1", "optimizer.lr=1e-3")}))
    assert (refused.value.got, refused.value.expected) == ("optimizer.lr=1e-3", "optimizer.lr=1e-4")
    assert refused.value.remedy.endswith(f"these settings: {tmp_path / 'runs' / 'D-1'}")


def test_runs_that_were_given_different_things_are_never_mixed(tmp_path):
    path, given = tmp_path / "runs.jsonl", Given("demo", ("optimizer.lr=1e-4",))
    Ledger(path, given).add(JOB, OUTCOME)
    assert Ledger(path, given).find(JOB)["tasks"] == {"t": 0.5}
    assert Ledger(path).records  # for a table, nothing is given
    for other, got, expected in (
        (Given("token_moe", given.overrides), "--recipe token_moe", "--recipe demo"),
        (Given("demo"), "fewer settings", "optimizer.lr=1e-4"),
        (Given.of("demo", ["optimizer.lr=1e-4", "optimizer.lr=1e-3"]), "optimizer.lr=1e-3", "optimizer.lr=1e-4"),
    ):
        with pytest.raises(ConfigError, match=r"holds runs[\s\S]*choose another --out") as no:
            Ledger(path, other)
        assert (no.value.got, no.value.expected) == (got, f"{expected} (as arm D, seed 1)")
    path.write_text(json.dumps(record("D", 1, 0.5)) + "\n")  # an older ledger does not say
    assert Ledger(path, Given("any")).records


def test_half_a_last_line_is_dropped_and_half_a_line_elsewhere_is_not(tmp_path):
    path = tmp_path / "runs.jsonl"
    whole = json.dumps(record("C", 0, 0.5))
    path.write_text(f'{whole}\n{{"arm": "D", "se')
    assert list(Ledger(path).records) == [("C", 0)]
    assert path.read_text() == whole + "\n"
    path.write_text(f'{{"arm": "D", "se\n{whole}\n')
    with pytest.raises(ConfigError, match="damaged"):
        Ledger(path)

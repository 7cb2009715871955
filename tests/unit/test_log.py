"""Logging that knows its rank."""

from __future__ import annotations

import logging

import pytest

from distmoe import log


@pytest.fixture(autouse=True)
def restored_logger():
    logger = logging.getLogger("distmoe")
    kept = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = kept


def test_foreign_names_are_placed_below_distmoe():
    assert log.get_logger("distmoe.data.cache").name == "distmoe.data.cache"
    assert log.get_logger("__main__").name == "distmoe.__main__"


def test_rank_0_shows_information_without_a_prefix(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    log.configure()
    log.get_logger("distmoe.x").info("hello")
    assert capsys.readouterr().err.endswith(" I hello\n")


@pytest.mark.parametrize("level", [logging.INFO, "INFO"])
def test_other_ranks_show_warnings_only_and_say_who_they_are(monkeypatch, capsys, level):
    monkeypatch.setenv("RANK", "3")
    log.configure(level)
    log.get_logger("distmoe.x").info("hidden")
    log.get_logger("distmoe.x").warning("seen")
    shown = capsys.readouterr().err
    assert "hidden" not in shown
    assert "[rank 3] W seen" in shown


def test_configuring_twice_does_not_double_the_lines(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    log.configure()
    log.configure()
    log.get_logger("distmoe.x").info("once")
    assert capsys.readouterr().err.count("once") == 1

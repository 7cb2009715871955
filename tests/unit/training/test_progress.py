import logging

import pytest

from distmoe.training.progress import Progress, duration


def test_durations_read_naturally() -> None:
    assert [duration(s) for s in (4.4, 75, 3600, 7260)] == ["4s", "1m15s", "1h00m", "2h01m"]


def test_without_a_terminal_lines_are_logged_by_rank_0_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="distmoe"):
        for rank in (0, 1):
            progress = Progress(10, rank=rank, interactive=False)
            progress.log(5, loss=1.25, lr=1e-3, tokens_per_second=1234.0)
            progress.close()
    assert [record.message.split("  ")[:4] for record in caplog.records] == [
        ["step 5/10", "loss 1.2500", "lr 1.00e-03", "1,234 tokens/s"]
    ]


def test_on_a_terminal_a_bar_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10, start=4, interactive=True)
    progress.advance()
    progress.log(5, loss=1.25, lr=1e-3, tokens_per_second=1234.0)
    progress.close()
    assert "5/10" in capsys.readouterr().err

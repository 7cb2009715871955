"""What is learned of other machines before anything is started there."""

from __future__ import annotations

import threading
import time

import pytest

from distmoe.errors import ParallelError
from distmoe.launch import hosts


def test_a_name_service_that_hangs_holds_the_launch_up_for_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(hosts, "LIMIT", 0.1)
    monkeypatch.setattr(hosts.socket, "getaddrinfo", lambda *_: release.wait(10))
    began = time.monotonic()
    with pytest.raises(ParallelError, match="no answer of the name service"):
        hosts.refuse_unknown_name("node1")
    assert time.monotonic() - began < 5
    release.set()


def test_a_name_that_resolves_is_accepted_and_another_refused() -> None:
    hosts.refuse_unknown_name("127.0.0.1")
    with pytest.raises(ParallelError, match=r"does not resolve\n +got: +nowhere.invalid: "):
        hosts.refuse_unknown_name("nowhere.invalid")

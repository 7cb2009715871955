import os
import signal

import pytest

from distmoe.training.stop_signal import StopSignal


@pytest.fixture
def stop() -> StopSignal:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield StopSignal().arm()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_remembered_by_name(stop: StopSignal, number: signal.Signals) -> None:
    assert not stop.received
    os.kill(os.getpid(), number)
    assert stop.name == number.name


def test_a_second_interrupt_interrupts(stop: StopSignal) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)

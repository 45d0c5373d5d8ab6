"""The first signal is remembered and the second interrupts; afterwards everything is as it was."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from loractl.errors import Stopped
from loractl.signals import StopRequest, leave


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_an_exit_code_and_nothing_more(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with StopRequest() as stop:
        assert stop.exit_code is None
        os.kill(os.getpid(), number)
        assert stop.exit_code == code
    assert "stopping after this step" in capsys.readouterr().err


def test_a_second_interrupt_raises_and_a_second_sigterm_only_waits() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("before", [True, False])
def test_where_nothing_is_to_be_saved_the_first_signal_leaves(
    before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped) as caught, StopRequest() as stop:
        if before:
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("went on")
    assert caught.value.exit_code == 143
    assert ("stopping after this step" in capsys.readouterr().err) == before


def test_a_signal_in_a_callback_of_the_collector_is_not_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No exception gets out of __del__, nor of what weakref calls."""

    class Going:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped) as caught, StopRequest() as stop, stop.at_once():
        going = Going()
        del going
        time.sleep(5)
        raise AssertionError("went on")
    assert caught.value.exit_code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_the_handlers_of_before_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture
def program() -> Iterator[None]:
    """A process that is `loractl` alone: SIGTERM is handled as its entry does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("program")
def test_what_comes_when_all_is_done_stops_nothing() -> None:
    with StopRequest():
        pass
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)


@pytest.mark.usefixtures("program")
def test_after_an_error_signals_still_end_the_program() -> None:
    with pytest.raises(KeyError), StopRequest():
        raise KeyError
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)

import os
import signal
import subprocess
import sys
import threading

import pytest

from retrieval.interrupts import StopRequest, finish_step_on_signal


class Stopped(BaseException):
    """What a handler of the test raises."""


@pytest.fixture(autouse=True)
def own_handlers():
    """Handlers that the test process survives, and its own again afterwards."""

    def stop(number, frame):
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number, caplog):
    with finish_step_on_signal() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert stop.number == number
    assert "finishing this step and saving it; once more to stop at once" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_deliver_raises_it_as_if_it_had_only_now_arrived(number):
    with finish_step_on_signal() as stop:
        signal.raise_signal(number)
        with pytest.raises(Stopped, match=str(int(number))):
            stop.deliver()


def test_the_second_signal_stops_at_once():
    with finish_step_on_signal():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_handlers_are_put_back(own_handlers):
    with finish_step_on_signal():
        assert signal.getsignal(signal.SIGINT) is not own_handlers
    assert signal.getsignal(signal.SIGINT) is own_handlers
    with pytest.raises(KeyError), finish_step_on_signal():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is own_handlers


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with finish_step_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.requested
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_touched(own_handlers):
    seen = []

    def work():
        with finish_step_on_signal() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT) is own_handlers))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


def test_a_request_that_never_came_delivers_an_interrupt():
    request = StopRequest()
    with pytest.raises(Stopped, match="2"):
        request.deliver()


def test_a_process_with_the_default_handler_dies_of_the_signal():
    code = (
        "import signal, retrieval.interrupts as i\n"
        "with i.finish_step_on_signal() as stop:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('saved', flush=True)\n"
        "    stop.deliver()\n"
        "print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "saved\n")

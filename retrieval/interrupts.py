"""Ctrl-C and SIGTERM during training: the step in progress is finished and saved before the process ends."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal asked for the end; `deliver` gives it to the handlers that were there before."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.number is not None

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; a second one is not waited for."""
        if self.number is not None:
            self.deliver()
        self.number = number
        logger.warning("finishing this step and saving it; once more to stop at once")

    def deliver(self) -> None:
        """Raise the signal as if it had only now arrived."""
        number = self.number or signal.SIGINT
        self.restore()
        signal.raise_signal(number)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()


@contextmanager
def finish_step_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop looks at; outside the main thread it never comes.

    A signal that the process ignores (as a shell makes its background jobs do with SIGINT) stays ignored.
    """
    request = StopRequest()
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                request.previous[number] = signal.signal(number, request.notice)
    try:
        yield request
    finally:
        request.restore()

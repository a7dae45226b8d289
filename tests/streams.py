"""Streams of batches for tests of training."""

from __future__ import annotations

import signal

from genmodels.data import BatchStream


class Stopping:
    """A stream that presses Ctrl-C at one of its batches."""

    def __init__(self, stream: BatchStream, at: int) -> None:
        self.stream, self.left = stream, at
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __iter__(self) -> Stopping:
        return self

    def __next__(self) -> object:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return next(self.stream)

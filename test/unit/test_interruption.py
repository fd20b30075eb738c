# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Stop signals: at once while there is nothing to save, noted while there is, never lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classification import interruption as module
from image_classification.interruption import STOP_SIGNALS, Interruption, Stopped

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """None, as a program has them that nobody has told otherwise."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interruption(clock: Clock) -> Iterator[Interruption]:
    with Interruption() as made:
        yield made


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_with_nothing_to_save_the_first_signal_stops_at_once(
    interruption: Interruption, number: signal.Signals
) -> None:
    with pytest.raises(Stopped, match="nothing was trained"):
        signal.raise_signal(number)
    assert interruption.requested


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_while_held_it_is_noted(
    interruption: Interruption, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with interruption.held():
        signal.raise_signal(number)
        assert interruption.requested
        with pytest.raises(Stopped):
            interruption.check()
    assert capfd.readouterr().err == f"{number.name}: stopping after this step\n"


def test_signals_within_a_second_are_one_and_the_third_ends(
    interruption: Interruption, clock: Clock, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with interruption.held():
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
            clock.now += 0.3
        clock.now += 1.0
        signal.raise_signal(signal.SIGTERM)
        assert ended == []
        clock.now += 1.5
        signal.raise_signal(signal.SIGTERM)
    assert ended == [143]
    first, second, third = capfd.readouterr().err.splitlines()
    assert "stopping after this step" in first and "SIGTERM again" in second
    assert third == "SIGTERM for the third time: ending without saving"


def test_a_request_before_the_hold_is_not_lost(interruption: Interruption) -> None:
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGUSR1)  # caught by somebody, say a library's callback
    with pytest.raises(Stopped), interruption.held():
        raise AssertionError("nothing is trained after a request")


STUCK = """
import ctypes, os, signal, threading, time
from image_classification import interruption
def ask():
    time.sleep(1)  # until the main thread is in C
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
interruption._ANSWER_S = 0.2
with interruption.Interruption() as it:
    with it.held() if HELD else threading.Lock():
        threading.Thread(target=ask, daemon=True).start()  # with the mask of its creator
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the other thread gets it
        ctypes.CDLL(None).sleep(4)
print("went on")
"""


@pytest.mark.parametrize("held", [False, True])
def test_a_main_thread_that_waits_in_c_is_left_behind_unless_it_trains(held: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK.replace("HELD", str(held))], cwd=ROOT, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    if held:
        assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
        assert done.stderr == "SIGTERM: stopping after this step\n"
    else:
        assert (done.returncode, done.stdout) == (143, ""), done.stderr
        assert done.stderr.startswith("main.py: stopped by a signal; nothing was trained")


def test_a_forked_process_does_not_answer_for_its_parent(
    interruption: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.1)
    monkeypatch.setattr(os, "_exit", ended := [].append)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGTERM, lambda *ignored: None)
        signal.raise_signal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    time.sleep(0.5)
    assert ended.__self__ == []


def test_the_signals_are_given_back() -> None:
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in STOP_SIGNALS)


def test_an_ignored_signal_stays_ignored(clock: Clock) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
    assert not interruption.requested


def test_other_threads_leave_the_signals_alone() -> None:
    thread = threading.Thread(target=Interruption().__enter__)
    thread.start()
    thread.join()
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in STOP_SIGNALS)

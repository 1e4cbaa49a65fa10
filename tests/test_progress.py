"""The line that says how far a run is, and how often it comes."""

import logging
import time

import pytest

from lvis_tde.progress import Pace, Progress, progress_line


@pytest.mark.parametrize(
    "arguments, line",
    [
        (
            ("training", 391, 1300, 312.4, "loss 3"),
            "#" * 6 + "." * 14 + "] 391/1300, ETA 0:05:12, loss 3",
        ),
        (("sweep", 0, 0, None, ""), "." * 20 + "] 0/0"),
        (("sweep", 9, 9, "0:00:00", ""), "#" * 20 + "] 9/9, ETA 0:00:00"),
        (("estimate", 1, 4, float("inf"), ""), "#" * 5 + "." * 15 + "] 1/4"),
    ],
)
def test_line(arguments, line):
    assert progress_line(*arguments) == f"{arguments[0]:<10} [{line}"


def test_pace_bounds_the_lines_of_an_hour(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace, told = Pace(), 0
    for second in range(3600):
        now[0] = float(second)
        told += pace.due()
    assert 11 + 117 <= told <= 12 + 119


def test_first_and_last_steps_are_told_and_a_resumed_run_knows_its_speed(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    progress = Progress("training", 1000, done=900)
    for done in range(901, 1001):
        now[0] += 0.01
        progress.step(done, note=f"step {done}")
    first, last = (record.getMessage() for record in caplog.records)
    assert "901/1000" in first and "ETA 0:00:01" in first and "step 901" in first
    assert "1000/1000" in last and "ETA 0:00:00" in last

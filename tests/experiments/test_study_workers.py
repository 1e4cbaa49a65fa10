"""Processes of a study that end without a word."""

import os
import signal

from lvis_tde.experiments.study.workers import run_units


class Killed:
    """A unit whose process is killed before it has done anything."""

    name = "seed0/killed"

    def iterations(self):
        return 0, 1

    def state(self):
        return "training 0/1"

    @property
    def folder(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(Killed):
    name = "seed0/broken"

    @property
    def folder(self):
        raise ValueError("no such thing")


def test_a_killed_process_is_a_failed_unit(forked_workers):
    failed = run_units([Killed(), Broken()], 2, 0)
    assert failed == {
        "seed0/killed": "its process ended with code -9",
        "seed0/broken": "ValueError: no such thing",
    }

"""Where the figures of a study come from."""

import subprocess
from pathlib import Path

from lvis_tde.experiments.study import provenance
from lvis_tde.experiments.study.provenance import made_here, together


def test_units_of_several_commits_and_machines():
    first = {"commit": "abc", "date": "2026-01-02T03:00:00+00:00", "hardware": "a CPU, 2 cores"}
    later = {**first, "date": "2026-01-03T03:00:00+00:00"}
    other = {**first, "commit": "0de", "hardware": "another, 8 cores"}
    assert together([first, later]) == later
    assert together([later, other, {}]) == {
        "commit": "0de, abc", "date": later["date"], "hardware": "a CPU, 2 cores; another, 8 cores"
    }  # fmt: skip


def test_units_that_do_not_say_it():
    here, found = made_here(), together([{}, {}])
    assert (found["commit"], found["hardware"]) == (here["commit"], here["hardware"])
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True)
    assert (found["commit"] or "").removesuffix("-dirty") == head.stdout.strip()


def test_another_projects_checkout_is_none(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert made_here()["commit"] is None

"""Figures of a GPU: each benchmark on its own, what fails is told, the page keeps the rest."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_cells import CELLS, Cell

ROOT = Path(__file__).parents[2]
PAGE = f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n"
TINY = ("--regions", "4", "--features", "8", "--classes", "3", "--repeats", "1")


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def two_cells(monkeypatch):
    update = Cell(("mean_update",), TINY, {"an update": lambda found: f"{found['repeats']} repeat"})
    refused = Cell(("mean_update", "--repeats", "0"), (), {"nothing": str})
    monkeypatch.setattr(gpu, "CELLS", [refused, update])


def test_a_benchmark_that_fails_is_told_of_and_the_others_are_written(
    tool, two_cells, tmp_path, capsys
):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(SystemExit) as ended:
        tool.main(["gpu", "--device", "cpu", "--tiny", "--write", str(page), "--json"])
    assert ended.value.code == 1
    result = json.loads(capsys.readouterr().out)
    assert result["figures"] == {"an update": "1 repeat"}
    (failed,) = result["failed"]
    assert failed.startswith("mean_update: ValueError") and "--repeats 0" in failed
    text = page.read_text()
    assert text.startswith(f"before\n{gpu.BEGIN}\n| cpu, ") and text.endswith("\nafter\n")
    assert "| an update | 1 repeat |" in text and "| nothing |  |" in text and failed in text
    assert "old" not in text


def test_what_no_time_is_left_for_is_told(tool, two_cells, capsys):
    with pytest.raises(SystemExit):
        tool.main(["gpu", "--device", "cpu", "--tiny", "--minutes", "0", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["figures"] == {}
    assert result["failed"] == ["mean_update: no time was left"] * 2


def test_nothing_is_measured_before_the_arguments_are_known_to_be_good(tool, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a page without marks")
    with pytest.raises(ValueError, match="needs one line"):
        tool.main(["gpu", "--device", "cpu", "--tiny", "--write", str(page)])
    assert page.read_text() == "a page without marks"
    with pytest.raises(ValueError, match="got heads"):
        tool.main(["gpu", "--device", "cpu", "--only", "heads"])


def test_the_page_has_the_rows_of_the_cells():
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    table = page.split(gpu.BEGIN)[1].split(gpu.END)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[2:] == [title for cell in CELLS for title in cell.rows]
    assert len(set(rows)) == len(rows)

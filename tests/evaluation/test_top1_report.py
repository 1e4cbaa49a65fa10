"""The page about classifiers, tables over seeds, and the command lines on their result files."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from test_optional_packages import run as run_without
from test_report import Page
from test_top1 import COUNTS, problem

from lvis_tde.evaluation import Predictions, compare_top1, evaluate_top1
from lvis_tde.evaluation.report.top1 import write_top1_report
from lvis_tde.evaluation.seeds import seed_half_width, seed_intervals, seed_rows

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["<a & b>", *"bcdef"]
PICTURES = {"top1_groups", "accuracy_against_images", "shifts", "few_confusions", "calibration"}


def predictions(seed, n=80):
    probabilities, labels = problem(n)
    noise = np.random.default_rng(seed).random(probabilities.shape)
    probabilities = probabilities + 0.3 * noise
    probabilities /= probabilities.sum(1, keepdims=True)
    return Predictions(np.arange(n), labels, probabilities, np.array(COUNTS), CLASSES)


@pytest.fixture(scope="module")
def results():
    return {name: predictions(i).evaluate(bootstrap=20) for i, name in enumerate(("a", "b<c"))}


@pytest.mark.parametrize("count", [1, 2])
def test_page_names_every_class(results, tmp_path, count):
    shown = dict(list(results.items())[:count])
    path = write_top1_report(tmp_path / "new", shown, bootstrap=20)
    text = path.read_text()
    page = Page(text)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    # The class that training does not have has no place on an axis of logarithms.
    expected = sorted(range(5), key=lambda i: COUNTS[i])
    assert [tip.split(" (")[0] for tip in page.tips] == [CLASSES[i] for i in expected] * count
    assert "<a & b>" not in text and page.tags.count("polyline") == count
    pngs = {p.stem for p in path.parent.glob("*.png")}
    assert pngs == PICTURES | ({"changes"} if count == 2 else set())
    low, high = results["a"].intervals["few"]
    assert f"{results['a'].metrics['few']:.1f} <small>[{low:.1f}, {high:.1f}]</small>" in text
    if count == 2:
        found = compare_top1(*results.values(), bootstrap=20)
        assert f"{found.gained} became right, {found.lost} wrong" in text
        assert f"<td>{found.difference['many']:+.1f} <small>" in text


def test_page_without_classes_of_few_images(tmp_path):
    result = evaluate_top1(np.eye(3)[[0, 1, 2]], np.arange(3), (300, 200, 150))
    path = write_top1_report(tmp_path, {"a": result})
    assert {p.stem for p in path.parent.glob("*.png")} == PICTURES - {"few_confusions"}
    assert "–" in path.read_text()
    with pytest.raises(ValueError, match="empty"):
        write_top1_report(tmp_path, {})


def test_runs_on_other_images_are_refused(results, tmp_path):
    with pytest.raises(ValueError, match="only one run has"):
        write_top1_report(tmp_path, {"a": results["a"], "b": predictions(1, 60).evaluate()})


def tool(name, *arguments):
    script = runpy.run_path(str(ROOT / "tools" / f"{name}.py"))
    return script["main"]([str(a) for a in arguments])


@pytest.fixture
def files(tmp_path):
    runs = {name: predictions(i) for i, name in enumerate("ab")}
    for name, run in runs.items():
        run.save(tmp_path / f"{name}.npz")
    return tmp_path, runs


def test_evaluate_tool(files, capsys):
    folder, runs = files
    out = folder / "out.json"
    tool("evaluate", folder / "a.npz", folder / "b.npz", "--bootstrap", 30, "--output", out)
    a, b = (run.evaluate(bootstrap=30) for run in runs.values())
    found = json.loads(out.read_text())
    assert found[0]["metrics"] == {**a.metrics, **a.shifted}
    assert found[1]["intervals"]["few"] == list(b.intervals["few"])
    assert found[2]["metrics"] == compare_top1(a, b, bootstrap=30).difference
    assert found[0]["per_class"][0]["name"] == CLASSES[0]
    low, high = a.intervals["top1"]
    printed = capsys.readouterr().out
    assert f"{a.metrics['top1']:.2f} [{low:.2f}, {high:.2f}]" in printed
    assert "forward50" in printed and "gained" in printed
    tool("evaluate", folder / "a.npz", "--bootstrap", 0)
    assert "[" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        tool("evaluate", folder / "none.npz")


def test_report_tool(files, capsys):
    folder, runs = files
    page = folder / "report" / "report.html"
    tool("report", folder / "a.npz", "--output", folder / "report")
    assert capsys.readouterr().out.strip() == str(page)
    compare = ["--compare", folder / "a.npz", folder / "b.npz"]
    tool("report", *compare, "--names", "x", "y", "--output", folder / "report")
    assert "Most improved and most damaged, x → y" in page.read_text()
    assert page.read_text().count(" <small>[") > 3
    assert "Classes without training or test images have none: 1." in page.read_text()
    tool("report", *compare, "--bootstrap", 0, "--output", folder / "report")
    without = page.read_text()
    assert "became right" in without and " <small>[" not in without
    assert "of the resamples" not in without and "Brackets" not in without
    tool("report", *compare, "--bootstrap", 7, "--output", folder / "report")
    found = compare_top1(*(run.evaluate() for run in runs.values()), bootstrap=7)
    low, high = found.intervals["few"]
    assert f"{found.difference['few']:+.1f} <small>[{low:+.1f}, {high:+.1f}]" in page.read_text()
    tool("report", *compare[1:], "--bootstrap", 0, "--output", folder / "two")  # as evaluate's
    assert (folder / "two" / "report.html").read_text() == without
    for wrong in (
        *(["gt.json", *compare], ["gt.json", folder / "a.npz"], ["a.json"]),
        [*compare[1:], *compare],
    ):
        with pytest.raises(SystemExit):
            tool("report", *wrong)


def test_neither_torch_nor_detectron2_is_needed(files):
    folder, runs = files
    code = """
from pathlib import Path
from lvis_tde import cli
from lvis_tde.evaluation import Predictions, compare_top1, evaluate_top1
files = [str(Path(sys.argv[1]) / name) for name in ("a.npz", "b.npz")]
for arguments in (["evaluate", *files], ["report", "--compare", *files, "--output", sys.argv[1]]):
    try:
        cli.main(arguments)
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
assert not {"torch", "detectron2"} & {name.partition(".")[0] for name in sys.modules}
"""
    printed = run_without(code, {"torch", "detectron2"}, folder)
    assert f"{runs['a'].evaluate().metrics['few']:.2f}" in printed


def test_half_widths_are_those_of_student():
    # The quantile 0.975 of 1, 2, 4, 5, 9 and 29 degrees of freedom, from printed tables.
    table = {2: 12.706, 3: 4.303, 5: 2.776, 6: 2.571, 10: 2.262, 30: 2.045}
    for n, quantile in table.items():
        values = np.arange(n, dtype=float)
        expected = quantile * values.std(ddof=1) / np.sqrt(n)
        assert seed_half_width(list(values)) == pytest.approx(expected, rel=2e-3)
    assert np.isnan(seed_half_width([3.0])) and np.isnan(seed_half_width([np.nan, np.nan]))
    assert np.isnan(seed_half_width([3.0, np.nan, 4.0]))
    nothing = [{"top1": 1.0, "many": 1.0, "medium": 2.0, "few": np.nan}] * 3
    assert seed_rows({"a": nothing, "b": nothing})[1][1:5] == ["1.0 ± 0.0"] * 2 + ["2.0 ± 0.0", "–"]


def test_table_over_seeds_has_paired_gains():
    base = {"top1": 50.0, "many": 70.0, "medium": 50.0, "few": 30.0}
    runs = {
        "softmax": [base, {**base, "top1": 60.0, "few": 20.0}],
        "tde": [{**base, "top1": 52.0, "few": 35.0}, {**base, "top1": 62.0, "few": 27.0}],
    }
    head, first, second = seed_rows(runs, names={"tde": "TDE"})
    assert head == ["run", "top-1", "many", "medium", "few", "gain in top-1", "gain in few"]
    assert first == ["softmax", "55.0 ± 63.5", "70.0 ± 0.0", "50.0 ± 0.0", "25.0 ± 63.5", "", ""]
    assert second[0] == "TDE" and second[-2:] == ["+2.0 ± 0.0", "+6.0 ± 12.7"]
    assert seed_intervals(runs)["tde"]["many"] == (70, 70)
    low, high = seed_intervals(runs)["softmax"]["top1"]
    assert (low + high) / 2 == pytest.approx(55) and high - low == pytest.approx(127.06)
    assert seed_rows({"a": [base]})[1] == ["a", "50.0", "70.0", "50.0", "30.0", "", ""]
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        seed_rows({"a": [base], "b": [base, base]})

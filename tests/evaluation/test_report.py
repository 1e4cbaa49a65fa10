"""The report, its figures, and the command lines."""

import copy
import json
import math
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lvis_cases import problem
from lvis_table import A, B, C, dataset, found, image, truth

from lvis_tde.evaluation import Detections, GroundTruth, evaluate_lvis
from lvis_tde.evaluation.confusion import OUTCOMES, rare_confusions
from lvis_tde.evaluation.report import write_report
from lvis_tde.evaluation.report.classes import changes, dots, trend

ROOT = Path(__file__).resolve().parents[2]


def two_runs():
    """Two rare classes, a common and a frequent one; the second run finds one of the rare more."""
    annotations = dataset(
        [image(i) for i in (1, 2)],
        [truth(A, 1), truth(B, 2), truth(C, 3), truth(A, 4, 2), truth(B, 1, 2), truth(C, 2, 2)],
        "rrcf",
    )
    annotations["categories"][0]["name"] = "<rare & first>"
    first = [found(A, 0.9, 4), found(A, 0.8, 1), found(B, 0.9, 2), found(C, 0.5, 3)]
    first += [found(A, 0.7, 4, 2), found(B, 0.6, 2, 2)]
    second = [*copy.deepcopy(first), found(A, 0.95, 1), found(B, 0.95, 1, 2)]
    second[3]["score"] = 0.1
    return annotations, first, [*second, found(A, 0.4, 3)]


def test_confusions_of_rare_classes():
    annotations, first, _ = two_runs()
    got = rare_confusions(GroundTruth.load(annotations), Detections.from_results(first))
    # A in image 1: the frequent class; B: itself; B in image 2: the other rare one; C there:
    # nothing.
    expected = {OUTCOMES[0]: 1, OUTCOMES[1]: 1, OUTCOMES[3]: 1, OUTCOMES[4]: 1}
    assert got.outcomes == expected
    assert got.pairs == {("<rare & first>", "c4"): 1, ("<rare & first>", "c2"): 1}
    assert got.frequencies == {"<rare & first>": "r", "c4": "f", "c2": "r"}


def test_confusions_of_detections_without_boxes():
    annotations, first, _ = two_runs()
    expected = rare_confusions(GroundTruth.load(annotations), Detections.from_results(first))
    for result in first:
        del result["bbox"]
    got = rare_confusions(GroundTruth.load(annotations), Detections.from_results(first))
    assert got == expected


def test_most_improved_and_most_damaged():
    annotations, first, second = two_runs()
    before, after = (evaluate_lvis(annotations, run) for run in (first, second))
    better, worse = changes(before, after)
    assert [row["id"] for row in better] == [1]
    assert better[0]["change"] == better[0]["AP"] - better[0]["before"] > 0
    # In the second run a mistake scores higher than the only find.
    assert [row["id"] for row in worse] == [3] and worse[0]["change"] < 0
    better, worse = changes(after, before, count=1)
    assert [row["id"] for row in better + worse] == [3, 1]


def test_trend_keeps_classes_with_the_same_number_of_images_together():
    rows = [{"image_count": n, "AP": float(ap)} for n, ap in zip([1] * 15 + [100] * 5, range(20))]
    x, y = trend(rows)
    assert x == pytest.approx([1, 100]) and y == pytest.approx([7, 17])
    assert trend([]) == ([], [])


class Page(HTMLParser):
    """Collects what the page refers to and shows."""

    def __init__(self, text):
        super().__init__()
        self.tips, self.links, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.tips += [attrs["data-tip"]] if "data-tip" in attrs else []
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]


@pytest.mark.parametrize("count", [1, 2])
def test_page_is_self_contained_and_names_every_class(tmp_path, count):
    annotations, *runs = two_runs()
    names = ["first", "sec<ond"][:count]
    ground_truth = GroundTruth.load(annotations)
    results = {n: evaluate_lvis(ground_truth, run) for n, run in zip(names, runs)}
    confusions = {
        n: rare_confusions(ground_truth, Detections.from_results(run))
        for n, run in zip(names, runs)
    }
    path = write_report(tmp_path / "new" / "folder", results, confusions)
    text = path.read_text()
    page = Page(text)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in re.sub('base64,[^"]*', "", text) and "$" not in text.split("<script>")[0]
    expected = [row["name"] for result in results.values() for row in dots(result)]
    assert [tip.split(" (")[0] for tip in page.tips] == expected
    assert any("<rare & first>" in tip for tip in page.tips) and "<rare & first>" not in text
    pngs = {p.stem for p in path.parent.glob("*.png")}
    assert pngs == {"group_ap", "ap_against_images", "rare_confusions"} | (
        {"changes"} if count == 2 else set()
    )
    for png in path.parent.glob("*.png"):
        assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size > 5000


def test_page_of_nothing_found(tmp_path):
    annotations, first, _ = two_runs()
    annotations["annotations"] = []
    result = evaluate_lvis(annotations, first, "bbox")
    assert all(math.isnan(row["AP"]) for row in result.per_category)
    text = write_report(tmp_path, {"a": result, "b": result}).read_text()
    assert "–" in text


def test_runs_of_different_iou_types_are_refused(tmp_path):
    annotations, first, _ = two_runs()
    results = {t: evaluate_lvis(annotations, first, t) for t in ("bbox", "segm")}
    with pytest.raises(ValueError, match="bbox.*segm"):
        write_report(tmp_path, results)


def tool(name, *arguments):
    script = runpy.run_path(str(ROOT / "tools" / f"{name}.py"))
    return script["main"]([str(a) for a in arguments])


@pytest.fixture
def files(tmp_path):
    annotations, results = problem(4)
    content = {"gt.json": annotations, "a.json": results, "b.json": results[::2]}
    for name, value in content.items():
        (tmp_path / name).write_text(json.dumps(value, default=lambda counts: counts.decode()))
    return tmp_path, annotations, results


def test_evaluate_tool(files, capsys):
    folder, annotations, results = files
    tool("evaluate", folder / "gt.json", folder / "a.json", "--output", folder / "out.json")
    out = json.loads((folder / "out.json").read_text())
    assert list(out) == ["bbox", "segm"]
    for iou_type, content in out.items():
        assert content["metrics"] == evaluate_lvis(annotations, results, iou_type).metrics
        assert len(content["per_category"]) == len(annotations["categories"])
    printed = capsys.readouterr().out
    assert "ARl@300" in printed and f"{out['segm']['metrics']['AP']:.2f}" in printed


def test_evaluate_tool_ap_fixed(files):
    folder, annotations, results = files
    options = ["--iou-type", "bbox", "--fixed", "--output", folder / "out.json"]
    tool("evaluate", folder / "gt.json", folder / "a.json", *options)
    expected = evaluate_lvis(annotations, results, "bbox", -1, per_category=10000).metrics
    assert json.loads((folder / "out.json").read_text())["bbox"]["metrics"] == expected


def test_evaluate_tool_names_what_is_wrong(files):
    folder, *_ = files
    with pytest.raises(SystemExit, match="No such file"):
        tool("evaluate", folder / "gt.json", folder / "missing.json")
    (folder / "a.json").write_text(
        '[{"image_id": -5, "category_id": 3, "score": 1, "bbox": [0, 0, 1, 1]}]'
    )
    with pytest.raises(SystemExit, match="unknown image_id.* -5"):
        tool("evaluate", folder / "gt.json", folder / "a.json")


def test_report_tool(files, capsys):
    folder, *_ = files
    compare = ["--compare", folder / "a.json", folder / "b.json", "--output", folder / "report"]
    tool("report", folder / "gt.json", *compare)
    assert capsys.readouterr().out.strip() == str(folder / "report" / "report.html")
    text = (folder / "report" / "report.html").read_text()
    assert "Most improved and most damaged, a → b" in text
    with pytest.raises(SystemExit):
        tool("report", folder / "gt.json")


def test_figures_leave_matplotlib_alone(files):
    folder, *_ = files
    before = sys.modules.get("matplotlib.pyplot")
    figures = before.get_fignums() if before else []
    tool("report", folder / "gt.json", folder / "a.json", "--output", folder / "report")
    now = sys.modules.get("matplotlib.pyplot")
    assert (now.get_fignums() if now else []) == figures
    assert np.isfinite(len(figures))

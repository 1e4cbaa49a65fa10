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

from lvis_tde.evaluation import Detections, GroundTruth, compare_lvis, evaluate_lvis
from lvis_tde.evaluation.confusion import OUTCOMES, RANKS, rare_confusions
from lvis_tde.evaluation.report import write_report
from lvis_tde.evaluation.report.classes import changes, dots, trend
from lvis_tde.visualization.class_charts import ap_against_images

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
    assert pngs == {"group_ap", "ap_against_images", "rare_confusions", "rare_ranks"} | (
        {"changes"} if count == 2 else set()
    )
    for png in path.parent.glob("*.png"):
        assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size > 5000


def test_ranks_within_the_class_are_what_ap_is_made_of():
    annotations, first, second = two_runs()
    everything = GroundTruth.load(annotations)
    got = [
        rare_confusions(everything, Detections.from_results(run)).ranks for run in (first, second)
    ]
    # The first class is its own best at one of two places, though others score higher there, and
    # in the second run at both; of the second class the second object is never found.
    assert got[0] == {RANKS[0]: 2, RANKS[2]: 2} and got[1] == {RANKS[0]: 3, RANKS[2]: 1}
    late = [*first, *(found(C, score, 2) for score in (0.99, 0.98, 0.97))]
    expected = {RANKS[0]: 1, RANKS[1]: 1, RANKS[2]: 2}
    assert rare_confusions(everything, Detections.from_results(late)).ranks == expected


def test_title_remark_and_classes_without_objects(tmp_path):
    annotations, first, second = two_runs()
    annotations["annotations"] = [a for a in annotations["annotations"] if a["category_id"] != 2]
    results = {n: evaluate_lvis(annotations, run) for n, run in (("off", first), ("on", second))}
    path = write_report(tmp_path, results, dataset="bi<rds", model="m.pth", remark="Own & counts.")
    text = path.read_text()
    assert "<h1>Mask AP on bi&lt;rds: m.pth, off / on</h1>" in text
    assert "<p>Own &amp; counts.</p>" in text and "<th>change of AP" in text
    assert text.count("<tr class=empty hidden>") == 1
    assert "show the 1 classes without objects" in text
    changed = results["on"].per_category[2]["AP"] - results["off"].per_category[2]["AP"]
    assert f"<td>{changed:+.1f}" in text
    assert (
        "class=empty"
        not in write_report(tmp_path, {"m": evaluate_lvis(*two_runs()[:2])}).read_text()
    )


def test_axes_begin_at_zero_where_nothing_is_found():
    annotations, first, _ = two_runs()
    wrong = [{**one, "bbox": [120, 120, 4, 4]} for one in first]
    rows = dots(evaluate_lvis(annotations, wrong, "bbox"))
    assert {row["AP"] for row in rows} == {0.0}
    axes = ap_against_images({"m": (rows, trend(rows))}).axes[0]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= 20


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
    for one in annotations["annotations"]:
        one["iscrowd"] = 0  # crowds are left out of files, which lvis does not
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


def test_tools_give_intervals(files, capsys):
    folder, annotations, results = files
    options = ["--iou-type", "bbox", "--bootstrap", 40]
    shown_nowhere = {"id": 10**6, "name": "none", "frequency": "r", "image_count": 1}
    content = json.loads((folder / "gt.json").read_text())
    content["categories"].append(shown_nowhere)
    (folder / "gt.json").write_text(json.dumps(content))
    tool("evaluate", folder / "gt.json", folder / "a.json", *options, "--output", folder / "o.json")
    expected = evaluate_lvis(annotations, results, "bbox", bootstrap=40).intervals["AP"]
    found = json.loads((folder / "o.json").read_text(), parse_constant=pytest.fail)["bbox"]
    low, high = found["intervals"]["AP"]
    # What is undefined is left out, or null: JSON has no NaN.
    assert "APr" not in found["intervals"] and found["per_category"][-1]["interval"] is None
    assert (low, high) == expected and low < high
    printed = capsys.readouterr().out.splitlines()
    ends = [float(line.split()[1]) for line in printed if line.startswith(("  from", "  to"))]
    assert ends == pytest.approx(expected, abs=0.006)
    compare = ["--compare", folder / "a.json", folder / "b.json", "--output", folder / "report"]
    tool("report", folder / "gt.json", *compare, *options)
    text = (folder / "report" / "report.html").read_text()
    both = compare_lvis(annotations, results, results[::2], "bbox", bootstrap=40)
    low, high = both.intervals["AP"]
    assert "Is b better than a?" in text and f"{low:+.1f} to {high:+.1f}" in text
    assert f"<td>{both.wins['AP']:.0%}</td>" in text
    tool("report", folder / "gt.json", *compare, "--bootstrap", 0)
    assert "Is b better than a?" not in (folder / "report" / "report.html").read_text()


def test_evaluate_tool_ap_fixed(files):
    folder, annotations, results = files
    options = ["--iou-type", "bbox", "--fixed", "--output", folder / "out.json"]
    tool("evaluate", folder / "gt.json", folder / "a.json", *options)
    expected = evaluate_lvis(annotations, results, "bbox", -1, per_category=10000).metrics
    assert json.loads((folder / "out.json").read_text())["bbox"]["metrics"] == expected


def test_evaluate_tool_names_what_is_wrong(files):
    folder, *_ = files
    with pytest.raises(FileNotFoundError, match="missing.json"):
        tool("evaluate", folder / "gt.json", folder / "missing.json")
    (folder / "a.json").write_text(
        '[{"image_id": -5, "category_id": 3, "score": 1, "bbox": [0, 0, 1, 1]}]'
    )
    with pytest.raises(ValueError, match="unknown image_id.* -5"):
        tool("evaluate", folder / "gt.json", folder / "a.json")


def test_report_tool(files, capsys):
    folder, *_ = files
    compare = ["--compare", folder / "a.json", folder / "b.json", "--output", folder / "report"]
    tool("report", folder / "gt.json", *compare)
    assert str(folder / "report" / "report.html") in capsys.readouterr().out
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


def plain_coco(annotations):
    """The same objects as a COCO file has them."""
    keep = ("id", "image_id", "category_id", "bbox", "area", "segmentation")
    return {
        "images": [
            {**{k: i[k] for k in ("id", "height", "width")}, "file_name": f"{i['id']}.png"}
            for i in annotations["images"]
        ],
        "annotations": [
            {k: a[k] for k in keep if k in a} for a in annotations["annotations"] if a["area"] > 0
        ],
        "categories": [{"id": c["id"], "name": c["name"]} for c in annotations["categories"]],
    }


@pytest.fixture
def coco_files(tmp_path):
    annotations, first, _ = two_runs()
    val, train = plain_coco(annotations), plain_coco(annotations)
    extra = [{**train["images"][0], "id": 100 + i, "file_name": f"{i}.png"} for i in range(40)]
    train["images"] += extra
    for i, image_ in enumerate(extra):
        train["annotations"].append({**truth(A, 3, image_["id"]), "id": 1000 + i})
    for name, content in (("val", val), ("train", train), ("found", first)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_groups_that_are_not_known_have_no_intervals(coco_files):
    files = [coco_files / f"{name}.json" for name in ("val", "found", "intervals")]
    tool("evaluate", *files[:2], "--bootstrap", 5, "--output", files[2])
    intervals = json.loads(files[2].read_text())["bbox"]["intervals"]
    assert "AP" in intervals and "APr" not in intervals


@pytest.mark.parametrize("engine", ["native", "lvis"])
def test_evaluate_tool_takes_coco_files(coco_files, capsys, engine):
    folder = coco_files
    files = [folder / "val.json", folder / "found.json"]
    tool("evaluate", *files, "--engine", engine, "--output", folder / "plain.json")
    printed = capsys.readouterr().out
    assert "give --train-annotations TRAIN.json for APr" in printed and " n/a" in printed
    train = ["--train-annotations", folder / "train.json", "--output", folder / "trained.json"]
    tool("evaluate", *files, "--engine", engine, *train)
    assert "--train-annotations" not in capsys.readouterr().out
    plain, trained = (json.loads((folder / f"{n}.json").read_text()) for n in ("plain", "trained"))
    content = json.loads((folder / "val.json").read_text())
    for image_ in content["images"]:
        shown = {a["category_id"] for a in content["annotations"] if a["image_id"] == image_["id"]}
        image_.update(not_exhaustive_category_ids=[])
        image_["neg_category_ids"] = [i for i in (1, 2, 3, 4) if i not in shown]
    for category in content["categories"]:  # the third is in 42 training images
        category["frequency"] = "c" if category["id"] == 3 else "r"
    for kind in ("bbox", "segm"):
        expected = evaluate_lvis(content, folder / "found.json", kind).metrics
        assert trained[kind]["metrics"] == pytest.approx(expected)
        groups = ("APr", "APc", "APf")
        known = {k: v for k, v in expected.items() if k not in groups}
        assert plain[kind]["metrics"] == pytest.approx({**known, **dict.fromkeys(groups, -100.0)})


def test_report_tool_on_coco_files_says_whose_counts_it_has(coco_files, capsys):
    folder = coco_files
    files = [folder / "val.json", folder / "found.json", "--output", folder / "page"]
    tool("report", *files)
    text = (folder / "page" / "report.html").read_text()
    assert "are by the images of val itself" in text and "on val: found" in text
    tool("report", *files, "--train-annotations", folder / "train.json", "--dataset", "birds")
    text = (folder / "page" / "report.html").read_text()
    assert "itself" not in text and "on birds: found" in text


def test_boxes_alone_are_evaluated_as_boxes(coco_files, capsys):
    folder = coco_files
    found_ = json.loads((folder / "found.json").read_text())
    boxes = [{k: v for k, v in one.items() if k != "segmentation"} for one in found_]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    tool("evaluate", folder / "val.json", folder / "boxes.json")
    printed = capsys.readouterr().out
    assert "bbox" in printed and "segm " not in printed
    with pytest.raises(ValueError, match="detections without segmentation.*--iou-type bbox"):
        tool("evaluate", folder / "val.json", folder / "boxes.json", "--iou-type", "segm")

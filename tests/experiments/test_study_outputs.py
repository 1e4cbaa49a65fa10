"""Tables, pictures and page of a study with made-up numbers."""

import copy
import csv
import io
import json
import re
import statistics
from html.parser import HTMLParser

import pytest
from study_util import METHODS, RECIPES, order, pair, study

from lvis_tde.evaluation.seeds import student
from lvis_tde.experiments.study.numbers import disagreements, ranks_of, values_of
from lvis_tde.experiments.study.outputs import write_outputs
from lvis_tde.experiments.study.pictures import momentum_curves, momentum_gains, study_pictures
from lvis_tde.experiments.study.tables import latex, markdown, study_tables
from lvis_tde.experiments.study.tidy import COLUMNS, tidy_csv


@pytest.fixture(scope="module")
def three():
    return study()


def table_of(found, title):
    (table,) = [one for one in study_tables(found) if one.title.startswith(title)]
    return table


def expected_mean(values):
    half = student(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), half


def over_seeds(found, run, task, metric):
    return [one["val"][task][metric] for one in found["runs"][run].values()]


def test_runs_have_means_and_intervals_over_seeds(three):
    for task, title in (("bbox", "Box AP on val (%)"), ("segm", "Mask AP on val (%)")):
        head, *rows = table_of(three, title).rows
        assert head == ["trained", "method", "seeds", "AP", "APr", "APc", "APf"]
        assert [row[:2] for row in rows[:2]] == [["softmax", "as trained"], ["softmax", "TDE"]]
        for row, run in zip(rows, three["runs"]):
            for cell, metric in zip(row[3:], head[3:]):
                mean, half = expected_mean(over_seeds(three, run, task, metric))
                assert cell == f"{mean:.1f} ± {half:.1f}", (run, metric)


def test_a_glance_is_of_masks_and_in_the_order_of_ap(three):
    head, *rows = table_of(three, "At a glance: mask AP").rows
    names = ["as trained", "TDE", "composition"]
    assert head == ["trained", *(f"{metric} {name}" for metric in ("AP", "APr") for name in names)]
    assert [row[0] for row in rows] == ["de-confound", "softmax"]
    cells = iter(rows[0][1:])
    for metric in ("AP", "APr"):
        for method in METHODS:
            mean, half = expected_mean(over_seeds(three, f"deconfound/{method}", "segm", metric))
            assert next(cells) == f"{mean:.1f} ± {half:.1f}"
    assert "At a glance: box AP" in markdown(study_tables(study(masks=False)))
    # Nothing but trained models: the table of all runs says it.
    bare = study(methods={"factual": (0, 0), "tde": (1, 1)})
    bare["runs"] = {run: one for run, one in bare["runs"].items() if run.endswith("factual")}
    assert "glance" not in markdown(study_tables(bare)) and "glance" not in study_pictures(bare)


def test_methods_that_change_nothing_are_no_dots_of_their_own():
    found = study()
    found["runs"]["softmax/tde"] = copy.deepcopy(found["runs"]["softmax/factual"])
    (axes,) = study_pictures(found)["ap_over_apr"].figure.axes
    letters = [text.get_text() for text in axes.texts]
    assert letters.count("T") == 1 and letters.count("C") == 2


def test_differences_have_seeds_resamples_and_intervals(three):
    head, *rows = table_of(three, "Differences on the same").rows
    found = [one["bbox"]["APr"] for one in three["pairs"][1]["seeds"].values()]
    row = dict(zip(head, rows[2]))
    assert (row["run"], row["over"], row["of"]) == ("de-confound + TDE", "de-confound", "box")
    mean, half = expected_mean([one["difference"] for one in found])
    assert row["APr"] == f"{mean:+.1f} ± {half:.1f}"
    assert row["APr seeds"] == f"{sum(one['difference'] > 0 for one in found)}/3"
    assert row["APr resamples"] == f"{statistics.fmean(one['wins'] for one in found):.0%}"
    by_seed = table_of(three, "Differences seed by seed").rows
    one = three["pairs"][0]["seeds"]["1"]["bbox"]["AP"]
    low, high = one["interval"]
    cell = f"{one['difference']:+.1f} [{low:+.1f}, {high:+.1f}] {one['wins']:.0%}"
    assert by_seed[0][-2] == "seed 1" and by_seed[1][-2] == cell


def test_ours_stand_beside_what_is_published(three):
    head, *rows = table_of(three, "The paper's tables").rows
    found = {tuple(row[:3]): dict(zip(head, row)) for row in rows}
    on = found["de-confound", "on", "yes"]
    assert on["published mask AP"] == "28.4" and on["published box AP"] == "31.0"
    mean, half = expected_mean(over_seeds(three, "deconfound/tde", "segm", "AP"))
    assert on["mask AP"] == f"{mean:.1f} ± {half:.1f}"
    # What nobody published stays empty, and so does what was not measured.
    assert found["softmax", "on", "yes"]["published mask AP"] == ""
    boxes = table_of(study(masks=False), "The paper's tables").rows
    assert {row[3] for row in boxes[1:]} == {""}


def test_orders_that_are_not_reproduced_come_first(three, tmp_path):
    (line,) = disagreements(three)
    assert line.startswith("The published order “The other way” (Somebody, 2024) is not reproduced")
    assert "2 of 2 pairs are not that way around here (box AP, 3 seeds" in line
    low, high = (over_seeds(three, f"deconfound/{m}", "bbox", "AP") for m in ("tde", "factual"))
    mean, half = expected_mean([b - a for a, b in zip(low, high)])
    zero = ", an interval that includes zero" if -mean < half else ""
    assert f"de-confound over de-confound + TDE {mean:+.1f} ± {half:.1f}{zero}." in line
    assert write_outputs(three, tmp_path).startswith(line)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.index("is not reproduced") < page.index("<img") < page.index("<table")
    assert three["orders"][1]["title"] in table_of(three, "Published orders").rows[2][0]


def test_equal_runs_do_not_reproduce_an_order():
    found = study()
    found["runs"]["softmax/tde"] = copy.deepcopy(found["runs"]["softmax/factual"])  # strength 0
    found["orders"] = [order((0, 1, 2), "TDE", [["softmax/factual"], ["softmax/tde"]])]
    (line,) = disagreements(found)
    assert (
        "1 of 1 pairs is not that way around" in line and "softmax + TDE over softmax 0.0" in line
    )
    found["orders"][0]["tau"] = None  # what JSON has of NaN
    assert "tau" not in disagreements(found)[0]
    assert table_of(found, "Published orders").rows[1][4] == "–"


def test_a_study_that_has_the_published_orders_says_so(three, tmp_path):
    found = {**three, "orders": three["orders"][:1]}
    assert disagreements(found) == []
    assert write_outputs(found, tmp_path).startswith("The published order is reproduced")
    # One that lost a run is not the whole one.
    found["orders"] = [{**found["orders"][0], "without": ["softmax/composition"]}]
    begin = "The published order is reproduced by the means over seeds, without softmax + "
    assert write_outputs(found, tmp_path).startswith(begin)
    assert "; without softmax + " in table_of(found, "Published orders").rows[1][0]


def test_ranks(three):
    found = ranks_of(three, "bbox", "APr")
    means = {r: statistics.fmean(over_seeds(three, r, "bbox", "APr")) for r in three["runs"]}
    assert sorted(found, key=found.get) == sorted(means, key=means.get, reverse=True)
    head, *rows = table_of(three, "Ranks by box AP").rows
    assert [row[2] for row in rows] == ["1", "2", "3", "4", "5", "6"]


def test_one_seed_has_no_intervals_over_seeds_and_no_nan(tmp_path):
    text = write_outputs(study(seeds=(7,)), tmp_path)
    for file in ("tables.md", "tables.tex", "tables.csv", "index.html"):
        content = re.sub(r"base64,[^\"]*", "", (tmp_path / file).read_text("utf-8"))
        assert "nan" not in content.lower(), file
    assert "±" not in re.sub("± half", "", text) and "One seed" in text
    assert "seed 7" in text and re.search(r"\d \[\d+\.\d, \d+\.\d\]", text)


def test_a_run_that_lacks_a_seed(tmp_path):
    found = study()
    for method in METHODS:
        del found["runs"][f"deconfound/{method}"]["1"]
    del found["pairs"][1]["seeds"]["1"], found["curves"]["deconfound"]["1"]
    found["recipes"]["late"] = {"title": "a late one", "config": "", "opts": []}
    text = write_outputs(found, tmp_path)
    assert "No seed is finished of a late one." in text
    assert "Not finished: de-confound (2 of 3 seeds). Ranks" in text
    assert {row[2] for row in table_of(found, "Box AP on val (%)").rows[4:]} == {"2"}
    # At a glance it says so itself, and is behind the others, whose AP is lower.
    first, last = table_of(found, "At a glance").rows[1:]
    assert first[0] == "softmax" and not any("of 3" in cell for cell in first)
    assert last[0] == "de-confound" and all(cell.endswith(" (2 of 3)") for cell in last[1:])
    assert {run.split("/")[0] for run in ranks_of(found, "bbox", "AP")} == {"softmax"}
    assert {row[0] for row in table_of(found, "Ranks").rows[1:]} == {"softmax"}
    assert table_of(found, "Differences seed by seed").rows[-1][-2] == "–"
    # The order is judged on the seeds that all of its runs have.
    gains = [
        found["runs"]["softmax/factual"][s]["val"]["bbox"]["AP"]
        - found["runs"]["deconfound/tde"][s]["val"]["bbox"]["AP"]
        for s in ("0", "2")
    ]
    assert f"softmax over de-confound + TDE {statistics.fmean(gains):+.1f} ±" in text
    # So do the pictures.
    words = [text.get_text() for text in study_pictures(found)["glance"].figure.texts]
    assert any(one.endswith("mean of 2 to 3 seeds") for one in words)


def test_metrics_without_a_class_are_left_out(tmp_path):
    found = study()
    for run in found["runs"].values():
        for one in run.values():
            one["val"]["bbox"]["APr"] = -1.0 if run is found["runs"]["softmax/tde"] else None
    for one in found["pairs"]:
        for seed in one["seeds"].values():
            seed["bbox"]["APr"] = {"difference": None, "interval": [None, None], "wins": None}
            # As of too few images: all resamples lack the classes.
            seed["bbox"]["APc"].update(interval=[None, None], wins=None)
            seed["bbox"]["AP"].update(interval=[None, None], wins=None)
    text = write_outputs(found, tmp_path)
    assert values_of(found, "softmax/tde", "bbox", "APr") == {}
    assert {row[4] for row in table_of(found, "Box AP on val (%)").rows[1:]} == {"–"}
    row = dict(zip(*table_of(found, "Differences on the same").rows[:2]))
    assert [row[key] for key in ("AP seeds", "AP resamples", "APr seeds")] == ["3/3", "–", "–"]
    assert "nan" not in text and not (tmp_path / "ap_over_apr.png").exists()


def test_csv_has_every_number(three):
    rows = list(csv.DictReader(io.StringIO(tidy_csv(three))))
    assert tuple(rows[0]) == COLUMNS
    for run, seeds in three["runs"].items():
        for task in ("bbox", "segm"):
            own = [r for r in rows if (r["kind"], r["run"], r["task"]) == ("run", run, task)]
            of_ap = {r["seed"]: r for r in own if r["metric"] == "AP"}
            for seed, one in seeds.items():
                assert float(of_ap[seed]["value"]) == one["val"][task]["AP"]
                assert float(of_ap[seed]["low"]) == one["intervals"][task]["AP"][0]
                assert of_ap[seed]["interval"] == "images"
            mean, half = expected_mean(over_seeds(three, run, task, "AP"))
            assert float(of_ap[""]["high"]) == pytest.approx(mean + half, abs=1e-3)
            assert of_ap[""]["interval"] == "seeds" and of_ap[""]["seeds"] == "3"
            assert float(of_ap[""]["rank"]) == ranks_of(three, task, "AP")[run]
    (gain,) = [
        r
        for r in rows
        if r["kind"] == "difference" and r["run"] == "softmax/tde" and r["seed"] == "2"
        and r["task"] == "segm" and r["metric"] == "APr"
    ]  # fmt: skip
    expected = three["pairs"][0]["seeds"]["2"]["segm"]["APr"]
    assert float(gain["value"]) == expected["difference"] and gain["over"] == "softmax/factual"
    assert sum(r["kind"] == "tau" for r in rows) == 2 * 4


def test_latex_is_balanced_and_escaped():
    found = study(titles={"softmax": "soft_max & 50% <x>", "deconfound": "de-confound"})
    text = latex(study_tables(found))
    assert r"soft\_max \& 50\% $<$x$>$" in text and r"$\pm$" in text
    for name in ("table", "tabular"):
        begun, ended = (text.count(f"\\{w}{{{name}}}") for w in ("begin", "end"))
        assert begun == ended == len(study_tables(found))
    for body in re.findall(r"\\begin{tabular}{(l+r+)}\n(.*?)\\end{tabular}", text, re.DOTALL):
        lines = [line for line in body[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(body[0])}
        assert body[1].count(r"\midrule") == 1 and r"\toprule" in body[1]
    assert not re.search(r"(?<!\\)[%#_]", text) and text.isascii()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(three, tmp_path):
    found = {**three, "title": "<b>A study</b>"}
    found["recipes"] = {**three["recipes"], "softmax": {"title": "<i>soft</i>"}}
    text = write_outputs(found, tmp_path)
    assert (tmp_path / "tables.md").read_text("utf-8") == text + "\n"
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt;A study" in page
    parsed = Page(page)
    assert parsed.open == []
    images = [attributes for tag, attributes in parsed.seen if tag == "img"]
    names = ("glance", "ap_over_apr", "ranks", "learning_curves")
    assert len(images) == len(names) and all((tmp_path / f"{n}.png").is_file() for n in names)
    assert all(one["src"].startswith("data:image/png;base64,") and one["alt"] for one in images)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    tables = sum(tag == "table" for tag, _ in parsed.seen)
    assert tables == len(study_tables(found)) == text.count("\n\n**") + text.startswith("**")
    assert "seeds 0, 1, 2; 2026-01-02; commit abc1234; a CPU, 2 cores; 2.1 hours" in page


def test_what_a_study_lacks_is_left_out(tmp_path):
    found = study()
    found.update(pairs=[], orders=[], curves={}, commit=None)
    text = write_outputs(found, tmp_path)
    assert (
        text.startswith("**At a glance: mask AP")
        and "Differences" not in text
        and "orders" not in text
    )
    assert "commit" not in (tmp_path / "index.html").read_text("utf-8")
    assert not (tmp_path / "learning_curves.png").exists()
    again = json.loads(json.dumps(found))
    assert markdown(study_tables(again)) == text


def momentum_study():
    recipes, titles, opts = {}, {}, {}
    for family, start in RECIPES.items():
        for name in ("0", "0.5", "0.98", "AdamW"):
            recipe = f"{family}_{name}"
            recipes[recipe] = start
            titles[recipe] = f"{family}, {name}"
            opts[recipe] = ["MODEL.TDE.TAU", 16, "SOLVER.MOMENTUM", name]
            if name == "AdamW":
                opts[recipe] = ["SOLVER.OPTIMIZER", "ADAMW"]
        recipes[f"{family}_other"] = start  # says nothing of its optimizer
    methods = {"factual": (0, 0), "tde": (1, 3)}
    return study(recipes=recipes, methods=methods, titles=titles, opts=opts, masks=False)


def test_gains_by_momentum_are_those_of_the_pairs():
    found = momentum_study()
    gains = momentum_gains(found)
    assert {name: list(one) for name, one in gains.items()} == {
        family: ["0", "0.5", "0.98", "AdamW"] for family in RECIPES
    }
    one = next(p for p in found["pairs"] if p["run"] == "softmax_0.98/tde")
    expected = [seed["bbox"]["APr"]["difference"] for seed in one["seeds"].values()]
    values, half = gains["softmax"]["0.98"]["APr"]
    assert values == expected and half == pytest.approx(expected_mean(expected)[1])
    assert {"momentum", "learning_curves"} <= study_pictures(found).keys()
    courses = momentum_curves(found)
    assert {name: list(one) for name, one in courses.items()} == {
        family: ["0", "0.5", "0.98", "AdamW"] for family in RECIPES
    }
    assert courses["softmax"]["0.5"] == found["curves"]["softmax_0.5"]
    assert "gain_over_ap" in study_pictures(found)
    of_training = {recipe: {"0": [{"iteration": 19}]} for recipe in found["curves"]}
    assert momentum_curves({**found, "curves": of_training}) == {}
    assert "momentum" not in study_pictures(study())
    assert pair(found["runs"], one["run"], one["over"], None)["seeds"] == one["seeds"]

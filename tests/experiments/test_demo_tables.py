"""Tables and charts of made-up results of several seeds."""

import copy
import dataclasses
import json

import pytest

from lvis_tde.experiments.demo_tables import format_family, format_table, summarize_seeds
from lvis_tde.experiments.recording import METRICS
from lvis_tde.posthoc import Settings


def row(method, strength, val, **settings):
    def metrics(values):
        return dict(zip(("AP", "APr", "APc", "APf"), values))

    return {
        "method": method,
        "strength": strength,
        "settings": dataclasses.asdict(Settings(**settings)),
        "calibration": metrics((1.0, 2.0, 3.0, 4.0)),
        "val": metrics(val),
    }


def made_up(seed=0, gain=2.0):
    values = dict.fromkeys(METRICS, 10.0 + seed)
    rows = [
        row("factual", 0.0, (20.0 + seed, 5.0, 21.0, 30.0)),
        row("tde", 0.0 if seed else 1.5, (20.0 + seed + gain, 7.0, 21.0, 30.0)),
        row("composition", None, (24.0, 11.0, 21.0, 30.0), tau_norm=0.5, region=1.0, class_=1.0),
    ]
    return {
        "set": {"kind": "shapes", "seed": seed},
        "seed": seed,
        "runs": {run: {"bbox": values, "segm": values} for run in ("softmax", "sigmoid_tde")},
        "image_count": {"a": 2, "b": 300},
        "per_class": {"softmax": {"a": 1.0, "b": None}, "sigmoid_tde": {"a": 2.0, "b": 3.0}},
        "posthoc": {"softmax": rows, "sigmoid": rows},
    }


def write(output, *seeds):
    for result in seeds:
        file = output / f"seed{result['seed']}" / "results.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result))


def cells(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_of_one_seed():
    assert cells(format_table(made_up()).splitlines()[-1], "sigmoid, TDE on")[1:3] == [
        "segm",
        "10.0",
    ]
    first, second = format_family(made_up()).split("\n\n")
    assert cells(first, "softmax, boxes on val")[1:] == ["strength", "AP", "APr", "APc", "APf"]
    assert second.startswith("| sigmoid, boxes on val")
    assert cells(first, "as trained") == ["as trained", "", "20.0", "5.0", "21.0", "30.0"]
    assert cells(first, "TDE") == ["TDE", "1.5", "22.0", "7.0", "21.0", "30.0"]
    assert cells(first, "composition")[1:3] == ["alpha 1, tau_norm 0.5", "24.0"]
    assert cells(format_family(made_up(1)).split("\n\n")[0], "TDE")[1] == "0 (off)"
    assert len({len(line) for line in first.splitlines()}) == 1  # columns are aligned


def test_summary_has_means_and_gains_seed_by_seed(tmp_path):
    write(tmp_path, made_up(0, gain=2.0), made_up(1, gain=4.0))
    runs, softmax, _ = summarize_seeds(tmp_path).split("\n\n")
    assert cells(runs, "mask AP, 2 seeds")[1:] == list(METRICS)
    assert cells(runs, "softmax")[1] == "10.5 ± 0.7"
    heads = cells(softmax, "softmax, boxes on val, 2 seeds")
    assert heads[1:] == ["strengths", "AP", "APr", "APc", "APf", "gain in AP", "gain in APr"]
    assert cells(softmax, "as trained")[2] == "20.5 ± 0.7"
    assert cells(softmax, "as trained")[-2:] == ["", ""]
    tde = cells(softmax, "TDE")
    assert tde[1:3] == ["1.5, 0 (off)", "23.5 ± 2.1"]
    assert tde[-2:] == ["+3.0 ± 1.4", "+2.0 ± 0.0"]
    assert cells(softmax, "composition")[-2:] == ["+3.5 ± 0.7", "+6.0 ± 0.0"]
    for chart in ("group_ap_seeds.png", "ap_over_images_seeds.png", "posthoc_seeds.png"):
        assert (tmp_path / chart).is_file()


def gains(difference):
    ends = [difference - 1, difference + 1]
    one = {"difference": difference, "interval": ends, "wins": 0.98}
    return {metric: one for metric in ("AP", "APr", "APc", "APf")}


def with_intervals(seed, difference):
    """What today's results have on top."""
    made = copy.deepcopy(made_up(seed))
    ends = {metric: [9.0, 11.5] for metric in METRICS}
    made["intervals"] = {run: {"bbox": ends, "segm": ends} for run in made["runs"]}
    both = {"bbox": gains(difference), "segm": gains(difference)}
    made["gains"] = [{"run": "sigmoid_tde", "over": "softmax", **both}]
    for rows in made["posthoc"].values():
        for one in rows:
            one["gains"] = gains(0.5 if one["strength"] is None else difference)
    return made


def test_tables_have_intervals():
    made = with_intervals(0, 2.0)
    runs, differences, note = format_table(made).split("\n\n")
    line = next(line for line in runs.splitlines() if line.startswith("| softmax "))
    assert [cell.strip() for cell in line.split("|")][3:-1] == [
        *("10.0 [9.0, 11.5]", "10.0", "10.0"),
        *["10.0 [9.0, 11.5]"] * 3,
    ]
    assert cells(differences, "gain") == ["gain", "over", "task", "AP", "APr", "APc", "APf"]
    assert differences.count("| +2.0 [+1.0, +3.0] 98% ") == 8 and "1000 resamples" in note
    first, _ = format_family(made).split("\n\n")
    assert cells(first, "as trained")[-2:] == ["", ""]
    assert cells(first, "TDE")[-2:] == ["+2.0 [+1.0, +3.0] 98%"] * 2
    made["gains"][0]["segm"]["AP"] = {"difference": 0.0, "interval": [0.0, 0.0], "wins": 0.0}
    made["gains"][0]["segm"]["APr"] = {"difference": None, "interval": [None] * 2, "wins": None}
    last = format_table(made).split("\n\n")[1].splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")][4:6] == ["0", "n/a"]


def test_summary_has_intervals_seed_by_seed(tmp_path):
    write(tmp_path, with_intervals(0, 2.0), with_intervals(1, 4.0))
    _, spread, single, note, softmax, of_softmax, *_ = summarize_seeds(tmp_path).split("\n\n")
    assert cells(spread, "sigmoid, TDE on")[1:3] == ["softmax", "+3.0 ± 1.4"]
    rows = [line for line in single.splitlines() if line.startswith("| sigmoid, TDE on")]
    assert [[cell.strip() for cell in row.split("|")][3:6] for row in rows] == [
        [metric, "+2.0 [+1.0, +3.0] 98%", "+4.0 [+3.0, +5.0] 98%"] for metric in ("AP", "APr")
    ]
    assert "share of the resamples" in note and "gain in AP" in softmax
    heads = [f"{metric}, seed {seed}" for metric in ("AP", "APr") for seed in (0, 1)]
    assert cells(of_softmax, "softmax, gain in")[1:] == heads
    assert cells(of_softmax, "composition")[1:] == ["+0.5 [-0.5, +1.5] 98%"] * 4


def test_summary_of_results_from_before_there_were_methods(tmp_path):
    old = made_up()
    del old["posthoc"]
    write(tmp_path, old)
    summary = summarize_seeds(tmp_path)
    assert "| mask AP, 1 seeds |" in summary and "\n\n" not in summary
    assert cells(summary, "softmax")[1] == "10.0"  # one seed has no spread


def test_different_sets_or_models_are_no_seeds_of_each_other(tmp_path):
    with pytest.raises(ValueError, match="holds no seed"):
        summarize_seeds(tmp_path)
    # Whether a result says which set it is of or is older than that.
    for made in ({"kind": "glyphs"}, {}):
        write(tmp_path, made_up(0), {**made_up(1), "set": made})
        with pytest.raises(ValueError, match="seed0 and .*seed1 are results on different sets"):
            summarize_seeds(tmp_path)
    other = copy.deepcopy(made_up(1))
    del other["runs"]["softmax"]
    write(tmp_path, other)
    with pytest.raises(ValueError, match="run the same models for each seed"):
        summarize_seeds(tmp_path)

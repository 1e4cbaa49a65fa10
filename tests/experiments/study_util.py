"""A study as ``study.json`` has it, with random numbers."""

import numpy as np

METHODS = {"factual": (0, 0), "tde": (1.5, 4), "composition": (2.5, 6)}
RECIPES = {"softmax": (14.0, 1.0), "deconfound": (16.0, 3.0)}
TITLES = {"softmax": "softmax", "deconfound": "de-confound"}


def metrics_of(rng, ap, rare, noise):
    values = {"AP": ap, "AP50": ap + 9, "APr": rare, "APc": ap + 1, "APf": 20 - 0.2 * rare}
    return {k: round(max(0.0, v + noise * rng.normal()), 4) for k, v in values.items()}


def study(seeds=(0, 1, 2), recipes=RECIPES, methods=METHODS, titles=None, opts=None, masks=True):
    """Runs of each recipe and method; pairs of TDE, two orders, curves."""
    rng = np.random.default_rng(0)
    titles = titles or TITLES
    runs, curves = {}, {}
    for recipe, (ap, rare) in recipes.items():
        for seed in seeds:
            shift = rng.normal()
            for method, (more, rarer) in methods.items():
                base = ap + shift + more, rare + abs(shift) + rarer
                val = {"bbox": metrics_of(rng, *base, 0.3)}
                if masks:
                    val["segm"] = metrics_of(rng, base[0] - 2, base[1], 0.3)
                ends = {
                    task: {m: [round(v - 1.5, 4), round(v + 1.5, 4)] for m, v in one.items()}
                    for task, one in val.items()
                }
                runs.setdefault(f"{recipe}/{method}", {})[str(seed)] = {
                    "strength": {"factual": None, "tde": 1.5}.get(method),
                    "settings": {}, "calibration": val["bbox"], "val": val, "intervals": ends,
                }  # fmt: skip
            curves.setdefault(recipe, {})[str(seed)] = _curve(rng, rare)
    first, last = list(recipes)[0], list(recipes)[-1]
    low, middle, high = f"{first}/factual", f"{last}/factual", f"{last}/tde"
    made = {
        "title": "A study", "file": {}, "set": {"kind": "glyphs"}, "seeds": list(seeds),
        "commit": "abc1234", "date": "2026-01-02T03:04:05+00:00", "hardware": "a CPU, 2 cores",
        "seconds": 7384.0,
        "recipes": {
            r: {"title": titles.get(r, r), "config": f"{r}.yaml", "opts": (opts or {}).get(r, [])}
            for r in recipes
        },
        "runs": runs,
        "pairs": [pair(runs, f"{r}/tde", f"{r}/factual", rng) for r in recipes],
        "orders": [
            order(seeds, "Training and TDE", [[low], [middle], [high]]),
            order(seeds, "The other way", [[high], [low, middle]]),
        ],
        "curves": curves,
    }  # fmt: skip
    return made


def pair(runs, run, over, rng):
    seeds = {}
    for seed in runs[run]:
        seeds[seed] = {}
        for task, values in runs[run][seed]["val"].items():
            before = runs[over][seed]["val"][task]
            seeds[seed][task] = {}
            for metric in ("AP", "AP50", "APr", "APc", "APf"):
                gain = round(values[metric] - before[metric], 4)
                ends = [round(gain - 0.8, 4), round(gain + 0.8, 4)]
                wins = round(float(np.clip(0.5 + gain / 2, 0, 1)), 3)
                one = {"difference": gain, "interval": ends, "wins": wins}
                seeds[seed][task][metric] = one
    return {"run": run, "over": over, "seeds": seeds}


def order(seeds, title, runs):
    taus = {str(seed): 0.3333 for seed in seeds}
    pairs = 3 if all(len(some) == 1 for some in runs) else 2
    return {"title": title, "source": "Somebody, 2024", "metric": "AP", "task": "bbox",
            "runs": runs, "tau": 0.3333, "pairs": pairs, "seeds": taus}  # fmt: skip


def _curve(rng, rare):
    rows = []
    for done in range(20, 1301, 20):
        t = done / 1300
        row = {"iteration": done - 1, "fg_cosine_to_mean": 0.8 - 0.3 * t + 0.02 * rng.normal()}
        for group, size in (("r", 0.6), ("c", 0.9), ("f", 1.4)):
            row[f"weight_norm_{group}"] = 0.3 + size * t + 0.01 * rng.normal()
        rows.append(row)
    for done in range(130, 1301, 130):
        t = done / 1300
        row = {"iteration": done - 1, "AP": 15 * t, "APr": rare * t * t}
        rows.append({**row, "AP_tde": 17 * t, "APr_tde": (rare + 3) * t})
    return rows

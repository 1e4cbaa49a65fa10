"""Small random LVIS problems full of ties, and the official package as the judge of them."""

import copy

import numpy as np
import pycocotools.mask as mask_utils

from lvis_tde.evaluation.official import load_official


def official_metrics(annotations, results, iou_type, max_dets=300):
    """Metrics in percent, straight from the official classes."""
    official = load_official()

    class FromDict(official.LVIS):
        def _load_json(self, source):
            return copy.deepcopy(source)

    gt = FromDict(annotations)
    dt = official.LVISResults(gt, copy.deepcopy(results), max_dets=max_dets)
    evaluation = official.LVISEval(gt, dt, iou_type)
    evaluation.run()
    return {k: float(v) * 100 for k, v in evaluation.get_results().items()}


def rectangle(box, height, width):
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    x, y, w, h = (int(v) for v in box)
    mask[y : y + h, x : x + w] = 1
    return mask


def segmentation(rng, mask, box, compressed_only=False):
    rle = mask_utils.encode(mask)
    x, y, w, h = (float(v) for v in box)
    kind = rng.integers(2) if compressed_only else rng.integers(5)
    if kind == 0:
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    if kind == 1:
        return rle
    if kind == 2:
        flat, counts, value = mask.ravel(order="F").tolist(), [], 0
        run = 0
        for pixel in flat:
            if pixel != value:
                counts, run, value = [*counts, run], 0, pixel
            run += 1
        return {"size": rle["size"], "counts": [*counts, run]}
    corners = [x, y, x, y + h, x + w, y + h, x + w, y]
    if kind == 3:
        return [corners]
    # Several parts, one of them degenerate.
    return [corners, [x, y, x + 3, y + 3, x + 1, y + 2], [x, y, x, y, x, y]]


def problem(seed, with_boxes=True):
    """A problem with few distinct boxes, scores and areas, so that nearly everything ties."""
    rng = np.random.default_rng(seed)
    # Areas of exactly 32^2 and 96^2 and IoUs of exactly 1/2, 3/5 and 3/4 are among these.
    sides = [(32, 32), (96, 96), (32, 16), (48, 64), (64, 48), (4, 4), (5, 3), (96, 72), (33, 32)]
    height, width = (int(v) for v in rng.integers(110, 140, 2))
    num_images, num_cats = int(rng.integers(1, 5)), int(rng.integers(1, 6))
    offset = int(rng.choice([0, 10**6, 2**53]))
    frequency = rng.choice(["rcf", "cf", "r", "f"])
    categories = [
        dict(id=int(i) * 7 + 3, name=f"c{i}", image_count=int(i))
        | dict(frequency=str(rng.choice(list(frequency))))
        for i in rng.permutation(num_cats)
    ]
    ids = [c["id"] for c in categories]

    def box():
        w, h = sides[rng.integers(len(sides))]
        return [float(v) for v in (rng.choice([0, 2, 8, 9]), rng.choice([0, 1, 8]), w, h)]

    def some_ids():
        return [int(i) for i in rng.permutation(ids)[: rng.integers(0, num_cats + 1)]]

    images, annotations, results = [], [], []
    scores = [0.1, 0.5, 0.5, 0.9, float(np.float32(0.3)), 1.0, 0.0]
    order = rng.permutation(num_images).tolist()
    for image_id in (offset + i for i in order):
        images.append(
            dict(id=image_id, height=height, width=width)
            | dict(neg_category_ids=some_ids(), not_exhaustive_category_ids=some_ids()[:2])
        )
        for _ in range(rng.integers(0, 7)):
            b = annotations[-1]["bbox"] if annotations and rng.random() < 0.2 else box()
            area = rng.choice(
                [b[2] * b[3], 32.0**2, 96.0**2, 0.0, -1.0, 12.5], p=[0.7] + [0.06] * 5
            )
            annotations.append(
                dict(id=int(rng.integers(1, 10)) * 10**9 + len(annotations), image_id=image_id)
                | dict(category_id=int(rng.choice(ids)), bbox=list(b), area=float(area))
                | dict(segmentation=segmentation(rng, rectangle(b, height, width), b))
                | dict(iscrowd=int(rng.random() < 0.2))
            )
            if rng.random() < 0.2:
                annotations[-1]["ignore"] = int(rng.integers(2))
    for image_id in (offset + i for i in rng.permutation(num_images).tolist()):
        here = [a for a in annotations if a["image_id"] == image_id]
        for _ in range(rng.integers(0, 14)):
            b = (
                list(here[rng.integers(len(here))]["bbox"])
                if here and rng.random() < 0.6
                else box()
            )
            b = [v + float(rng.choice([0, 0, 1, 2])) for v in b]
            if rng.random() < 0.1:
                b[2] = 0.0
            category = int(rng.choice([a["category_id"] for a in here] + ids))
            mask = rectangle(b, height, width)
            result = dict(image_id=image_id, category_id=category, score=scores[rng.integers(7)])
            if with_boxes:
                result["bbox"] = b
            if not with_boxes or rng.random() < 0.9:
                result["segmentation"] = segmentation(rng, mask, b, not with_boxes)
            results.append(result)
    rng.shuffle(results)
    return dict(images=images, annotations=annotations, categories=categories), results

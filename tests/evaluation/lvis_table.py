"""A table of cases in which other fast evaluators differ from ``lvis``, and what builds them."""

import numpy as np
import pycocotools.mask as mask_utils
from lvis_cases import rectangle

HEIGHT, WIDTH = 128, 128


def image(number=1, negative=(), not_exhaustive=()):
    return {
        "id": number,
        "height": HEIGHT,
        "width": WIDTH,
        "neg_category_ids": list(negative),
        "not_exhaustive_category_ids": list(not_exhaustive),
    }


def polygon(x, y, w, h):
    return [x, y, x, y + h, x + w, y + h, x + w, y]


def truth(box, category=1, image_id=1, **more):
    x, y, w, h = box
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": list(box),
        "area": float(w * h),
        "segmentation": [polygon(x, y, w, h)],
        **more,
    }


def found(box, score, category=1, image_id=1, **more):
    rle = mask_utils.encode(rectangle(box, HEIGHT, WIDTH))
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        **more,
    }


def dataset(images, annotations, frequencies="rcf"):
    for i, annotation in enumerate(annotations, 1):
        annotation.setdefault("id", i)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i, "name": f"c{i}", "frequency": f, "image_count": 5 * i}
            for i, f in enumerate(frequencies, 1)
        ],
    }


def rles(box):
    """The same mask in each form that is allowed."""
    mask = rectangle(box, HEIGHT, WIDTH)
    compressed = mask_utils.encode(mask)
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=0))
    plain = np.diff(changes, prepend=0, append=HEIGHT * WIDTH).tolist()
    return [
        {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": compressed["counts"]},
        {"size": [HEIGHT, WIDTH], "counts": plain},
        [polygon(*box)],
    ]


A, B, C = (5, 5, 40, 40), (60, 60, 40, 40), (5, 60, 20, 30)
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


@case
def more_than_300_in_one_image():
    # 310 detections of three categories; that with the decisive tie is where the limit cuts.
    results = [found((i % 60, 2, 20, 20), 0.5, 1 + i % 3) for i in range(290)]
    results += [found(A, 0.5, 2), found(B, 0.5, 1), found(C, 0.4, 3)]
    results += [found(A, 0.5, 1) for _ in range(17)]
    return dataset([image()], [truth(A), truth(B), truth(A, 2), truth(C, 3)]), results


@case
def empty_masks_and_zero_area_boxes():
    results = [found((5, 5, 0, 40), 0.9), found(A, 0.8), found((60, 60, 40, 0), 0.7, 2)]
    return dataset([image(negative=[2])], [truth(A)]), results


@case
def ground_truth_of_zero_area():
    annotations = [truth(A, area=0.0), truth(B), truth(C, 2, area=-3.0)]
    results = [found(A, 0.9), found(B, 0.8), found(C, 0.7, 2)]
    return dataset([image()], annotations), results


@case
def iscrowd_and_ignore():
    annotations = [truth(A, iscrowd=1), truth(B, ignore=1), truth(C, ignore=0), truth(A, ignore=1)]
    results = [found(A, 0.9), found(A, 0.85), found(B, 0.8), found(B, 0.7), found(C, 0.1)]
    return dataset([image()], annotations), results


@case
def tied_scores_within_and_across_images():
    images = [image(3), image(1), image(2)]
    annotations = [truth(A, image_id=i) for i in (2, 1, 3)] + [truth(B, image_id=1)]
    results = [found(C, 0.5, image_id=3), found(A, 0.5, image_id=1), found(C, 0.5, image_id=1)]
    results += [found(A, 0.5, image_id=3), found(C, 0.5, image_id=2), found(B, 0.5, image_id=1)]
    return dataset(images, annotations), results


@case
def two_identical_ground_truths():
    annotations = [truth(A), truth(A, area=900.0), truth(A, ignore=1)]
    return dataset([image()], annotations), [found(A, 0.9), found(A, 0.8), found(A, 0.7)]


@case
def equal_ious_with_two_ground_truths():
    # The first detection may take either; which one it takes is what the second one lacks.
    left, middle, right = (0, 0, 20, 20), (2, 0, 20, 20), (4, 0, 20, 20)
    annotations = [truth(left), truth(right), truth(right, 2), truth(left, 2)]
    results = [found(middle, 0.9, c) for c in (1, 2)]
    results += [found((5, 0, 20, 20), 0.8, 1), found((5, 0, 20, 20), 0.8, 2)]
    return dataset([image()], annotations), results


@case
def areas_of_exactly_32_and_96_squared():
    small, large = (4, 4, 32, 32), (10, 10, 96, 96)
    annotations = [truth(small), truth(large), truth(large, 2), truth(small, 3)]
    results = [found(small, 0.9), found(large, 0.8), found(large, 0.5, 2), found(A, 0.6, 3)]
    return dataset([image()], annotations), results


@case
def iou_exactly_at_a_threshold():
    # 1/2, 3/4, 3/5 and 9/10 of the ground truth.
    annotations = [truth((0, 0, 40, 40), c) for c in (1, 2, 3)] + [truth((60, 60, 20, 20), 3)]
    results = [found((0, 0, 40, 20), 0.9), found((0, 0, 40, 30), 0.9, 2)]
    results += [found((0, 0, 40, 24), 0.9, 3), found((60, 60, 20, 18), 0.8, 3)]
    return dataset([image()], annotations), results


@case
def every_form_of_segmentation():
    annotations = [truth(A, segmentation=form, image_id=i) for i, form in enumerate(rles(A), 1)]
    results = [
        found((5, 5, 40, 38), 0.5 + i / 10, image_id=i, segmentation=form)
        for i, form in enumerate(rles((5, 5, 40, 38)), 1)
    ]
    return dataset([image(i) for i in range(1, 5)], annotations), results


@case
def multi_part_and_degenerate_polygons():
    parts = [polygon(5, 5, 10, 10), polygon(30, 30, 9, 9)]
    point, line = [7, 7, 7, 7, 7, 7], [5, 5, 44, 44, 5, 5]
    annotations = [
        truth(A, segmentation=parts, area=181.0),
        truth(B, segmentation=[point, polygon(*B)]),
        truth(C, 2, segmentation=[point], area=1.0),
        truth(C, 3, segmentation=[line], area=20.0),
    ]
    results = [found((5, 5, 10, 10), 0.9), found(A, 0.8), found(B, 0.7), found(C, 0.6, 2)]
    return dataset([image()], annotations), [*results, found(C, 0.5, 3)]


@case
def not_exhaustive_with_and_without_ground_truth():
    images = [image(1, not_exhaustive=[1, 2]), image(2, negative=[2], not_exhaustive=[2])]
    annotations = [truth(A), truth(A, 2, image_id=2), truth(B, image_id=2)]
    results = [found(C, 0.9), found(A, 0.8), found(C, 0.95, 2), found(C, 0.9, 2, image_id=2)]
    results += [
        found(A, 0.5, 2, image_id=2),
        found(C, 0.9, 1, image_id=2),
        found(B, 0.3, image_id=2),
    ]
    return dataset(images, annotations), results


@case
def categories_without_ground_truth():
    results = [found(A, 0.9, 2), found(C, 0.9), found(A, 0.8), found(B, 0.7, 3)]
    return dataset([image(negative=[2])], [truth(A)]), results


@case
def no_rare_classes():
    annotations = [truth(A), truth(B, 2)]
    return dataset([image()], annotations, "cf"), [
        found(A, 0.9),
        found(C, 0.8, 2),
        found(B, 0.1, 2),
    ]


@case
def huge_ids():
    images = [image(2**62), image(2**53 + 1)]
    annotations = [truth(A, 1, 2**62, id=2**60 + 1), truth(B, 2, 2**53 + 1, id=2**60)]
    data = dataset(images, annotations)
    results = [found(A, 0.9, 1, 2**62), found(C, 0.9, 2, 2**53 + 1), found(B, 0.8, 2, 2**53 + 1)]
    for entry in [*data["annotations"], *results]:
        entry["category_id"] += 2**40
    for entry in data["categories"]:
        entry["id"] += 2**40
    return data, results


@case
def ids_that_are_no_numbers():
    data = dataset([image("b"), image("a")], [truth(A, 1, "b"), truth(B, 1, "a")])
    return data, [found(A, 0.5, 1, "b"), found(C, 0.5, 1, "a"), found(B, 0.4, 1, "a")]


@case
def one_annotation_id_twice():
    annotations = [truth(A, id=5), truth(B, id=5), truth(C, 2, id=6)]
    return dataset([image()], annotations), [found(A, 0.9), found(B, 0.8), found(C, 0.7, 2)]


@case
def masks_only():
    results = [found((5, 5, 40, 33), 0.9), found(C, 0.8), found((6, 6, 0, 0), 0.8), found(B, 0.7)]
    for result in results:
        del result["bbox"]
    return dataset([image()], [truth(A), truth(B)]), results


@case
def run_lengths_without_a_single_run():
    results = [found(A, 0.9), found(B, 0.8), found(B, 0.7)]
    results[1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": ""}
    return dataset([image()], [truth(A), truth(B)]), results


@case
def the_first_after_the_limit_has_no_box():
    # It decides for all: areas are of masks, and other boxes are used as they are.
    results = [found((i % 60, 2, 20, 20), 0.5) for i in range(300)] + [found(B, 0.9), found(A, 0.8)]
    del results[300]["bbox"]
    results[301]["bbox"] = [5, 5, 40, 36]
    return dataset([image()], [truth(A), truth(B)]), results

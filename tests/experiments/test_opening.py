"""The rule picks what loops over everything pick, and is fair to both sides."""

import numpy as np

from lvis_tde.experiments.opening import SCORE, Names, Scene, choose_scene

RARE = {0, 1}


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return width * height / (sum(areas) - width * height)


def random_side(rng, boxes, classes):
    found, names = [], []
    for box, category in zip(boxes, classes):
        for _ in range(rng.integers(0, 4)):
            found.append(box + rng.choice([0.0, 1.0, 6.0], 4))
            names.append(category if rng.random() < 0.5 else rng.integers(0, 4))
    # Scores that are all different and none of them exactly the limit.
    scores = rng.permutation(np.linspace(0.05, 0.95, max(len(found), 1)) + 0.003)[: len(found)]
    return np.array(found).reshape(-1, 4), np.array(names, dtype=int), scores


def random_image(rng, image_id):
    num = rng.integers(1, 5)
    corner = rng.integers(0, 60, (num, 2))
    boxes = np.concatenate([corner, corner + rng.integers(12, 25, (num, 2))], axis=1).astype(float)
    classes = rng.integers(0, 4, num)
    return image_id, boxes, classes, [random_side(rng, boxes, classes) for _ in range(2)]


def scene(image_id, boxes, classes, sides):
    return Scene(image_id, boxes, classes, *(Names.of(*side) for side in sides))


def brute_force(images):
    """(number of rare objects, found after alone, before alone, (image id, object) or None)."""
    num, only, best = 0, [0, 0], None
    for image_id, boxes, classes, sides in images:
        confident, shown = [], []
        for side in sides:
            ranked = sorted(zip(*side), key=lambda d: -d[2])
            confident.append([d for d in ranked if d[2] >= SCORE])
            shown.append([])
            for d in confident[-1]:
                if all(iou(d[0], other[0]) < 0.5 for other in shown[-1]):
                    shown[-1].append(d)

        def names(d, i, boxes=boxes, classes=classes):
            return d[1] == classes[i] and iou(d[0], boxes[i]) >= 0.5

        objects = range(len(boxes))
        clear = sum(1 if any(names(d, i) for i in objects) else -1 for side in shown for d in side)
        for i in objects:
            if classes[i] not in RARE:
                continue
            num += 1
            for here, there in ((0, 1), (1, 0)):
                mine = [d[2] for d in shown[here] if names(d, i)]
                if not mine or any(names(d, i) for d in confident[there]):
                    continue
                only[here] += 1
                if here == 1:
                    rank = (clear, max(mine), -image_id)
                    if best is None or rank > best[0]:
                        best = rank, image_id, i
    return num, only[1], only[0], best and best[1:]


def test_choice_is_that_of_loops_over_everything():
    rng = np.random.default_rng(0)
    chosen = 0
    for _ in range(60):
        images = [random_image(rng, int(i)) for i in rng.permutation(9)[: rng.integers(1, 6)]]
        num, *only, best = brute_force(images)
        choice = choose_scene([scene(*image) for image in images], RARE)
        assert (choice.num_objects, choice.only_after, choice.only_before) == (num, *only)
        if best is None:
            assert choice.scene is None
        else:
            assert (choice.scene.image_id, choice.subject) == best
            chosen += 1
    assert 20 < chosen < 60


BOX = np.array([[10.0, 10.0, 30.0, 30.0]])


def one(off, on, image_id=1):
    """A scene of one object of class 0; the sides are (class, score) at its place."""
    sides = [
        (
            np.repeat(BOX, len(side), 0),
            np.array([c for c, _ in side], int),
            np.array([s for _, s in side]),
        )
        for side in (off, on)
    ]
    return scene(image_id, BOX, np.array([0]), sides)


def test_a_name_below_another_is_neither_found_nor_missed():
    wrong = [(2, 0.9)]
    assert choose_scene([one(wrong, [(0, 0.5)])], {0}).only_after == 1
    # Before, the right name is there, if not the first one: not missed.
    assert choose_scene([one([*wrong, (0, 0.4)], [(0, 0.5)])], {0}).scene is None
    # After, it is not the first one: not found.
    assert choose_scene([one(wrong, [(2, 0.6), (0, 0.5)])], {0}).scene is None
    assert choose_scene([one(wrong, [(0, SCORE - 0.01)])], {0}).scene is None
    assert choose_scene([], {0}).scene is None


def test_sides_changed_change_the_counts():
    scenes = [one([], [(0, 0.5)]), one([(0, 0.5)], []), one([(0, 0.3)], [(1, 0.3)])]
    choice = choose_scene(scenes, {0})
    assert (choice.num_objects, choice.only_after, choice.only_before) == (3, 1, 2)
    assert [s.num_changed() for s in scenes] == [1, 1, 1]


def test_equals_go_by_score_then_by_image():
    scenes = [one([], [(0, s)], i) for s, i in ((0.4, 1), (0.6, 7), (0.6, 5))]
    assert choose_scene(scenes, {0}).scene.image_id == 5
    assert choose_scene(scenes[:2], {0}).scene.image_id == 7

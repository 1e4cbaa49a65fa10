"""A tiny set of two images in COCO's and in LVIS's format, and detections on it."""

import pycocotools.mask as mask_utils

SIZE = (24, 32)
BOXES = [
    [2.0, 3.0, 10.0, 8.0],
    [14.0, 5.0, 12.0, 14.0],
    [4.0, 4.0, 9.0, 12.0],
    [1.0, 1.0, 6.0, 6.0],
]


def polygon(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def rle(box, plain=False):
    """Of a box: compressed, or as run lengths."""
    found = mask_utils.merge(mask_utils.frPyObjects([polygon(box)], *SIZE))
    if not plain:
        return {"size": list(SIZE), "counts": found["counts"].decode()}
    flat, counts = mask_utils.decode(found).ravel(order="F").tolist(), [0]
    value = 0
    for pixel in flat:
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    return {"size": list(SIZE), "counts": counts}


def coco(masks="polygons"):
    """COCO's format; ``masks`` is "polygons", "rle", "runs" or "none"."""
    made = {
        "polygons": lambda box: [polygon(box)],
        "rle": rle,
        "runs": lambda box: rle(box, plain=True),
        "none": lambda box: None,
    }[masks]
    images = [
        {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (7, 9)
    ]
    annotations = [
        {"id": 11 + n, "image_id": (7, 9)[n % 2], "category_id": (3, 5)[n // 2], "bbox": list(box)}
        | {"area": box[2] * box[3], "iscrowd": 0, "segmentation": made(box)}
        for n, box in enumerate(BOXES)
    ]
    if masks == "none":
        for annotation in annotations:
            del annotation["segmentation"]
    categories = [{"id": 3, "name": "wren"}, {"id": 5, "name": "heron"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def lvis(masks="polygons"):
    """LVIS's format, complete."""
    data = coco(masks)
    for image in data["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.invalid/val2017/{name}"
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[5])
    for annotation in data["annotations"]:
        del annotation["iscrowd"]
    for category, frequency in zip(data["categories"], "rc"):
        category.update(frequency=frequency, image_count=2, instance_count=2)
    return data


def results():
    """The annotations found, and one mistake."""
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"]}
        | {"segmentation": rle(a["bbox"]), "score": 0.9 - n / 10}
        for n, a in enumerate(coco()["annotations"])
    ]
    return [*found, {**found[0], "category_id": 5, "score": 0.95}]

"""Small classification sets in the formats of the official ones, for the real loading code.

An image shows its class as a pattern of four by four colors with noise, so networks can learn it.
"""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

_CIFAR = {
    10: ("cifar-10-batches-py", "labels", "batches.meta", "label_names"),
    100: ("cifar-100-python", "fine_labels", "meta", "fine_label_names"),
}


def pictures(labels, size=32, seed=0):
    """Images (N, size, size, 3) uint8 of the classes ``labels``; ``size`` is a multiple of 4."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(5).integers(40, 216, size=(max(labels) + 1, 4, 4, 3))
    images = patterns[labels].repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return (images + random.integers(-40, 40, size=images.shape)).astype(np.uint8)


def write_cifar(root, num_classes=100, train_per_class=10, test_per_class=2):
    """CIFAR-10 or -100 as its archive unpacks; the checksums are not those of the original."""
    folder, key, meta, names = _CIFAR[num_classes]
    folder = Path(root) / folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    parts = {"train": train_per_class, "test": test_per_class}
    for seed, (part, per_class) in enumerate(parts.items()):
        labels = random.permutation(np.repeat(np.arange(num_classes), per_class))
        data = pictures(labels, seed=seed).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        files = {part: slice(None)}
        if num_classes == 10:
            files = {f"data_batch_{i + 1}": slice(i, None, 5) for i in range(5)}
            files = files if part == "train" else {"test_batch": slice(None)}
        for name, rows in files.items():
            content = {"data": data[rows], key: labels[rows].tolist()}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    content = {names: [f"class{i}" for i in range(num_classes)]}
    (folder / meta).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_images(root, names, labels, size=(40, 32), seed=0):
    """One JPEG file for every name, of ``size`` (width, height); folders are made."""
    for name, image in zip(names, pictures(labels, 40, seed)):
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize(size).save(path, quality=95)


def write_lists(root, prefix="ImageNet_LT", counts=(12, 6, 3), others=2):
    """ImageNet-LT or Places-LT: the three lists, and the images that they name."""
    folder = {"ImageNet_LT": "imagenet", "Places_LT": "places365"}[prefix]
    for seed, part in enumerate(("train", "val", "test")):
        of_class = counts if part == "train" else [others] * len(counts)
        labels = np.repeat(np.arange(len(counts)), of_class)
        # The official list "val" names images of the folder "train".
        where = "val" if part == "test" else "train"
        names = [f"{where}/n{label:08}/{part}_{i}.JPEG" for i, label in enumerate(labels)]
        write_images(Path(root) / folder, names, labels, seed=seed)
        path = Path(root) / prefix.lower() / f"{prefix}_{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels)))
    return Path(root) / prefix.lower()


def write_inat(root, counts=(9, 4, 2), others=1):
    """iNaturalist 2018: its JSON files, and the images that they name."""
    folder = Path(root) / "inat2018"
    for part, of_class in (("train", counts), ("val", [others] * len(counts))):
        labels = np.repeat(np.arange(len(counts)), of_class)
        names = [f"train_val2018/Aves/{label}/{part}{i}.jpg" for i, label in enumerate(labels)]
        write_images(folder, names, labels)
        content = {
            "images": [{"id": 7 + i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": 7 + i, "category_id": int(label)}
                for i, label in reversed(list(enumerate(labels)))
            ],
            "categories": [{"id": i, "name": str(i)} for i in reversed(range(len(counts)))],
        }
        (folder / f"{part}2018.json").write_text(json.dumps(content))
    return folder


def write_image_folder(path, counts=None, size=(40, 32)):
    """A folder with a folder of JPEG files for each of ``{class name: number}``."""
    counts = counts or {"ant": 10, "bee": 10, "cat": 10}
    names = [f"{name}/{i}.jpg" for name, count in counts.items() for i in range(count)]
    order = {name: label for label, name in enumerate(sorted(counts))}
    write_images(path, names, [order[name.split("/")[0]] for name in names], size)
    return Path(path)

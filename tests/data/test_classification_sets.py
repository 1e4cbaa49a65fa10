"""Classification sets by name: sizes, seeds, subset files, formats, what is missing."""

import hashlib
import json
import pickle

import classification_files_util as files
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.datasets import ImageFolder

from lvis_tde.data.classification import (
    ClassificationSet,
    register_by_name,
    register_image_folder,
)
from lvis_tde.data.classification.subsets import choose_subset, split_subset
from lvis_tde.data.emoji_lt import load_emoji_lt, make_emoji_lt

# design.md, section 3: images of each class in the whole set, ratio, images of the subset.
PROTOCOL = [
    (100, 500, 100, 10847),
    (100, 500, 50, 12608),
    (100, 500, 10, 19573),
    (10, 5000, 100, 12406),
    (10, 5000, 50, 13996),
    (10, 5000, 10, 20431),
]


@pytest.fixture(scope="module")
def cifar_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    files.write_cifar(root, 100, train_per_class=10)
    files.write_cifar(root, 10, train_per_class=20)
    return root


def register(name, root):
    register_by_name(name, root)
    return DatasetCatalog.get(name), MetadataCatalog.get(name)


def all_parts(stem, root, last="test"):
    return {part: register(f"{stem}_{part}", root)[0] for part in ("train", "fit", "calib", last)}


@pytest.mark.parametrize("num_classes, per_class, ratio, total", PROTOCOL)
def test_subsets_have_the_sizes_of_the_protocol(num_classes, per_class, ratio, total):
    labels = np.tile(np.arange(num_classes), per_class)
    chosen = choose_subset(labels, num_classes, ratio)
    assert sum(map(len, chosen)) == total
    for label, images in enumerate(chosen):
        assert len(images) == int(per_class / ratio ** (label / (num_classes - 1)))
        assert (labels[images] == label).all() and len(set(images.tolist())) == len(images)


def test_a_subset_follows_from_its_seed_and_a_smaller_one_is_part_of_it():
    labels = np.tile(np.arange(5), 60)
    first, again, other = (choose_subset(labels, 5, 10, seed=seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again))
    assert not any(set(a.tolist()) == set(b.tolist()) for a, b in zip(first[1:], other[1:]))
    for large, small in zip(first, choose_subset(labels, 5, 30, seed=1)):
        assert (large[: len(small)] == small).all() and len(small) <= len(large)


def test_a_subset_is_the_same_wherever_it_is_drawn():
    chosen = choose_subset(np.tile(np.arange(100), 500), 100, 100, seed=3)
    digest = hashlib.sha256(np.concatenate(chosen).astype("<i8").tobytes()).hexdigest()
    assert digest == "c2fa06892a967fe373ba264e7c083c05862714140fb1892c2555b2c0da96c574"


def test_steps_and_errors():
    labels = np.tile(np.arange(6), 50)
    assert [len(c) for c in choose_subset(labels, 6, 10, "step")] == [50, 50, 50, 5, 5, 5]
    # What a class has not cannot be kept.
    assert [len(c) for c in choose_subset(np.array([0, 1, 1, 1, 1, 1]), 2, 3)] == [1, 1]
    with pytest.raises(ValueError, match="-1"):
        choose_subset(labels, 6, 10, seed=-1)
    with pytest.raises(ValueError, match="imbalance 51"):
        choose_subset(labels, 6, 51)


def test_parts_of_a_training_set_lack_no_class():
    chosen = [np.arange(40), np.arange(40, 45), np.arange(45, 47), np.array([47])]
    fit, calib = split_subset(chosen)
    assert np.sort(np.concatenate([fit, calib])).tolist() == list(range(48))
    assert [int(np.isin(one, calib).sum()) for one in chosen] == [4, 1, 1, 0]


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar_files_through_torchvision(cifar_root, num_classes, caplog):
    stem = f"cifar{num_classes}_lt_5"
    train, meta = register(f"{stem}_train", cifar_root)
    assert "checksums" in caplog.text  # they are not the official files
    folder = {100: "cifar-100-python/train", 10: "cifar-10-batches-py/data_batch_1"}[num_classes]
    content = pickle.loads((cifar_root / folder).read_bytes())
    labels = content["fine_labels" if num_classes == 100 else "labels"]
    item = next(item for item in train if item["image_id"] < len(labels))
    original = content["data"][item["image_id"]].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (item["image"] == original).all() and item["class"] == labels[item["image_id"]]

    counts = train.class_counts().tolist()
    assert [one["image_count"] for one in meta.class_image_count] == counts
    assert [one["id"] for one in meta.class_image_count] == list(range(num_classes))
    assert (counts[0], counts[-1]) == ({100: 10, 10: 20}[num_classes], counts[0] // 5)
    assert meta.thing_classes == [f"class{i}" for i in range(num_classes)] == train.classes
    assert (meta.evaluator_type, tuple(meta.bounds)) == ("classification", (20, 100))

    test, of_test = register(f"{stem}_test", cifar_root)
    assert len(test) == 2 * num_classes and set(test.class_counts()) == {2}
    assert of_test.class_image_count == meta.class_image_count
    assert of_test.train_set == meta.train_set == f"{stem}_train"
    parts = all_parts(stem, cifar_root)
    ids = [set(parts[part].image_ids.tolist()) for part in ("train", "fit", "calib")]
    assert ids[0] == ids[1] | ids[2] and not ids[1] & ids[2]
    assert (parts["fit"].class_counts() >= 1).all() and (parts["calib"].class_counts() >= 1).all()


def test_a_name_means_the_same_set_again_and_seeds_another(cifar_root):
    names = ["cifar100_lt_5_train", "cifar100_lt_5_seed0_train", "cifar100_lt_5_seed1_train"]
    first, same, other = (register(name, cifar_root)[0] for name in names)
    assert (first.image_ids == same.image_ids).all() and (first.images == same.images).all()
    assert (first.image_ids != other.image_ids).any()
    step = register("cifar100_lt_5_step_train", cifar_root)[0]
    assert step.class_counts().tolist() == [10] * 50 + [2] * 50
    assert register("cifar100_lt_5_train", cifar_root)[0] is first


def test_a_shared_subset_is_used(cifar_root, tmp_path):
    train = register("cifar10_lt_4_seed1_train", cifar_root)[0]
    written = cifar_root / "subsets" / "cifar10_lt_4_seed1.json"
    content = json.loads(written.read_text())
    assert content["num_images"] == 200
    assert (
        sorted(i for one in content["classes"] for i in one["images"]) == train.image_ids.tolist()
    )

    # Somebody else's subset of the same set, under any seed's name.
    (tmp_path / "cifar-10-batches-py").symlink_to(cifar_root / "cifar-10-batches-py")
    (tmp_path / "subsets").mkdir()
    (tmp_path / "subsets" / "cifar10_lt_4_seed9.json").write_text(written.read_text())
    shared, meta = register("cifar10_lt_4_seed9_train", tmp_path)
    assert shared.image_ids.tolist() == train.image_ids.tolist()
    parts = all_parts("cifar10_lt_4_seed9", tmp_path)
    original = all_parts("cifar10_lt_4_seed1", cifar_root)
    assert parts["calib"].image_ids.tolist() == original["calib"].image_ids.tolist()

    content["classes"][3]["images"][0] = content["classes"][2]["images"][0]
    for name, text in {"8": json.dumps(content), "7": written.read_text()[:90], "6": "[]"}.items():
        (tmp_path / "subsets" / f"cifar10_lt_4_seed{name}.json").write_text(text)
        with pytest.raises(ValueError, match=f"cifar10_lt_4_seed{name}.json.*delete it"):
            register_by_name(f"cifar10_lt_4_seed{name}_train", tmp_path)


def test_a_root_that_cannot_be_written_to_will_do(tmp_path, caplog):
    (tmp_path / "subsets").write_text("in the way")
    train, _ = register("digits_lt_10_train", tmp_path)
    assert len(train) and "not written down" in caplog.text


def test_damaged_files_are_told(tmp_path):
    folder = files.write_cifar(tmp_path, 10)
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cifar-10-batches-py.*damaged.*cifar-10-python.tar.gz"):
        register_by_name("cifar10_lt_5_train", tmp_path)


@pytest.mark.parametrize(
    "name, path, url, command",
    [
        ("cifar10_lt_train", "cifar-10-batches-py/data_batch_1", "toronto.edu", "CIFAR10("),
        ("cifar100_lt_50_test", "cifar-100-python/train", "toronto.edu", "CIFAR100("),
        ("imagenet_lt_fit", "imagenet_lt/ImageNet_LT_train.txt", "classifier-balancing", "curl"),
        ("places_lt_calib", "places_lt/Places_LT_train.txt", "classifier-balancing", "curl"),
        (
            "inat2018_val",
            "inat2018/train2018.json",
            "amazonaws.com/2018/train2018.json.tar.gz",
            "curl",
        ),
        ("emoji_lt_50_step_seed2_train", "emoji_lt/step50_seed2", "font", "--imbalance 50 --prof"),
    ],
)
def test_what_is_missing_is_named(name, path, url, command, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        register_by_name(name)
    for part in (str(tmp_path / path), url, command):
        assert part in str(error.value)


def test_images_of_lists_are_asked_for(tmp_path):
    files.write_lists(tmp_path).rename(tmp_path / "kept")
    (tmp_path / "imagenet").rename(tmp_path / "elsewhere")
    (tmp_path / "kept").rename(tmp_path / "imagenet_lt")
    with pytest.raises(FileNotFoundError, match="imagenet does not exist.*image-net.org"):
        register_by_name("imagenet_lt_train", tmp_path)


@pytest.mark.parametrize(
    "name", ["cifar100_lt_100_val", "cifar100_lt", "imagenet_lt_100_train", "inat2018_test"]
)
def test_names_that_are_none(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name!r}.*train, fit, calib"):
        register_by_name(name, tmp_path)


def test_other_names_are_left_alone(tmp_path):
    for name in ("lvis_v1_train", "my_cifar100_lt_train", "cifar100"):
        register_by_name(name, tmp_path)
    assert "my_cifar100_lt_train" not in DatasetCatalog.list()


def test_another_root_is_another_set(tmp_path):
    for root, counts in (("a", (4, 2)), ("b", (5, 3, 1))):
        files.write_lists(tmp_path / root, counts=counts)
        train, meta = register("imagenet_lt_train", tmp_path / root)
        assert train.class_counts().tolist() == list(counts) and len(meta.thing_classes) == len(
            counts
        )


@pytest.mark.parametrize("prefix, kind", [("ImageNet_LT", "imagenet"), ("Places_LT", "places")])
def test_official_lists(prefix, kind, tmp_path):
    folder = files.write_lists(tmp_path, prefix)
    parts = all_parts(f"{kind}_lt", tmp_path)
    for part, list_of in {"train": "train", "fit": "train", "calib": "val", "test": "test"}.items():
        lines = (folder / f"{prefix}_{list_of}.txt").read_text().splitlines()
        found = [
            f"{'/'.join(item['file_name'].split('/')[-3:])} {item['class']}" for item in parts[part]
        ]
        assert found == lines
        assert parts[part].classes == [f"n{label:08}" for label in range(3)]
    counts = MetadataCatalog.get(f"{kind}_lt_test").class_image_count
    assert [one["image_count"] for one in counts] == [12, 6, 3]
    with open(folder / f"{prefix}_train.txt", "a") as file:
        file.write("train/x.JPEG one\n")
    DatasetCatalog.remove(f"{kind}_lt_train")
    with pytest.raises(ValueError, match="_train.txt:22: 'train/x.JPEG one'"):
        register_by_name(f"{kind}_lt_train", tmp_path)
    (folder / f"{prefix}_train.txt").write_text("")
    with pytest.raises(ValueError, match="_train.txt.*no image"):
        register_by_name(f"{kind}_lt_train", tmp_path)


def test_inaturalist(tmp_path):
    folder = files.write_inat(tmp_path)
    parts = all_parts("inat2018", tmp_path, "val")
    assert parts["train"].class_counts().tolist() == [9, 4, 2]
    assert parts["val"].class_counts().tolist() == [1, 1, 1]
    assert all(f"/Aves/{item['class']}/" in item["file_name"] for item in parts["train"])
    assert len(parts["fit"]) + len(parts["calib"]) == 15
    content = json.loads((folder / "val2018.json").read_text())
    content["categories"][0]["name"] = "new"
    (folder / "val2018.json").write_text(json.dumps(content))
    again = tmp_path / f"../{tmp_path.name}"  # another root, so not the set that is registered
    with pytest.raises(ValueError, match="val2018.json has other categories than .*train2018.json"):
        register_by_name("inat2018_val", again)
    del content["annotations"][0]
    (folder / "val2018.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="val2018.json.*not a complete file"):
        register_by_name("inat2018_val", again)


def test_digits(tmp_path):
    parts = all_parts("digits_lt", tmp_path)
    assert parts["train"].class_counts().tolist() == [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]
    assert set(parts["calib"].class_counts()) == {20} and set(parts["test"].class_counts()) == {54}
    assert parts["fit"].image_ids.tolist() == parts["train"].image_ids.tolist()
    ids = np.concatenate([parts[part].image_ids for part in ("train", "calib", "test")])
    assert len(set(ids.tolist())) == len(ids)
    assert parts["test"].images.shape == (540, 8, 8, 3) and parts["test"].images.max() == 255
    other = all_parts("digits_lt_seed1", tmp_path)
    assert set(other["train"].image_ids) != set(parts["train"].image_ids)
    # What the result is measured on does not follow from the seed.
    assert other["test"].image_ids.tolist() == parts["test"].image_ids.tolist()
    counts = parts["train"].class_counts()
    few, many = MetadataCatalog.get("digits_lt_test").bounds
    assert [(counts < few).sum(), (counts > many).sum()] == [4, 3]


def test_emoji(tmp_path, color_font):
    sizes = dict(num_classes=6, train_per_class=20, calib_per_class=2, test_per_class=3)
    folder = make_emoji_lt(tmp_path, imbalance=10, seed=1, font=color_font, **sizes)
    parts = all_parts("emoji_lt_10_seed1", tmp_path)
    for part in ("train", "calib", "test"):
        images, labels = load_emoji_lt(folder, part)
        assert (parts[part].images == images).all() and (parts[part].labels == labels).all()
    assert len(parts["fit"]) == len(parts["train"])
    described = json.loads((folder / "classes.json").read_text())["classes"]
    assert parts["test"].classes == [one["name"] for one in described]


def test_image_folder(tmp_path):
    folder = files.write_image_folder(tmp_path / "train")
    register_image_folder("animals_train", folder)
    upstream = ImageFolder(str(folder))
    found = DatasetCatalog.get("animals_train")
    assert [(i["file_name"], i["class"]) for i in found] == upstream.samples
    register_image_folder("animals_lt", folder, 5)
    assert DatasetCatalog.get("animals_lt").class_counts().tolist() == [10, 4, 2]
    for part in ("fit", "calib"):
        register_image_folder(f"animals_{part}", folder, 5, part=part, train_set="animals_lt")
    fit, calib = (DatasetCatalog.get(f"animals_{part}") for part in ("fit", "calib"))
    assert fit.class_counts().tolist() == [9, 3, 1] and calib.class_counts().tolist() == [1, 1, 1]

    # A test folder may lack a class, but not have one more.
    test = files.write_image_folder(tmp_path / "test", {"cat": 2, "bee": 1})
    register_image_folder("animals_test", test, train_set="animals_lt")
    assert DatasetCatalog.get("animals_test").class_counts().tolist() == [0, 1, 2]
    counts = MetadataCatalog.get("animals_test").class_image_count
    assert [one["image_count"] for one in counts] == [10, 4, 2]
    files.write_image_folder(test, {"dog": 1})
    with pytest.raises(ValueError, match="'dog'"):
        register_image_folder("animals_test", test, train_set="animals_lt")
    with pytest.raises(ValueError, match="'val'"):
        register_image_folder("animals_test", test, part="val")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        register_image_folder("animals_test", tmp_path / "nowhere")


def test_a_set_is_a_sequence_of_dicts():
    images = np.arange(4 * 3, dtype=np.uint8).reshape(4, 1, 1, 3)
    found = ClassificationSet([0, 1, 1, 0], ["a", "b"], images=images, image_ids=[9, 8, 7, 6])
    assert [(i["image_id"], i["class"]) for i in found] == [(9, 0), (8, 1), (7, 1), (6, 0)]
    assert (found[-1]["image"] == images[3]).all() and len(found[1:]) == 3
    assert found.part(np.array([2, 0])).image_ids.tolist() == [7, 9]
    with pytest.raises(IndexError):
        found[4]
    with pytest.raises(ValueError, match="label 2"):
        ClassificationSet([0, 2], ["a", "b"], files=["x", "y"])
    with pytest.raises(ValueError, match="1 files for 2 labels"):
        ClassificationSet([0, 1], ["a", "b"], files=["x"])
    with pytest.raises(ValueError, match="not both"):
        ClassificationSet([0], ["a"])


def test_a_folder_called_as_a_set_stays_the_folder(tmp_path):
    folder = files.write_image_folder(tmp_path / "digits_lt")
    try:
        register_image_folder("digits_lt_train", folder)
        register_by_name("digits_lt_train", tmp_path / "datasets")  # as every loader does
        found = DatasetCatalog.get("digits_lt_train")
        assert found.classes == ["ant", "bee", "cat"] and len(found) == 30
        assert all(str(folder) in file for file in found.files)
    finally:
        DatasetCatalog.remove("digits_lt_train")
        MetadataCatalog.remove("digits_lt_train")

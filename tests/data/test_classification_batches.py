"""Batches and loaders of classification sets: augmentation, seeds, resumption, processes."""

import itertools
import multiprocessing

import classification_files_util as files
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import v2

from lvis_tde.data.classification import (
    ClassificationSet,
    build_test_loader,
    build_train_loader,
)
from lvis_tde.data.classification import loader as loader_module
from lvis_tde.data.classification import register_by_name, register_image_folder
from lvis_tde.data.classification.batches import EvaluationBatches, TrainBatches, crop_and_flip
from lvis_tde.data.classification.stream import Stream
from lvis_tde.data.pictures import read_picture
from lvis_tde.engine import load_config

LABELS = np.repeat(np.arange(4), [12, 6, 3, 2])
KEYS = ["image", "class", "image_id"]
# Everything that is random, alone: options of TrainBatches beside the flip.
AUGMENTATIONS = {
    "crop": {"crop_padding": 4, "flip": 0.5},
    "resized crop": {"resized_crop": True, "flip": 0.5},
    "jitter": {"color_jitter": 0.4},
    "AutoAugment": {"auto_augment": "cifar10"},
    "RandAugment": {"rand_augment": 9},
    "mixup": {"mixup": 0.4},
}


def in_memory(size=8):
    names = ["a", "b", "c", "d"]
    ids = 100 + np.arange(len(LABELS))
    return ClassificationSet(LABELS, names, images=files.pictures(LABELS, size), image_ids=ids)


def train_batches(images=None, **options):
    options = {"batch_size": 6, "seed": 3, "size": 8, **options}
    return TrainBatches(in_memory() if images is None else images, **options)


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = files.write_image_folder(tmp_path_factory.mktemp("folder"), {"ant": 7, "bee": 4})
    register_image_folder("batches_folder", path)
    return DatasetCatalog.get("batches_folder")


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """``cfg(*overrides)``: a config for digits_lt, 16 px, batches of 20."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def make(*overrides):
        options = ["SEED", 5, "SOLVER.IMS_PER_BATCH", 20, "DATALOADER.NUM_WORKERS", 0]
        options += ["INPUT.CLASSIFICATION.SIZE", 16, "INPUT.CLASSIFICATION.FLIP", 0.5]
        options += ["INPUT.CLASSIFICATION.CROP_PADDING", 2, "MODEL.DEVICE", "cpu"]
        options += ["DATASETS.TRAIN", ("digits_lt_train",)]
        return load_config("", [*options, *overrides])

    return make


def test_windows_are_those_of_torchvision():
    images = np.random.default_rng(0).integers(256, size=(5, 3, 10, 12), dtype=np.uint8)
    indices, top, left = np.array([4, 0, 4]), np.array([0, 3, 1]), np.array([5, 0, 2])
    flip = np.array([False, True, True])
    found = torch.from_numpy(crop_and_flip(images, indices, top, left, flip, 7))
    for one, index, y, x, mirrored in zip(found, indices, top, left, flip):
        window = v2.functional.crop(torch.from_numpy(images[index]), y, x, 7, 7)
        assert torch.equal(one, v2.functional.horizontal_flip(window) if mirrored else window)


def test_every_crop_and_flip_of_the_padded_image_is_drawn_and_no_other():
    images = in_memory()
    batches = train_batches(images, crop_padding=1, flip=0.5)
    padded = F.pad(torch.from_numpy(images.images).permute(0, 3, 1, 2), (1, 1, 1, 1))
    seen = set()
    for number in range(60):
        batch = batches[number]
        for image, image_id in zip(batch["image"], batch["image_id"].tolist()):
            for y, x, mirrored in itertools.product(range(3), range(3), (False, True)):
                window = padded[image_id - 100, :, y : y + 8, x : x + 8]
                if torch.equal(image, window.flip(2) if mirrored else window):
                    seen.add((y, x, mirrored))
                    break
            else:
                raise AssertionError("no window of this image")
    assert len(seen) == 18


def test_without_options_a_batch_is_the_images():
    images = in_memory()
    batch = train_batches(images)[2]
    chosen = batch["image_id"] - 100
    assert torch.equal(batch["image"], torch.from_numpy(images.images[chosen]).permute(0, 3, 1, 2))
    assert batch["class"].tolist() == LABELS[chosen].tolist()
    assert [batch[key].dtype for key in KEYS] == [torch.uint8, torch.int64, torch.int64]
    flipped = train_batches(images, flip=1.0)[2]["image"]
    assert torch.equal(flipped, batch["image"].flip(3))


def test_a_pass_shows_every_image_once_and_no_rest_is_dropped():
    stream = Stream(LABELS, 6, seed=0)
    shown = np.concatenate([stream[number] for number in range(23)])
    passes = shown.reshape(6, 23)
    assert all(np.sort(one).tolist() == list(range(23)) for one in passes)
    assert len({tuple(one) for one in passes.tolist()}) == 6
    whole = Stream(LABELS, 50, seed=0)[1]  # more than two passes in a batch
    assert (
        whole.tolist() == np.concatenate([Stream(LABELS, 25, seed=0)[n] for n in (2, 3)]).tolist()
    )


def test_a_balanced_stream_shows_every_class_as_often():
    stream = Stream(np.array([0] * 90 + [2] * 9 + [3]), 300, seed=1, balanced=True)
    shown = np.concatenate([stream[number] for number in range(20)])
    counts = np.bincount(shown, minlength=100)
    of_class = [counts[:90].sum(), counts[90:99].sum(), counts[99]]
    # 6000 draws, p = 1/3: a standard deviation is 37.
    assert np.abs(np.array(of_class) - 2000).max() < 4 * 37
    assert (counts > 0).all() and counts[90:99].max() < 2000 / 9 * 1.4


@pytest.mark.parametrize("options", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
def test_a_batch_follows_from_seed_and_number_alone(options):
    first, again = train_batches(**options), train_batches(**options)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    batches = [first[number] for number in (0, 1, 7)]
    # Nobody else's random numbers are used.
    assert torch.equal(before, torch.random.get_rng_state())
    assert [equal(again[number], batch) for number, batch in zip((7, 1, 0), batches[::-1])]
    assert all(equal(again[number], batch) for number, batch in zip((0, 1, 7), batches))
    other = train_batches(**options, seed=4)
    assert not equal(other[0], batches[0]) and not equal(batches[0], batches[1])
    plain = train_batches()[1]
    assert batches[1]["image_id"].tolist() == plain["image_id"].tolist()
    assert not torch.equal(batches[1]["image"], plain["image"])
    assert batches[1]["image"].shape == (6, 3, 8, 8)


@pytest.mark.parametrize("options", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
def test_two_processes_see_what_one_sees(options):
    alone = train_batches(**options, batch_size=8)[4]
    halves = [train_batches(**options, batch_size=8, rank=rank, world=2)[4] for rank in (0, 1)]
    for key in KEYS[1:] if "mixup" in options else KEYS:
        for rank, half in enumerate(halves):
            assert torch.equal(half[key], alone[key][rank::2])
    assert "mixup" not in options or torch.equal(halves[0]["weight"], alone["weight"][:4])


def test_mixup_is_the_weighted_mean_of_two():
    plain, mixed = train_batches()[5], train_batches(mixup=0.3)[5]
    weight = mixed["weight"]
    assert weight.dtype == torch.float32 and 0 < weight[0] < 1 and (weight == weight[0]).all()
    partner = [plain["image_id"].flip(0).tolist().index(i) for i in plain["image_id"]]
    assert mixed["class_b"].tolist() == plain["class"][partner].tolist()
    expected = weight[0] * plain["image"] + (1 - weight[0]) * plain["image"][partner]
    torch.testing.assert_close(mixed["image"], expected)
    drawn = [float(train_batches(mixup=8.0)[number]["weight"][0]) for number in range(200)]
    # Beta(8, 8): mean 1/2, variance 1/68.
    assert abs(np.mean(drawn) - 0.5) < 0.03 and 0.7 < np.var(drawn) * 68 < 1.4


@pytest.mark.parametrize("options", [{}, {"resized_crop": True}], ids=["crop", "resized crop"])
def test_files_are_read_as_torchvision_reads_them(folder, options):
    batches = train_batches(folder, flip=0.5, crop_padding=2, **options, size=16)
    batch = batches[3]
    assert batch["image"].shape == (6, 3, 16, 16) and batch["image"].dtype == torch.uint8
    usual = [transforms.Resize(16), transforms.RandomCrop(16, padding=2)]
    usual = [transforms.RandomResizedCrop(16)] if options else usual
    usual = transforms.Compose(
        [*usual, transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    seeds = np.random.default_rng([3, 2, 3]).integers(2**63, size=6)
    for image, index, seed in zip(batch["image"], batch["image_id"].tolist(), seeds.tolist()):
        torch.manual_seed(seed)
        assert torch.equal(image, usual(Image.open(folder.files[index])))
    assert equal(train_batches(folder, flip=0.5, crop_padding=2, **options, size=16)[3], batch)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_files_are_turned_as_the_demo_turns_them(tmp_path, orientation):
    image, path = Image.fromarray(files.pictures([0], 8)[0]), str(tmp_path / "turned.png")
    exif = image.getexif()
    exif[0x112] = orientation
    image.save(path, exif=exif)
    images = ClassificationSet([0], ["a"], files=[path])
    expected = torch.tensor(read_picture(path)).permute(2, 0, 1)
    for batches in (
        TrainBatches(images, batch_size=1, seed=0, size=8),
        EvaluationBatches(images, batch_size=1, size=8),
    ):
        assert torch.equal(batches[0]["image"][0], expected)


def test_a_loader_goes_on_where_a_run_stopped(cfg):
    whole = list(itertools.islice(build_train_loader(cfg()), 30))
    for start in (1, 17, 29):
        loader = build_train_loader(cfg())
        loader.resumable_sampler.resume(start)
        resumed = itertools.islice(loader, 30 - start)
        assert all(equal(a, b) for a, b in zip(resumed, whole[start:]))
    other = next(iter(build_train_loader(cfg("SEED", 6))))
    assert not equal(other, whole[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(cfg, folder):
    options = ["DATASETS.TRAIN", ("batches_folder",), "SOLVER.IMS_PER_BATCH", 4]
    alone = list(itertools.islice(build_train_loader(cfg(*options)), 5))
    loader = build_train_loader(cfg(*options, "DATALOADER.NUM_WORKERS", 2))
    loader.resume(1)
    assert all(equal(a, b) for a, b in zip(loader, alone[1:]))
    tests = [
        list(build_test_loader(cfg(*options, "DATALOADER.NUM_WORKERS", n), "batches_folder"))
        for n in (0, 2)
    ]
    assert all(equal(a, b) for a, b in zip(*tests))


@pytest.mark.parametrize("world", [1, 2, 3, 60])
def test_a_test_shows_every_image_once(cfg, world, monkeypatch):
    monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: world)
    shown = []
    for rank in range(world):
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        loader = build_test_loader(cfg(), "digits_lt_test")
        batches = list(loader)
        assert len(batches) == len(loader)
        shown += [i for batch in batches for i in batch["image_id"].tolist()]
    assert shown == DatasetCatalog.get("digits_lt_test").image_ids.tolist()


def test_images_of_a_test_are_resized_and_cropped_as_by_torchvision(cfg, folder):
    options = ["INPUT.CLASSIFICATION.SIZE", 20, "INPUT.CLASSIFICATION.RESIZE_TEST", 28]
    usual = transforms.Compose(
        [transforms.Resize(28), transforms.CenterCrop(20), transforms.PILToTensor()]
    )
    images = torch.cat([b["image"] for b in build_test_loader(cfg(*options), "batches_folder")])
    for image, file in zip(images, folder.files):
        assert torch.equal(image, usual(Image.open(file)))
    images = torch.cat([b["image"] for b in build_test_loader(cfg(*options), "digits_lt_test")])
    small = torch.from_numpy(DatasetCatalog.get("digits_lt_test").images).permute(0, 3, 1, 2)
    assert torch.equal(images, v2.functional.resize(small, [28, 28])[:, :, 4:24, 4:24])


def test_errors_name_the_key(cfg):
    for overrides, message in [
        (["DATASETS.TRAIN", ("a", "b")], "trained on one set"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "ClassBalancedSampler"),
        (["INPUT.CLASSIFICATION.AUTO_AUGMENT", "cifar100"], "'cifar100'.*imagenet, cifar10, svhn"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_train_loader(cfg(*overrides))
    with pytest.raises(ValueError, match="batch_size=6.*4"):
        train_batches(world=4)
    with pytest.raises(ValueError, match="no image"):
        train_batches(ClassificationSet([], ["a"], files=[]))
    with pytest.raises(FileNotFoundError, match="cifar-100-python"):
        build_test_loader(cfg(), "cifar100_lt_100_test")
    DatasetCatalog.register("batches_list", lambda: [{"image_id": 0}])
    with pytest.raises(ValueError, match="'batches_list' is no classification set"):
        build_test_loader(cfg(), "batches_list")


def _loaders(cfg):
    """A plain one, a balanced one, and one whose seed the processes agree on."""
    balanced, unseeded = cfg.clone(), cfg.clone()
    balanced.DATALOADER.SAMPLER_TRAIN = "ClassBalancedSampler"
    unseeded.SEED = -1
    return [build_train_loader(one) for one in (cfg, balanced, unseeded)]


def _process(rank, path, cfg, queue):
    store = f"file://{path}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    np.random.seed(rank)
    found = [
        [{key: batch[key].numpy() for key in KEYS} for batch in itertools.islice(loader, 12)]
        for loader in _loaders(cfg)
    ]
    tests = [batch["image_id"].tolist() for batch in build_test_loader(cfg, "digits_lt_calib")]
    queue.put((rank, found, sum(tests, [])))


def test_two_processes_of_a_run(cfg, tmp_path):
    # Forked, since a spawned process imports everything anew.
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    register_by_name("digits_lt_train")
    arguments = (tmp_path / "store", cfg(), queue)
    processes = [context.Process(target=_process, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = {rank: results for rank, *results in (queue.get(timeout=120) for _ in processes)}
    for process in processes:
        process.join()
    for kind, loader in enumerate(_loaders(cfg())[:2]):
        for number, rank in itertools.product(range(12), (0, 1)):
            batch, whole = found[rank][0][kind][number], loader.batches[number]
            assert all((batch[key] == whole[key][rank::2].numpy()).all() for key in KEYS)
    # 240 of the 242 images of a pass: none twice, so the seed was one.
    shown = [i for rank in (0, 1) for batch in found[rank][0][2] for i in batch["image_id"]]
    assert len(set(shown)) == 240
    assert found[0][1] + found[1][1] == DatasetCatalog.get("digits_lt_calib").image_ids.tolist()


def test_sizes_and_chances_out_of_range_are_told():
    """They would frame images in black, or mean something else than what was given."""
    for options, message in [
        ({"resize": 6}, r"size=8 \(INPUT.CLASSIFICATION.SIZE\).*resize=6 \(RESIZE_TEST\)"),
        ({"size": 0}, "size=0"),
        ({"flip": 50}, r"flip=50 \(INPUT.CLASSIFICATION.FLIP\) .* 0 and 1"),
        ({"flip": -0.5}, "flip=-0.5"),
        ({"rand_augment": 31}, r"rand_augment=31 .*CLASSIFICATION.RAND_AUGMENT\) .* 0 and 30"),
        ({"mixup": -1}, "mixup=-1"),
        ({"crop_padding": -1}, "crop_padding=-1"),
        ({"color_jitter": float("nan")}, "color_jitter=nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            train_batches(**options)
    plain = ClassificationSet([0], ["a"], images=np.full((1, 40, 40, 3), 200, np.uint8))
    with pytest.raises(ValueError, match="size=48.*resize=40"):
        EvaluationBatches(plain, batch_size=1, size=48, resize=40)
    for resize in (0, 48, 50):
        images = EvaluationBatches(plain, batch_size=1, size=48, resize=resize)[0]["image"]
        assert images.shape[2:] == (48, 48) and (images == 200).all()  # and no border

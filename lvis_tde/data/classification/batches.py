"""Batches of a classification set, each a function of the seed and its number alone.

So any run that knows how many batches it has used goes on where it stopped, whatever the number of
workers; and several processes see together what one would.

Small images live in memory, where cropping and flipping a batch is one copy for each image. What
torchvision does image by image (random resized crops, color jitter, AutoAugment, RandAugment, and
all that begins with a file) is seeded image by image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from .sets import ClassificationSet
from .stream import Stream, random_of

__all__ = ["EvaluationBatches", "TrainBatches", "check_sides", "crop_and_flip"]

_POLICIES = {policy.value: policy for policy in v2.AutoAugmentPolicy}
_LARGEST_SEED = 2**63


def crop_and_flip(
    images: np.ndarray,
    indices: np.ndarray,
    top: np.ndarray,
    left: np.ndarray,
    flip: np.ndarray,
    size: int,
) -> np.ndarray:
    """A window of each of B images, some of them flipped horizontally.

    Args:
        images: (N, 3, H, W).
        indices, top, left: (B,) whole numbers: the images and the corners of their windows.
        flip: (B,) bool.
        size: S, side of the windows.

    Returns:
        (B, 3, S, S).
    """
    out = np.empty((len(indices), images.shape[1], size, size), images.dtype)
    rows = zip(indices.tolist(), top.tolist(), left.tolist(), flip.tolist())
    # A copy for each image is faster than any gather over the batch, by a factor of two and more.
    for target, (index, y, x, mirrored) in zip(out, rows):
        window = images[index, :, y : y + size, x : x + size]
        target[...] = window[:, :, ::-1] if mirrored else window
    return out


def check_sides(size: int, resize: int) -> None:
    """
    Raises:
        ValueError: there is no image of that size, or the central crop would have a black border.
    """
    if size < 1 or resize and resize < size:
        raise ValueError(
            f"size={size} (INPUT.CLASSIFICATION.SIZE) must be at least 1 and resize={resize} "
            "(RESIZE_TEST), the shorter side that it is cut out of, at least as large, or 0 for "
            "the same."
        )


def _in_memory(images: np.ndarray, size: int) -> np.ndarray:
    """(N, H, W, 3) to (N, 3, S, S), resized where they are not of that size."""
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return v2.functional.resize(tensor, [size, size]).numpy()


def _image(item: dict[str, Any]) -> Image.Image:
    """RGB; a file is turned as its EXIF orientation says, as Detectron2 and the demo read it."""
    if "image" in item:
        return Image.fromarray(item["image"])
    return Image.fromarray(read_image(item["file_name"], "RGB"))


class TrainBatches(Dataset):
    """Batches of training images: ``batches[k]`` is this process's part of batch k, k >= 0.

    It holds "image", (B, 3, S, S) uint8 RGB, "class" and "image_id", (B,) int64; and with mixup, of
    which the images are float32, "class_b", (B,) int64, and "weight", (B,) float32, the share of
    "class".
    """

    def __init__(
        self,
        images: ClassificationSet,
        *,
        batch_size: int,
        seed: int,
        size: int,
        balanced: bool = False,
        crop_padding: int = 0,
        resized_crop: bool = False,
        flip: float = 0.0,
        color_jitter: float = 0.0,
        auto_augment: str = "",
        rand_augment: int = 0,
        mixup: float = 0.0,
        resize: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        """
        Args:
            images: the set, of one image or more.
            batch_size: over all processes.
            seed: >= 0.
            size: S. Images in memory are brought to this size once, unless ``resized_crop``.
            balanced: see :class:`Stream`.
            crop_padding: crop from the image with this many zeros around it.
            resized_crop: crop a random area (8 % to all) and shape (3/4 to 4/3) and resize it.
            flip: chance of a horizontal flip.
            color_jitter: strength of the jitter of brightness, contrast and saturation.
            auto_augment: policy of AutoAugment: "imagenet", "cifar10", "svhn", or "" for none.
            rand_augment: magnitude of RandAugment's two steps, up to 30; 0 for none.
            mixup: alpha of the Beta distribution of the batch's weight (Zhang et al., ICLR 2018);
                an image is mixed with another one of this process. 0 for none.
            resize: shorter side that files are resized to before a crop without ``resized_crop``;
                0 for ``size``.
            rank, world: this process, and how many there are.

        Raises:
            ValueError: if a value is out of its range.
        """
        if not len(images):
            raise ValueError("the training set has no image")
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f"batch_size={batch_size} (SOLVER.IMS_PER_BATCH) must be a multiple of the number "
                f"of processes, {world}"
            )
        if auto_augment and auto_augment not in _POLICIES:
            raise ValueError(
                f"auto_augment={auto_augment!r} (INPUT.CLASSIFICATION.AUTO_AUGMENT) must be one of "
                f"{', '.join(_POLICIES)}, or empty"
            )
        check_sides(size, resize)
        ranges: dict[str, tuple[float, float]] = {
            "crop_padding": (crop_padding, np.inf),
            "flip": (flip, 1),
            "color_jitter": (color_jitter, np.inf),
            "rand_augment": (rand_augment, 30),
            "mixup": (mixup, np.inf),
        }
        for name, (value, most) in ranges.items():
            if not 0 <= value <= most:
                raise ValueError(
                    f"{name}={value} (INPUT.CLASSIFICATION.{name.upper()}) must lie between 0 and "
                    f"{most:g}"
                )
        self.images, self.size, self.seed = images, size, seed
        self.stream = Stream(images.labels, batch_size, seed, balanced=balanced)
        self._mixup, self._flip, self._padding = mixup, flip, crop_padding
        self._share = slice(rank, None, world)
        self._pixels: np.ndarray | None = None
        steps: list[Any] = []
        if resized_crop:
            steps.append(v2.RandomResizedCrop(size))
        elif images.images is None:
            steps += [v2.Resize(resize or size), v2.RandomCrop(size, padding=crop_padding or None)]
        else:
            border = ((0, 0), (0, 0), (crop_padding,) * 2, (crop_padding,) * 2)
            self._pixels = np.pad(_in_memory(images.images, size), border)
        if steps and flip:
            steps.append(v2.RandomHorizontalFlip(flip))
        if auto_augment:
            steps.append(v2.AutoAugment(_POLICIES[auto_augment]))
        if rand_augment:
            steps.append(v2.RandAugment(magnitude=rand_augment))
        if color_jitter:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        # On Pillow's images these take half the time that they take on tensors.
        self._one_by_one = v2.Compose([*steps, v2.ToImage()]) if steps else None

    @property
    def image_by_image(self) -> bool:
        """Whether torchvision works on single images, so that worker processes are of use."""
        return self._one_by_one is not None

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        every = self.stream[number]
        chosen = every[self._share]
        image = self._augmented(number, every)
        labels = torch.from_numpy(self.images.labels[chosen])
        batch = {
            "image": image,
            "class": labels,
            "image_id": torch.from_numpy(self.images.image_ids[chosen]),
        }
        if self._mixup:
            weight = random_of(self.seed, 3, number).beta(self._mixup, self._mixup)
            batch["image"] = torch.lerp(image.flip(0).float(), image.float(), weight)
            batch["class_b"] = labels.flip(0)
            batch["weight"] = torch.full((len(labels),), weight, dtype=torch.float32)
        return batch

    def _augmented(self, number: int, every: np.ndarray) -> torch.Tensor:
        random, chosen = random_of(self.seed, 2, number), every[self._share]
        if self._pixels is None:
            single: list[Any] = [_image(self.images[i]) for i in chosen.tolist()]
        else:
            # Drawn for all processes, so that an image does not depend on their number.
            top, left = random.integers(2 * self._padding + 1, size=(2, len(every)))
            flip = random.random(len(every)) < self._flip
            top, left, flip = top[self._share], left[self._share], flip[self._share]
            window = crop_and_flip(self._pixels, chosen, top, left, flip, self.size)
            if self._one_by_one is None:
                return torch.from_numpy(window)
            single = [Image.fromarray(one) for one in window.transpose(0, 2, 3, 1)]
        assert self._one_by_one is not None
        seeds = random.integers(_LARGEST_SEED, size=len(every))[self._share]
        done = []
        with torch.random.fork_rng(devices=[]):
            for one, seed in zip(single, seeds.tolist()):
                torch.default_generator.manual_seed(seed)
                done.append(self._one_by_one(one).as_subclass(torch.Tensor))
        return torch.stack(done)


class EvaluationBatches(Dataset):
    """This process's images of a test set, each once, in batches as of :class:`TrainBatches`."""

    def __init__(
        self,
        images: ClassificationSet,
        *,
        batch_size: int,
        size: int,
        resize: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        """
        Args:
            images: the set.
            batch_size: of this process.
            size: S, of the central crop.
            resize: shorter side before the crop; 0 for ``size``.
            rank, world: this process, and how many there are.

        Raises:
            ValueError: see :func:`check_sides`.
        """
        check_sides(size, resize)
        self.images, self.size, self.batch_size = images, size, batch_size
        self._share = np.array_split(np.arange(len(images)), world)[rank]
        self._single = v2.Compose([v2.Resize(resize or size), v2.CenterCrop(size), v2.ToImage()])
        self._pixels: np.ndarray | None = None
        if images.images is not None:
            side = resize or size
            pixels = _in_memory(images.images[self._share], side)
            self._pixels = v2.functional.center_crop(torch.from_numpy(pixels), [size]).numpy()

    def __len__(self) -> int:
        return -(-len(self._share) // self.batch_size)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = slice(number * self.batch_size, (number + 1) * self.batch_size)
        chosen = self._share[part]
        if self._pixels is not None:
            image = torch.from_numpy(self._pixels[part])
        else:
            single = [self._single(_image(self.images[i])) for i in chosen.tolist()]
            image = torch.stack([one.as_subclass(torch.Tensor) for one in single])
        return {
            "image": image,
            "class": torch.from_numpy(self.images.labels[chosen]),
            "image_id": torch.from_numpy(self.images.image_ids[chosen]),
        }

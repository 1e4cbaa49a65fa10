"""What is known of a detector's classes from its training set, as far as post-hoc steps need it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..posthoc import Statistics
from .words import pack_words, unpack_words

__all__ = ["ClassStatistics", "ExactBuffers", "class_hash"]


def class_hash(name: str) -> int:
    """A number that stands for the name of a class in checkpoints; never 0."""
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little", signed=True) or 1


class ExactBuffers(nn.Module):
    """A module whose own buffers ``model.half()`` leaves as they are: it must not round them."""

    def _apply(self, fn, *args, **kwargs):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, *args, **kwargs)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before[name].to(buffer.device)
        return self


class ClassStatistics(ExactBuffers):
    """Statistics of C foreground classes, part of checkpoints; all zero is unknown.

    Attributes:
        images, instances (Tensor): (C,) int64, training images and instances of each class.
        num_images (Tensor): () int64, all training images.
        dimension (Tensor): (C,) fp32, see :func:`lvis_tde.posthoc.fractal_dimension`.
        logit_mean, logit_std (Tensor): (C,) fp32, of each class's logit over the training regions
            of the weights beside it.
        class_means (Tensor): (C, D) fp32, mean features of each class under these weights.
        center (Tensor): (D,) fp32, those of the background; 0 where there is none.
        similarity (Tensor): () fp32, cosine of a region to the mean of its class, as a rule.
        classes (Tensor): (C,) int64, :func:`class_hash` of each name; 0 where there is none.
        names (Tensor): (C, 128) uint8, the names themselves in UTF-8.
        groups (Tensor): (C,) uint8, the letters "r", "c" or "f" of the frequency groups; 0 unknown.
    """

    images: Tensor
    instances: Tensor
    num_images: Tensor
    dimension: Tensor
    logit_mean: Tensor
    logit_std: Tensor
    class_means: Tensor
    center: Tensor
    similarity: Tensor
    classes: Tensor
    names: Tensor
    groups: Tensor

    def __init__(self, num_classes: int, num_features: int = 0):
        """
        Args:
            num_classes: C, without background.
            num_features: D, of the classifier's input.

        Raises:
            ValueError: if there is no class.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be positive.")
        self.num_classes = num_classes
        for name in ("images", "instances", "classes"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("names", pack_words([""] * num_classes))
        self.register_buffer("groups", torch.zeros(num_classes, dtype=torch.uint8))
        self.register_buffer("num_images", torch.zeros((), dtype=torch.int64))
        for name in ("dimension", "logit_mean", "logit_std"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.float32))
        self.register_buffer("class_means", torch.zeros(num_classes, num_features))
        self.register_buffer("center", torch.zeros(num_features))
        self.register_buffer("similarity", torch.zeros(()))

    @torch.no_grad()
    def set_annotations(
        self,
        *,
        images: Tensor,
        instances: Tensor,
        dimension: Tensor,
        num_images: int,
        names: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Takes what the annotations of the training set say.

        Args:
            images, instances: (C,) counts.
            dimension: (C,) fractal dimensions, at least 1.
            num_images: number of all images.
            names, groups: see :meth:`set_classes`; None where they have none.

        Raises:
            ValueError: if there is not one number or name a class.
        """
        for values in (images, instances, dimension):
            self._check(values)
        self.set_classes(names, groups)
        self.images.copy_(images)
        self.instances.copy_(instances)
        self.dimension.copy_(dimension)
        self.num_images.fill_(num_images)

    @torch.no_grad()
    def set_classes(self, names: Sequence[str] | None, groups: Sequence[str] | None = None) -> None:
        """Takes what the classes are called.

        Args:
            names: of the C classes; None for none.
            groups: "r", "c" or "f" of each; None where they are not known.

        Raises:
            ValueError: if there is not one a class.
        """
        for values in (names, groups):
            if values is not None:
                self._check(values)
        words = [""] * self.num_classes if names is None else list(names)
        hashes = [0 if names is None else class_hash(name) for name in words]
        letters = [0] * self.num_classes if groups is None else [ord(group) for group in groups]
        self.classes.copy_(torch.tensor(hashes, dtype=torch.int64))
        self.names.copy_(pack_words(words))
        self.groups.copy_(torch.tensor(letters, dtype=torch.uint8))

    @property
    def class_names(self) -> list[str] | None:
        """The C names, if they are known; very long ones are cut."""
        return unpack_words(self.names) if self.names.any() else None

    @property
    def class_groups(self) -> list[str] | None:
        """ "r", "c" or "f" of the C classes, if they are known."""
        return [chr(letter) for letter in self.groups.tolist()] if self.groups.all() else None

    @torch.no_grad()
    def set_logits(self, mean: Tensor, std: Tensor) -> None:
        """Takes mean and standard deviation of each class's logit, (C,) each.

        Raises:
            ValueError: if there is not one number a class.
        """
        self._check(mean)
        self._check(std)
        self.logit_mean.copy_(mean)
        self.logit_std.copy_(std)

    @torch.no_grad()
    def set_class_means(
        self, means: Tensor, center: Tensor, similarity: float | Tensor = 0.0
    ) -> None:
        """Takes mean features: (C, D) of each class and (D,) of the background, 0 for none.

        Args:
            means, center: these.
            similarity: of a region to the mean of its class, see
                :func:`lvis_tde.posthoc.class_means`.

        Raises:
            ValueError: if they have another shape.
        """
        if means.shape != self.class_means.shape:
            raise ValueError(
                f"class means have shape {tuple(means.shape)}, expected "
                f"{tuple(self.class_means.shape)}: one row a foreground class."
            )
        self.class_means.copy_(means)
        self.center.copy_(center)
        self.similarity.fill_(float(similarity))

    def forget_logits(self) -> None:
        """For weights that have moved since: what is known of logits and features."""
        self.logit_std.zero_()
        self.class_means.zero_()

    def forget_annotations(self) -> None:
        """For other training images of the same classes."""
        for buffer in (self.images, self.instances, self.num_images, self.dimension):
            buffer.zero_()

    def forget(self) -> None:
        """Makes all of it unknown."""
        for buffer in self.buffers():
            buffer.zero_()

    def _check(self, values: Tensor | Sequence[str]) -> None:
        if len(values) != self.num_classes:
            raise ValueError(
                f"{len(values)} values for {self.num_classes} classes: one a foreground class "
                "expected, none for the background."
            )

    def known(self) -> Statistics:
        """What of it is known, for :func:`lvis_tde.posthoc.compose`: counts are those of images."""
        counted, measured = bool(self.num_images > 0), bool(self.logit_std.any())
        return Statistics(
            counts=self.images if counted else None,
            dimension=self.dimension if bool(self.dimension.any()) else None,
            mean=self.logit_mean if measured else None,
            std=self.logit_std if measured else None,
            num_images=float(self.num_images) if counted else None,
            class_means=self.class_means if bool(self.class_means.any()) else None,
            center=self.center if bool(self.center.any()) else None,
            similarity=float(self.similarity),
        )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Those of a checkpoint without any are unknown: what was here is of other weights.
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}"

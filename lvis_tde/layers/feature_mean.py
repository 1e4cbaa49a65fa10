"""The running mean of the foreground features, whose direction is the pull of the head classes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def _world_size() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


class RunningFeatureMean(nn.Module):
    """Exponential moving average of the raw features of foreground RoIs (paper section 3.4).

    ``mean <- mean + (1 - momentum) * (batch_mean - mean)``. The weight of a step is constant: a
    mean that followed a decaying learning rate would stand still while the features move on. Only
    the direction is used, so the start from zero needs no bias correction, which would scale the
    mean and not turn it.

    Over several processes the batch mean is that of all of them, weighted by count, and equal
    on all ranks: every rank must call :meth:`update` in every step, foreground or not.

    Attributes:
        mean (Tensor): buffer, (num_features,), fp32 also in a half-precision model; saved in
            checkpoints. Zero until the first update with foreground.
    """

    mean: Tensor

    def __init__(self, num_features: int, momentum: float = 0.9998):
        """
        Args:
            num_features: D.
            momentum: mu in [0, 1). The authors have 0.9998 for LVIS and 0.9 for CIFAR;
                docs/benchmarks.md has what was measured.

        Raises:
            ValueError: if an argument is out of its range.
        """
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features={num_features} must be positive.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must lie in [0, 1).")
        self.num_features = num_features
        self.momentum = float(momentum)
        self.register_buffer("mean", torch.zeros(num_features, dtype=torch.float32))

    @torch.no_grad()
    def update(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Moves the mean towards that of the selected features.

        Nothing changes where no process has a selected feature, or where a selected feature of
        any process is not finite.

        Args:
            features: (R, num_features) raw classifier input, any floating type.
            mask: (R,) bool, True for foreground: ``0 <= gt < C``; None selects all, which needs no
                synchronization with the device.

        Returns:
            Tensor: scalar fp32, the number of selected features over all processes.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if features.dim() != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"features have shape {tuple(features.shape)}, expected (R, {self.num_features})."
            )
        if mask is not None and mask.shape != features.shape[:1]:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, expected ({len(features)},).")
        # One buffer [sum, count], so that all ranks agree with a single collective. It is called
        # by every rank in every step: leaving early without foreground would hang the others.
        dtype = self.mean.dtype
        total = torch.zeros(self.num_features + 1, dtype=dtype, device=self.mean.device)
        selected = features.detach() if mask is None else features.detach()[mask]
        total[:-1] = selected.to(dtype).sum(0)
        total[-1] = len(selected)
        if _world_size() > 1:
            distributed.all_reduce(total)
        count = total[-1]
        batch_mean = total[:-1] / count.clamp(min=1)
        moved = self.mean.lerp(batch_mean, 1 - self.momentum)
        # `where` instead of `if`: no synchronization with the device.
        usable = (count > 0) & torch.isfinite(moved).all()
        self.mean.copy_(torch.where(usable, moved, self.mean))
        return count.float()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Loaded with assign=True, it would have the data type of the checkpoint.
        known = state_dict.get(f"{prefix}mean")
        if isinstance(known, Tensor):
            state_dict[f"{prefix}mean"] = known.to(self.mean.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn, *args, **kwargs):
        # model.half() must not round the mean: its steps are far below its size.
        before = self.mean
        super()._apply(fn, *args, **kwargs)
        if self.mean.dtype in (torch.float16, torch.bfloat16):
            self.mean = before.to(self.mean.device)
        return self

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, momentum={self.momentum:g}"

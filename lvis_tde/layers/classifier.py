"""The classifier that replaces the softmax box classifier. This file needs torch alone."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .derived import DerivedTensors
from .functional import (
    NO_NORM,
    at_least_fp32,
    check_norm,
    check_num_heads,
    cosine_to_mean,
    counterfactual,
    normalize_features,
    normalize_weight,
    project_on_mean,
)


def _autocast_off(x: Tensor):
    # Norms and cosines in half precision would cost the differences between rare classes.
    return torch.autocast(device_type=x.device.type, enabled=False)


class CosineMultiHeadClassifier(nn.Module):
    """Multi-head classifier on normalized features and weights (paper sections 3.3 and 4.1).

    ``y_i = tau / K * sum_k xh_k . wh_{i,k}``, without bias. Always factual: the running mean is
    an argument of :func:`~lvis_tde.tde_logits`, so the classifier has no state but its weight.

    ``norm="none"`` is the linear classifier of a softmax detector, ``y = w . x + b``, so that a
    trained one can be used with TDE: parameters of the same names, no scale, and a bias that TDE
    leaves as it is.

    Attributes:
        weight (Parameter): (out_features, in_features). In detection the last row is background.
        bias (Parameter or None): (out_features,) under "none".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        norm: str = "deconfound",
    ):
        """
        Args:
            in_features: D, size of the classifier input.
            out_features: number of classes, background included where there is one.
            num_heads: K, a divisor of ``in_features`` (2 for LVIS).
            tau: inverse temperature of the logits, > 0 (16 for LVIS).
            gamma: offset of the weights' norm under "deconfound", >= 0 (1/32 for LVIS).
            norm: "cosine", "capsule" or "deconfound" (paper section 3.3); "none" for the linear
                classifier, which uses neither ``tau`` nor ``gamma``.

        Raises:
            ValueError: if an argument is out of its range.
        """
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"Sizes must be positive, got {in_features} and {out_features}.")
        if not tau > 0 or not math.isfinite(tau):
            raise ValueError(f"tau={tau} must be positive and finite.")
        if not gamma >= 0 or not math.isfinite(gamma):
            raise ValueError(f"gamma={gamma} must be finite and not negative.")
        self.in_features = in_features
        self.out_features = out_features
        self.num_heads = check_num_heads(in_features, num_heads)
        self.tau = float(tau)
        self.gamma = float(gamma)
        self.norm = check_norm(norm)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        bias = nn.Parameter(torch.empty(out_features)) if norm == NO_NORM else None
        self.register_parameter("bias", bias)
        self._derived = DerivedTensors()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(D), so that gamma is small beside the norm of a head's weights.

        Under "none" as Detectron2 starts its linear classifier.
        """
        if self.norm == NO_NORM:
            nn.init.normal_(self.weight, std=0.01)
            nn.init.zeros_(self.bias)
            return
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    @property
    def scale(self) -> float:
        """tau / K; 1 under "none"."""
        return 1.0 if self.norm == NO_NORM else self.tau / self.num_heads

    def forward(self, features: Tensor) -> Tensor:
        """Factual logits.

        Args:
            features: (R, in_features), any floating type.

        Returns:
            Tensor: (R, out_features), fp32 at least, also under autocast.
        """
        with _autocast_off(features):
            xh = normalize_features(features, self.num_heads, self.norm)
            bias = None if self.bias is None else self.bias.to(xh.dtype)
            return F.linear(xh, self._scaled_weight().to(xh.dtype), bias)

    def indirect_effect(self, features: Tensor, feature_mean: Tensor, alpha: float) -> Tensor:
        """Counterfactual logits, see :func:`~lvis_tde.layers.functional.counterfactual`.

        Args:
            features: (R, in_features), any floating type.
            feature_mean: (in_features,); zero gives zeros.
            alpha: strength of the removal, >= 0.

        Returns:
            Tensor: (R, out_features), fp32 at least, also under autocast.
        """
        with _autocast_off(features):
            cosine, pull = self._rank_k(features, feature_mean)
            return counterfactual(cosine, pull, scale=1.0, alpha=alpha)

    def direct_effect(
        self, logits: Tensor, features: Tensor, feature_mean: Tensor, alpha: float
    ) -> Tensor:
        """``logits - indirect_effect(...)`` in one pass over the logits.

        Args:
            logits: (R, out_features), what :meth:`forward` gave for ``features``.
            features, feature_mean, alpha: see :meth:`indirect_effect`.

        Returns:
            Tensor: (R, out_features), fp32 at least, also under autocast.
        """
        with _autocast_off(features):
            cosine, pull = self._rank_k(features, feature_mean)
            return torch.addmm(at_least_fp32(logits), cosine, pull.t(), alpha=-alpha)

    def train(self, mode: bool = True):
        self._derived.clear()
        return super().train(mode)

    def _rank_k(self, features, feature_mean):
        """``xh_k . d_k`` (R, K) and ``tau / K * d_k . wh_{i,k}`` (out_features, K)."""

        def compute():
            return project_on_mean(self._scaled_weight(), feature_mean, self.num_heads)

        cosine = cosine_to_mean(features, feature_mean, self.num_heads, self.norm)
        pull = self._keep("pull", compute, self.weight, feature_mean)
        return cosine, pull.to(cosine.dtype)

    def _scaled_weight(self) -> Tensor:
        """``wh * tau / K``."""

        def compute():
            weight = normalize_weight(self.weight, self.num_heads, self.norm, self.gamma)
            return weight * self.scale

        return self._keep("weight", compute, self.weight)

    def _keep(self, name, compute, *sources):
        if self.training:
            return compute()
        settings = (self.num_heads, self.norm, self.gamma, self.tau)
        return self._derived.get(name, compute, sources, settings)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_heads={self.num_heads}, tau={self.tau:g}, gamma={self.gamma:g}, "
            f"norm={self.norm!r}"
        )

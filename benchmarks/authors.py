"""The formulation of the authors' implementation, for comparison: two products, head by head.

Written from the formulas of the paper. Weights are normalized in every call, features and weights
are split by head, and the TDE logits are products of their own with the reduced features.
"""

import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch.nn import functional as F

from lvis_tde.modeling.fast_rcnn import TDEFastRCNNOutputLayers

__all__ = ["AuthorsOutputLayers", "authors_logits"]


def authors_logits(features, weight, mean, num_heads, tau, gamma, alpha):
    """Factual and TDE logits, each (R, C + 1), with the "deconfound" normalization.

    Args:
        features: (R, D).
        weight: (C + 1, D).
        mean: (D,), not zero in any head.
        num_heads, tau, gamma, alpha: K, tau, gamma and alpha of the paper.
    """
    factual, direct = [], []
    for x, w, d in _heads(features, weight, mean, num_heads, gamma):
        cosine = (x * d).sum(dim=1, keepdim=True)
        factual.append((x * tau / num_heads) @ w.t())
        direct.append(((x - alpha * cosine * d) * tau / num_heads) @ w.t())
    return sum(factual), sum(direct)


def _heads(features, weight, mean, num_heads, gamma):
    """Normalized features, weights and mean of one head after the other."""
    size = features.shape[1] // num_heads
    for x, w, m in zip(
        features.split(size, dim=1), weight.split(size, dim=1), mean.split(size, dim=0)
    ):
        x = x / (x.norm(dim=1, keepdim=True) + 1e-9)
        yield x, w / (w.norm(dim=1, keepdim=True) + gamma), m / m.norm()


class AuthorsOutputLayers(TDEFastRCNNOutputLayers):
    """The TDE predictor with the authors' formulation and upstream's NMS."""

    def predict_probs(self, predictions, proposals):
        head = self.cls_score
        factual, direct = authors_logits(
            predictions[2],
            head.weight,
            self.feature_mean.mean,
            head.num_heads,
            head.tau,
            head.gamma,
            self.alpha,
        )
        p, q = F.softmax(factual, dim=1), F.softmax(direct, dim=1)
        foreground = q[:, :-1] / (1 - q[:, -1:]) * (1 - p[:, -1:])
        return torch.cat([foreground, p[:, -1:]], dim=1).split([len(x) for x in proposals])

    def inference(self, predictions, proposals):
        return FastRCNNOutputLayers.inference(self, predictions, proposals)

    def forward(self, x):
        if x.dim() > 2:
            x = torch.flatten(x, start_dim=1)
        logits = x  # in inference the logits are made in predict_probs
        if self.training:
            head, mean = self.cls_score, self.feature_mean.mean
            heads = _heads(x, head.weight, mean, head.num_heads, head.gamma)
            logits = sum((xk * head.scale) @ w.t() for xk, w, _ in heads)
        return logits, self.bbox_pred(x), x

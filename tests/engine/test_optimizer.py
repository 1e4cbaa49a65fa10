"""``SOLVER.OPTIMIZER``: Detectron2's SGD untouched, AdamW with the same exceptions."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_optimizer

from lvis_tde.config import add_tde_config
from lvis_tde.engine import Trainer

SOLVER = (
    "SOLVER.BASE_LR", 0.001, "SOLVER.MOMENTUM", 0.8, "SOLVER.WEIGHT_DECAY", 0.05,
    "SOLVER.WEIGHT_DECAY_NORM", 0.01, "SOLVER.BIAS_LR_FACTOR", 2.0,
)  # fmt: skip


def options(optimizer):
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def test_sgd_is_upstreams(tiny_cfg, tiny_model):
    cfg, model = tiny_cfg("softmax", *SOLVER), tiny_model("softmax")
    ours, theirs = Trainer.build_optimizer(cfg, model), build_optimizer(cfg, model)
    assert isinstance(ours, torch.optim.SGD) and options(ours) == options(theirs)


def test_adamw_has_the_same_groups_and_clips(tiny_cfg, tiny_model):
    cfg, model = tiny_cfg("softmax", *SOLVER), tiny_model("softmax")
    sgd = options(Trainer.build_optimizer(cfg, model))
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    for ours, theirs in zip(options(optimizer), sgd):
        assert ours["betas"] == (0.8, 0.999)
        assert {k: ours[k] for k in ("lr", "weight_decay")} == {
            k: theirs[k] for k in ("lr", "weight_decay")
        }
    assert len({one["weight_decay"] for one in options(optimizer)}) == 2
    # Against torch's own on gradients that are clipped by hand.
    parameter = next(p for p in model.parameters() if p.requires_grad)
    twin = torch.nn.Parameter(parameter.detach().clone())
    (group,) = (g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    hyper = {k: group[k] for k in ("lr", "betas", "weight_decay")}
    plain = torch.optim.AdamW([twin], **hyper)
    for size in (100.0, 0.001):
        gradient = torch.full_like(parameter, size)
        parameter.grad, twin.grad = gradient.clone(), gradient.clone()
        torch.nn.utils.clip_grad_norm_(twin, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
        optimizer.step()
        plain.step()
    assert torch.equal(parameter, twin)


def test_another_name(tiny_cfg, tiny_model):
    cfg = tiny_cfg("softmax", "SOLVER.OPTIMIZER", "LION")
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'LION': choose \"SGD\" or"):
        Trainer.build_optimizer(cfg, tiny_model("softmax"))


def test_a_projects_own_default_stays():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    add_tde_config(cfg)
    assert cfg.SOLVER.OPTIMIZER == "ADAMW"

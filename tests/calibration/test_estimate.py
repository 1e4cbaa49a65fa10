"""The estimated mean against a plain sum over what the predictor sees, collected by hooks."""

import math

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage, get_event_storage
from heads_util import TDE_NAMES, build, predictors, training_image, zoo_config
from torch import distributed

from lvis_tde import TDEFastRCNNOutputLayers
from lvis_tde.calibration.estimate import angle_between, estimate_feature_mean

NAMES = {
    "StandardROIHeads": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "CascadeROIHeads": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "Res5ROIHeads": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
}


def zoo_model(heads, *options):
    cfg = zoo_config(NAMES[heads])
    assert cfg.MODEL.ROI_HEADS.NAME == heads
    cfg.MODEL.ROI_HEADS.NAME = TDE_NAMES[heads]
    cfg.merge_from_list(options)
    return cfg, build(cfg)


def features_seen(model, batches, monkeypatch):
    """Features and labels of each predictor's regions, as upstream's losses would see them."""
    seen = {}
    losses = FastRCNNOutputLayers.losses

    def record(self, predictions, proposals):
        labels = torch.cat([p.gt_classes for p in proposals])
        seen.setdefault(self, []).append((inputs[self][-1], labels))
        return losses(self, predictions, proposals)

    inputs, handles = {}, []
    for predictor in predictors(model):
        keep = inputs.setdefault(predictor, [])
        handles.append(
            predictor.register_forward_hook(
                lambda _, args, __, k=keep: k.append(args[0].flatten(1))
            )
        )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with monkeypatch.context() as patch, EventStorage(), torch.no_grad():
        patch.setattr(FastRCNNOutputLayers, "losses", record)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    model.load_state_dict(before)
    return [[torch.cat(parts) for parts in zip(*seen[p])] for p in predictors(model)]


@pytest.mark.parametrize("heads", NAMES)
@pytest.mark.parametrize("norm, num_heads", [("none", 1), ("deconfound", 2)])
def test_the_mean_is_that_of_the_foreground(heads, norm, num_heads, monkeypatch):
    cfg, model = zoo_model(heads, "MODEL.TDE.NORM", norm, "MODEL.TDE.NUM_HEADS", num_heads)
    batches = [[training_image(cfg, seed=seed)] for seed in range(3)]
    torch.manual_seed(7)
    expected = features_seen(model, batches, monkeypatch)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    found = estimate_feature_mean(model, batches, max_batches=3, class_means=True)
    assert found.num_batches == 3 and not found.converged and min(found.num_foreground) > 0
    assert len(found.means) == len(expected) == (3 if heads == "CascadeROIHeads" else 1)
    for predictor, mean, (features, labels) in zip(predictors(model), found.means, expected):
        foreground = labels < predictor.num_classes
        torch.testing.assert_close(mean, features[foreground].double().mean(0).float())
        assert torch.equal(predictor.feature_mean.mean, mean)
        # Of each class, and of the background.
        center = features[labels == predictor.num_classes].double().mean(0)
        for number, one in enumerate(
            [*predictor.statistics.class_means, predictor.statistics.center]
        ):
            own = features[labels == number].double()
            torch.testing.assert_close(one, (own.mean(0) if len(own) else own.sum(0)).float())
        # How near a region is to the mean of its class, by the root of the mean square.
        shown = [features[labels == c].double() - center for c in labels[foreground].unique()]
        nearness = [one.mean(0).norm() / one.square().sum(1).mean().sqrt() for one in shown]
        rows = torch.tensor([len(one) for one in shown])
        similarity = (torch.stack(nearness) * rows).sum() / rows.sum()
        torch.testing.assert_close(predictor.statistics.similarity, similarity.float())
        assert 0 < similarity < 1 and len(shown) < predictor.num_classes
    unseen = [
        p.num_classes - len(labels.unique()) + 1
        for p, (_, labels) in zip(predictors(model), expected)
    ]
    assert list(found.num_without_mean) == unseen
    # Nothing else has changed: neither weights nor those of batch norm, mode or branches.
    assert not any(module.training for module in model.modules())
    assert model.roi_heads.mask_on
    for name, value in model.state_dict().items():
        measured = ("_mean.mean", "logit_mean", "logit_std", "class_means", "center", "similarity")
        assert name.endswith(measured) or torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_converges_and_says_how_sure_it_is(tiny_model, make_batch):
    model = tiny_model("deconfound").train()
    used = []

    def batches():
        while True:
            used.append(make_batch())
            yield used[-1]

    # The same images again and again: only the sampling of regions differs.
    found = estimate_feature_mean(model, batches(), min_batches=10, tolerance=20.0)
    assert found.converged and found.num_batches == len(used) and found.angle <= 20
    assert len(used) < 500 and all(module.training for module in model.modules())
    assert not found.num_left_out[0]
    tight = estimate_feature_mean(model, batches(), max_batches=12, tolerance=0)
    assert not tight.converged and tight.num_batches == 12


def test_means_of_classes_wait_for_the_rarest(tiny_model, make_batch):
    model, used = tiny_model("deconfound"), []
    (predictor,) = predictors(model)

    def batches(last):
        used.clear()
        while True:
            used.append(make_batch())
            for one in used[-1]:
                one["instances"].gt_classes[:] = 6 if len(used) == last else len(used) % 6
            yield used[-1]

    options = dict(min_batches=10, tolerance=180.0)
    estimate_feature_mean(model, batches(25), **options)
    assert len(used) == 10 and not predictor.statistics.class_means.any()
    images = torch.ones(7, dtype=torch.int64)

    def known(images):
        predictor.statistics.set_annotations(
            images=images, instances=images, dimension=torch.ones(7), num_images=9
        )

    known(images)
    found = estimate_feature_mean(model, batches(25), class_means=True, **options)
    assert len(used) == 30 and found.converged and found.num_without_mean == (0,)
    found = estimate_feature_mean(model, batches(25), class_means=True, max_batches=24, **options)
    assert len(used) == 24 and found.num_without_mean == (1,)
    # One that no training image has is not waited for.
    known(images * (torch.arange(7) < 6))
    found = estimate_feature_mean(model, batches(25), class_means=True, **options)
    assert len(used) == 10 and found.num_without_mean == (1,)
    assert not predictor.statistics.class_means[6].any()
    # Of which there are any, nobody knows: all batches.
    predictor.statistics.forget_annotations()
    estimate_feature_mean(model, batches(9), class_means=True, max_batches=25, **options)
    assert len(used) == 25


def test_dropout_is_off_and_batch_norm_is_frozen(tiny_model, make_batch):
    model = tiny_model()
    model.backbone.register_module("extra", torch.nn.Dropout())
    seen = []
    kinds = (torch.nn.BatchNorm2d, torch.nn.Dropout)
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, *_: seen.append(m.training))
    estimate_feature_mean(model, [make_batch()] * 2)
    assert seen and not any(seen)


class StochasticDepth(torch.nn.Module):
    """Drops its input at random, as torchvision's and timm's do; here it says that it would."""

    def forward(self, x):
        assert not self.training, "random while the mean is estimated"
        return x


def test_stochastic_depth_is_off(tiny_model, make_batch):
    model = tiny_model().train()
    model.roi_heads.box_head.add_module("drop_path", StochasticDepth())
    model.backbone = torch.nn.Sequential(model.backbone)
    model.backbone.size_divisibility = model.backbone[0].size_divisibility
    model.backbone.padding_constraints = {}
    depth = StochasticDepth()
    model.backbone[0].register_module("depth", depth)
    model.backbone[0].register_forward_pre_hook(lambda _, images: depth(images[0]))
    estimate_feature_mean(model, [make_batch()] * 2)
    assert depth.training


def test_in_the_middle_of_training(tiny_model, make_batch):
    # Modules in a mode of their own, as with frozen layers, keep it; the storage is the trainer's.
    model = tiny_model().train()
    model.backbone.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        with EventStorage(17) as storage:
            found = estimate_feature_mean(wrapped, [make_batch()] * 4, max_batches=3, tolerance=0)
            assert get_event_storage() is storage and storage.iter == 17
            assert not storage.histories()
            assert found.num_batches == 3
            assert torch.equal(model.roi_heads.box_predictor.feature_mean.mean, found.means[0])
            assert {name: module.training for name, module in model.named_modules()} == modes
            assert all("losses" not in vars(module) for module in model.modules())
            # Training goes on.
            sum(wrapped(make_batch()).values()).backward()
        assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    finally:
        distributed.destroy_process_group()


def test_features_that_are_not_finite_are_left_out(tiny_model, make_batch):
    model = tiny_model()
    head, calls = model.roi_heads.box_head, []

    def spoil(_, __, features):
        calls.append(len(features))
        features = features.clone()
        features[:, 0] = math.nan if len(calls) == 1 else 1.0
        return features

    head.register_forward_hook(spoil)
    found = estimate_feature_mean(model, [make_batch()] * 3)
    assert found.num_left_out[0] > 0 and torch.isfinite(found.means[0]).all()


def test_no_foreground_is_an_error(tiny_model, make_batch):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"2 batches had \(0,\) foreground"):
        estimate_feature_mean(model, [make_batch(objects=0)] * 2)
    # The model is usable, and estimable, afterwards.
    assert "losses" not in vars(model.roi_heads.box_predictor)
    estimate_feature_mean(model, [make_batch()] * 2)


def test_bad_arguments(tiny_model, make_batch):
    with pytest.raises(ValueError, match="max_batches=1"):
        estimate_feature_mean(tiny_model(), [make_batch()], max_batches=1)
    with pytest.raises(ValueError, match="tolerance=-1"):
        estimate_feature_mean(tiny_model(), [make_batch()], tolerance=-1)
    with pytest.raises(ValueError, match="no TDE predictor"):
        estimate_feature_mean(tiny_model("softmax"), [make_batch()])


def test_angles():
    a = torch.tensor([1.0, 0.0, 1.0, 1.0])
    b = torch.tensor([0.0, 3.0, 2.0, 2.0])
    torch.testing.assert_close(angle_between(a, b, 2), torch.tensor([90.0, 0.0]).double())
    small = torch.tensor([1.0, math.tan(math.radians(1e-4))], dtype=torch.double)
    assert angle_between(torch.tensor([5.0, 0.0]), small).item() == pytest.approx(1e-4, rel=1e-6)
    assert angle_between(a, -a).item() == pytest.approx(180)
    assert angle_between(torch.zeros(2), torch.zeros(2)).item() == 0


def test_a_mean_that_training_tracked_is_found_again(tiny_model, make_batch):
    # With frozen weights the running mean and the estimate are of the same features.
    model = tiny_model(
        "deconfound", "MODEL.TDE.MEAN_MOMENTUM_LR_SCALED", False, "MODEL.TDE.MEAN_MOMENTUM", 0.95
    )
    batches = [make_batch(n) for n in (2, 3)] * 20
    for module in model.modules():
        module.train(not isinstance(module, torch.nn.BatchNorm2d))
    with EventStorage():
        for batch in batches:
            model(batch)
    (predictor,) = [m for m in model.modules() if isinstance(m, TDEFastRCNNOutputLayers)]
    tracked = predictor.feature_mean.mean.clone()
    found = estimate_feature_mean(model, batches, tolerance=0)
    assert angle_between(tracked, found.means[0], 2).max() < 5

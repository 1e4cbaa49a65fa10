"""The meta architecture from a config and from explicit arguments: both kinds of batches, modes."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

from lvis_tde import add_tde_config
from lvis_tde.modeling import ImageClassifier, TDEImagePredictor
from lvis_tde.posthoc import Settings

C = 4


def make(*overrides):
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE", "ImageClassifier",
            "MODEL.BACKBONE.NAME", "build_cifar_resnet_backbone",
            "MODEL.RESNETS.DEPTH", 14,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 4,
            "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", C,
            "MODEL.DEVICE", "cpu",
            "MODEL.TDE.MEAN_MOMENTUM", 0.9,
            "SOLVER.BASE_LR", 0.05,
            *overrides,
        ]
    )  # fmt: skip
    torch.manual_seed(0)
    return build_model(cfg), cfg


def make_batch(number=6, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(C, (number,), generator=generator)
    return {"image": images, "class": labels, "image_id": torch.arange(number), **options}


def as_list(batch):
    return [dict(zip(batch, values)) for values in zip(*batch.values())]


def loss_of(model, batch, iteration=0):
    with EventStorage(iteration):
        losses = model(batch)
    assert set(losses) == {"loss_cls"}
    return losses["loss_cls"]


def step(model, optimizer, batch, iteration=0):
    loss = loss_of(model, batch, iteration)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def predict(model, batch):
    with torch.no_grad():
        return model.eval()(batch)


def test_a_dict_and_a_list_of_dicts_are_one_batch():
    model, _ = make()
    batch = make_batch()
    losses = []
    for form in (batch, as_list(batch)):
        torch.manual_seed(0)
        losses.append(loss_of(model.train(), form).item())
    assert losses[0] == losses[1]
    together, one_by_one = predict(model, batch)["probabilities"], predict(model, as_list(batch))
    assert together.shape == (6, C)
    torch.testing.assert_close(torch.stack([o["probabilities"] for o in one_by_one]), together)


def test_images_are_normalized_whatever_their_type():
    model, cfg = make()
    batch = make_batch()
    expected = batch["image"].float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    torch.testing.assert_close(model.preprocess_image(batch), (expected - mean) / std)
    floating = {"image": expected}
    torch.testing.assert_close(model.preprocess_image(floating), model.preprocess_image(batch))
    last = {"image": batch["image"].to(memory_format=torch.channels_last)}
    assert model.preprocess_image(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(predict(model, last), predict(model, batch))


def test_features_are_what_the_predictor_sees():
    model, _ = make()
    model.eval()
    batch = make_batch()
    with torch.no_grad():
        features = model.features(batch)
        maps = model.backbone(model.preprocess_image(batch))["last"]
        predictor = model.predictor
        probabilities = predictor.predict_probs(predictor(features))
    torch.testing.assert_close(features, maps.mean((2, 3)))
    torch.testing.assert_close(predict(model, batch)["probabilities"], probabilities)


def test_what_cannot_be_a_batch_is_quoted():
    model, _ = make()
    images = [{"image": torch.zeros(3, 8, 8)}, {"image": torch.zeros(3, 8, 9)}]
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), \(3, 8, 9\).*one by one"):
        model(images)
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\), expected \(N, 3, H, W\)"):
        model({"image": torch.zeros(2, 1, 8, 8)})
    with EventStorage(), pytest.raises(ValueError, match="'class'"):
        model.train()({"image": torch.zeros(2, 3, 8, 8)})


def test_no_image_gives_no_probability():
    model, _ = make()
    assert predict(model, make_batch(0))["probabilities"].shape == (0, C)


def test_mixup_takes_both_classes():
    model, _ = make()
    first, second = make_batch(), make_batch()
    second["class"] = (first["class"] + 1) % C
    share = torch.full((6,), 0.3)
    losses = []
    for batch in (first, second, {**first, "class_b": second["class"], "weight": share}):
        losses.append(loss_of(model.train(), batch))
    torch.testing.assert_close(losses[2], 0.3 * losses[0] + 0.7 * losses[1])


def test_training_learns_and_is_repeatable():
    runs = []
    for _ in range(2):
        model, cfg = make()
        optimizer = build_optimizer(cfg, model)
        losses = [step(model.train(), optimizer, make_batch(), i) for i in range(15)]
        assert losses[-1] < losses[0] / 2 and model.predictor.feature_mean.mean.any()
        runs.append((losses, predict(model, make_batch())["probabilities"]))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_alpha_and_the_other_steps_are_set_on_a_trained_model():
    model, _ = make()
    predictor = model.predictor
    predictor.feature_mean.mean.uniform_()
    counts = torch.tensor([50, 10, 5, 1])
    predictor.statistics.set_annotations(
        images=counts, instances=counts, dimension=torch.ones(C), num_images=66
    )
    predictor.posthoc = Settings()
    factual = predict(model, make_batch())["probabilities"]
    predictor.posthoc = Settings(logit_adjustment=1.0)
    adjusted = predict(model, make_batch())["probabilities"]
    assert (adjusted[:, -1] > factual[:, -1]).all() and (adjusted[:, 0] < factual[:, 0]).all()
    copy, _ = make()
    copy.load_state_dict(model.state_dict())
    copy.predictor.posthoc = Settings(logit_adjustment=1.0)
    assert torch.equal(predict(copy, make_batch())["probabilities"], adjusted)


@pytest.mark.parametrize("train_only", ["classifier", "scales"])
def test_a_second_stage_leaves_the_backbone_as_it_is(train_only):
    model, cfg = make("MODEL.IMAGE_CLASSIFIER.TRAIN_ONLY", train_only, "MODEL.TDE.NORM", "none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(cfg, model)
    for iteration in range(3):
        step(model.train(), optimizer, make_batch(), iteration)
    assert model.training and not any(m.training for m in model.backbone.modules())
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    weights = {"predictor.cls_score.weight", "predictor.cls_score.bias"}
    assert moved == (weights if train_only == "classifier" else {"predictor.cls_score.scales"})
    assert not model.features(make_batch()).requires_grad


def test_bf16_autocast_keeps_mean_and_probabilities_in_fp32():
    model, _ = make()
    batch = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model.train(), batch)
        features = model.features(batch)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert features.dtype == model.predictor.feature_mean.mean.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = predict(model, batch)["probabilities"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(6))


class _Pooled(Backbone):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 64, 6)
        self._out_features = ["early", "late"]
        self._out_feature_channels = {"early": 3, "late": 6}
        self._out_feature_strides = {"early": 1, "late": None}

    def forward(self, x):
        return {"early": x, "late": self.layer(x.flatten(1))}


def test_explicit_arguments_and_pooled_features():
    options = {"backbone": _Pooled(), "pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 1]}
    predictor = TDEImagePredictor(ShapeSpec(channels=6), num_classes=C)
    model = ImageClassifier(predictor=predictor, **options)
    assert predict(model, make_batch())["probabilities"].shape == (6, C)
    with torch.no_grad():
        images = model.preprocess_image(make_batch())
        expected = model.backbone.layer(images.flatten(1))
        torch.testing.assert_close(model.features(make_batch()), expected)
    with pytest.raises(ValueError, match="'late' has 6 channels.*takes 8 features"):
        predictor = TDEImagePredictor(ShapeSpec(channels=8), num_classes=C)
        ImageClassifier(predictor=predictor, **options)

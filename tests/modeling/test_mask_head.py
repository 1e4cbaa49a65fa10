"""Mask heads for the needed class, against Detectron2's head and a written-out cosine."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    build_mask_head,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from lvis_tde import add_tde_config
from lvis_tde.modeling.mask_head import (
    CosineMaskPredictor,
    CosineMaskRCNNConvUpsampleHead,
    SelectedClassMaskRCNNConvUpsampleHead,
)

SHAPE = ShapeSpec(channels=6, height=7, width=7)
CLASSES = 11


def arguments(num_classes=CLASSES, **kwargs):
    return dict(input_shape=SHAPE, num_classes=num_classes, conv_dims=[8, 8, 12], **kwargs)


def randomised(head, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return head


def images(counts, training, seed=0):
    """Instances as the ROI heads hand them over, `counts[i]` of them in image i."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 20
        size = torch.rand(count, 2, generator=generator) * 30 + 2
        boxes = Boxes(torch.cat([corner, corner + size], dim=1))
        classes = torch.randint(CLASSES, (count,), generator=generator)
        instances = Instances((64, 64))
        if training:
            instances.proposal_boxes, instances.gt_classes = boxes, classes
            instances.gt_masks = BitMasks(torch.rand(count, 64, 64, generator=generator) > 0.5)
        else:
            instances.pred_boxes, instances.pred_classes = boxes, classes
        result.append(instances)
    return result


def train_step(head, x, instances):
    x = x.clone().requires_grad_()
    with EventStorage() as storage:
        loss = head(x, instances)["loss_mask"]
        loss.backward()
        scalars = {name: value for name, (value, _) in storage.latest().items()}
        pictures = storage._vis_data
    gradients = {name: p.grad for name, p in head.named_parameters()}
    return loss.detach(), {"input": x.grad, **gradients}, scalars, pictures


@pytest.mark.parametrize("num_classes", [CLASSES, 1])
@pytest.mark.parametrize("counts", [(5,), (3, 0, 4), (0,), ()])
def test_selected_class_training_equals_upstream(num_classes, counts):
    upstream = randomised(MaskRCNNConvUpsampleHead(**arguments(num_classes, loss_weight=0.7)))
    ours = SelectedClassMaskRCNNConvUpsampleHead(**arguments(num_classes, loss_weight=0.7))
    ours.load_state_dict(upstream.state_dict())
    x, instances = torch.randn(sum(counts), 6, 7, 7), images(counts, training=True)
    loss, gradients, scalars, _ = train_step(upstream, x, instances)
    our_loss, our_gradients, our_scalars, _ = train_step(ours, x, instances)
    torch.testing.assert_close(our_loss, loss, rtol=0, atol=1e-5)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=0, atol=1e-5)
    assert our_scalars == scalars
    assert ("mask_rcnn/accuracy" in scalars) == (sum(counts) > 0)


def test_selected_class_training_shows_the_same_pictures():
    upstream = randomised(MaskRCNNConvUpsampleHead(**arguments(vis_period=1)))
    ours = SelectedClassMaskRCNNConvUpsampleHead(**arguments(vis_period=1))
    ours.load_state_dict(upstream.state_dict())
    x, instances = torch.randn(3, 6, 7, 7), images((3,), training=True)
    expected, got = (train_step(head, x, instances)[3] for head in (upstream, ours))
    assert [name for name, _, _ in got] == [name for name, _, _ in expected]
    assert len(got) == 3
    for (_, want, _), (_, picture, _) in zip(expected, got):
        torch.testing.assert_close(picture, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_classes", [CLASSES, 1])
@pytest.mark.parametrize("counts", [(5,), (3, 0, 4), (0,), (40, 60)])
def test_selected_class_masks_equal_upstream(num_classes, counts):
    upstream = randomised(MaskRCNNConvUpsampleHead(**arguments(num_classes))).eval()
    ours = SelectedClassMaskRCNNConvUpsampleHead(**arguments(num_classes)).eval()
    ours.load_state_dict(upstream.state_dict())
    x = torch.randn(sum(counts), 6, 7, 7)
    expected = upstream(x, images(counts, training=False))
    got = ours(x, images(counts, training=False))
    for want, have in zip(expected, got):
        assert have.pred_masks.shape == (len(have), 1, 14, 14)
        torch.testing.assert_close(have.pred_masks, want.pred_masks, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.layers(x), upstream.layers(x))


def test_selected_class_under_autocast_gives_upstreams_dtype():
    upstream = randomised(MaskRCNNConvUpsampleHead(**arguments())).eval()
    ours = SelectedClassMaskRCNNConvUpsampleHead(**arguments()).eval()
    ours.load_state_dict(upstream.state_dict())
    x = torch.randn(4, 6, 7, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = upstream(x, images((4,), training=False))[0].pred_masks
        have = ours(x, images((4,), training=False))[0].pred_masks
    assert have.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(have, want, rtol=0, atol=2e-2)


def cosine_logits(features, weight, bias, temperature, eps):
    """The definition, position by position, in float64."""
    x = features.double().movedim(1, -1)
    w = weight.double().flatten(1)
    x = x / (x.norm(dim=-1, keepdim=True) + eps)
    w = w / (w.norm(dim=-1, keepdim=True) + eps)
    return (temperature * x @ w.T + bias.double()).movedim(-1, 1)


def test_cosine_predictor_is_the_definition():
    torch.manual_seed(0)
    predictor = CosineMaskPredictor(12, CLASSES, temperature=7.0, epsilon=1e-3)
    torch.nn.init.normal_(predictor.bias)
    x, classes = torch.randn(5, 12, 6, 6).relu(), torch.tensor([0, 10, 3, 3, 7])
    want = cosine_logits(x, predictor.weight, predictor.bias, 7.0, 1e-3)
    torch.testing.assert_close(predictor(x).double(), want, rtol=0, atol=1e-5)
    own = want[torch.arange(5), classes][:, None]
    torch.testing.assert_close(predictor.select(x, classes).double(), own, rtol=0, atol=1e-5)


def test_cosine_predictor_depends_on_directions_only():
    torch.manual_seed(0)
    predictor, x = CosineMaskPredictor(12, 3), torch.rand(2, 12, 4, 4) + 0.1
    before = predictor(x)
    predictor.weight.data *= torch.tensor([0.5, 3.0, 200.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(predictor(x * 50), before, rtol=0, atol=1e-4)
    assert before.abs().max() <= predictor.temperature


@pytest.mark.parametrize("num_classes", [CLASSES, 1])
def test_cosine_head_loss_masks_and_gradients_equal_the_full_computation(num_classes):
    head = randomised(CosineMaskRCNNConvUpsampleHead(**arguments(num_classes, temperature=5.0)))
    x, instances = torch.randn(7, 6, 7, 7), images((3, 4), training=True)
    loss, gradients, _, _ = train_step(head, x, instances)
    head.zero_grad()
    with EventStorage():
        full = mask_rcnn_loss(head.layers(x), instances)
    full.backward()
    torch.testing.assert_close(loss, full.detach(), rtol=0, atol=1e-5)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-5)

    head.eval()
    got, want = images((3, 4), training=False), images((3, 4), training=False)
    head(x, got)
    mask_rcnn_inference(head.layers(x), want)
    for have, expected in zip(got, want):
        torch.testing.assert_close(have.pred_masks, expected.pred_masks, rtol=0, atol=1e-5)


def test_cosine_head_trains_on_empty_and_all_zero_features():
    head = CosineMaskRCNNConvUpsampleHead(**arguments())
    for count in (0, 3):
        loss, gradients, _, _ = train_step(
            head, torch.zeros(count, 6, 7, 7), images((count,), training=True)
        )
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("call", ["forward", "select"])
def test_cosine_norms_are_float32_under_autocast(call):
    torch.manual_seed(0)
    predictor = CosineMaskPredictor(12, CLASSES)
    x, classes = torch.randn(3, 12, 4, 4), torch.tensor([1, 2, 3])
    run = {"forward": predictor, "select": lambda x: predictor.select(x, classes)}[call]
    want = run(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        have = run(x)
    assert have.dtype == torch.float32 and torch.equal(have, want)
    # Squares of these values overflow in half precision.
    large = (x * 3000).half()
    assert torch.isfinite(run(large)).all()


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
    "name", ["CosineMaskRCNNConvUpsampleHead", "SelectedClassMaskRCNNConvUpsampleHead"]
)
def test_built_from_config(name, agnostic):
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME = name
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = agnostic
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    cfg.MODEL.TDE_MASK.TEMPERATURE = 11.0
    cfg.MODEL.TDE_MASK.EPSILON = 1e-4
    head = build_mask_head(cfg, SHAPE)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    head.load_state_dict(build_mask_head(cfg, SHAPE).state_dict())
    assert head.predictor.out_channels == (1 if agnostic else 80)
    if name.startswith("Cosine"):
        del cfg.MODEL["TDE_MASK"]
        cfg.MODEL.ROI_MASK_HEAD.NAME = name
        assert build_mask_head(cfg, SHAPE).predictor.temperature == 20.0
        assert (head.predictor.temperature, head.predictor.epsilon) == (11.0, 1e-4)


@pytest.mark.parametrize("option", ["temperature", "epsilon"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_invalid_options_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        CosineMaskPredictor(4, 3, **{option: value})


def test_filters_start_at_about_unit_length():
    predictor = CosineMaskPredictor(256, 400)
    norms = predictor.weight.flatten(1).norm(dim=1)
    assert F.l1_loss(norms, torch.ones(400)) < 0.1

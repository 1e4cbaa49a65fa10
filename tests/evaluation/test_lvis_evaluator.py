"""``LVISEvaluator`` against Detectron2's own, which runs the official package."""

import json
import pickle

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import LVISEvaluator as Upstream
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from lvis_tde.evaluation import GroundTruth, LVISEvaluator, evaluate_lvis

NUM_CLASSES, HEIGHT, WIDTH = 6, 48, 64


def box_masks(boxes):
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().long().tolist()):
        mask[y0:y1, x0:x1] = True
    return masks


def random_boxes(rng, n):
    corner = rng.integers(0, 30, (n, 2))
    return torch.tensor(np.hstack([corner, corner + rng.integers(4, 18, (n, 2))]).astype("float32"))


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    images, annotations, truth = [], [], {}
    for image_id in range(1, 13):
        boxes, classes = random_boxes(rng, 5), rng.integers(0, NUM_CLASSES, 5).tolist()
        truth[image_id] = boxes, classes
        free = sorted(set(range(NUM_CLASSES)) - set(classes))
        images.append(
            dict(id=image_id, height=HEIGHT, width=WIDTH)
            | dict(neg_category_ids=[c + 1 for c in free[:2]], not_exhaustive_category_ids=[])
        )
        for (x0, y0, x1, y1), c in zip(boxes.tolist(), classes):
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, category_id=c + 1)
                | dict(area=(x1 - x0) * (y1 - y0), bbox=[x0, y0, x1 - x0, y1 - y0])
                | dict(segmentation=[[x0, y0, x0, y1, x1, y1, x1, y0]])
            )
    categories = [
        dict(id=i + 1, name=f"c{i}", frequency="rcf"[i % 3], image_count=i + 1)
        for i in range(NUM_CLASSES)
    ]
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    name = "lvis_evaluator_test"
    MetadataCatalog.get(name).json_file = str(path)
    yield name, truth
    MetadataCatalog.pop(name)
    assert name not in DatasetCatalog.list()


def predictions(truth, seed, noise=2.0):
    rng = np.random.default_rng(seed)
    for image_id, (boxes, classes) in truth.items():
        moved = boxes + torch.tensor(rng.normal(0, noise, boxes.shape), dtype=torch.float32)
        moved = torch.cat([moved, random_boxes(rng, 4)]).clamp(0, HEIGHT)
        out = Instances((HEIGHT, WIDTH))
        out.pred_boxes = Boxes(moved)
        out.scores = torch.tensor(rng.random(len(moved)), dtype=torch.float32)
        out.pred_classes = torch.tensor(classes + rng.integers(0, NUM_CLASSES, 4).tolist())
        out.pred_masks = box_masks(moved)
        yield [{"image_id": image_id}], [{"instances": out}]


def run(evaluator, batches):
    evaluator.reset()
    for inputs, outputs in batches:
        evaluator.process(inputs, outputs)
    return evaluator.evaluate()


@pytest.fixture
def upstream(monkeypatch):
    # The official release needs the alias that NumPy 1.24 removed.
    monkeypatch.setattr(np, "float", float, raising=False)
    return Upstream


@pytest.mark.parametrize("limit", [None, 3])
def test_same_results_as_upstream(dataset, upstream, tmp_path, limit):
    name, truth = dataset
    ours = run(
        LVISEvaluator(name, output_dir=str(tmp_path / "a"), max_dets_per_image=limit),
        predictions(truth, 1),
    )
    theirs = run(
        upstream(name, output_dir=str(tmp_path / "b"), max_dets_per_image=limit),
        predictions(truth, 1),
    )
    assert list(ours) == list(theirs) == ["bbox", "segm"]
    for task in ours:
        assert list(ours[task]) == list(theirs[task])
        assert ours[task] == pytest.approx(theirs[task], abs=1e-10, rel=0)
    assert 0 < ours["segm"]["AP"] < 100
    saved = [tmp_path / d / "lvis_instances_results.json" for d in "ab"]
    assert json.loads(saved[0].read_text()) == json.loads(saved[1].read_text())


def test_detections_stay_in_order_however_many_images(dataset):
    name, truth = dataset
    evaluator = LVISEvaluator(name, distributed=False)
    batches = [batch for seed in range(4) for batch in predictions(truth, seed)]
    run(evaluator, batches)
    found = evaluator.detections()
    assert found.image_ids.tolist() == np.repeat([b[0][0]["image_id"] for b in batches], 9).tolist()
    scores = [b[1][0]["instances"].scores for b in batches]
    assert found.scores.tolist() == torch.cat(scores).tolist()
    assert found.lengths.sum() == len(found.counts)


def test_category_mapping_of_the_metadata_is_used(dataset, upstream):
    name, truth = dataset
    reverse = {NUM_CLASSES - i: i for i in range(NUM_CLASSES)}
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = reverse
    ours = run(LVISEvaluator(name), predictions(truth, 1))
    theirs = run(upstream(name), predictions(truth, 1))
    assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-10, rel=0)


def test_nothing_processed_and_no_annotations(dataset, tmp_path):
    name, truth = dataset
    assert run(LVISEvaluator(name), []) == {}
    path = MetadataCatalog.get(name).json_file
    content = json.load(open(path))
    content["annotations"] = []
    with open(path, "w") as f:
        json.dump(content, f)
    assert run(LVISEvaluator(name, output_dir=str(tmp_path / "o")), predictions(truth, 1)) == {}
    assert (tmp_path / "o" / "lvis_instances_results.json").stat().st_size > 1000


def test_box_proposals(dataset, upstream):
    name, truth = dataset

    def proposals():
        for image_id, (boxes, _) in truth.items():
            p = Instances((HEIGHT, WIDTH))
            p.proposal_boxes = Boxes(boxes + 1.0)
            p.objectness_logits = torch.arange(len(boxes)).float()
            yield [{"image_id": image_id}], [{"proposals": p}]

    ours, theirs = run(LVISEvaluator(name), proposals()), run(upstream(name), proposals())
    # Proposal recall without ground truth of a size is NaN.
    assert ours["box_proposals"] == pytest.approx(theirs["box_proposals"], nan_ok=True)


def test_ranks_are_gathered_in_compact_form(dataset, monkeypatch):
    name, truth = dataset
    whole = run(LVISEvaluator(name), predictions(truth, 1))
    batches = list(predictions(truth, 1))
    sent = []

    def gather(data, dst):
        sent.append(pickle.dumps(data))
        return [pickle.loads(item) for item in sent]

    monkeypatch.setattr(comm, "gather", gather)
    monkeypatch.setattr(comm, "is_main_process", lambda: len(sent) == 2)
    assert run(LVISEvaluator(name), batches[:5]) is None
    main = LVISEvaluator(name)
    assert run(main, batches[5:]) == whole
    del sent[1:]
    assert main.evaluate() == whole
    # Upstream's dicts take about a kilobyte each.
    assert sum(len(item) for item in sent) < 250 * sum(len(b[1][0]["instances"]) for b in batches)


def test_masks_that_come_as_run_lengths(dataset):
    name, truth = dataset
    expected = run(LVISEvaluator(name), predictions(truth, 1))
    batches = list(predictions(truth, 1))
    for _, (output,) in batches:
        instances = output["instances"]
        masks = instances.pred_masks.numpy().astype("uint8")
        instances.remove("pred_masks")
        instances.pred_masks_rle = [mask_utils.encode(np.asfortranarray(m)) for m in masks]
    assert run(LVISEvaluator(name), batches) == expected


def test_other_tasks_and_limits(dataset):
    name, truth = dataset
    evaluator = LVISEvaluator(
        name, ("boundary", "bbox"), max_dets_per_image=-1, per_category=5, engine="native"
    )
    results = run(evaluator, predictions(truth, 1))
    assert list(results) == ["bbox", "boundary"]
    assert evaluator.lvis_results["bbox"].metrics["AP"] == results["bbox"]["AP"]
    assert max(row["num_dt"] for row in evaluator.lvis_results["bbox"].per_category) <= 5
    official = LVISEvaluator(name, ("bbox",), max_dets_per_image=-1, per_category=5, engine="lvis")
    assert run(official, predictions(truth, 1))["bbox"] == pytest.approx(results["bbox"], abs=1e-10)


def test_a_class_without_a_category_is_refused(dataset):
    name, truth = dataset
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {7: 0}
    with pytest.raises(ValueError, match="predicted classes without a category"):
        run(LVISEvaluator(name), predictions(truth, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dataset, upstream, dtype):
    name, truth = dataset

    def cast():
        for inputs, (output,) in predictions(truth, 1):
            instances = output["instances"]
            instances.scores = instances.scores.to(dtype)
            instances.pred_boxes.tensor = instances.pred_boxes.tensor.to(dtype)
            yield inputs, [output]

    ours = run(LVISEvaluator(name, ("bbox",)), cast())
    if dtype == torch.bfloat16:
        # Upstream cannot convert these boxes at all.
        assert ours["bbox"]["AP"] > 0
    else:
        theirs = run(upstream(name, ("bbox",)), cast())
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-10, rel=0)


def test_report_of_what_was_evaluated(dataset, tmp_path):
    name, truth = dataset
    evaluator = LVISEvaluator(name)
    assert evaluator.write_report(str(tmp_path)) == []
    run(evaluator, predictions(truth, 1))
    pages = evaluator.write_report(str(tmp_path))
    assert pages == [tmp_path / task / "report.html" for task in ("bbox", "segm")]
    assert all(page.stat().st_size > 10000 for page in pages)
    # What was evaluated before a reset is told by no report after it.
    evaluator.reset()
    assert evaluator.evaluate() == {} and evaluator.lvis_results == {}
    assert evaluator.write_report(str(tmp_path)) == []


def test_tasks_are_checked_before_anything_is_evaluated(dataset):
    name, _ = dataset
    with pytest.raises(ValueError, match="'bbox' is one word: pass a sequence"):
        LVISEvaluator(name, "bbox")
    with pytest.raises(ValueError, match="got iou_type='keypoints'"):
        LVISEvaluator(name, ("bbox", "keypoints"))
    with pytest.raises(ValueError, match="'lvis' evaluates .*got iou_type='boundary'"):
        LVISEvaluator(name, ("boundary",), engine="lvis")
    for options in ({"engine": "lvis", "bootstrap": 5}, {"bootstrap": -3}, {"per_category": 0}):
        with pytest.raises(ValueError, match="bootstrap|per_category"):
            LVISEvaluator(name, **options)


@pytest.mark.parametrize("engine", ["native", "lvis"])
def test_a_registered_name_stands_for_its_file(dataset, tmp_path, engine):
    name, truth = dataset
    expected = run(LVISEvaluator(name, output_dir=str(tmp_path)), predictions(truth, 1))
    path = tmp_path / "lvis_instances_results.json"
    result = evaluate_lvis(name, path, "segm", engine=engine, mask_area=True)
    assert {k: result.metrics[k] for k in expected["segm"]} == expected["segm"]
    with pytest.raises(FileNotFoundError, match="not_registered"):
        evaluate_lvis("not_registered", path, engine=engine)


def test_fresh_copies_share_annotations_and_nothing_else(dataset, monkeypatch):
    class Listing(LVISEvaluator):
        """Clears its list in place, which a shallow copy would share."""

        def __init__(self, *args):
            self.images = []
            super().__init__(*args)

        def reset(self):
            super().reset()
            self.images.clear()

        def process(self, inputs, outputs):
            super().process(inputs, outputs)
            self.images.extend(i["image_id"] for i in inputs)

    name, truth = dataset
    batches = list(predictions(truth, 1))
    expected = run(LVISEvaluator(name), batches)
    first = Listing(name)
    for inputs, outputs in batches[:3]:
        first.process(inputs, outputs)
    monkeypatch.setattr(GroundTruth, "__deepcopy__", lambda *_: pytest.fail(), raising=False)
    copies = [first.fresh_copy() for _ in range(3)]
    assert all(c.images == [] and len(c.detections()) == 0 for c in copies)
    for inputs, outputs in batches[3:]:
        first.process(inputs, outputs)
    for number, evaluator in enumerate(copies):
        for inputs, outputs in batches[: len(batches) - number]:
            evaluator.process(inputs, outputs)
    assert first.evaluate() == copies[0].evaluate() == expected
    assert [len(c.images) for c in copies] == [12, 11, 10] and len(first.images) == 12
    copies[2].evaluate()
    assert len(copies[2].detections()) < len(copies[1].evaluate() and copies[1].detections())
    again = copies[0].fresh_copy()
    assert again.lvis_results == {} and copies[0].lvis_results and again.evaluate() == {}
    assert copies[0].evaluate() == expected

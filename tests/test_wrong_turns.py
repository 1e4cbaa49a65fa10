"""Every wrong turn ends with one to three lines that name it and the way back, and changes nothing.

Each row is a command as a user types it, run in a folder of good and bad files: what stderr must
name. Exit code 2, no traceback, hardly a line above it, and no file anywhere is written or changed.
"""

import re

import pytest
from conftest import ROOT
from wrong_turns_util import snapshot

MODEL = ["--config-file", "deconfound.yaml"]
SOFTMAX = ["--config-file", "softmax.yaml"]
TRAIN = ["--train-data", "train.json", "images"]
TEST = ["--test-data", "val.json", "images"]
OUT = ["OUTPUT_DIR", "{out}"]
WEIGHTS = ["MODEL.WEIGHTS", "deconfound.pth"]


def train(*more):
    return ["train", *MODEL, *TRAIN, *TEST, *OUT, *more]


def evaluation(*more):
    return ["train", "--eval-only", *MODEL, *TEST, *OUT, *more]


def choose(*options):
    return ["sweep", *options, *MODEL, *TRAIN, *TEST, *OUT, *WEIGHTS]


def sweep(*options):
    return ["sweep-alpha", *options, *MODEL, *TRAIN, *TEST, *OUT, *WEIGHTS]


def estimate(*options):
    return ["estimate", *options, *SOFTMAX, *TRAIN, "MODEL.WEIGHTS", "softmax.pth"]


def demo(*options):
    return ["demo", *MODEL, *TEST, *options, "--opts", *WEIGHTS]


def export(*options):
    return ["export", *MODEL, *options, *WEIGHTS]


ARGUMENTS = [
    (["trian"], "'trian' is no command: train"),
    (["train", "--config-fil"], "expected one argument"),
    (["train", "--num-gpus", "two"], "invalid int value: 'two'"),
    (["train", "--num-gpus", "0", *MODEL], "--num-gpus 0"),
    (["train", "--machine-rank", "3", *MODEL], "--machine-rank 3"),
    (["train", "--train-data", "train.json"], "expected 2 arguments"),
    (["sweep", "--alphas", "a,b"], "'a,b' is no list of numbers"),
    (["sweep", "--alphas", ""], "is no list of numbers"),
    (["sweep", "--setting", "beta"], "'beta'"),
    (["sweep", "--split-only"], "--calibrate"),
    (["demo"], "inputs, --config-file"),
    (["demo", "photo.png"], "--config-file"),
    (["export", "--config-file", "x"], "--image"),
    (["evaluate"], "required: annotations"),
    (["evaluate", "a", "b", "--engine", "none"], "'none'"),
    (["report", "val.json"], "--compare"),
    (["report", "val.json", "x.json", "--compare", "a", "b"], "--compare"),
    (["check-data", "--sets", "coco"], "'coco'"),
    (["evaluate", "p.npz", "--bootstrap", "-5"], "--bootstrap -5"),
    (["report", "p.npz", "--bootstrap", "-5"], "--bootstrap -5"),
    (["make-data", "--kind", "circles"], "'circles'"),
    (["make-data", "--seed", "x"], "'x'"),
]
FILES = [
    (["train", "--config-file", "nowhere.yaml"], "nowhere.yaml does not exist"),
    (["train", "--config-file", "images"], "images is a folder"),
    (["train", "--config-file", "deconfound.pth"], "deconfound.pth is no text.*swapped"),
    (["train", "--config-file", "bad.yaml"], "bad.yaml is no valid YAML, line 2"),
    (["train", "--config-file", "words.yaml"], "words.yaml"),
    (["train", "--config-file", "file"], "file"),
    (["train", "--config-file", "train.json"], "train.json"),
    (["train", "--config-file", "scalar.yaml"], "scalar.yaml: MODEL is a group of keys"),
    (["train", "--config-file", "unknown.yaml"], "unknown.yaml.*MODEL.TDE.ALPA"),
    (["train", "--config-file", "none.yaml"], "none.yaml: MODEL.TDE.ALPHA takes a number"),
    (["train", "--config-file", "circle.yaml"], "circle.yaml.*own _BASE_"),
    (["train", "--config-file", "orphan.yaml"], "gone.yaml: No such file"),
    (["train", "--config-file", "syntax.py"], "syntax.py: SyntaxError"),
    (["train", "--config-file", "lazy.py", "MODEL.DEVICE", "cpu"], "'MODEL.DEVICE'.*key=value"),
    (["evaluate", "gone.json", "val.json"], "gone.json"),
    (["evaluate", "val.json", "gone.json"], "gone.json"),
    (["evaluate", "empty.json", "val.json"], "empty.json"),
    (["evaluate", "binary.json", "val.json"], "binary.json"),
    (["evaluate", "val.json", "empty.json"], "empty.json"),
    (["report", "gone.json", "val.json"], "gone.json"),
    (["report", "val.json", "gone.json", "--output", "{out}"], "gone.json"),
    (["make-data", "--num-classes", "1", "--root", "{out}"], "num_classes.*got 1"),
    (["make-data", "--num-train", "1", "--root", "{out}"], "num_train=1"),
    (["make-data", "--root", "file"], "file"),
]
OVERRIDES = [
    (["MODEL.TDE.ALPHA"], "'MODEL.TDE.ALPHA' is one of 3 words"),
    (["MODEL.TDE.ALPA", "1"], "did you mean MODEL.TDE.ALPHA"),
    (["MODEL.TDE", "1"], "MODEL.TDE is a group of keys"),
    (["MODEL.TDE.ALPHA", "None"], "MODEL.TDE.ALPHA takes a number, got 'None'"),
    (["MODEL.TDE.ALPHA", "strong"], "MODEL.TDE.ALPHA takes a number, got 'strong'"),
    (["MODEL.TDE.ALPHA", "nan"], "MODEL.TDE.ALPHA takes a number, got 'nan'"),
    (["MODEL.TDE.ALPHA", "True"], "MODEL.TDE.ALPHA takes a number"),
    (["MODEL.TDE.ALPHA", "-1"], "alpha=-1.0 must be finite"),
    (["MODEL.TDE.ALPHA", "inf"], "alpha=inf must be finite"),
    (["SOLVER.EPOCHS.TOTAL", "12"], "SOLVER.EPOCHS.TOTAL is 12.*SOLVER.MAX_ITER"),
    (["MODEL.TDE.NUM_HEADS", "5"], "5"),
    (["MODEL.TDE.NORM", "cosin"], "'cosin'"),
    (["MODEL.POSTHOC.LOGIT_ADJUSTMENT", "-1"], "logit_adjustment=-1.0"),
    (["MODEL.POSTHOC.KEEP_SUM", "all"], "'all'"),
    (["MODEL.META_ARCHITECTURE", "Nope"], "gives no model.*Nope"),
    (["MODEL.ROI_HEADS.NAME", "Nope"], "gives no model.*Nope"),
    (["MODEL.BACKBONE.NAME", "Nope"], "gives no model.*Nope"),
    (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'"),
    (["SOLVER.MAX_ITER", "ten"], "SOLVER.MAX_ITER ten"),
    (["SOLVER.IMS_PER_BATCH", "0"], "0 images per batch"),
    (["SOLVER.IMS_PER_BATCH", "-2"], "-2 images per batch"),
    (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD=0"),
    (["SOLVER.LR_SCHEDULER_NAME", "Nope"], "no optimizer and schedule.*Nope"),
    (["SOLVER.BASE_LR", "-1"], "no optimizer and schedule"),
    (["SOLVER.STEPS", "(2, 1)"], "no optimizer and schedule"),
    (["MODEL.TDE.PRECISE_MEAN", "1"], r"num_batches=1 \(MODEL.TDE.PRECISE_MEAN\)"),
    (
        ["MODEL.TDE.PRECISE_MEAN", "4", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"],
        "no TDE predictor",
    ),
    (["INPUT.MIN_SIZE_TEST", "-5"], "gives no image"),
    (["MODEL.FPN.OUT_CHANNELS", "-1"], "gives no model"),
]
DATA = [
    (["--train-data", "gone.json", "images"], "gone.json does not exist"),
    (["--train-data", "train.json", "gone"], "gone does not exist"),
    (["--train-data", "images", "train.json"], "--train-data.*swapped"),
    (["--test-data", "images", "val.json"], "--test-data.*swapped"),
    (["--train-data", "empty.json", "images"], "empty.json"),
    (["--train-data", "binary.json", "images"], "binary.json"),
    (["--train-data", "cut.json", "images"], "cut.json"),
    (["--train-data", "of_a_list.json", "images"], "of_a_list.json"),
    (["--train-data", "no_categories.json", "images"], "no_categories.json"),
    (["--train-data", "unknown_image.json", "images"], "unknown_image.json.*999999"),
    (["--train-data", "no_images.json", "images"], "no_images"),
    (["--train-data", "other_size.json", "images"], "64 x 64 pixels.*65 x 64"),
    (
        ["--train-data", "train.json", "nothing"],
        "No image of train.json was found.*these were tried: nothing/train/",
    ),
    (["--train-data", "train.json", "broken"], "broken.*no image that can be read"),
    (
        ["--test-data", "val.json", "nothing", *TRAIN],
        "No image of val.json was found.*these were tried: nothing/val/",
    ),
    (["--train-data", "train.json", "images", "--bounds", "5", "5"], "bounds.*5"),
    (["--bounds", "5", "20"], "--bounds 5 20.*--train-data"),
    (["--hold-out"], "--hold-out needs --train-folder"),
    (["DATASETS.TRAIN", "('nope',)"], "'nope' is not registered"),
    (["DATASETS.TRAIN", "('lvis_v1_train',)"], "lvis_v1_train.json"),
]
SWEEPS = [
    (sweep("--metric", "segm/APx"), "metric='segm/APx'"),
    (sweep("--metric", "foo"), "metric='foo'"),
    (sweep("--metric", "keypoints/AP"), "metric='keypoints/AP'"),
    (sweep("--metric", "segm/APf"), "segm/APf would be undefined: no frequent class"),
    (sweep("--alphas", "0,-1"), "alpha=-1.0"),
    (sweep("--alphas", "nan"), "alpha=nan"),
    (sweep("--alphas", "inf", "--setting", "norcal"), "norcal=inf"),
    (["sweep-alpha", "--resume", *MODEL, *TEST, *OUT], "--resume is for train.*MODEL.WEIGHTS"),
    (
        choose("--calibrate", "0.5", "--methods", "tde", "--grid", "tau_norm=0.5"),
        "tau_norm, which --methods tde leaves out",
    ),
    (sweep("--calibrate", "1.5"), "calibrate=1.5"),
    (sweep("--calibrate", "0"), "calibrate=0.0"),
    (choose("--calibrate", "1.5"), "calibrate=1.5"),
    (choose("--choose-on", "nowhere"), "'nowhere' is not registered"),
    (choose("--calib-data", "val.json", "images"), "is to choose on and to report on"),
    (choose("--calib-data", "images", "val.json"), "--calib-data takes the annotation file"),
    (choose("--calibrate", "0.5", "--metric", "APx"), "metric='bbox/APx'"),
    (choose("--calibrate", "0.5", "--max-loss", "APr=-1"), "APr=-1.0"),
    (choose("--calibrate", "0.5", "--methods", "bags"), "'bags' is no method"),
    (choose("--calibrate", "0.5", "--memory", "0"), "memory=0.0"),
    (choose(), "--choose-on or --calib-data"),
    (["sweep-alpha", *MODEL, *TRAIN, *OUT, *WEIGHTS], "DATASETS.TEST"),
    (["sweep-alpha", *SOFTMAX, *TEST, *OUT, "MODEL.WEIGHTS", "softmax.pth"], "no TDE predictor"),
    (estimate("--max-batches", "1"), "max_batches=1"),
    (estimate("--tolerance", "-1"), "tolerance=-1.0"),
    (estimate("--num-heads", "5", "--output", "{out}"), "5"),
    (estimate("--output", "file"), "file is a file|file, but .*file is a file"),
]
PICTURES = [
    (demo("gone.png"), "'gone.png'"),
    (demo("no*.jpg"), r"'no\*.jpg'"),
    (demo("photo.png", "--alpha", "-1"), "alpha=-1.0"),
    (demo("photo.png", "--alpha", "nan"), "alpha=nan"),
    (demo("photo.png", "--panel-size", "-1", "--output", "{out}"), "panel_size=-1"),
    (demo("photo.png", "--output", "file"), "is a file"),
    (["demo", "photo.png", *MODEL, *TEST], "MODEL.WEIGHTS is empty"),
    (export("--image", "gone.png"), "gone.png does not exist"),
    (export("--image", "text.png", "--output", "{out}"), "text.png"),
    (export("--image", "photo.png", "--alpha", "-1", "--output", "{out}"), "alpha=-1.0"),
    (export("--image", "photo.png", "--alpha", "nan", "--output", "{out}"), "alpha=nan"),
    (export("--image", "photo.png", "--output", "file"), "is a file"),
    (
        [*export("--image", "photo.png", "--output", "{out}")[:-1], "no_mean.pth"],
        "mean is zero",
    ),
]
_CLASSIFIER = ["--config-file", str(ROOT / "configs/classification/digits_lt_tde.yaml")]
FOLDERS = [
    (["train", *MODEL, "--train-folder", "images"], "are for classifiers"),
    (["train", *_CLASSIFIER, "--test-folder", "images"], "needs --train-folder"),
    (["train", *_CLASSIFIER, "--train-folder", "gone", *OUT], "gone"),
    (["train", *_CLASSIFIER, "--train-folder", "nothing", *OUT], "nothing"),
    (["train", *_CLASSIFIER, *OUT, "DATASETS.TRAIN", "('nope',)"], "'nope'"),
    (["train", "--eval-only", *_CLASSIFIER, *OUT, "MODEL.WEIGHTS", "list.pth"], "list.pth"),
    (["sweep", *_CLASSIFIER, "--calibrate", "0.1", *OUT, "MODEL.WEIGHTS", "x.pth"], "x.pth"),
]
OUTPUTS = [
    (train("OUTPUT_DIR", "file"), "OUTPUT_DIR is file, but .*is a file"),
    (train("OUTPUT_DIR", "file/below"), "is a file: name a folder"),
    (train("OUTPUT_DIR", "/proc/below"), "/proc/below: nothing can be written there"),
    (evaluation(*WEIGHTS, "OUTPUT_DIR", "file"), "is a file"),
    (["train", "--resume", *evaluation()[1:]], "there is no checkpoint in .* to resume from"),
]
_CHECKPOINTS = [
    ("gone.pth", "gone.pth"),
    ("empty.pth", "empty.pth is empty"),
    ("text.pth", "text.pth is a text file.*git-lfs"),
    ("json.pth", "json.pth is a text file"),
    ("deconfound.yaml", "deconfound.yaml is a text file"),
    ("truncated.pth", "truncated.pth is truncated or damaged"),
    ("zeros.pth", "zeros.pth is truncated or damaged"),
    ("folder.pth", "folder.pth, which is a folder"),
    ("photo.png", "photo.png"),
    ("list.pth", "list.pth holds no weights"),
    ("numbers.pth", "numbers.pth"),
    ("code.pth", "code.pth.*runs code. Nothing was run"),
    ("code.pkl", "code.pkl.*runs code. Nothing was run"),
]
# Where nothing is trained the weights must be all of the model.
_INCOMPLETE = [
    ("", "MODEL.WEIGHTS is empty"),
    ("other_classes.pth", "other_classes.pth is no checkpoint of this model: it lacks"),
    ("other_depth.pth", "other_depth.pth is no checkpoint of this model.*allow-partial-weights"),
    ("foreign.pth", "foreign.pth"),
]
_WITH_WEIGHTS = {
    "evaluation": evaluation("MODEL.WEIGHTS"),
    "sweep-alpha": ["sweep-alpha", *MODEL, *TEST, *OUT, "MODEL.WEIGHTS"],
    "estimate": ["estimate", "--output", "{out}", *MODEL, *TRAIN, "MODEL.WEIGHTS"],
    "demo": ["demo", "photo.png", "--output", "{out}", *MODEL, *TEST, "--opts", "MODEL.WEIGHTS"],
    "export": ["export", "--image", "photo.png", "--output", "{out}", *MODEL, "MODEL.WEIGHTS"],
}
TABLE = [
    *ARGUMENTS,
    *FILES,
    *((train(*more), named) for more, named in OVERRIDES),
    *((["train", *MODEL, *more, *OUT], named) for more, named in DATA),
    *SWEEPS,
    *PICTURES,
    *OUTPUTS,
    *FOLDERS,
    *((train("MODEL.WEIGHTS", file), named) for file, named in _CHECKPOINTS),
    (train("MODEL.WEIGHTS", "foreign.pth"), "foreign.pth has none of the 95 parameters"),
    *(
        ([*words, file], named)
        for words in _WITH_WEIGHTS.values()
        for file, named in (*_INCOMPLETE, *_CHECKPOINTS[::3])
    ),
]


@pytest.mark.parametrize(
    "arguments, named", TABLE, ids=[" ".join(map(str, words))[-70:] for words, _ in TABLE]
)
def test_a_wrong_turn_tells_the_way_back(arguments, named, command, playground, tmp_path):
    before = snapshot(playground)
    code, out, err = command(*arguments)
    assert code == 2, (code, out, err)
    assert re.search(named, err, re.DOTALL), err
    assert err.startswith("error: ") and 1 <= len(err.splitlines()) <= 3, err
    assert len(out.splitlines()) <= 4 and "Traceback" not in out + err, out
    assert snapshot(playground) == before
    written = snapshot(tmp_path / "out") if (tmp_path / "out").is_dir() else {}
    assert written == {}

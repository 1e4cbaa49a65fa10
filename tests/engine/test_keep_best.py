"""The best checkpoint of a run: of this run, and by a metric that there is."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from lvis_tde.checkpointer import SafeCheckpointer, save_checkpoint
from lvis_tde.engine.hooks import KeepBest

NAN = float("nan")


@pytest.fixture
def run(tmp_path):
    """``run(values, start, of=hook)``: a hook that has met values from an iteration on."""

    def evaluated(values, start=0, metric="AP", of=None):
        script = iter(values)
        checkpointer = SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
        hook = KeepBest(1, lambda: next(script), metric, checkpointer)
        if of is not None:  # resumed from a checkpoint of its
            hook.load_state_dict(of.state_dict())
        with EventStorage(start) as storage:
            hook.trainer = SimpleNamespace(start_iter=start, max_iter=99, storage=storage)
            hook.before_train()
            for hook.trainer.iter in range(start, start + len(values)):
                hook.after_step()
        return hook

    return evaluated


def best(tmp_path):
    return torch.load(tmp_path / "model_best.pth")["best"]


@pytest.mark.parametrize("value", [NAN, -100.0])
def test_a_metric_that_is_undefined_ends_the_run_at_once(run, value, tmp_path):
    with pytest.raises(ValueError, match="calib/APr is undefined.*TEST.CALIB_METRIC.*such as AP,"):
        run([{"AP": 30.0, "APr": value}], metric="APr")
    assert not (tmp_path / "model_best.pth").exists()
    # Later it is only no better.
    assert run([{"AP": 3.0, "APr": 3.0}, {"AP": 4.0, "APr": value}], metric="APr").kept
    assert best(tmp_path) == 3.0


def test_a_model_that_predicts_nothing_yet_goes_on(run, tmp_path, caplog):
    save_checkpoint(torch.nn.Linear(2, 2), tmp_path / "model_best.pth", iteration=3, best=95.0)
    hook = run([{"AP": NAN, "APr": NAN}])
    model = hook._checkpointer.model
    before = model.weight.clone()
    hook.load()  # not that of the earlier run in the folder
    assert not hook.kept and torch.equal(model.weight, before) and "last weights" in caplog.text
    hook = run([{"AP": NAN}, {"AP": 0.0}, {"AP": 7.0}, {"AP": NAN}])
    kept = hook._checkpointer.model.weight.clone()
    torch.nn.init.zeros_(hook._checkpointer.model.weight)
    hook.load()
    assert best(tmp_path) == 7.0 and torch.equal(hook._checkpointer.model.weight, kept)


def test_the_best_of_the_same_run_stays_wherever_it_is_resumed(run, tmp_path):
    first = run([{"AP": v} for v in (10.0, 20.0, 30.0, 95.0)])
    again = run([{"AP": 50.0}], start=2, of=first)  # the best was after the checkpoint
    assert best(tmp_path) == 95.0 and again.kept
    assert run([{"AP": 96.0}], start=3, of=again).kept and best(tmp_path) == 96.0
    # Another run's in the folder counts for nothing, even if it is of earlier iterations.
    other = run([{"AP": NAN}], start=8)
    assert not other.kept
    assert run([{"AP": 50.0}], start=8, of=other).kept and best(tmp_path) == 50.0


def test_a_file_with_code_is_not_run(run, tmp_path):
    saved = {"model": torch.nn.Linear(2, 2).state_dict(), "best": 95.0, "iteration": tmp_path}
    torch.save(saved, tmp_path / "model_best.pth")
    with pytest.raises(ValueError, match="model_best.pth.*Nothing was run"):
        run([{"AP": 50.0}], start=5)


@pytest.mark.parametrize("iteration, kept", [(3, 95.0), (9, 50.0)])
def test_files_of_an_earlier_release_do_not_say_whose_they_are(run, iteration, kept, tmp_path):
    how = {"iteration": iteration, "best": 95.0}
    save_checkpoint(torch.nn.Linear(2, 2), tmp_path / "model_best.pth", **how)
    assert run([{"AP": 50.0}], start=5).kept and best(tmp_path) == kept

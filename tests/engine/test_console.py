"""What the console shows of Detectron2's evaluation loop."""

import logging
import time

from lvis_tde.engine.console import setup_console


def test_evaluation_is_told_in_the_form_of_all_progress(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    setup_console()
    logger = logging.getLogger("detectron2.evaluation.evaluator")
    logger.info("Start inference on 400 batches")
    for done in range(11, 401):
        now[0] += 1.0
        logger.info(
            "Inference done %d/400. Dataloading: 0.1 s/iter. Inference: 0.1 s/iter. ETA=0:00:39",
            done,
        )
    logger.info("Total inference time: 0:00:40 (0.1 s / iter per device, on 1 devices)")
    logger.warning("something is wrong")
    first, *between, last, warning = capsys.readouterr().out.splitlines()
    assert first.endswith(f"evaluation [{'.' * 20}] 0/400")
    assert last.endswith(f"evaluation [{'#' * 20}] 400/400, ETA 0:00:39")
    assert warning.endswith("WARNING: something is wrong")
    assert 15 < len(between) < 25 and all("evaluation [" in line for line in between)

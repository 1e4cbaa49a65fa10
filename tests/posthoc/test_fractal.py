"""Box-counting dimensions against the authors' numbers and sets whose dimension is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lvis_tde.posthoc import fractal_dimension

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "posthoc_reference.npz")


def test_dimensions_are_the_authors():
    centers, classes = (torch.from_numpy(GOLDEN[f"fractal/{n}"]) for n in ("centers", "classes"))
    theirs = torch.from_numpy(GOLDEN["fractal/dimension"])
    ours = fractal_dimension(centers, classes, len(theirs))
    # Their least squares are iterative.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (theirs > 1.5).sum() >= 5 and (theirs == 1).sum() >= 5
    more = fractal_dimension(centers, classes, 1203)
    torch.testing.assert_close(more[: len(theirs)], ours)
    assert (more[len(theirs) :] == 1).all()


def test_squares_lines_and_points():
    grid = torch.cartesian_prod(torch.arange(64), torch.arange(64)).double() / 64 + 1 / 128
    line = torch.linspace(0, 1, 4096).double()[:, None].expand(-1, 2)
    point = torch.full((4096, 2), 0.3).double()
    centers = torch.cat([grid, line, point])
    classes = torch.arange(3).repeat_interleave(4096)
    dimension = fractal_dimension(centers, classes, 4)
    torch.testing.assert_close(dimension[0], torch.tensor(2.0).double())
    torch.testing.assert_close(dimension[1], torch.tensor(1.0).double(), rtol=0, atol=0.01)
    assert dimension[2] == dimension[3] == 1


def test_least_squares_by_hand():
    # Grids of 1, 2 and 3 by 9 centers; 2 x 2 cells hold 4 of them, 3 x 3 cells 6.
    columns, rows = [0.1, 0.5, 0.9, 0.1, 0.9, 0.9], [0.1, 0.1, 0.1, 0.9, 0.9, 0.5]
    centers = torch.tensor([columns + columns[:3], rows + rows[:3]]).double().T
    slope = np.polyfit(np.log([1, 2, 3]), np.log([1, 4, 6]), 1)[0]
    (dimension,) = fractal_dimension(centers, torch.zeros(9, dtype=torch.int32), 1)
    assert dimension.item() == pytest.approx(slope, abs=1e-12)


def test_borders_belong_to_the_last_cell():
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    (dimension,) = fractal_dimension(corners, torch.zeros(4).long(), 1)
    assert dimension.dtype == torch.float32
    torch.testing.assert_close(dimension, torch.tensor(2.0))


def test_less_than_four_boxes_and_none():
    centers = torch.tensor([[0.1, 0.1], [0.9, 0.9], [0.1, 0.9]])
    assert torch.equal(fractal_dimension(centers, torch.zeros(3).long(), 2), torch.ones(2))
    assert torch.equal(fractal_dimension(centers[:0], torch.zeros(0).long(), 3), torch.ones(3))


@pytest.mark.parametrize(
    "centers, classes, num_classes, message",
    [
        ([[0.5, 0.5]], [0], 0, "num_classes=0"),
        ([[0.5, 0.5, 0.5]], [0], 1, r"centers \(1, 3\)"),
        ([[0.5, 0.5]], [0, 1], 2, r"classes \(2,\)"),
        ([[0.5, 320.0]], [0], 1, r"\[0.5, 320.0\] is outside \[0, 1\]: divide x by the width"),
        ([[0.5, -0.1]], [0], 1, "outside"),
        ([[float("nan"), 0.1]], [0], 1, "outside"),
        ([[0.5, 0.5]], [3], 3, r"class 3 is not in \[0, 3\)"),
        ([[0.5, 0.5]], [-1], 3, "class -1"),
    ],
)
def test_mistakes_are_quoted(centers, classes, num_classes, message):
    with pytest.raises(ValueError, match=message):
        fractal_dimension(torch.tensor(centers), torch.tensor(classes), num_classes)

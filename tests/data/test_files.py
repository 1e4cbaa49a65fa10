"""The one way in which files are written."""

import os

import pytest

from lvis_tde.data.files import write_text


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_what_it_points_to_is_written(tmp_path, there):
    real, link = tmp_path / "elsewhere" / "real.json", tmp_path / "link.json"
    if there:
        real.parent.mkdir()
        real.write_text("old")
    os.symlink(os.path.join("elsewhere", "real.json"), link)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == link.read_text() == "new"
    assert os.listdir(real.parent) == ["real.json"]

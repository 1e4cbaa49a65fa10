"""The one way in which files are written."""

import os
import signal
import time

import pytest

from lvis_tde.data.files import atomic_path, write_text


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


def test_what_killed_processes_have_left_is_removed_and_nothing_that_is_being_written(tmp_path):
    final, other = tmp_path / "model.pth", tmp_path / "model_1.pth"
    fd, out = os.pipe()
    killed = os.fork()
    if not killed:
        with atomic_path(final) as partial:
            partial.write_bytes(b"half")
            os.write(out, b"!")
            time.sleep(60)
    assert os.read(fd, 1) == b"!"
    (alive,) = tmp_path.iterdir()
    os.utime(alive, (0, 0))

    def leftovers():
        with atomic_path(final, tidy=True) as partial:
            return {path.name for path in tmp_path.glob(".*")} - {partial.name}

    with atomic_path(other) as beside:
        os.utime(beside, (0, 0))
        assert leftovers() == {alive.name, beside.name}
        os.kill(killed, signal.SIGKILL)
        os.waitpid(killed, 0)
        assert leftovers() == {beside.name}

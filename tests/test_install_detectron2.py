"""The installer's parts that need no network, and the wheel's behavior where it is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import detectron2._C
import pytest

TOOL = Path(__file__).parent.parent / "tools" / "install_detectron2.py"
spec = importlib.util.spec_from_file_location("install_detectron2", TOOL)
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool
spec.loader.exec_module(tool)

RULE = tool.Rule(why="np.int is gone", files=("a.py",), pattern=r"\bnp\.int\b", replacement="int")


def package(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_rules_rewrite_their_files(tmp_path):
    tool.apply_rules(package(tmp_path, a="x = np.int(1)\n", b="np.int32\n"), [RULE])
    assert (tmp_path / "a.py").read_text() == "x = int(1)\n"


def test_a_rule_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="a.py.*np.int is gone"):
        tool.apply_rules(package(tmp_path, a="x = 1\n"), [RULE])


def test_a_match_in_an_unlisted_file_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="b.py is not covered"):
        tool.apply_rules(package(tmp_path, a="np.int\n", b="np.int\n"), [RULE])


def test_the_hash_is_checked(tmp_path):
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=f"archive.tar.gz has SHA-256.*expected {tool.SHA256}"):
        tool.check_hash(archive)


def test_an_importable_detectron2_is_left_alone(capfd):
    tool.install(sys.executable)
    assert "Detectron2" in capfd.readouterr().out


@pytest.mark.skipif(
    not detectron2._C.__file__.endswith(".py"), reason="this Detectron2 has its compiled operators"
)
def test_a_compiled_operator_says_how_to_get_it():
    import torch

    for use in (
        lambda: detectron2._C.deform_conv_forward(),
        lambda: torch.ops.detectron2.nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5),
    ):
        with pytest.raises(RuntimeError, match="compiled operator.*official build.*install.html"):
            use()


def test_command_line_help():
    result = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "pip uninstall" in result.stdout

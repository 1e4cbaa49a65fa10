"""The package's keys in configs of today and of earlier releases."""

from lvis_tde.engine import load_config


def test_a_config_with_the_removed_key_loads_and_says_so(tmp_path, caplog):
    path = tmp_path / "old.yaml"
    path.write_text("MODEL:\n  TDE:\n    MEAN_MOMENTUM: 0.9\n    MEAN_MOMENTUM_LR_SCALED: True\n")
    cfg = load_config(str(path), ["MODEL.TDE.MEAN_MOMENTUM_LR_SCALED", False])
    assert cfg.MODEL.TDE.MEAN_MOMENTUM == 0.9 and "MEAN_MOMENTUM_LR_SCALED" not in cfg.dump()
    assert "ignoring" in caplog.text and "MODEL.TDE.MEAN_MOMENTUM_LR_SCALED" in caplog.text

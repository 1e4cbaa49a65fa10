import pytest
import torch
from omegaconf import OmegaConf

from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.engine import LazyRecipe, YacsRecipe, use_fast
from lvis_tde.modeling.inference_mode import restore


def _recipe(cfg):
    recipe = YacsRecipe(cfg)
    recipe.partial_weights = True
    return recipe


@pytest.mark.parametrize("name", ["", "bfloat16"])
def test_a_fast_recipe_loads_an_optimized_model(tiny_cfg, make_batch, name):
    recipe = _recipe(tiny_cfg("deconfound", "MODEL.TDE.INFERENCE_DTYPE", name))
    recipe.test_sets = ()
    plain = load_trained(recipe)
    use_fast(recipe)
    fast = load_trained(recipe)
    fast.load_state_dict(plain.state_dict())
    images = make_batch()
    with torch.no_grad():
        expected, found = (model(images)[0]["instances"].scores for model in (plain, fast))
        assert restore(fast)(images)[0]["instances"].scores.equal(expected)
    if name:
        assert not found[:5].equal(expected[:5])
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_types_that_there_are_not(tiny_cfg):
    with pytest.raises(ValueError, match="'fp8'.*INFERENCE_DTYPE"):
        use_fast(_recipe(tiny_cfg("softmax", "MODEL.TDE.INFERENCE_DTYPE", "fp8")))
    with pytest.raises(ValueError, match="float16 is for GPUs"):
        use_fast(_recipe(tiny_cfg("softmax", "MODEL.TDE.INFERENCE_DTYPE", "float16")))


def test_the_type_of_a_lazy_config():
    train = {"device": "cpu"}
    assert LazyRecipe(OmegaConf.create({"train": train})).inference_dtype == ""
    train["inference_dtype"] = "bfloat16"
    recipe = LazyRecipe(OmegaConf.create({"train": train}))
    use_fast(recipe)
    assert recipe.fast

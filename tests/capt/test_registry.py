"""How base learners become known: by a call, a module, a file, an installed package, and by options of any name."""

import sys
import textwrap
import types
from importlib.metadata import EntryPoint

import pytest
import tiny_capt
import torch
from yacs.config import CfgNode

import trainers.capt as capt
from trainers.capt.backbone.prompted_clip import ImageFeatures
from trainers.capt.bases import registry
from trainers.capt.bases.base_model import BaseModel, BaseSpec, learner_state, options_of
from trainers.capt.bases.learners import build_base
from trainers.capt.bases.registry import find_learner, import_learners, learner_names, register_base_learner
from trainers.capt.bases.spec import spec_from
from trainers.capt.config import FreeNode, check_capt, extend_cfg

MODULE = """
from capt import BaseModel, register_base_learner

COUNT = [0]
COUNT[0] += 1

class Constant(BaseModel):
    def _text_features(self, classnames):
        return self.prompted.text_features(["otter"] * len(classnames))

def load(prompted, spec):
    base = Constant(prompted)
    base.asked = spec
    return base

register_base_learner("{name}", load)
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """What a test registers and imports is gone after it."""
    monkeypatch.setattr(registry, "BASE_LEARNERS", dict(registry.BASE_LEARNERS))
    modules = dict(sys.modules)
    yield
    for name in sys.modules.keys() - modules.keys():
        if name == "capt" or name.startswith(("capt_learners_", "own_")):
            del sys.modules[name]


def module_file(folder, name="Constant", stem="own_learner"):
    path = folder / f"{stem}.py"
    path.write_text(textwrap.dedent(MODULE.replace("{name}", name)))
    return path


def nothing(prompted, spec):
    return None


def test_a_registered_learner_is_built_with_its_options(small_clip):
    seen = []

    def load(prompted, spec):
        seen.append(spec)
        return tiny_capt.make_base(small_clip)

    register_base_learner("Seen", load)
    config = CfgNode({"DATASET": {"NAME": "Glyphs"}})
    spec = BaseSpec("Seen", options={"A": 1, "B": [2, 3]}, dataset="Glyphs", config=config)
    base = build_base(tiny_capt.make_base(small_clip).prompted, spec)
    assert seen == [spec]
    assert base.options == {"A": 1, "B": [2, 3]}
    assert base.digest() != tiny_capt.make_base(small_clip).digest()
    assert "Seen" in learner_names()
    assert not base.training
    assert not any(p.requires_grad for p in base.parameters())


def test_a_name_is_taken_once():
    register_base_learner("Nothing", nothing)
    register_base_learner("Nothing", nothing)  # the same function again
    with pytest.raises(
        ValueError, match=r'"Nothing" is .*test_registry.nothing already; register .*<lambda> by another'
    ):
        register_base_learner("Nothing", lambda prompted, spec: None)
    with pytest.raises(ValueError, match='"CoOp" is'):
        register_base_learner("CoOp", nothing)
    for bad in (("", nothing), (3, nothing), ("Other", "no function")):
        with pytest.raises(ValueError, match="takes a name and a function"):
            register_base_learner(*bad)


def test_an_unknown_name_is_told_what_there_is(small_clip):
    prompted = tiny_capt.make_base(small_clip).prompted
    with pytest.raises(ValueError, match=r"one of \['ATPrompt', .*got \"Nobody\"; a learner of your own comes with"):
        build_base(prompted, BaseSpec("Nobody"))


def test_only_a_learner_that_reads_a_folder_needs_one(small_clip):
    prompted = tiny_capt.make_base(small_clip).prompted
    for name in ("CoOp", "KgCoOp", "MMA", "MMRL", "VPT"):
        with pytest.raises(ValueError, match=f"TRAINER.CAPT.BASE.DIR must name the run folder of the {name} base"):
            build_base(prompted, BaseSpec(name))
    with pytest.raises(ValueError, match="BASE.DIR must name"):
        learner_state(BaseSpec("Own"), "prompt_learner")


def test_a_file_registers_once_however_it_is_spelled(small_clip, tmp_path, monkeypatch):
    path = module_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "capt", raising=False)  # other tests import a second copy by that name
    assert find_learner("Constant") is None
    import_learners("own_learner.py")
    import_learners(path)
    import_learners(f"{tmp_path}/../{tmp_path.name}/own_learner.py")
    loaded = [module for name, module in sys.modules.items() if name.startswith("capt_learners_own_learner")]
    assert [module.COUNT for module in loaded] == [[1]]
    base = build_base(tiny_capt.make_base(small_clip).prompted, BaseSpec("Constant"))
    assert isinstance(base, BaseModel)
    base.set_classes(["cup", "jug"])
    assert torch.equal(base.text_features[0], base.text_features[1])


def test_a_module_by_its_name(tmp_path, monkeypatch):
    module_file(tmp_path, "ByName", "own_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_learners("own_module")
    assert find_learner("ByName") is not None
    import_learners("")
    import_learners(None)


def test_modules_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r'names "no/such.py", which is no file; give the path of a Python file'):
        import_learners("no/such.py")
    for name in ("own_nowhere", "own_nowhere.inner"):
        with pytest.raises(ValueError, match=f'names "{name}", which is no module on the path'):
            import_learners(name)
    (tmp_path / "own_broken.py").write_text("import own_missing_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for way in ("own_broken", str(tmp_path / "own_broken.py")):
        with pytest.raises(ModuleNotFoundError, match="own_missing_package"):  # the module's own mistake
            import_learners(way)
    assert not any(name.startswith("capt_learners_own_broken") for name in sys.modules)


def test_a_second_copy_of_the_plugin_shares_what_it_registered(monkeypatch):
    other = types.ModuleType("capt.bases.registry")
    other.BASE_LEARNERS = {"FromTheOther": nothing, "CoOp": nothing}
    monkeypatch.setitem(sys.modules, "capt.bases.registry", other)
    assert find_learner("FromTheOther") is nothing
    assert find_learner("CoOp") is not nothing  # this copy's own come first
    assert learner_names().count("CoOp") == 1


def test_entry_points_of_installed_packages(monkeypatch):
    points = [EntryPoint("Installed", "test_registry:nothing", "capt.base_learners")]
    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or points)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    assert "Installed" in learner_names()
    assert find_learner("Installed") is nothing
    assert find_learner("Nobody") is None
    assert set(asked) == {"capt.base_learners"}


def test_the_package_gives_out_what_a_learner_needs():
    names = ["BaseModel", "BaseSpec", "BlockPrompts", "ImageFeatures", "ModelAsBase", "learner_state"]
    for name in [*names, "register_base_learner"]:
        assert name in capt.__all__
        assert getattr(capt, name).__name__ == name


# Options


def node():
    cfg = CfgNode({"DATASET": {}, "TRAINER": {}, "TRAIN": {}})
    extend_cfg(cfg)
    return cfg


def test_options_of_any_name_come_from_yaml_and_command_line(tmp_path):
    cfg = node()
    (tmp_path / "own.yaml").write_text(
        "TRAINER:\n  CAPT:\n    BASE:\n      OPTIONS:\n        ALPHA: 0.7\n        REP_LAYERS: [6, 7]\n"
    )
    cfg.merge_from_file(str(tmp_path / "own.yaml"))
    cfg.merge_from_list(["TRAINER.CAPT.BASE.OPTIONS.ALPHA", "0.6", "TRAINER.CAPT.BASE.OPTIONS.WORDS", "a photo"])
    cfg.freeze()
    expected = {"ALPHA": 0.6, "REP_LAYERS": [6, 7], "WORDS": "a photo"}
    assert spec_from(cfg.TRAINER.CAPT.BASE, "Glyphs", cfg).options == expected
    assert dict(cfg.clone().TRAINER.CAPT.BASE.OPTIONS) == expected
    again = node()
    again.merge_from_other_cfg(cfg)
    assert dict(again.TRAINER.CAPT.BASE.OPTIONS) == expected
    assert CfgNode(expected) == CfgNode.load_cfg(cfg.dump()).TRAINER.CAPT.BASE.OPTIONS
    assert dict(node().TRAINER.CAPT.BASE.OPTIONS) == {}
    check_capt(cfg.TRAINER.CAPT)


def test_an_option_keeps_its_type_and_other_nodes_keep_their_keys():
    cfg = node()
    cfg.merge_from_list(["TRAINER.CAPT.BASE.OPTIONS.ALPHA", 0.6])
    with pytest.raises(ValueError, match=r"Type mismatch .*TRAINER.CAPT.BASE.OPTIONS.ALPHA"):
        cfg.merge_from_list(["TRAINER.CAPT.BASE.OPTIONS.ALPHA", "much"])
    with pytest.raises(ValueError, match="Type mismatch"):  # options lie side by side
        cfg.merge_from_other_cfg(CfgNode({"TRAINER": {"CAPT": {"BASE": {"OPTIONS": {"A": {"B": 1}}}}}}))
    with pytest.raises(AssertionError, match="Non-existent key"):
        cfg.merge_from_list(["TRAINER.CAPT.BASE.ALPHA", 0.6])
    assert "__setstate__" not in FreeNode()


def test_a_record_without_options_is_an_older_runs():
    old = CfgNode({"NAME": "CoOp", "DIR": "run", "EPOCH": 0, "TEMPLATE": "", "CLASS_TOKEN_POSITION": "end"})
    spec = spec_from(old, "Caltech101")
    assert (spec.options, spec.dataset, spec.config) == ({}, "Caltech101", None)


def test_options_have_names_and_types():
    defaults = {"SCALE": 0.5, "LAYERS": [1, 2], "WORDS": "a photo"}
    assert options_of(BaseSpec("Own"), defaults) == defaults
    found = options_of(BaseSpec("Own", options={"SCALE": 1, "LAYERS": (3,)}), defaults)
    assert found == {"SCALE": 1.0, "LAYERS": [3], "WORDS": "a photo"}
    assert isinstance(found["SCALE"], float)
    with pytest.raises(
        ValueError, match=r"OPTIONS of Own has \['STEP'\], which is none of \['LAYERS', 'SCALE', 'WORDS'\]"
    ):
        options_of(BaseSpec("Own", options={"STEP": 1}), defaults)
    for key, value in (("SCALE", True), ("SCALE", "x"), ("LAYERS", 3), ("WORDS", 1.0)):
        with pytest.raises(ValueError, match=rf"OPTIONS.{key} of Own must be like .*, got {value!r}"):
            options_of(BaseSpec("Own", options={key: value}), defaults)


# Any model


class Trained(torch.nn.Module):
    """A method of somebody's: a matrix behind each tower, and images seen upside down."""

    def __init__(self, prompted):
        super().__init__()
        width = prompted.embed_dim
        self.prompted = [prompted]  # a list: CLIP's weights are not this model's own
        self.behind = torch.nn.Parameter(torch.eye(width) + 0.1 * torch.ones(width, width))
        self.register_buffer("shift", torch.zeros(width))

    def project(self, cls):
        visual = self.prompted[0].vit
        return visual.ln_post(cls) @ visual.proj @ self.behind + self.shift

    def image(self, images):
        features = self.prompted[0].encode_image(images.flip(-1))
        return ImageFeatures(self.project(features.cls), features.cls, features.tokens)

    def texts(self, classnames):
        return self.prompted[0].text_features(classnames) @ self.behind


def model_as_base(small_clip, **more):
    prompted = tiny_capt.make_base(small_clip).prompted
    model = Trained(prompted)
    return model, capt.ModelAsBase(prompted, model, model.image, model.texts, model.project, **more)


@torch.no_grad()
def test_any_model_answers_by_three_callables(small_clip):
    model, base = model_as_base(small_clip, logit_scale=20.0)
    base.set_classes(["cup", "jug"])
    pixels = tiny_capt.images(3)
    z, cls, _ = tiny_capt.encode(base, pixels)
    images, texts = model.image(pixels).feature, model.texts(["cup", "jug"])
    expected = 20 * torch.nn.functional.cosine_similarity(images.unsqueeze(1), texts.unsqueeze(0), dim=-1)
    torch.testing.assert_close(base.logits(z), expected)
    torch.testing.assert_close(torch.nn.functional.normalize(base.project(cls), dim=-1), z)
    torch.testing.assert_close(model_as_base(small_clip)[1].logit_scale, base.prompted.logit_scale)


def test_any_models_weights_buffers_and_scale_count(small_clip):
    digests = [model_as_base(small_clip)[1].digest(), model_as_base(small_clip, logit_scale=20.0)[1].digest()]
    for name in ("behind", "shift"):
        model, base = model_as_base(small_clip)
        assert base.digest() == digests[0]
        with torch.no_grad():
            getattr(model, name).add_(1)
        digests.append(base.digest())
    assert len(set(digests)) == 4


def test_a_model_without_patch_tokens_is_told_the_switch(small_clip):
    base = model_as_base(small_clip)[1]
    z = tiny_capt.encode(base, tiny_capt.images(2))[0]
    with pytest.raises(ValueError, match="gives no patch tokens; set TRAINER.CAPT.SAM.ON False"):
        tiny_capt.make_model(base)(z, None, None)
    assert tiny_capt.make_model(base, use_sam=False)(z, None, None).logits.shape == (2, 5)


def test_capt_stands_on_any_model(small_clip):
    _, base = model_as_base(small_clip)
    bank = tiny_capt.make_bank(base)
    model = tiny_capt.make_model(base, bank=bank)
    output = model(*tiny_capt.encode(base, tiny_capt.images(2)), torch.tensor([0, 1]))
    assert torch.isfinite(output.losses["loss"])

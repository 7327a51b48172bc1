"""What is trained, in which label space, and what a scaled residual answers."""

import compat  # noqa: F401

import pytest
import tiny_capt
import torch
from dassl.config import get_cfg_default
from experts_by_held_out_classes import Shots, batches, groups, look_up_texts, penalty_of, predictions, trained
from run_features import Classes

from trainers.capt.config import extend_cfg
from trainers.capt.run.feature_cache import ViewBatch


@pytest.fixture
def run(tmp_path):
    """A small CLIP, two views of each of twenty random pictures, and a short configuration."""
    torch.save(tiny_capt.clip_state(), tmp_path / "clip.pt")
    base = tiny_capt.make_base(tmp_path / "clip.pt")
    classes = Classes.of(base, tiny_capt.CLASSES, "none")
    index = torch.arange(20).repeat_interleave(2)
    z, cls, tokens = tiny_capt.encode(base, tiny_capt.images(40))
    rows = ViewBatch(z, cls, tokens, index % len(classes.names), index, torch.arange(40) % 2)
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 2, 8
    cfg.TRAINER.CAPT.MGDE.BETA = 0.1
    cfg.TRAINER.CAPT.LOSS.KEEP = 0.0
    cfg.TRAINER.CAPT.MGDE.EVIDENCE_GATE = False
    look_up_texts(base, classes)
    return base, cfg, Shots(classes, rows, 2)


@pytest.mark.parametrize("episodes", ["no", "subsets", "subsets without bank"])
def test_the_residual_at_its_own_beta_is_the_model(run, episodes):
    base, cfg, shots = run
    model = trained(base, cfg, shots, 0.1, seed=1, episodes=episodes)
    rows, beta = shots.first, model.refiner.expert.beta
    with torch.no_grad():
        output = model(rows.z, rows.cls, rows.tokens)
    assert output.refinement.residual.abs().max() > 0  # it was trained
    assert model.base.classnames == shots.classes.names
    found = predictions(model, rows, [0.0, beta, 1e4])
    assert torch.equal(found[1], output.logits.argmax(dim=1))
    assert not torch.equal(found[2], found[1])


def test_an_epoch_of_episodes_sees_every_class_and_image_once(run):
    _, _, shots = run
    assert sorted(torch.cat(groups(5, "subsets")).tolist()) == [0, 1, 2, 3, 4]
    seen = torch.cat([batch.index for group in groups(5, "subsets") for batch in batches(shots.within(group), 4)])
    assert sorted(seen.tolist()) == list(range(20))


def test_shots_of_some_classes_count_these(run):
    _, _, shots = run
    some = shots.within(torch.tensor([1, 3]))
    assert some.classes.names == [shots.classes.names[1], shots.classes.names[3]]
    assert torch.equal(
        some.rows.label, (shots.rows.label[torch.isin(shots.rows.label, torch.tensor([1, 3]))] == 3).long()
    )


def test_the_shift_behind_the_experts_is_chosen_as_a_run_chooses_it(run):
    base, _, shots = run
    assert penalty_of(base, shots, seed=1) == penalty_of(base, shots, seed=1)
    assert penalty_of(base, shots.within(torch.tensor([0, 1, 2])), seed=1) is None  # too few classes to hold any out

"""Shares of a batch: how they are cut, and that what several processes make of them is what one makes of the whole."""

import gc
import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import together  # noqa: E402

from trainers.capt.method.losses import balance_loss  # noqa: E402
from trainers.capt.run.distributed import rank, world  # noqa: E402
from trainers.capt.run.feature_cache import CachedLoader, FeatureCache, ViewBatch  # noqa: E402
from trainers.capt.run.shares import (  # noqa: E402
    SharedDropout,
    backward,
    begin_batch,
    in_turns,
    mean_figures,
    mean_of_rows,
    own_rows,
    own_turns,
    share_of,
    shared_loader,
    turns_of,
    whole,
    whole_batch,
)


def rows(number, width=4, seed=0):
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


# ---- one process ----


def test_one_process_has_all_of_everything():
    x, loader = rows(3), DataLoader(range(5), batch_size=2)
    begin_batch(3)
    assert (share_of(7).rows, share_of(7).total, share_of(7).weight) == (slice(0, 7), 7, 1.0)
    assert shared_loader(loader) is loader
    assert turns_of(loader) is loader
    assert torch.equal(mean_of_rows(x), x.mean(dim=0))
    assert whole_batch(x) == (x, slice(None))
    assert list(in_turns(range(3), str)) == ["0", "1", "2"]
    figures = {"loss": torch.tensor([1.0])}
    assert mean_figures(figures) == figures
    with pytest.raises(ValueError, match="a batch of 0 cannot be shared by 1 processes"):
        own_rows(0)


def test_dropout_of_one_process_is_torchs():
    x = rows(6)
    torch.manual_seed(3)
    expected = nn.Dropout(0.4)(x)
    torch.manual_seed(3)
    assert torch.equal(SharedDropout(0.4)(x), expected)
    assert torch.equal(SharedDropout(0.4).eval()(x), x)


# ---- how a whole is cut ----


@pytest.mark.parametrize("number", [2, 3])
def test_shares_cover_the_whole_once_and_differ_by_one_at_most(number, tmp_path):
    totals = range(12)
    shares = together(number, lambda: [share_of(total) for total in totals], tmp_path)
    for total in totals:
        cut = [list(range(total))[mine[total].rows] for mine in shares]
        assert sum(cut, []) == list(range(total))
        assert max(map(len, cut)) - min(map(len, cut)) <= 1
        if total:
            assert sum(mine[total].weight for mine in shares) == pytest.approx(1)


def test_a_loaders_batches_are_cut_and_its_order_is_that_of_one_process(tmp_path):
    def batches(make):
        loader = DataLoader(range(11), batch_sampler=BatchSampler(RandomSampler(range(11)), 4, drop_last=False))
        mine = make(loader)
        torch.manual_seed(5)
        epochs = [[batch.tolist() for batch in mine] for _ in range(2)]
        assert make(loader) is mine  # whose workers are those of the epoch before
        return epochs, len(mine)

    whole_epochs, number = batches(lambda loader: loader)
    cut = together(2, lambda: batches(shared_loader), tmp_path)
    turns = together(2, lambda: batches(turns_of), tmp_path)
    assert [number for _, number in (*cut, *turns)] == [3, 3, 2, 1]
    for epoch, of_one in enumerate(whole_epochs):
        assert [a + b for a, b in zip(cut[0][0][epoch], cut[1][0][epoch], strict=True)] == of_one
        assert [len(batch) for batch in cut[0][0][epoch]] == [2, 2, 2]
        assert turns[0][0][epoch] == of_one[::2]
        assert turns[1][0][epoch] == of_one[1::2]


def test_a_cached_loader_gives_each_process_its_rows(tmp_path):
    def batches():
        each = torch.arange(22)
        views = ViewBatch(rows(22), None, None, each, each // 2, each % 2)
        loader = CachedLoader(FeatureCache(iter([views]), 2), 5, seed=4)
        return [batch["features"].label.tolist() for batch in loader]

    first, second = together(2, batches, tmp_path)
    assert [a + b for a, b in zip(first, second, strict=True)] == batches()
    assert [len(batch) for batch in first] == [3, 3]


def test_a_batch_smaller_than_the_processes_and_a_foreign_loader_are_refused(tmp_path):
    def words():
        said = []
        for refused in (lambda: list(shared_loader(DataLoader(range(1)))), lambda: shared_loader([[1, 2]])):
            with pytest.raises(ValueError, match="processes") as error:
                refused()
            said.append(str(error.value))
        return said

    small = "a batch of 1 cannot be shared by 2 processes; start fewer (--nproc), or give DATALOADER.TRAIN_X.BATCH_SIZE"
    for said in together(2, words, tmp_path):
        assert said == [f"{small} 2 or more", "the batches of list cannot be shared by processes; start one"]


# ---- what is made of the shares ----


class Odd(nn.Module):
    """A net whose loss has a term of means, one of squared means, dropout, a batch norm, and a weight without use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), SharedDropout(0.5)
        self.last, self.unused = nn.Linear(6, 3), nn.Parameter(torch.ones(2))

    def loss(self, x, label):
        features, own = whole_batch(self.first(x))
        gates = self.last(self.drop(self.norm(features)[own].relu()))
        return nn.functional.cross_entropy(gates, label) + balance_loss(gates.softmax(dim=-1))


def steps(x, label, number=3):
    net = Odd()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    grads, losses = [], []
    for _ in range(number):
        mine = own_rows(len(x))
        begin_batch(len(x[mine]))
        optimizer.zero_grad()
        loss = net.loss(x[mine], label[mine])
        backward(loss, optimizer)
        assert net.unused.grad is None  # a sum of nothing would let weight decay work on it
        grads.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
        losses.append(mean_figures({"loss": loss.detach(), "acc": torch.tensor([float(len(x[mine]))])}))
        optimizer.step()
    return {"grads": grads, "losses": losses, "weights": net.state_dict(), "random": torch.rand(3)}


@pytest.mark.parametrize(("number", "size"), [(2, 6), (2, 5), (3, 7)])
def test_gradients_losses_and_weights_are_those_of_one_process(number, size, tmp_path):
    x, label = rows(size), torch.arange(size) % 3
    expected = steps(x, label)
    for found in together(number, lambda: steps(x, label), tmp_path):
        for one, other in zip(found["grads"], expected["grads"], strict=True):
            assert one.keys() == other.keys()
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-5, atol=1e-7)
        # balance_loss is not a mean over shares, but every process computes it of the whole batch
        losses, wanted = ([step["loss"] for step in run["losses"]] for run in (found, expected))
        torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(found["random"], expected["random"])  # dropout has drawn as often


def test_figures_are_weighted_by_the_size_of_the_share(tmp_path):
    def figures():
        begin_batch(3 - 2 * rank())  # 3 images and 1
        return mean_figures({"loss": torch.tensor(float(rank())), "acc": torch.tensor([100.0 * rank()])})

    for found in together(2, figures, tmp_path):
        assert {name: value.tolist() for name, value in found.items()} == {"loss": 0.25, "acc": 25.0}


def test_gathered_rows_lie_in_order_and_their_gradients_come_back_from_everyone(tmp_path):
    def gathered():
        share = share_of(5)
        mine = rows(5)[share.rows].requires_grad_()
        everything = whole(mine, share)
        (everything * (1 + rank())).sum().backward()
        with torch.no_grad():
            begin_batch(2)
            alone = whole_batch(mine)
        return everything.detach(), mine.grad, alone[0].shape

    for number, (everything, grad, alone) in enumerate(together(2, gathered, tmp_path)):
        assert torch.equal(everything, rows(5))
        assert torch.equal(grad, torch.full((3 - number, 4), 3.0))  # 1 from the first process, 2 from the second
        assert alone == (3 - number, 4)  # a test's batch is a process's own


def test_turns_are_taken_and_told(tmp_path):
    def turns():
        made = []

        def make(item):
            made.append(item)
            return item, torch.full((2,), float(item))

        return [(item, value.tolist()) for item, value in in_turns(range(5), make)], made, own_turns(range(5)), world()

    expected = [(item, [float(item)] * 2) for item in range(5)]
    assert together(2, turns, tmp_path) == [
        (expected, [0, 2, 4], range(0, 5, 2), 2),
        (expected, [1, 3], range(1, 5, 2), 2),
    ]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no forks here")
def test_a_loaders_worker_collects_nothing_that_it_inherited():
    """Else a worker is aborted by CUDA for the GPU's tensors of a trainer that the parent has done with."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(gc.get_freeze_count) > 0
    assert gc.get_freeze_count() == 0

"""Which cells wait for which, what goes into one job, and in which order a pool takes them."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_tools.plan.settings import Settings
from capt_tools.plan.steps import StopError
from capt_tools.sweep.cells import Cell, Node, cells_of, graph
from capt_tools.sweep.groups import Group, arrays, groups_of
from capt_tools.sweep.pool import run_pool

SETTINGS = replace(Settings(), output="/nowhere")


def after(methods, datasets="dtd", seeds="1", protocol="base2new"):
    nodes = graph(SETTINGS, protocol, cells_of(methods.split(), datasets.split(), seeds.split()))
    return [set(node.after) for node in nodes]


# Cells


def test_cells_come_as_the_scripts_loop():
    assert [tuple(cell) for cell in cells_of(["a", "b"], ["x"], ["1", "2"])] == [
        ("a", "x", "1"),
        ("b", "x", "1"),
        ("a", "x", "2"),
        ("b", "x", "2"),
    ]
    assert Cell("capt:Co/Op", "dtd", "1").key == "capt-Co-Op_dtd_1"
    assert Cell("capt:CoOp", "dtd", "1").name == "capt:CoOp dtd seed 1"


def test_capt_waits_for_its_base_learner_of_the_same_data_and_seed():
    assert after("coop capt:CoOp", "dtd eurosat", "1 2") == [set(), {0}, set(), {2}, set(), {4}, set(), {6}]
    assert after("zsclip capt:ZeroshotCLIP") == [set(), set()]  # it reads no run


def test_a_base_learner_that_is_not_asked_for_is_trained_by_capt_itself():
    (node,) = graph(SETTINGS, "base2new", cells_of(["capt:MaPLe"], ["dtd"], ["1"]))
    assert [folder.split("/")[-3] for folder in node.folders] == ["MaPLe", "CAPT", "CAPT"]
    assert node.after == frozenset()


def test_a_run_belongs_to_the_first_cell_that_asks_for_it():
    assert after("capt:CoOp coop") == [set(), {0}]


def test_tests_on_other_data_sets_wait_for_the_training_that_they_share():
    # dtd's cells train, coop (0) and CAPT on it (1); the others test what they trained
    assert after("coop capt:CoOp", "dtd eurosat food101", protocol="xd") == [set(), {0}, {0}, {0, 1}, {0}, {0, 1}]
    assert after("coop", "dtd eurosat", "1 2", protocol="xd") == [set(), set(), {0}, {1}]


def test_zero_shot_clip_runs_once_for_all_seeds_outside_base_to_new():
    assert after("zsclip", "dtd", "1 2 3", protocol="few_shot") == [set(), {0}, {0}]
    assert after("zsclip", "dtd", "1 2 3") == [set(), set(), set()]


def test_what_cannot_be_planned_is_refused_or_fails_later():
    cells = cells_of(["tipadapter", "coop"], ["dtd"], ["1"])
    with pytest.raises(StopError, match="tipadapter/xd_train.sh: No such file"):
        graph(SETTINGS, "xd", cells)
    lenient = graph(SETTINGS, "xd", cells, is_lenient=True)
    assert [len(node.folders) for node in lenient] == [0, 2]


def test_a_base_that_is_done_is_still_what_capt_reads(tmp_path):
    settings = replace(SETTINGS, output=str(tmp_path))
    cells = cells_of(["coop", "capt:CoOp"], ["dtd"], ["1"])
    base = graph(settings, "base2new", cells)[0].folders[0]
    Path(base).mkdir(parents=True)
    Path(base, "results.json").touch()
    coop, capt = graph(settings, "base2new", cells)
    assert base not in capt.folders
    assert capt.shared == {base: 0}
    assert not coop.is_done()


# Jobs


def groups(methods, datasets, seeds, per_job, protocol="base2new"):
    nodes = graph(SETTINGS, protocol, cells_of(methods.split(), datasets.split(), seeds.split()))
    return groups_of(nodes, range(len(nodes)), per_job, {})


def test_jobs_of_one_cell_go_in_arrays_by_what_they_wait_for():
    found = groups("coop capt:CoOp", "dtd", "1 2", 1)
    assert found == [Group((0,)), Group((1,), frozenset({0})), Group((2,)), Group((3,), frozenset({2}))]
    assert arrays(found) == [[0, 2], [1], [3]]


def test_jobs_of_all_methods_of_a_seed_wait_for_nothing():
    found = groups("coop capt:CoOp capt:MaPLe", "dtd eurosat", "1", 3)
    assert found == [Group((0, 1, 2)), Group((3, 4, 5))]
    assert arrays(found) == [[0, 1]]


def test_a_job_holds_one_data_set():
    assert [group.nodes for group in groups("coop", "dtd eurosat", "1 2 3", 2)] == [(0, 1), (2,), (3, 4), (5,)]


def test_what_waits_or_runs_already_is_waited_for_by_its_id():
    nodes = graph(SETTINGS, "base2new", cells_of(["coop", "capt:CoOp"], ["dtd"], ["1"]))
    assert groups_of(nodes, [1], 1, {0: "12_3"}) == [Group((1,), jobs=frozenset({"12_3"}))]
    assert groups_of(nodes, [1], 1, {}) == [Group((1,))]  # it is done, or it will be missed when its turn comes


METHODS = st.lists(st.sampled_from(["coop", "maple", "zsclip", "capt:CoOp", "capt:MaPLe", "capt"]), unique=True)
DATASETS = st.lists(st.sampled_from(["dtd", "eurosat", "food101"]), min_size=1, unique=True)


@given(METHODS, DATASETS, st.integers(1, 3), st.sampled_from(["base2new", "xd", "few_shot"]), st.integers(1, 5))
def test_every_cell_is_sent_once_and_behind_what_it_waits_for(methods, datasets, seeds, protocol, per_job):
    nodes = graph(SETTINGS, protocol, cells_of(methods, datasets, map(str, range(seeds))))
    assert all(other < number for number, node in enumerate(nodes) for other in node.after)
    found = groups_of(nodes, range(len(nodes)), per_job, {})
    order = [number for array in arrays(found) for number in array]
    sent = [cell for number in order for cell in found[number].nodes]
    assert sorted(sent) == list(range(len(nodes)))
    home = {cell: number for number, group in enumerate(found) for cell in group.nodes}
    for array in arrays(found):
        assert len({(found[number].after, found[number].jobs) for number in array}) == 1
    for cell, node in enumerate(nodes):
        for other in node.after:
            assert home[other] == home[cell] or home[other] in found[home[cell]].after
            assert sent.index(other) < sent.index(cell)


# The pool


def chain(*waits, folders=None):
    """Nodes that make a folder each, or those named, and wait for others."""
    made = folders or [(str(number),) for number in range(len(waits))]
    return [
        Node(Cell("m", "d", str(i)), made[i], {str(other): other for other in wait}) for i, wait in enumerate(waits)
    ]


def test_one_lane_takes_the_nodes_in_order():
    order = []
    run_pool(chain((), (), (0,), (1,)), ["a"], lambda node, lane: order.append((node.cell.seed, lane)) or True)
    assert order == [("0", "a"), ("1", "a"), ("2", "a"), ("3", "a")]


def test_lanes_work_side_by_side_each_on_one_node_and_behind_what_it_waits_for():
    nodes, events, lock = chain((), (0,), (), (2,), (1, 3), ()), [], threading.Lock()

    def work(node, lane):
        with lock:
            events.append(("begin", int(node.cell.seed), lane))
        time.sleep(0.02)
        with lock:
            events.append(("end", int(node.cell.seed), lane))
        return True

    start = time.monotonic()
    run_pool(nodes, ["a", "b", "c"], work)
    took = time.monotonic() - start
    place = {(what, number): at for at, (what, number, _) in enumerate(events)}
    assert len(place) == 2 * len(nodes)
    assert all(
        place["end", other] < place["begin", number] for number, node in enumerate(nodes) for other in node.after
    )
    for lane in "abc":
        mine = [what for what, _, by in events if by == lane]
        assert mine == ["begin", "end"] * (len(mine) // 2)
    assert took >= 0.06  # the longest way: 0 or 2, then 1 or 3, then 4
    first = [what for what, *_ in events[:3]]
    assert first == ["begin"] * 3


def test_those_that_try_a_failed_run_again_do_it_one_after_the_other():
    nodes = chain((), (0,), (0,), folders=[("x",), ("x", "y"), ("x", "z")])
    busy, worst, lock = [0], [0], threading.Lock()

    def work(node, lane):
        with lock:
            busy[0] += 1
            worst[0] = max(worst[0], busy[0])
        time.sleep(0.01)
        with lock:
            busy[0] -= 1
        return True

    run_pool(nodes, ["a", "b", "c"], work)
    assert worst[0] == 1


def test_a_pool_that_is_told_to_stop_takes_nothing_more():
    seen = []
    run_pool(chain((), (), ()), ["a"], lambda node, lane: seen.append(node.cell.seed))  # None: do not go on
    assert seen == ["0"]

    def fails(node, lane):
        seen.append(node.cell.seed)
        raise KeyError(node.cell.seed)

    for lanes in (["a"], ["a", "b"]):
        seen.clear()
        with pytest.raises(KeyError):
            run_pool(chain((), (0,), (0,), (0,)), lanes, fails)
        assert seen == ["0"]

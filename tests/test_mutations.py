"""Slightly wrong versions of the method's central formulas: the unit tests must notice each of them.

A mutant is a function whose source has one piece replaced. Its code takes the place of the function's own, so that
every module that imported the function runs the mutant, and the formula's tests are run again, in this process.
"""

from __future__ import annotations

import inspect
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainers.capt.bank.confusion_bank import confusion_intensity
from trainers.capt.method.experts import MultiGranularityDiscrepancyExpert, route
from trainers.capt.method.gain import fit_gain, smallest_as_good
from trainers.capt.method.held_out_classes import one_standard_error
from trainers.capt.method.sample_miner import SampleConfusionMiner
from trainers.capt.method.semantic_miner import confusion_scores, mine_pairs
from trainers.capt.method.systematic import _Problem, fit_shift

TESTS = Path(__file__).parent / "capt"

SCORES = ("test_semantic_miner.py",)
CORRECTIONS = ("test_experts.py", "test_sample_miner.py", "test_gain.py")
HELD_OUT = ("test_held_out_classes.py",)
SHIFT = ("test_systematic.py",)

# Formula: [(function, a piece of its source, what stands there instead, files of the tests that must notice), ...]
MUTANTS = {
    "S_j of Eq. 7": [
        (confusion_scores, "counts.t()[target]", "counts[target]", SCORES),  # n[t, j] for n[j, t]
        (confusion_scores, "(1 + share) * probs", "share * probs", SCORES),
        (confusion_scores, "(1 + share) * probs", "(1 + share) + probs", SCORES),
        (confusion_scores, "n / total.clamp_min(torch.finfo(n.dtype).tiny)", "n", SCORES),
        (confusion_scores, "n.sum(dim=-1, keepdim=True)", "counts.sum()", SCORES),
        (confusion_scores, "n = n + counts[target]", "n = counts[target]", SCORES),
        (confusion_scores, "scores.scatter(1, target.unsqueeze(1), -torch.inf)", "scores", SCORES),
        (mine_pairs, "scores.topk(found, dim=-1)", "scores.topk(found, dim=-1, largest=False)", SCORES),
        (mine_pairs, "probs.argmax(dim=-1)", "probs.argmin(dim=-1)", SCORES),
    ],
    "confusion intensity": [
        (confusion_intensity, "2 * top[..., 1]", "top[..., 1]", ("test_confusion_bank.py",)),
        (confusion_intensity, "2 * top[..., 1]", "2 * top[..., 0]", ("test_confusion_bank.py",)),
        (confusion_intensity, "/ (top[..., 0] + top[..., 1])", "", ("test_confusion_bank.py",)),
        (confusion_intensity, "(top[..., 0] + top[..., 1])", "top[..., 0]", ("test_confusion_bank.py",)),
        (confusion_intensity, "probs.shape[-1] < 2", "False", ("test_confusion_bank.py",)),
    ],
    "corrections": [
        (MultiGranularityDiscrepancyExpert.correct, "(1 - samples.similarity)", "samples.similarity", CORRECTIONS),
        (MultiGranularityDiscrepancyExpert.correct, "-self.sharpness", "self.sharpness", CORRECTIONS),
        (MultiGranularityDiscrepancyExpert.correct, ".exp() * samples.valid", ".exp()", CORRECTIONS),
        (MultiGranularityDiscrepancyExpert.correct, "support / (1 + support)", "support", CORRECTIONS),
        (MultiGranularityDiscrepancyExpert.forward, "self.gain * correction", "correction", CORRECTIONS),
        (MultiGranularityDiscrepancyExpert.forward, "residual + self.gain", "residual - self.gain", CORRECTIONS),
        (SampleConfusionMiner.forward, "texts[label.clamp_min(0)] - ", "", CORRECTIONS),
        (SampleConfusionMiner.forward, "corrections * valid", "-corrections * valid", CORRECTIONS),
    ],
    "choice of the gain": [
        (fit_gain, ".argmin(dim=1)", ".argmax(dim=1)", ("test_gain.py",)),
        (fit_gain, "return gains[chosen]", "return gains[-1]", ("test_gain.py",)),
        (smallest_as_good, "ERRORS * error", "error", ("test_gain.py",)),
        (smallest_as_good, "loss.mean(dim=1).argmin()", "0", ("test_gain.py",)),
        (fit_gain, "logits / t", "logits * t", ("test_gain.py",)),
        (
            fit_gain,
            "losses.append(torch.stack(rows))",
            "losses = [torch.stack(rows)]",
            ("test_gain.py",),
        ),  # the last batch alone
        (fit_gain, "query_index=bank_index[batch.index]", "query_index=None", ("test_gain.py",)),  # its own entry votes
        (fit_gain, "share * largest", "share", ("test_gain.py",)),
    ],
    "route": [
        (route, "kept / kept.sum(dim=-1, keepdim=True)", "kept", ("test_experts.py",)),
        (route, "gates.topk(top_k, dim=-1)", "gates.topk(top_k, dim=-1, largest=False)", ("test_experts.py",)),
        (route, "gates.topk(top_k, dim=-1)", "gates.topk(1, dim=-1)", ("test_experts.py",)),
        (route, ".softmax(dim=-1)", ".sigmoid()", ("test_experts.py",)),
    ],
    "one standard error": [
        (one_standard_error, "gains.shape[1] ** 0.5", "gains.shape[1]", HELD_OUT),
        (one_standard_error, "behind.std(dim=1)", "gains.std(dim=1)", HELD_OUT),  # not that of the paired difference
        (one_standard_error, "(mean > 0) & ", "", HELD_OUT),
        (one_standard_error, "mean[best] <= 0", "mean[best] < 0", HELD_OUT),
        (one_standard_error, "int(is_good.nonzero()[0])", "best", HELD_OUT),
        (one_standard_error, "is_good.nonzero()[0]", "is_good.nonzero()[-1]", HELD_OUT),
    ],
    "systematic shift": [
        (fit_shift, "/ theta[0]", "", SHIFT),  # w for v
        (fit_shift, "penalty / len(texts)", "penalty", SHIFT),
        (_Problem.curvature_and_slope, "+= penalty * theta[1:]", "+= penalty * theta[1:] / n", SHIFT),
        (_Problem.curvature_and_slope, "(of_class - truth)", "of_class", SHIFT),
        (_Problem._curvature_of_shift, "- probs.t() @ probs", "", SHIFT),
        (_Problem._curvature_of_shift, "- moved.t() @ moved", "", SHIFT),
        (_Problem._line_search, "lower <= value and ", "", SHIFT),
        (_Problem._line_search, " and moved[0] > 0", "", SHIFT),
    ],
}
CASES = [
    pytest.param(*mutant, id=f"{formula}: {mutant[1]} -> {mutant[2]}")
    for formula, mutants in MUTANTS.items()
    for mutant in mutants
]


@contextmanager
def mutated(function, piece, instead):
    """The function with the one ``piece`` of its source replaced, for a while."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(piece) == 1, f'"{piece}" must be in {function.__qualname__} once; adapt the mutant'
    namespace = dict(function.__globals__)
    exec(compile(source.replace(piece, instead), "<mutant>", "exec"), namespace)
    own, function.__code__ = function.__code__, inspect.unwrap(namespace[function.__name__]).__code__
    try:
        yield
    finally:
        function.__code__ = own


def run(files):
    """Exit code of these tests; hypothesis is left out, since it would shrink each failure and remember it."""
    left_out = "not against_a_loop and not routing_weights and not padded_places and not order_of_classes"
    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-k", left_out]
    return pytest.main([*options, *(str(TESTS / file) for file in files)])


@pytest.mark.slow
@pytest.mark.parametrize(("function", "piece", "instead", "files"), CASES)
def test_a_wrong_formula_is_noticed(function, piece, instead, files):
    with mutated(function, piece, instead):
        assert run(files) == pytest.ExitCode.TESTS_FAILED


@pytest.mark.slow
def test_the_right_formulas_pass():
    assert run(sorted({file for mutants in MUTANTS.values() for mutant in mutants for file in mutant[3]})) == 0


def test_a_mutant_takes_the_functions_place_for_a_while():
    import torch

    certain = torch.tensor([[1.0, 0.0]])
    with mutated(confusion_intensity, "2 * top[..., 1]", "2 * top[..., 0]"):
        assert confusion_intensity(certain) == 2
    assert confusion_intensity(certain) == 0
    with pytest.raises(AssertionError, match="adapt the mutant"), mutated(confusion_intensity, "nowhere", ""):
        pass

"""Difference and commonality prompts for the pairs of classes that a run's confusion bank mined, by a language model.

    capt prompts --run RUN --dry-run
    OPENAI_API_KEY=... capt prompts --run RUN --model gpt-4o-mini
    capt prompts --run RUN --base-url http://localhost:8000/v1 --model my-model --api-key none

Any OpenAI-compatible server will do. Two steps, as in the paper: what each class looks like, then what the two share
and what tells them apart. Answers are kept one by one in ``<dataset>_pairs.journal.jsonl``, with question, model and
date, so a killed run goes on where it stopped; what CAPT reads is ``<dataset>_pairs.json`` beside it. Needs
the extra ``prompts``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from capt.backbone.stock_clip import tokenizer
from capt.bank.confusion_bank import ConfusionBank
from capt.run.files import write_json

from .house import find, install
from .prompting.journal import Journal
from .prompting.questions import LOOK_SCHEMA, PAIR_SCHEMA, SYSTEM, look_question, pair_question
from .tool import exit_code, parser_of

if TYPE_CHECKING:
    from .prompting.asking import Asker

CONTEXT = 77  # CLIP's, with the start and the end token
SIDES = ("commonality", "difference_a", "difference_b")


def plain(name: str) -> str:
    """A class name as prompts spell it."""
    return name.replace("_", " ")


def mined_pairs(run: Path, num_pairs: int) -> tuple[str, list[tuple[str, str]]]:
    """The data set of a run, and the pairs of classes that its bank holds most confusions of."""
    record = json.loads((run / "results.json").read_text(encoding="utf-8"))
    pairs = [(plain(a), plain(b)) for a, b, _ in ConfusionBank.load(run).top_pairs(num_pairs)]
    return record["dataset"].lower(), [(a, b) for a, b in pairs if a != b]


def read_pairs(path: Path) -> dict[str, Any]:
    """The pairs file; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def unanswered(pairs: Sequence[tuple[str, str]], known: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs that the file does not hold in either order."""
    there = {frozenset(plain(name) for name in key.split("||")) for key in known}
    return [pair for pair in dict.fromkeys(pairs) if frozenset(pair) not in there]


def estimate(pairs: Sequence[tuple[str, str]], journal: Journal, args: argparse.Namespace) -> str:
    """Calls, tokens (four letters each) and, where prices are given, the cost of what is left to ask."""
    names = sorted({name for pair in pairs for name in pair if f"look:{name}" not in journal.entries})
    looks = [look_question(name) for name in names]
    asked = [pair for pair in pairs if f"pair:{pair[0]}||{pair[1]}" not in journal.entries]
    questions = looks + [pair_question(a, b, ["x" * 400], ["x" * 400]) for a, b in asked]
    tokens_in = sum(len(SYSTEM) + len(question) for question in questions) // 4
    tokens_out = 120 * len(looks) + 300 * len(asked)
    line = (
        f"{len(asked)} pairs and {len(looks)} classes to ask about: {len(questions)} calls, "
        f"about {tokens_in:,} tokens in and {tokens_out:,} out"
    )
    cost = (tokens_in * args.price_in + tokens_out * args.price_out) / 1e6
    return line + (f", about {cost:.2f} in the currency of the prices" if cost else "; no prices given, so no cost")


def answer_pair(asker: Asker, journal: Journal, a: str, b: str) -> dict[str, Any]:
    """Both steps for a pair, each asked only where the journal has no answer; the pair's entry in the file."""
    looks = [_kept(asker, journal, f"look:{name}", look_question(name), LOOK_SCHEMA) for name in (a, b)]
    question = pair_question(a, b, *(look["answer"]["appearance"] for look in looks))
    pair = _kept(asker, journal, f"pair:{a}||{b}", question, PAIR_SCHEMA)
    asked = {key: pair[key] for key in ("question", "model", "date")}
    return {**{side: pair["answer"][side] for side in SIDES}, "asked": asked}


def _kept(asker: Asker, journal: Journal, key: str, question: str, schema: dict[str, Any]) -> dict[str, Any]:
    if key not in journal.entries:
        answer = asker.ask(question, schema)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        journal.add(key, question=question, answer=answer, model=asker.model, date=date)
    return journal.entries[key]


def count_long(known: dict[str, Any]) -> int:
    """Sentences that do not fit CLIP's context and will be cut."""
    texts = [text for entry in known.values() for side in SIDES for text in entry.get(side, ())]
    return sum(len(tokenizer.encode(text)) > CONTEXT - 2 for text in texts)


def make_prompts(args: argparse.Namespace) -> int:
    """Ask, keep and report; 1 where pairs are missing at the end."""
    dataset, pairs = mined_pairs(args.run, args.pairs)
    path = args.output / f"{dataset}_pairs.json"
    known, journal = read_pairs(Path(find(str(path)))), Journal(args.output / f"{dataset}_pairs.journal.jsonl")
    left = unanswered(pairs, known)
    print(f"{len(pairs)} mined pairs, {len(pairs) - len(left)} of them in {path}")
    print(estimate(left, journal, args))
    if args.dry_run:
        for a, b in left:
            print(f"  {a} / {b}")
        return 0
    if not left:
        return 0
    from .prompting.asking import Asker, NoAnswerError

    model, key = args.model or os.environ.get("OPENAI_MODEL"), args.api_key or os.environ.get("OPENAI_API_KEY")
    if not model or not key:
        raise ValueError("give --model and --api-key, or set OPENAI_MODEL and OPENAI_API_KEY")
    base_url = args.base_url or os.environ.get("OPENAI_BASE_URL")
    asker = Asker(base_url, key, model, args.timeout, args.retries, args.max_tokens)
    missing: dict[str, str] = {}
    for a, b in tqdm(left, desc="Pairs", disable=not sys.stderr.isatty()):
        try:
            known[f"{a}||{b}"] = answer_pair(asker, journal, a, b)
        except NoAnswerError as error:
            missing[f"{a} / {b}"] = str(error)
            continue
        write_json(path, known)
    print(f"{len(left) - len(missing)} pairs answered, {len(missing)} missing; {path}")
    for pair, reason in missing.items():
        print(f"  missing {pair}: {reason}")
    if long := count_long(known):
        print(f"{long} sentences have more than {CONTEXT} tokens; CLIP will see them cut")
    return int(bool(missing))


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="output folder of a CAPT run, with its bank")
    parser.add_argument("--output", type=Path, default=Path("descriptions"), help="folder (default: descriptions)")
    parser.add_argument("--pairs", type=int, default=50, help="most confused pairs to ask about (default: 50)")
    parser.add_argument("--base-url", help="of the server (default: OPENAI_BASE_URL, else OpenAI's)")
    parser.add_argument("--model", help="name of the model (default: OPENAI_MODEL)")
    parser.add_argument("--api-key", help="better by OPENAI_API_KEY, which no process list shows")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for an answer (default: 60)")
    parser.add_argument("--retries", type=int, default=4, help="of a request, and of a wrong answer (default: 4)")
    parser.add_argument("--max-tokens", type=int, default=1000, help="length of an answer (default: 1000)")
    parser.add_argument("--price-in", type=float, default=0, help="per million tokens, for the estimate")
    parser.add_argument("--price-out", type=float, default=0, help="per million tokens, for the estimate")
    parser.add_argument("--dry-run", action="store_true", help="print pairs and estimate, ask nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make prompts; return 0, 1 where pairs are missing, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: make_prompts(args), optional=("openai", "jsonschema"), hint=install("prompts"))

"""make_prompts.py against a small local server that answers rightly, wrongly, late or not at all."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="pip install '.[prompts]'")
pytest.importorskip("jsonschema", reason="pip install '.[prompts]'")

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "trainers"))

from capt.bank.confusion_bank import ConfusionBank, JudgedViews  # noqa: E402
from capt_tools import make_prompts  # noqa: E402
from capt_tools.prompting.journal import Journal  # noqa: E402

KEY = "sk-very-secret"
NAMES = ["cup", "jug", "red_fox", "otter", "kite"]
LOOK = {"appearance": ["It is round."]}
PAIR = {"commonality": ["Both are small."], "difference_a": ["a photo of one."], "difference_b": ["a photo of two."]}


@pytest.fixture
def run(tmp_path):
    """A run whose bank holds the pairs cup/jug (3), red fox/otter (2), jug/kite (1)."""
    label = torch.tensor([0, 0, 1, 2, 3, 4])
    taken = torch.tensor([1, 1, 0, 3, 2, 1])
    probs = 0.1 + 0.5 * torch.nn.functional.one_hot(taken, 5)
    bank = ConfusionBank.build(NAMES, [f"{i}.jpg" for i in range(6)], [JudgedViews.of(probs, label, torch.eye(6))])
    folder = tmp_path / "run"
    bank.save(folder)
    (folder / "results.json").write_text(json.dumps({"dataset": "Toys"}))
    return folder


@pytest.fixture
def server():
    """A server whose ``behave(question, how often asked)`` gives status and content, or None to hang."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            asked.append(question)
            status, content, finish = http.behave(question, asked.count(question))
            if status is None:
                time.sleep(3)
                return
            message = {"role": "assistant", "content": content}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            data = json.dumps(reply if status == 200 else {"error": {"message": f"no, {KEY}"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    asked: list[str] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # a client that gave up; its traceback would be told in some later test
    http.asked, http.behave = asked, right
    http.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def right(question, times):
    return 200, json.dumps(LOOK if question.startswith("What does") else PAIR), "stop"


def arguments(run, server, out, *more):
    options = ["--run", str(run), "--output", str(out), "--base-url", server.url, "--model", "m", "--api-key", KEY]
    return [*options, "--retries", "1", "--timeout", "1", *more]


def test_right_answers_are_kept_with_question_model_and_date(run, server, tmp_path, capsys):
    out = tmp_path / "out"
    assert make_prompts.main(arguments(run, server, out)) == 0
    pairs = json.loads((out / "toys_pairs.json").read_text())
    assert list(pairs) == ["cup||jug", "red fox||otter", "jug||kite"]
    assert {side: pairs["cup||jug"][side] for side in PAIR} == PAIR
    asked = pairs["cup||jug"]["asked"]
    assert asked["model"] == "m"
    assert "It is round." in asked["question"]
    assert asked["date"].startswith("20")
    assert len(server.asked) == 5 + 3
    log = capsys.readouterr()
    assert KEY not in log.out + log.err + "".join(p.read_text() for p in out.iterdir())
    assert "3 pairs and 5 classes to ask about: 8 calls" in log.out
    assert make_prompts.main(arguments(run, server, out)) == 0
    assert len(server.asked) == 8

    from capt.bank.prompt_library import PromptLibrary

    prompts = PromptLibrary(out, "Toys").prompts("otter", "red_fox")
    assert prompts.difference == ("a photo of two.",)
    assert prompts.sources == ("pairs file", "pairs file")


def test_sentences_of_the_checkout_are_not_asked_again(run, server, tmp_path, monkeypatch):
    """From a folder without descriptions, as an installed package meets it."""
    shipped = tmp_path / "checkout/descriptions/toys_pairs.json"
    shipped.parent.mkdir(parents=True)
    shipped.write_text(json.dumps({"jug||cup": PAIR}))
    monkeypatch.setattr("capt_tools.house.ROOT", tmp_path / "checkout")
    monkeypatch.chdir(tmp_path)
    assert make_prompts.main(arguments(run, server, "descriptions")) == 0
    assert len(server.asked) == 4 + 2
    pairs = json.loads((tmp_path / "descriptions/toys_pairs.json").read_text())
    assert list(pairs) == ["jug||cup", "red fox||otter", "jug||kite"]
    assert json.loads(shipped.read_text()) == {"jug||cup": PAIR}


def test_dry_run_asks_nothing(run, server, tmp_path, capsys):
    options = arguments(run, server, tmp_path / "out", "--dry-run", "--price-in", "1", "--price-out", "2")
    assert make_prompts.main(options) == 0
    assert server.asked == []
    assert not (tmp_path / "out").exists()
    assert "in the currency of the prices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ((429, "", "stop"), "HTTP 429"),
        ((500, "", "stop"), "HTTP 500"),
        ((200, '{"commonality": [', "stop"), "no JSON"),
        ((200, '{"commonality": []}', "stop"), "required property|should be non-empty|too short"),
        ((200, json.dumps(PAIR), "length"), "cut off at 1000 tokens"),
        ((None, "", ""), "Timeout"),
    ],
)
def test_every_pair_ends_answered_or_missing_with_the_reason(run, server, tmp_path, capsys, wrong, reason):
    def once(question, times):
        is_first = not question.startswith("What does") and times == 1
        return wrong if is_first else right(question, times)

    server.behave = once
    assert make_prompts.main(arguments(run, server, tmp_path / "once")) == 0  # asked again, and answered
    assert len(json.loads((tmp_path / "once/toys_pairs.json").read_text())) == 3

    server.behave = lambda question, times: wrong if '"otter"' in question else right(question, times)
    assert make_prompts.main(arguments(run, server, tmp_path / "always")) == 1
    log = capsys.readouterr().out
    import re

    assert re.search(rf"missing red fox / otter: .*({reason})", log)
    assert KEY not in log
    assert list(json.loads((tmp_path / "always/toys_pairs.json").read_text())) == ["cup||jug", "jug||kite"]


def test_killed_in_the_middle_it_asks_only_for_the_rest(run, server, tmp_path):
    out = tmp_path / "out"
    reached = threading.Event()

    def slow(question, times):
        if len(server.asked) == 5:
            reached.set()
            time.sleep(20)
        return right(question, times)

    server.behave = slow
    command = [sys.executable, str(ROOT / "scripts/make_prompts.py"), *arguments(run, server, out, "--timeout", "60")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    answered = server.asked[:4]
    server.asked.clear()
    server.behave = right
    assert make_prompts.main(arguments(run, server, out)) == 0
    assert len(server.asked) == 4
    assert not set(server.asked) & set(answered)
    assert len(json.loads((out / "toys_pairs.json").read_text())) == 3


def test_a_cut_line_of_the_journal_is_dropped(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.add("a", answer=1)
    journal.add("b", answer=2)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-4])
    again = Journal(journal.path)
    assert list(again.entries) == ["a"]
    again.add("b", answer=3)
    assert Journal(journal.path).entries["b"]["answer"] == 3


def test_long_sentences_are_counted(run, server, tmp_path, capsys):
    long = {**PAIR, "commonality": ["word " * 200]}
    server.behave = lambda q, n: (200, json.dumps(LOOK if q.startswith("What does") else long), "stop")
    assert make_prompts.main(arguments(run, server, tmp_path / "out")) == 0
    assert "3 sentences have more than 77 tokens" in capsys.readouterr().out


def test_errors(run, server, tmp_path, capsys, monkeypatch):
    for name in ("OPENAI_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert make_prompts.main(["--run", str(run), "--output", str(tmp_path)]) == 2
    assert "set OPENAI_MODEL and OPENAI_API_KEY" in capsys.readouterr().err
    assert make_prompts.main(["--run", str(tmp_path / "nowhere")]) == 2
    assert "nowhere/results.json" in capsys.readouterr().err

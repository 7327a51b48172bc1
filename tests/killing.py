"""Kills a run at any of its writes: the n-th file that is put in place or removed, before, amid or behind it."""

import json
import os
import signal
import sys
import traceback

POINTS = ("amid", "before", "behind")


def count_writes(work):
    """Number of the writes of ``work``, a function that is run in a child process."""
    reader, writer = os.pipe()

    def counted():
        counter = _watch(None, None)
        work()
        os.write(writer, str(counter[0]).encode())

    assert _in_child(counted) == 0
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def killed_at(work, number, point):
    """Run ``work`` in a child process that kills itself, as kill -9 does, at its ``number``-th write (from 0)."""

    def watched():
        _watch(number, point)
        work()

    assert _in_child(watched) == -signal.SIGKILL, f"write {number} was never reached"


def finished(work):
    """Run ``work`` in a child process, to its end."""
    assert _in_child(work) == 0


def _in_child(work):
    return ended(started(work))


def started(work, printed=None):
    """Process id of a fork that runs ``work`` in a group of its own; torch is imported already, which spares seconds.

    Args:
        work: its return value, or that of a SystemExit, is the exit code; any other exception gives 1.
        printed: file that takes what it prints, errors too.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            if printed is not None:
                sys.stdout = sys.stderr = open(printed, "w", buffering=1)  # noqa: SIM115 - lives as long as the process
            code = work() or 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def ended(child):
    """Wait for a process, and return its exit code; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _watch(number, point):
    """Count from here on; kill at the ``number``-th. In a process that ends, so nothing is put back."""
    counter, process = [0], os.getpid()

    def die():
        os.kill(process, signal.SIGKILL)

    def at(place, this):
        return os.getpid() == process and this == number and point == place

    def watch(name, is_put):
        act = getattr(os, name)

        def watched(source, *args, **kwargs):
            this = counter[0]
            counter[0] += os.getpid() == process
            if at("amid", this) and is_put:
                os.truncate(source, os.path.getsize(source) // 2)
                die()
            if at("before", this) or at("amid", this):
                die()
            result = act(source, *args, **kwargs)
            if at("behind", this):
                die()
            return result

        setattr(os, name, watched)

    watch("replace", is_put=True)
    watch("unlink", is_put=False)
    watch("rmdir", is_put=False)
    return counter


def contents(folder):
    """Every file of a run by its name: its bytes, a record without its times; no log, curves or leftovers."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_left_out = any(part.startswith((".", "log.txt", "tensorboard")) for part in name.parts)
        if path.is_dir() or is_left_out:
            continue
        found[str(name)] = _record(path) if path.name == "results.json" else path.read_bytes()
    return found


def _record(path):
    record = json.loads(path.read_text())
    for key in ("seconds", "images_per_second_test", "num_encoded_before", "peak_memory_mb", "commit"):
        del record[key]
    del record["config"]["OUTPUT_DIR"], record["config"]["TRAINER"]["CAPT"]["CACHE"]["DIR"]
    return record


def assert_same(one, other):
    """Two runs left the same."""
    a, b = contents(one), contents(other)
    differing = [name for name in a | b if a.get(name) != b.get(name)]
    assert not differing, f"{one} and {other} differ in {differing}"

"""The copy of stdout in log.txt."""

import errno
import os
import re
import sys

import compat

import pytest
from dassl.utils import Logger, setup_logger

pytestmark = pytest.mark.skipif(compat.DASSL != "bundled", reason="an installed Dassl is in use")


@pytest.fixture(autouse=True)
def _restore_stdout():
    stdout = sys.stdout
    yield
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
    sys.stdout = stdout


def test_tees_to_console_and_file(tmp_path, capsys):
    setup_logger(str(tmp_path / "run"))
    print("hello")
    sys.stdout.flush()
    assert (tmp_path / "run" / "log.txt").read_text() == "hello\n"
    assert capsys.readouterr().out == "hello\n"


def test_existing_log_is_kept(tmp_path):
    (tmp_path / "log.txt").write_text("old")
    setup_logger(str(tmp_path))
    print("new")
    sys.stdout.flush()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[0] == "log.txt"
    assert re.fullmatch(r"log\.txt-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", names[1])
    assert (tmp_path / "log.txt").read_text() == "old"


def test_second_setup_does_not_write_into_the_first_log(tmp_path, capsys):
    setup_logger(str(tmp_path / "a.txt"))
    print("one")
    setup_logger(str(tmp_path / "b.log"))
    print("two")
    sys.stdout.flush()
    assert (tmp_path / "a.txt").read_text() == "one\n"
    assert (tmp_path / "b.log").read_text() == "two\n"
    assert capsys.readouterr().out == "one\ntwo\n"


def test_dropping_the_logger_leaves_the_console_open(tmp_path):
    console = sys.stdout
    setup_logger(str(tmp_path))
    sys.stdout = console  # the last reference to the logger is gone
    assert not console.closed
    print("still there")


def test_offers_what_a_stream_offers(tmp_path):
    setup_logger(str(tmp_path))
    assert sys.stdout.isatty() is False
    assert sys.stdout.encoding.lower().startswith("utf")
    assert sys.stdout.writable()
    assert sys.stdout.write("four") == 4


def test_none_does_nothing():
    before = sys.stdout
    setup_logger(None)
    assert sys.stdout is before


def test_a_line_is_in_the_file_as_soon_as_it_is_whole(tmp_path):
    """Whoever looks at a run that goes on, or was killed, sees how far it came."""
    with Logger(str(tmp_path / "log.txt")) as logger:
        logger.write("epoch [1/2]\n")
        assert (tmp_path / "log.txt").read_text() == "epoch [1/2]\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_names_the_log_once(capsys):
    logger = Logger("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        logger.write("a line\n")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    logger.write("another\n")
    logger.flush()
    assert capsys.readouterr().out == "a line\nanother\n"

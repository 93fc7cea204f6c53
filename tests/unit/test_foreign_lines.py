"""Lines of GDAL are left out of the standard error, all others pass."""

import os
import subprocess
import sys

from ganlab.foreign_lines import without_lines_of_gdal

LINES = [b"_tiffWriteProc: No space left on device.\n", b"TIFFAppendToStrip: Write error.\n"]
LINES += [b"ERROR 1: something\n", b"Warning 1: something\n"]


def test_lines_of_gdal_go_and_others_stay(capfd):
    with without_lines_of_gdal():
        for line in LINES:
            os.write(2, line)
        os.write(2, b"CUDA error: something\n")
        print("ganlab: one line", file=sys.stderr)
        os.write(2, b"without an end")
    os.write(2, LINES[0])
    text = capfd.readouterr().err
    assert sorted(text.splitlines()[:-1]) == ["CUDA error: something", "ganlab: one line"]
    # Afterwards everything passes again.
    assert text.splitlines()[-1] == "without an end" + LINES[0].decode().strip()


def test_python_keeps_its_terminal_and_nothing_is_lost_by_an_error():
    script = """
import os, pty, sys
from ganlab.foreign_lines import without_lines_of_gdal
master, terminal = pty.openpty()
os.dup2(terminal, 2)
before = sys.stderr
try:
    with without_lines_of_gdal():
        print(sys.stderr.isatty(), os.isatty(2))
        os.write(2, b"the last line")
        raise KeyError
except KeyError:
    pass
print(sys.stderr is before, os.isatty(2), os.read(master, 99) == b"the last line")
"""
    out = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert out.splitlines() == ["True False", "True True True"]


def test_without_a_standard_error():
    script = """
import os
from ganlab.foreign_lines import without_lines_of_gdal
os.close(2)
with without_lines_of_gdal():
    print("here")
"""
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "here\n"


def test_open_files_do_not_pile_up():
    def count():
        return len(os.listdir("/dev/fd"))

    with without_lines_of_gdal():
        pass
    before = count()
    for _ in range(20):
        with without_lines_of_gdal():
            pass
    assert count() == before

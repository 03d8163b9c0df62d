"""The command line's allocator: memory that is freed stays with the process."""

import os
import subprocess
import sys

import pytest

from guidestar.cli import _allocator

SCRIPT = """
import ctypes, resource, sys
from guidestar import cli
from guidestar.cli import _allocator

if sys.argv[1] == "command":
    sys.argv[1:] = ["models"]
    try:
        cli.main()
    except SystemExit:
        pass
elif sys.argv[1] == "library":
    try:
        cli.main(["models"])
    except SystemExit:
        pass
else:
    kept = [_allocator.keep_pages(), _allocator.keep_pages()]
    assert kept[0] == kept[1]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(48 << 20)
    ctypes.memset(block, 1, 48 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


counts = [faults() for _ in range(4)]
print("again" if counts[-1] * 4 > counts[0] else "kept")
"""

glibc = pytest.mark.skipif(not _allocator._has_glibc(), reason="the C library is not glibc")


def run(what, **variables):
    clean = {k: v for k, v in os.environ.items() if k not in (*_allocator._OWN, _allocator.SWITCH)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()[-1]


@glibc
def test_a_command_keeps_the_pages_it_frees():
    assert run("command") == "kept"


@glibc
def test_calling_the_command_line_from_python_leaves_the_allocator_alone():
    assert run("library") == "again"


@glibc
@pytest.mark.parametrize(
    "variables",
    [{"GUIDESTAR_KEEP_PAGES": "0"}, {"MALLOC_MMAP_THRESHOLD_": "131072"}],
)
def test_it_can_be_left_out(variables):
    assert run("twice") == "kept"
    assert run("twice", **variables) == "again"


def test_another_c_library_is_left_alone(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    for name in (*_allocator._OWN, _allocator.SWITCH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_allocator.os, "confstr", unknown)
    assert _allocator.keep_pages() is False

"""Let the C library keep the memory that networks free, on Linux with glibc.

Each layer of a network allocates some megabytes and frees them. By default glibc gives such memory
back to the system, which then clears every page again at the next layer. With M_MMAP_MAX 0 and
M_TRIM_THRESHOLD at its highest it stays with the process; the price is that the process holds its
peak until it ends.
"""

from __future__ import annotations

import ctypes
import os

SWITCH = "GUIDESTAR_KEEP_PAGES"
"""Set to 0 to leave the allocator as it is."""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_pages() -> bool:
    """Let malloc keep what is freed; return whether it does now.

    Nothing is changed where the switch is 0, where the user's own variables set the allocator, or
    where the C library is another. Calling it again changes nothing.
    """
    if os.environ.get(SWITCH) == "0" or any(name in os.environ for name in _OWN):
        return False
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # not there on Windows; no such name elsewhere
        return False

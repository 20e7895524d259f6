"""`keep`: memory that one layer gives back stays at hand for the next one."""

import ctypes

# malloc.h of the GNU C library: options of `mallopt`
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK = 32_000_000  # bytes; the most that glibc takes is 32 MiB
_KEPT = 2**31 - 1  # bytes, the largest there is: never trimmed


def keep() -> bool:
    """Let the C library keep freed blocks of up to 32 MB instead of handing them back to the kernel.

    glibc gives the maps of a layer back as soon as they are freed; the next layer fetches as many again, each page
    cleared by the kernel. A process holds what it needed at its peak instead, until it ends. Returns whether the C
    library is one that can be asked (glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, _BLOCK) and mallopt(_TRIM_THRESHOLD, _KEPT))

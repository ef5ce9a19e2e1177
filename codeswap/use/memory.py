"""Large pictures on the processor: what one layer frees, the next one takes, instead of the system's empty pages."""

import ctypes

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees; False where the C library is not glibc, which changes nothing.

    By default glibc gives every block above 32 MB back to the system at once, and a 512-px layer's output is one: the
    next layer's pages are then faulted in and cleared anew, a quarter of a swap's time (`benchmarks.inference_speed`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26, _M_ARENA_MAX: 1}  # threads share it
    return all([mallopt(name, value) for name, value in wanted.items()])

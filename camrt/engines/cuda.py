"""What a GPU says of itself, through NVIDIA's driver."""

from __future__ import annotations

import ctypes
import sys

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def free_memory(device: int = 0) -> int | None:
    """Return the bytes of a GPU's memory that no process uses; None where the driver does not say.

    Args:
        device: Its number, counted as CUDA does: CUDA_VISIBLE_DEVICES holds.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    number, context, unused = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(number), device):
        return None
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number):
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(unused))
        return None if failed else free.value
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(number)

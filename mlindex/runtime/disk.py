"""A disk that takes no more: which errors mean that, and what to say."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskProblem(RuntimeError):
    """The file system of the run directory does not take what is written; the message is one sentence."""


def disk_problem(run: Path, error: BaseException) -> DiskProblem | None:
    """The sentence for an error that came of writing below `run`; None for an error that is not the disk's.

    HDF5 says what the system call said only in the text of its errors, and not always as an `OSError`.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (said := re.search(r"errno = (\d+)", str(error))) is not None:
        number = int(said.group(1))
    if number is None:
        return None
    what = f"{run}: results cannot be written ({os.strerror(number)})"
    if number in _FULL:
        return DiskProblem(f"{what}; free space on that file system or raise its quota, then resume the run")
    return DiskProblem(f"{what}; see that its file system is sound and can be written to, then resume the run")

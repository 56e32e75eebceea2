"""What ``torch.compile`` needs of a machine: a compiler, Python's headers, and a folder whose files may be executed.

Found without torch, so that `farm doctor` can say it, too.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path


def missing(kind: str, folder: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """The first thing that is missing, in words; None if nothing is.

    Args:
        kind: Of the device: kernels for ``cuda`` are started by C, those for processors are C++.
        folder: Where compiled kernels are kept; it need not exist.
        environment: Whose ``CC`` or ``CXX`` names a compiler.
    """
    variable, names = ("CC", ("gcc", "clang", "cc")) if kind == "cuda" else ("CXX", ("g++", "clang++", "c++"))
    given = environment.get(variable, "").split()[:1]
    if not any(shutil.which(name, path=environment.get("PATH")) for name in given or names):
        if given:
            return f"{variable} names {given[0]}, which is not installed"
        return f"no {'C' if variable == 'CC' else 'C++'} compiler is installed (Debian: apt-get install {names[0]})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"Python's headers are not installed: {header} (Debian: apt-get install python3-dev)"
    if _noexec(folder):
        return f"{folder} is mounted noexec, so no kernel can be loaded from it: use a volume, or a tmpfs with exec"
    return None


def _noexec(folder: Path) -> bool:
    existing = next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path("/"))
    return bool(os.statvfs(existing).f_flag & os.ST_NOEXEC)

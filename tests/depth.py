"""How deep the tests go: `make test` runs a short form of the long tests, `make nightly` the long one."""

from __future__ import annotations

import os
from typing import Final

#: Set by `make nightly`.
NIGHTLY: Final = os.environ.get("NIGHTLY", "") not in ("", "0")

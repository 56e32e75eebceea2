"""The control plane imports and answers on a machine that has no torch."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

BLOCKED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "workers")

IMPORT_ALL = f"""
import importlib, importlib.abc, pkgutil, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
import farm
names = [module.name for module in pkgutil.walk_packages(farm.__path__, "farm.")]
for name in names:
    if not name.startswith("farm.store.migrations.") and not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def test_every_module_of_the_control_plane_imports_with_torch_not_installed() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 40


def test_the_help_page_loads_no_server_library() -> None:
    code = (
        "import sys, farm.cli\n"
        "sys.argv = ['farm', '--help']\n"
        "try:\n    farm.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'sqlalchemy', 'boto3', 'fastapi', 'celery'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_workers_package_is_found_beside_the_farm() -> None:
    # The blocked import above must be able to fail: the package is really there.
    assert "workers" in {module.name for module in pkgutil.iter_modules([str(Path.cwd())])}

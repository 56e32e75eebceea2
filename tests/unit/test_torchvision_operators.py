"""Image processors work whatever build of torch torchvision was compiled for."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

#: What `import torchvision` does first: it loads its library, which ends in an `OSError` beside another build of torch.
WITHOUT_LIBRARY = """
import warnings
warnings.simplefilter("ignore")
import torch
load = torch.ops.load_library
def fails(path):
    if "torchvision" in str(path):
        raise OSError("undefined symbol")
    return load(path)
torch.ops.load_library = fails
"""
PROCESS = """
import numpy
from transformers import CLIPImageProcessor, CLIPModel
processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
print(processor(numpy.zeros((16, 16, 3), numpy.uint8), return_tensors="pt").pixel_values.shape)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)


def test_image_processors_work_without_torchvisions_library() -> None:
    pytest.importorskip("torchvision")
    assert "operator torchvision::nms does not exist" in run(WITHOUT_LIBRARY + PROCESS).stderr
    done = run(WITHOUT_LIBRARY + "import workers.pipelines\n" + PROCESS)
    assert done.stdout.strip() == "torch.Size([1, 3, 8, 8])", done.stderr[-2000:]


def test_image_processors_work_as_they_are_installed_here() -> None:
    done = run("import workers.pipelines\n" + PROCESS)
    assert done.stdout.strip() == "torch.Size([1, 3, 8, 8])", done.stderr[-2000:]

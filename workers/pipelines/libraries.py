"""The settings of diffusers and transformers in a worker's process."""

from __future__ import annotations

import warnings

import diffusers
import transformers

from workers.pipelines.running_call import collect_warnings


def silence_libraries() -> None:
    """Keep the libraries' progress bars and warnings out of the log; a pipeline's warnings go to its job."""
    collect_warnings()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # the depth pipeline asks for autocast in the dtype that it uses already
    warnings.filterwarnings("ignore", message=r"In (CPU|MPS) autocast, but the target dtype is not supported")

"""Makes the schedulers that a job asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers

from farm.domain.schedulers import class_of, listed
from farm.errors import MissingPackage, UnsupportedParameter
from farm.pipelines.catalogue import catalogue
from workers.pipelines.failures import first_line, missing_package


def make_scheduler(pipeline: Any, name: str | None, options: Mapping[str, Any]) -> Any:
    """A new scheduler with the noise schedule of a model.

    Args:
        pipeline: A loaded pipeline, whose scheduler is the model's own.
        name: A public name or a class; None keeps the class of the model's own.
        options: Of its config; they replace what the model's scheduler has.

    Raises:
        UnsupportedParameter: The pipeline does not run with that scheduler, or the scheduler has no such option.
        MissingPackage: The scheduler needs a package that is not installed.
    """
    own = getattr(pipeline, "scheduler", None)
    pipeline_class = type(pipeline).__name__
    if own is None:
        raise UnsupportedParameter(f"{pipeline_class} has no scheduler, so the job cannot choose one")
    required: Mapping[str, Any] = {}
    kind = type(own)
    if name is not None:
        choices = catalogue().schedulers_for(pipeline_class, kind.__name__, dict(own.config))
        choice = next((one for one in choices if one.spec.name == class_of(name)), None)
        if choice is None:
            raise UnsupportedParameter(
                f"{pipeline_class} with a {kind.__name__} does not run with the scheduler {name}; it runs with "
                f"{listed(choices)}"
            )
        if choice.spec.name != kind.__name__:
            required = choice.config
            kind = getattr(diffusers, choice.spec.name)
    known = catalogue().scheduler(kind.__name__).options if kind.__name__ in catalogue().scheduler_names else options
    for option in options:
        if option not in known:
            raise UnsupportedParameter(
                f"scheduler_options.{option}: {kind.__name__} takes {', '.join(sorted(known)) or 'none'}"
            )
    try:
        return kind.from_config(own.config, **required, **options)
    except ImportError as error:
        raise MissingPackage(f"{kind.__name__} needs the package {missing_package(error)}") from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedParameter(f"scheduler_options: {kind.__name__}: {first_line(error)}") from error

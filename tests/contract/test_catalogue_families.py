"""The catalogue agrees with calls that are known to work: those of the tiny families."""

from __future__ import annotations

import pytest

from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import Media
from tests.contract.families import FAMILIES

CALLS = [(name, pipeline) for name, family in FAMILIES.items() for pipeline in family.calls]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(("family", "pipeline"), CALLS)
def test_the_catalogue_allows_a_call_that_works(family: str, pipeline: str) -> None:
    call = FAMILIES[family].calls[pipeline]
    spec = catalogue().pipeline(pipeline)
    arguments = call.arguments()
    assert set(arguments) <= set(spec.parameters)
    for name, value in arguments.items():
        if spec.parameters[name].offered and isinstance(value, str | int | float):
            assert spec.check(name, value) == value
    if spec.tasks:
        assert {name for name, parameter in spec.parameters.items() if parameter.required} <= set(arguments)
        assert spec.output is Media(call.output.media)
    else:
        assert spec.no_task

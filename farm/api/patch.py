"""Bodies that change a resource: what is left out stays as it is, and a null that would change nothing is refused."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _without_null(schema: dict[str, Any], model: type[Patch]) -> None:
    """Have the OpenAPI document say of each field whether it may be null."""
    for name, one in schema.get("properties", {}).items():
        if name not in model.clearable and "anyOf" in one:
            kinds = [kind for kind in one["anyOf"] if kind.get("type") != "null"]
            one.pop("default", None)
            if len(kinds) == 1:
                del one["anyOf"]
                one.update(kinds[0])
            else:
                one["anyOf"] = kinds


class Patch(BaseModel):
    """Base of the bodies of ``PATCH``."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_without_null)

    clearable: ClassVar[frozenset[str]] = frozenset()  #: fields that null removes

    @field_validator("*", mode="before")
    @classmethod
    def _not_null(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.field_name not in cls.clearable:
            raise ValueError("must not be null; leave it out to keep it as it is")
        return value

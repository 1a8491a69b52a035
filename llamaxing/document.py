"""A JSON file of the operator's: checked whole, every fault a line that says how to mend it."""

import difflib
import json
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

T = TypeVar("T", bound=BaseModel)


class Strict(BaseModel):
    """What a file may say: unknown keys are faults, and nothing changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document:
    """Faults gather in `faults`, each as `file: path in JSON: what is wrong: how to mend it`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[str] = []

    def fault(self, where: str, what: str) -> None:
        self.faults.append(": ".join(part for part in (self.name, where, what) if part))

    def items(self, raw: bytes) -> list[tuple[str, dict[str, Any]]]:
        """Where each object of a JSON list stands, and the object; anything else is a fault."""
        try:
            found = json.loads(raw, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            self.fault(f"line {error.lineno}, column {error.colno}", error.msg)
            return []
        except (ValueError, RecursionError) as error:
            self.fault("", f"is not JSON: {error}")
            return []
        if not isinstance(found, list):
            self.fault("", f"is {_kind(found)}; it has to be a list of objects")
            return []
        if not found:
            self.fault("", "is an empty list")
        for index, item in enumerate(found):
            if not isinstance(item, dict):
                self.fault(f"[{index}]", f"is {_kind(item)}; it has to be an object")
        return [(f"[{index}]", item) for index, item in enumerate(found) if isinstance(item, dict)]

    def check(self, schema: type[T], value: Any, where: str) -> T | None:
        """`value` as `schema`, or None after its faults have been noted."""
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            for line in fault_lines(error, schema, where):
                self.fault(*line)
            return None

    def unique(self, kind: str, names: Sequence[tuple[str, str]]) -> None:
        """A fault for each (where, name) whose name stood earlier; names may be secret."""
        seen: dict[str, str] = {}
        for where, name in names:
            if (first := seen.setdefault(name, where)) != where:
                self.fault(where, f"this {kind} is taken by {first}")


def fault_lines(
    error: ValidationError, schema: type[BaseModel], where: str = ""
) -> list[tuple[str, str]]:
    """(path in JSON, what is wrong) for each error. The values themselves are never in it."""
    return [
        (path(where, fault["loc"]), _sentence(fault["type"], fault["msg"], fault["loc"], schema))
        for fault in error.errors(include_input=False, include_url=False)
    ]


def path(where: str, location: Sequence[int | str]) -> str:
    for step in location:
        where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
    return where


def _sentence(
    type: str, message: str, location: Sequence[int | str], schema: type[BaseModel]
) -> str:
    if type == "missing":
        return "is missing"
    if type == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), schema.model_fields, n=1)
        return "is not a known key" + (f"; did you mean '{near[0]}'?" if near else "")
    return message.removeprefix("Value error, ")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

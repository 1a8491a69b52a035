"""A JSON file of the operator's: checked whole, every fault a line that says how to mend it."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

T = TypeVar("T", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
# Far above what any file needs.
_DEEPEST = 100
_UNRESOLVED = "@Microsoft.KeyVault("


class Strict(BaseModel):
    """What a file may say: unknown keys are faults, and nothing changes once it is read.

    A schema is built when its first file is read, and not by a start that has no such file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is a boolean; it has to be a number")
    return value


NotBoolean = BeforeValidator(_not_boolean)
"""For numbers, which `true` otherwise is one of."""


class Document:
    """Faults gather in `faults`, each as `file: path in JSON: what is wrong; how to mend it`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[str] = []
        self._unfilled: set[str] = set()

    def fault(self, where: str, what: str) -> None:
        self.faults.append(": ".join(part for part in (self.name, where, what) if part))

    def items(self, raw: bytes) -> list[tuple[str, dict[str, Any]]]:
        """Where each object of a JSON list stands, and the object; anything else is a fault."""
        try:
            found = json.loads(raw, object_pairs_hook=_Object, parse_constant=_refuse_constant)
            # Half a character is JSON, but no text: it could be neither hashed nor sent.
            json.dumps(found, ensure_ascii=False).encode()
            for where, key in _standing_twice(found):
                self.fault(where, f"the key '{key}' stands twice in this object; keep one")
        except (ValueError, RecursionError) as error:
            self.fault(*_wrong(error))
            return []
        if not isinstance(found, list):
            self.fault("", f"is {kind(found)}; it has to be a list of objects")
            return []
        if not found:
            self.fault("", "is an empty list; it needs at least one object")
        for index, item in enumerate(found):
            if not isinstance(item, dict):
                self.fault(f"[{index}]", f"is {kind(item)}; it has to be an object")
        return [(f"[{index}]", item) for index, item in enumerate(found) if isinstance(item, dict)]

    def expanded(self, value: Any, where: str, variables: Mapping[str, str]) -> Any:
        """`value` with each `${VAR}` in its strings replaced; one that is not set is a fault."""
        if isinstance(value, dict):
            return {
                key: self.expanded(it, path(where, [key]), variables) for key, it in value.items()
            }
        if isinstance(value, list):
            return [
                self.expanded(it, f"{where}[{index}]", variables) for index, it in enumerate(value)
            ]
        return self._expanded(value, where, variables) if isinstance(value, str) else value

    def check(self, schema: type[T], value: Any, where: str) -> T | None:
        """`value` as `schema`, or None after its faults have been noted."""
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            for line in fault_lines(error, schema, where):
                # What is no URL yet may be one when its variable is set.
                if line[0] not in self._unfilled:
                    self.fault(*line)
            return None

    def unique(self, what: str, names: Sequence[tuple[str, str]]) -> None:
        """A fault for each (where, name) whose name stood earlier; names may be secret."""
        seen: dict[str, str] = {}
        for where, name in names:
            if (first := seen.setdefault(name, where)) != where:
                self.fault(where, f"this {what} is taken by {first}; choose another")

    def _expanded(self, text: str, where: str, variables: Mapping[str, str]) -> str:
        before = len(self.faults)
        if is_unresolved(text):
            self.fault(where, f"is {UNRESOLVED}")
        for name in _VARIABLE.findall(text):
            if name not in variables:
                self.fault(
                    where, f"the variable ${{{name}}} is not set; set it, or write the value"
                )
            elif is_unresolved(variables[name]):
                self.fault(where, f"the variable ${{{name}}} is {UNRESOLVED}")
        if len(self.faults) > before:
            self._unfilled.add(where)
        return _VARIABLE.sub(lambda found: variables.get(found[1], found[0]), text)


UNRESOLVED = (
    "an unresolved Key Vault reference; the app's identity may not read that secret, or there is "
    "none: see the setting's status in the portal"
)


def is_unresolved(value: str) -> bool:
    """Whether the platform left the text of a reference where its secret should stand."""
    return value.strip().startswith(_UNRESOLVED)


def fault_lines(
    error: ValidationError, schema: type[BaseModel], where: str = ""
) -> list[tuple[str, str]]:
    """(path in JSON, what is wrong) for each error. The values themselves are never in it."""
    lines = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "too_short" and len(fault["input"]):
            # All that it holds is wrong, and each of it is told.
            continue
        place = _Place(schema, fault["loc"])
        if fault["type"].startswith("union_tag"):
            # The one kind of union here: what an object is, one of its members says.
            place.steps.append(fault["ctx"]["discriminator"].strip("'"))
        lines.append((path(where, place.steps), _sentence(fault, place)))
    return lines


def path(where: str, location: Sequence[int | str]) -> str:
    for step in location:
        where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
    return where


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return next((name for type, name in names.items() if isinstance(value, type)), "a number")


class _Place:
    """Where a fault stands: its `steps` in JSON, and the schemas its object may have or had not."""

    def __init__(self, schema: type[BaseModel], location: Sequence[int | str]) -> None:
        self.steps: list[int | str] = []
        self.schemas, self.others = [schema], list[type[BaseModel]]()
        for step in location[:-1]:
            self._go(step)
        self.steps += location[-1:]

    def _go(self, step: int | str) -> None:
        taken = [schema for schema in self.schemas if _tag(schema) == step]
        if taken and len(self.schemas) > 1:
            # Not a step in the file: pydantic names the member of the union that it took.
            self.schemas, self.others = taken, self.schemas
            return
        self.steps.append(step)
        if isinstance(step, str):
            fields = [schema.model_fields.get(step) for schema in self.schemas]
            self.schemas = [it for field in fields if field for it in _schemas(field.annotation)]
            self.others = []


def _schemas(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [schema for part in get_args(annotation) for schema in _schemas(part)]


def _tag(schema: type[BaseModel]) -> str | None:
    tags = [
        get_args(field.annotation)[0]
        for field in schema.model_fields.values()
        if get_origin(field.annotation) is Literal
    ]
    return tags[0] if tags else None


def _sentence(fault: Any, place: _Place) -> str:
    type, message = fault["type"], fault["msg"]
    if type == "missing":
        return "is missing"
    if type == "extra_forbidden":
        return _unknown(str(place.steps[-1]), place)
    if type.startswith("union_tag"):
        known = either([str(_tag(schema)) for schema in place.schemas])
        given = fault["ctx"].get("tag")
        what = "is missing" if given is None else f"{given!r} is not a {place.steps[-1]}"
        return f"{what}; use {known}"
    if type in ("string_too_short", "too_short"):
        listed = isinstance(fault["input"], list | tuple)
        return "is empty; it needs at least one" if listed else "is empty"
    if message.startswith("Input should "):
        rest = message.removeprefix("Input should ").split(", unable")[0]
        rest = next((ours for theirs, ours in _WORDS.items() if rest.startswith(theirs)), rest)
        if type.endswith(("_type", "_parsing")) and not isinstance(fault["input"], str):
            return f"is {kind(fault['input'])}; it has to {rest}"
        return f"has to {rest}"
    return str(message).removeprefix("Value error, ")


# Python's words, in JSON's.
_WORDS = {
    "be a valid tuple": "be a list",
    "be a valid dictionary": "be an object",
    "be a valid mapping": "be an object",
    "be a valid string": "be a string",
    "be a valid integer": "be a whole number",
    "be a valid number": "be a number",
    "be a valid boolean": "be true or false",
    "have timezone info": "name its time zone, as in 2027-01-31T00:00:00Z",
}


def _unknown(key: str, place: _Place) -> str:
    for other in place.others:
        if key in other.model_fields:
            return f"is for '{_tag(other)}', and this is '{_tag(place.schemas[0])}'; leave it out"
    import difflib

    known = [name for schema in place.schemas for name in schema.model_fields]
    near = difflib.get_close_matches(key, known, n=1)
    return "is not a known key; " + (f"did you mean '{near[0]}'?" if near else "leave it out")


def either(values: Sequence[str]) -> str:
    """'a', 'b' or 'c'."""
    *most, last = [f"'{value}'" for value in values]
    return f"{', '.join(most)} or {last}" if most else last


def _wrong(error: Exception) -> tuple[str, str]:
    """Where bytes are no JSON, and why."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}", f"broken JSON: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return "", f"is not text in UTF-8: {error.reason} at byte {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return "", r"has half a character, as \ud83d is alone; write the whole of it"
    if isinstance(error, RecursionError):
        return "", "is nested too deeply"
    return "", f"is not JSON: {error}"


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys stood twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = (
            [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
            if len(self) < len(pairs)
            else []
        )


def _standing_twice(value: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Raises RecursionError for what later steps would be too deep for."""
    if depth > _DEEPEST:
        raise RecursionError
    if isinstance(value, _Object):
        yield from ((where, key) for key in value.twice)
    if isinstance(value, dict):
        for key, it in value.items():
            yield from _standing_twice(it, path(where, [key]), depth + 1)
    elif isinstance(value, list):
        for index, it in enumerate(value):
            yield from _standing_twice(it, f"{where}[{index}]", depth + 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

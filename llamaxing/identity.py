"""identities.json: who may call, and with which key."""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    AwareDatetime,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
)

from llamaxing.document import Document, Strict
from llamaxing.errors import ConfigurationError

SAMPLE = "sample-"
"""What every key in the examples begins with."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def _key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text:
        raise ValueError("is empty; write the key, or 'sha256:' and the hex digits of its SHA-256")
    if text != text.strip():
        raise ValueError("has white space around it; take that away")
    if not text.isascii():
        raise ValueError("has characters that no header carries; use those of ASCII alone")
    if text.startswith("sha256:") and not _DIGEST.fullmatch(text):
        raise ValueError("has no SHA-256 after 'sha256:'; write its 64 hex digits in lower case")
    return value


class ApiKeyEntry(Strict):
    """One of an identity's keys, as it is or as `sha256:<hex>`. `id` is what records show of it."""

    key: SecretStr
    id: str | None = None
    expires: AwareDatetime | None = None

    _check = field_validator("key")(_key)

    @property
    def digest(self) -> str:
        text = self.key.get_secret_value()
        found = _DIGEST.fullmatch(text)
        return found[1] if found else sha256(text)

    @property
    def name(self) -> str:
        """What records call it: its id, or the beginning of its SHA-256."""
        return self.id or self.digest[:8]

    @property
    def is_sample(self) -> bool:
        """Whether it is a key of the examples, which everybody knows."""
        return self.key.get_secret_value().startswith(SAMPLE)


class Observability(Strict):
    """The Langfuse project that an identity's traces go to."""

    langfuse_public_key: str = Field(min_length=1)
    langfuse_secret_key: SecretStr = Field(min_length=1)


Strings = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]
"""One string, or a list of them."""


class Identity(Strict):
    """Somebody, or something, that calls.

    `models` are the ids it may use, as globs; without the list it may use every model. `record`
    says how much of its calls is kept.
    """

    id: str = Field(min_length=1)
    auth_key: SecretStr = SecretStr("")
    api_keys: tuple[ApiKeyEntry, ...] = ()
    claims: Mapping[str, Strings] = {}
    name: str | None = None
    info: Any = None
    observability: Observability | None = None
    models: tuple[str, ...] | None = None
    record: Literal["full", "metadata", "none"] = "full"

    _check = field_validator("auth_key")(_key)

    @field_validator("claims")
    @classmethod
    def _claims(cls, value: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
        for name, wanted in value.items():
            if not wanted or not all(wanted):
                raise ValueError(f"say nothing of {name!r}; write what it has to be")
        return value

    def may_use(self, model: str) -> bool:
        return self.models is None or any(fnmatch.fnmatchcase(model, it) for it in self.models)

    @property
    def keys(self) -> Mapping[str, ApiKeyEntry]:
        """Each by where it stands."""
        several = {f"api_keys[{index}]": key for index, key in enumerate(self.api_keys)}
        if "auth_key" in self.model_fields_set:
            return {"auth_key": ApiKeyEntry(key=self.auth_key), **several}
        return several


Claims = Mapping[str, Any]
"""What a token says of its bearer."""

# Claims that name the application that asked for a token: with a person's token that says nothing.
_OF_APPLICATIONS = frozenset({"azp", "appid"})
_SPACED = frozenset({"scp", "scope"})


def _fits(identity: Identity, claims: Claims) -> bool:
    return all(
        not values(claims, name).isdisjoint(wanted) for name, wanted in identity.claims.items()
    )


def values(claims: Claims, name: str) -> set[str]:
    """What a claim says, be it one thing or several; nothing where it is not the bearer's own."""
    given = claims.get(name)
    if name in _OF_APPLICATIONS and not _is_of_an_application(claims):
        return set()
    if name in _SPACED and isinstance(given, str):
        return set(given.split())
    return {it for it in (given if isinstance(given, list) else [given]) if isinstance(it, str)}


def _is_of_an_application(claims: Claims) -> bool:
    # Entra ID gives a person's token scopes (`scp`), and calls an application alike in `oid` and in
    # `sub`; `idtyp` is an optional claim that says which of the two it is.
    if "scp" in claims or claims.get("idtyp", "app") != "app":
        return False
    return "oid" not in claims or claims.get("sub", claims["oid"]) == claims["oid"]


# As it is, without the schema by which files are checked.
ANONYMOUS = Identity.model_construct(id="anonymous")


class _Found(msgspec.Struct, frozen=True):
    """What is known of a key, or of a claim that stands in its place."""

    identity: Identity
    place: str
    name: str
    expires: datetime | None


class Identities:
    """Everybody who may call, found by the hash of a key: keys are never compared as text."""

    def __init__(self, identities: Iterable[Identity] = ()) -> None:
        self._all = tuple(identities)
        self._by_id = {who.id: who for who in self._all}
        self._by_claim = [who for who in self._all if who.claims]
        self._by_digest = {
            key.digest: _Found(who, place, key.name, key.expires)
            for who in self._all
            for place, key in who.keys.items()
        }

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._all)

    def by_id(self, id: str) -> Identity | None:
        return self._by_id.get(id)

    def by_key(self, key: str, now: datetime) -> tuple[Identity, str] | None:
        """Whose key it is, and what the key is called; None for one that is unknown or expired."""
        found = self._by_digest.get(sha256(key))
        if found is None or (found.expires is not None and found.expires <= now):
            return None
        return found.identity, found.name

    def by_claims(self, claims: Claims, id_key: str) -> tuple[Identity, bool] | None:
        """Whose claims they are, and whether that is one person's entry: by the claim `id_key`;
        else the first entry that all of its own claims fit.
        """
        subject = claims[id_key]
        found = self._by_digest.get(sha256(subject))
        if found is not None and found.place == "auth_key":
            return found.identity, True
        fitting = [it for it in self._by_claim if _fits(it, claims)]
        person = next((it for it in fitting if id_key in it.claims), None)
        if person is not None:
            return person, True
        return (fitting[0], False) if fitting else None


def read_identities(
    raw: bytes,
    name: str,
    setting: str,
    variables: Mapping[str, str],
    faults: Callable[[Identity], Iterable[tuple[str, str]]] = lambda _: (),
) -> Identities:
    """`${VAR}` is taken from `variables` everywhere but in `info`. `faults` are what the chosen
    methods find wrong with an entry.

    Raises `ConfigurationError` with every fault of the file.
    """
    document = Document(name)
    found = []
    for at, item in document.items(raw):
        for key in item.keys() - {"info"}:
            item[key] = document.expanded(item[key], f"{at}.{key}", variables)
        if identity := document.check(Identity, item, at):
            found.append((at, identity))
            for where, what in faults(identity):
                document.fault(f"{at}.{where}", what)
    document.unique("id", [(f"{at}.id", identity.id) for at, identity in found])
    document.unique(
        "key",
        [
            (f"{at}.{place}", key.digest)
            for at, identity in found
            for place, key in identity.keys.items()
        ],
    )
    if document.faults:
        raise ConfigurationError(document.faults, [setting])
    return Identities(identity for _, identity in found)


def sha256(key: str) -> str:
    """In hex: what keys are looked up by."""
    return hashlib.sha256(key.encode()).hexdigest()

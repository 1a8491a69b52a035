"""identities.json: what it may say, and whose key a key is."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llamaxing.errors import ConfigurationError
from llamaxing.identity import Identity, read_identities, sha256
from tests.e2e import command

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def faults(*identities: object) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        read_identities(json.dumps(identities).encode(), "identities.json", "setting", {})
    return error.value.faults


def test_a_key_is_found_as_it_is_and_by_its_hash() -> None:
    hashed = "sha256:" + hashlib.sha256(b"two").hexdigest()
    identities = read_identities(
        json.dumps([{"id": "a", "auth_key": "one"}, {"id": "b", "auth_key": hashed}]).encode(),
        "identities.json",
        "setting",
        {},
    )

    assert identities.by_key("one", NOW)[0].id == "a"  # type: ignore[index]
    assert identities.by_key("two", NOW)[0].id == "b"  # type: ignore[index]
    assert identities.by_key(hashed, NOW) is None
    assert identities.by_key("", NOW) is None


def test_two_keys_overlap_in_a_rotation_until_the_old_one_expires() -> None:
    keys = [{"key": "old", "id": "k1", "expires": NOW.isoformat()}, {"key": "new", "id": "k2"}]
    identities = read_identities(
        json.dumps([{"id": "a", "api_keys": keys}]).encode(), "identities.json", "setting", {}
    )

    before = NOW - timedelta(seconds=1)
    old, new = identities.by_key("old", before), identities.by_key("new", before)
    assert old is not None
    assert new is not None
    assert old[0] is new[0]
    assert (old[1], new[1]) == ("k1", "k2")
    assert identities.by_key("old", NOW) is None


def test_models_are_globs_and_no_list_means_all() -> None:
    assert Identity(id="a").may_use("gpt-4o")
    assert Identity(id="a", models=("gpt-4o*",)).may_use("gpt-4o-mini")
    assert not Identity(id="a", models=("gpt-4o*",)).may_use("o3")
    assert not Identity(id="a", models=()).may_use("o3")


def test_a_key_is_never_shown() -> None:
    identity = Identity(id="a", auth_key="the-key")  # type: ignore[arg-type]

    assert "the-key" not in repr(identity) + str(identity) + identity.model_dump_json()


def test_every_fault_is_told_at_once_without_a_key() -> None:
    found = faults(
        {"id": "a", "auth_key": "secret"},
        {"id": "a", "auth_key": "other"},
        {"id": "c", "auth_key": "secret"},
    )

    assert found == [
        "identities.json: [1].id: this id is taken by [0].id; choose another",
        "identities.json: [2].auth_key: this key is taken by [0].auth_key; choose another",
    ]
    assert sha256("secret") not in str(found)


def test_a_key_that_no_header_carries_is_a_fault() -> None:
    what = "has characters that no header carries; use those of ASCII alone"

    assert faults({"id": "a", "auth_key": "schl\u00fcssel"}) == [
        f"identities.json: [0].auth_key: {what}"
    ]


async def test_a_new_key_is_printed_once_and_its_line_has_the_hash_alone(tmp_path: Path) -> None:
    code, out, err = await command(tmp_path, {}, "keys", "new", "--id", "team-a")

    key, _, _, _, line = out.splitlines()
    assert (code, err) == (0, "")
    assert len(key) > 40
    assert key not in line
    identities = read_identities(f"[{line}]".encode(), "identities.json", "setting", {})
    found = identities.by_key(key, NOW)
    assert found is not None
    assert (found[0].id, found[1]) == ("team-a", datetime.now(UTC).date().isoformat())


async def test_a_key_of_ones_own_is_hashed_from_standard_input(tmp_path: Path) -> None:
    code, line, _ = await command(tmp_path, {}, "keys", "hash", stdin="my own key\n")

    assert code == 0
    assert "my own key" not in line
    identities = read_identities(f"[{line}]".encode(), "identities.json", "setting", {})
    assert identities.by_key("my own key", NOW)
    none, _, why = await command(tmp_path, {}, "keys", "hash")
    assert (none, why) == (1, "there is no key on standard input\n")

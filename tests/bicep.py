"""What infra/*.bicep says, as two parsers read it, held to what Azure's own SDK knows."""

import functools
import importlib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import EnumMeta
from pathlib import Path
from typing import Any

import pycep
import tree_sitter
import tree_sitter_bicep
import typing_extensions

INFRA = Path(__file__).parent.parent / "infra"
FILES = sorted(INFRA.glob("*.bicep"))

# The SDK's class for a resource type: the body of the call that makes one.
BODIES = {
    "Microsoft.Web/serverfarms": "web.AppServicePlan",
    "Microsoft.Web/sites": "web.Site",
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies": (
        "web.CsmPublishingCredentialsPoliciesEntity"
    ),
    "Microsoft.Web/sites/config/authsettingsV2": "web.SiteAuthSettingsV2",
    "Microsoft.Storage/storageAccounts": "storage.StorageAccountCreateParameters",
    "Microsoft.Storage/storageAccounts/blobServices": "storage.BlobServiceProperties",
    "Microsoft.Storage/storageAccounts/blobServices/containers": "storage.BlobContainer",
    "Microsoft.Storage/storageAccounts/queueServices": "storage.QueueServiceProperties",
    "Microsoft.Storage/storageAccounts/queueServices/queues": "storage.StorageQueue",
    "Microsoft.KeyVault/vaults": "keyvault.VaultCreateOrUpdateParameters",
    "Microsoft.KeyVault/vaults/secrets": "keyvault.SecretCreateOrUpdateParameters",
    "Microsoft.DocumentDB/databaseAccounts": "cosmosdb.DatabaseAccountCreateUpdateParameters",
    "Microsoft.DocumentDB/databaseAccounts/mongodbDatabases": (
        "cosmosdb.MongoDBDatabaseCreateUpdateParameters"
    ),
    "Microsoft.DocumentDB/databaseAccounts/mongodbDatabases/collections": (
        "cosmosdb.MongoDBCollectionCreateUpdateParameters"
    ),
    "Microsoft.Network/virtualNetworks": "network.VirtualNetwork",
    "Microsoft.Network/privateEndpoints": "network.PrivateEndpoint",
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": "network.PrivateDnsZoneGroup",
    "Microsoft.Network/privateDnsZones": "privatedns.PrivateZone",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks": "privatedns.VirtualNetworkLink",
}
# The same where the SDK is of the older kind, whose classes flatten `properties`.
OLDER = {
    "Microsoft.Insights/actionGroups": "ActionGroupResource",
    "Microsoft.Insights/scheduledQueryRules": "ScheduledQueryRuleResource",
}
# What Bicep adds to such a body.
_BICEP = {"name", "parent", "scope", "dependsOn"}


@functools.cache
def parsed(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = pycep.BicepParser().parse(text=(INFRA / f"{name}.bicep").read_text())
    return found


def resources(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The type of each resource that a file makes, and its body."""
    for found in parsed(name).get("resources", {}).values():
        if not found["existing"]:
            made = body(found["config"])
            several = found["type"] == "Microsoft.Web/sites/config"
            yield f"{found['type']}/{made['name']}" if several else found["type"], made


def body(config: Any) -> Any:
    """Of what is made in a loop, or on a condition: what is made."""
    while isinstance(config, dict) and (
        "loop_type" in config or config.keys() == {"condition", "config"}
    ):
        config = config["config"]
    return config


def named(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the quotes of names that need them."""
    return {name.strip("'"): it for name, it in value.items()}


def wrong(body: Mapping[str, Any], path: str) -> Iterator[str]:
    """What the SDK does not know of the body of a resource."""
    package, _, name = path.partition(".")
    types = importlib.import_module(f"azure.mgmt.{package}.types")
    models = importlib.import_module(f"azure.mgmt.{package}.models")
    given = {key: it for key, it in body.items() if key not in _BICEP}
    yield from _wrong(given, getattr(types, name), {**vars(models), **vars(types)}, name)


def _wrong(value: Any, known: Any, names: dict[str, Any], where: str) -> Iterator[str]:
    options = [it for it in (typing.get_args(known) or (known,)) if it is not type(None)]
    if isinstance(value, dict) and "loop_type" in value:
        value = [body(value)]
    if isinstance(value, list):
        [inner] = typing.get_args(known) or (Any,)
        for it in value:
            yield from _wrong(it, inner, names, where)
    elif isinstance(value, dict) and typing_extensions.is_typeddict(options[0]):
        if {"operator", "function"} & value.keys():
            return  # an expression: what it gives is known to Azure alone
        fields = typing.get_type_hints(options[0], names)
        for name, it in named(value).items():
            if name in fields:
                yield from _wrong(it, fields[name], names, f"{where}.{name}")
            else:
                yield f"{where} has no {name}"
    elif isinstance(value, str):
        enums = [it for it in options if isinstance(it, EnumMeta)]
        if enums and re.fullmatch(r"[A-Z]\w*", value) and value not in set(enums[0]):
            yield f"{where} is never {value}"
    elif isinstance(value, bool | int) and options[0] in (str, bool, int):
        yield from [f"{where} is no {type(value).__name__}"] * (type(value) is not options[0])


def wrong_by_older(body: Mapping[str, Any], name: str) -> Iterator[str]:
    """`wrong`, by azure-mgmt-monitor."""
    given = {key: it for key, it in body.items() if key not in _BICEP}
    flat = {f"properties.{key}": it for key, it in given.pop("properties").items()}
    yield from _wrong_by_older({**given, **flat}, name)


def _wrong_by_older(value: Any, name: str) -> Iterator[str]:
    name = name.removeprefix("[").removesuffix("]")
    known = getattr(importlib.import_module("azure.mgmt.monitor.models"), name, None)
    for it in value if isinstance(value, list) else [value]:
        if known is None or not isinstance(it, dict) or ("operator" in it and len(it) == 1):
            continue
        fields = {field["key"]: field["type"] for field in known._attribute_map.values()}
        for key, inner in named(it).items():
            if key in fields:
                yield from _wrong_by_older(inner, fields[key])
            else:
                yield f"{name} has no {key}"


def outputs(name: str) -> Sequence[str]:
    return list(parsed(name).get("outputs", {}))


# Names


_TREES = tree_sitter.Parser(tree_sitter.Language(tree_sitter_bicep.language()))
_DECLARED = {f"{it}_declaration" for it in ("parameter", "variable", "resource", "module")}
_FUNCTIONS = {"concat", "empty", "environment", "filter", "guid", "items", "last", "resourceGroup"}
_FUNCTIONS |= {"split", "subscription", "subscriptionResourceId", "toLower", "toObject", "union"}
_FUNCTIONS |= {"uniqueString", "array", "bool", "int", "object", "string"}


def unknown_names(text: str) -> Iterator[str]:
    """The compiler refuses a name that nothing has; and what is no Bicep."""
    tree = _TREES.parse(text.encode()).root_node
    if tree.has_error:
        yield "it cannot be parsed"
    names = list(_names(tree))
    declared = {name for name, is_declared in names if is_declared}
    yield from (name for name, _ in names if name not in declared | _FUNCTIONS)


def _names(node: tree_sitter.Node) -> Iterator[tuple[str, bool]]:
    """Each name, and whether it is declared there."""
    for place, child in enumerate(node.named_children):
        key = node.type in ("object_property", "output_declaration", "decorator") and place == 0
        local = node.type in ("for_statement", "lambda_expression", "for_loop_parameters")
        if child.type in ("identifier", "loop_variable", "loop_enumerator") and not key:
            assert child.text is not None
            is_declared = place == 0 if node.type != "for_loop_parameters" else True
            yield child.text.decode(), is_declared and (local or node.type in _DECLARED)
        elif child.type not in ("decorators", "type"):
            yield from _names(child)

"""infra/, azure.yaml and host.json: what would be deployed, as far as it shows without Azure."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llamaxing import settings
from llamaxing.build import Build
from llamaxing.credentials.storage import Connection
from llamaxing.hosting import Hosting
from llamaxing.outbox import Waiting
from llamaxing.outbox.azure_queue import AzureQueueOutbox
from llamaxing.recorder import Recorder
from llamaxing.settings import Settings
from tests import bicep

ROOT = Path(__file__).parent.parent
HOST = json.loads((ROOT / "host.json").read_text())
NAMES = [file.stem for file in bicep.FILES]
MODULES = bicep.parsed("main")["modules"]
# Measured in the worker library, in kilobytes, and in seconds of a processor.
IDLE, A_STREAM, AN_EVENT = 73_000, 80, 1e-4
# A fast model's.
EVENTS_A_SECOND = 50

# Built-in roles of Azure, by Microsoft's list of them.
ROLES = {
    "Storage Blob Data Owner": "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
    "Storage Blob Data Contributor": "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
    "Storage Queue Data Contributor": "974c5e8b-45b9-4653-ba55-5f855dd0fb88",
    "Storage Table Data Contributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
    "Key Vault Secrets User": "4633458b-17de-408a-b874-0445c86b69e6",
    "Key Vault Secrets Officer": "b86a8fe4-44ce-4948-aee5-eccb2c155cd7",
    "Monitoring Metrics Publisher": "3913510d-42f4-4e42-8a64-420c390055eb",
    "Cognitive Services OpenAI User": "5e0bd9bd-7b93-4f28-af87-19fc36ad61bd",
}
# App settings that Flex Consumption does not take: they are properties of the app there.
NOT_ON_FLEX = {
    "ENABLE_ORYX_BUILD",
    "FUNCTIONS_EXTENSION_VERSION",
    "FUNCTIONS_WORKER_PROCESS_COUNT",
    "FUNCTIONS_WORKER_RUNTIME",
    "FUNCTIONS_WORKER_RUNTIME_VERSION",
    "SCM_DO_BUILD_DURING_DEPLOYMENT",
    "WEBSITE_CONTENTAZUREFILECONNECTIONSTRING",
    "WEBSITE_CONTENTSHARE",
    "WEBSITE_RUN_FROM_PACKAGE",
    "WEBSITE_VNET_ROUTE_ALL",
}


def text(name: str) -> str:
    return (bicep.INFRA / name).read_text()


def value(name: str, variable: str) -> Any:
    return bicep.named(bicep.parsed(name)["variables"][variable]["value"])


def resource(name: str, symbol: str) -> Any:
    return bicep.body(bicep.parsed(name)["resources"][symbol]["config"])


def app_settings() -> dict[str, str]:
    """As a deployment to nowhere in particular has them."""
    storage = {f"AzureWebJobsStorage__{it}ServiceUri": it for it in ("blob", "queue", "table")}
    told = {name: f"https://st.{it}.core.windows.net/" for name, it in storage.items()}
    told |= {"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=0"}
    told |= {"AUTH_METHOD": "apikey", "LOGGING_CLIENT": "mongodb"}
    told |= {"OBSERVABILITY_CLIENT": "langfuse", "WEBSITE_SKU": "FlexConsumption"}
    found = value("settings", "platform") | value("settings", "gateway")
    return {**found, **told}


# What can be said of the templates themselves


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_one_of_something(name: str) -> None:
    assert list(bicep.unknown_names(text(f"{name}.bicep"))) == []


def test_a_name_of_nothing_is_told() -> None:
    source = "param a int\nvar b = [for (c, d) in a: { a: d + e }]\noutput f int = g(b.x, c)\n"

    assert list(bicep.unknown_names(source)) == ["e", "g"]
    assert "it cannot be parsed" in list(bicep.unknown_names("param a = {"))


@pytest.mark.parametrize("name", NAMES)
def test_every_property_is_one_that_azures_own_sdk_knows(name: str) -> None:
    wrong = []
    for kind, body in bicep.resources(name):
        if kind in bicep.BODIES:
            wrong += list(bicep.wrong(body, bicep.BODIES[kind]))
        elif kind in bicep.OLDER:
            wrong += list(bicep.wrong_by_older(body, bicep.OLDER[kind]))
    assert wrong == []


def test_a_property_that_is_misspelt_is_told() -> None:
    site = {"properties": {"functionAppConfig": {"siteUpdateStrategy": {"type": "Rolling"}}}}
    site["properties"] |= {"httpsOnly": "yes", "httpOnly": True}  # type: ignore[dict-item]
    rule = {"properties": {"criteria": {"allOf": [{"querry": "traces"}]}, "windowsSize": "PT5M"}}

    assert list(bicep.wrong(site, "web.Site")) == [
        "Site.properties.functionAppConfig.siteUpdateStrategy.type is never Rolling",
        "Site.properties has no httpOnly",
    ]
    assert list(bicep.wrong_by_older(rule, "ScheduledQueryRuleResource")) == [
        "Condition has no querry",
        "ScheduledQueryRuleResource has no properties.windowsSize",
    ]


@pytest.mark.parametrize("variable", ["ranges", "serviceTags", "subnets"])
def test_every_rule_of_who_may_call_is_one_that_azures_own_sdk_knows(variable: str) -> None:
    rule = bicep.body(value("app", variable))

    assert list(bicep.wrong({"ipAddress": "", **rule}, "web.IpSecurityRestriction")) == []


@pytest.mark.parametrize("name", MODULES)
def test_every_module_gets_the_parameters_that_it_has(name: str) -> None:
    module = MODULES[name]
    file = Path(module["detail"]["path"]).stem

    assert set(bicep.body(module["config"])["params"]) == set(bicep.parsed(file)["parameters"])


def test_every_output_that_is_asked_for_is_there() -> None:
    asked = re.findall(r"\b(\w+)\.outputs\.(\w+)", text("main.bicep"))

    assert asked
    for symbol, output in asked:
        assert output in bicep.outputs(Path(MODULES[symbol]["detail"]["path"]).stem), symbol


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_or_variable_is_there_for_nothing(name: str) -> None:
    for kind in ("parameters", "variables"):
        for it in bicep.parsed(name).get(kind, {}):
            assert len(re.findall(rf"\b{it}\b", text(f"{name}.bicep"))) > 1, it


def test_azd_gives_every_parameter_with_the_same_default() -> None:
    lines = re.findall(r"^param (\w+) = .*\('(\w+)', '(.*?)'\)", text("main.bicepparam"), re.M)
    parameters = bicep.parsed("main")["parameters"]

    assert [name for name, *_ in lines] == list(parameters)
    assert len({variable for _, variable, _ in lines}) == len(lines)
    for name, _, default in lines:
        if parameters[name].get("default") is not None:
            said = parameters[name]["default"]
            assert default == (said if isinstance(said, str) else json.dumps(said)), name


def parameters_table() -> str:
    names = dict(re.findall(r"^param (\w+) = .*?\('(\w+)'", text("main.bicepparam"), re.M))
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for name, parameter in bicep.parsed("main")["parameters"].items():
        told = next(it["argument"] for it in parameter["decorators"] if it["type"] == "description")
        default = parameter.get("default")
        default = default if isinstance(default, str) else json.dumps(default)
        shown = "" if default in ("", "null") else f"`{default}`"
        lines.append(f"| `{names[name]}` | {shown} | {told} |")
    return "\n".join(lines)


PARAMETERS = re.compile(r"(<!-- python -m tests.test_infra -->\n\n).*?<!-- -->", re.DOTALL)


def readme() -> str:
    return PARAMETERS.sub(lambda it: f"{it[1]}{parameters_table()}\n\n<!-- -->", text("README.md"))


def test_the_table_of_parameters_is_that_of_the_templates() -> None:
    assert text("README.md") == readme(), "python -m tests.test_infra mends it"


def test_the_app_is_found_by_the_service_of_azure_yaml() -> None:
    file = yaml.safe_load((ROOT / "azure.yaml").read_text())
    [service] = file["services"]

    assert f"'azd-service-name': '{service}'" in text("app.bicep")
    assert file["services"][service] == {"project": ".", "host": "function", "language": "python"}
    assert (ROOT / file["infra"]["path"] / f"{file['infra']['module']}.bicep").exists()


# Keys


def test_there_is_no_key_in_it() -> None:
    together = "".join(text(file.name) for file in bicep.INFRA.iterdir())

    assert resource("storage", "account")["properties"]["allowSharedKeyAccess"] is False
    assert resource("monitoring", "insights")["properties"]["DisableLocalAuth"] is True
    assert "listKeys" not in together
    # One that Azure makes goes into the vault at once.
    assert together.count("listConnectionStrings") == 1
    assert "listConnectionStrings" in str(resource("cosmos", "uri")["properties"])
    assert not re.search(r"AccountKey|SharedAccessSignature|password", together)


def test_every_role_is_the_one_that_it_is_called() -> None:
    together = text("roles.bicep") + text("openai.bicep")
    said = re.findall(r"'([0-9a-f-]{36})' // (.+)", together)

    assert {name: id for id, name in said} == ROLES
    assert len(re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", together)) == len(ROLES)


# Numbers


def test_the_app_settings_are_those_of_the_gateway_and_of_flex_consumption() -> None:
    chosen, faults = settings.read(Settings, app_settings())

    assert faults == []
    assert chosen is not None
    assert {name.lower() for name in value("settings", "gateway")} <= set(settings.every_setting())
    assert not NOT_ON_FLEX & set(app_settings())
    connection = Connection("AzureWebJobsStorage", app_settings())
    assert connection.queues == "https://st.queue.core.windows.net"
    assert connection.blobs == "https://st.blob.core.windows.net"


def test_the_readme_tells_which_settings_of_the_platform_flex_consumption_has() -> None:
    table = (ROOT / "README.md").read_text().partition("| app setting | value |")[2]
    rows = [
        [it.strip(" `") for it in row.strip("|").split("|")]
        for row in table.partition("\n\n")[0].splitlines()[2:]
    ]
    there = {name: (said, on_flex) for name, said, _, on_flex in rows}

    for name, (said, on_flex) in there.items():
        if on_flex.startswith("set"):
            assert value("settings", "platform")[name] == said
        elif on_flex.startswith("refused"):
            assert name in NOT_ON_FLEX
    assert len([it for it in there.values() if it[1].startswith(("set", "refused"))]) == 5


def test_no_stream_outlives_the_hosts_patience(caplog: pytest.LogCaptureFixture) -> None:
    """On a Consumption plan, by host.json; on Flex Consumption, by the app setting over it."""
    longest = Settings().stream_max_age
    consumption = Hosting({"WEBSITE_INSTANCE_ID": "x"}, ROOT)
    flex = Hosting(app_settings(), ROOT)

    assert HOST["functionTimeout"] == "00:10:00"  # the most that a Consumption plan takes
    assert consumption.longest_stream(longest) < 600
    assert flex.longest_stream(longest) == longest
    assert flex.longest_call(Settings().app_requests_timeout) < 230


def test_an_instance_has_the_means_for_the_streams_that_it_is_given() -> None:
    parameters = bicep.parsed("main")["parameters"]
    streams = parameters["perInstanceConcurrency"]["default"]
    memory = parameters["instanceMemoryMB"]["default"] * 1000

    # Not even the most that can be asked for takes a tenth of an instance; the host needs the rest.
    assert memory / 10 > IDLE + 1000 * A_STREAM
    # An instance of 2 GB has one processor, which the host needs as well.
    assert streams * EVENTS_A_SECOND * AN_EVENT <= 0.5
    # What a Consumption plan lets in is of the same size as an instance here.
    assert streams <= HOST["extensions"]["http"]["maxConcurrentRequests"]
    assert (
        HOST["extensions"]["http"]["maxConcurrentRequests"]
        <= HOST["extensions"]["http"]["maxOutstandingRequests"]
    )
    # A rolling update replaces one of at least two.
    assert parameters["alwaysReadyInstances"]["default"] >= 2


def test_queues_are_read_as_the_outbox_writes_them() -> None:
    queues = HOST["extensions"]["queues"]

    assert queues["messageEncoding"] == "base64"
    # What raises is tried again, and not at once: five times at once would be poison in a second.
    assert queues["maxDequeueCount"] >= 5
    assert queues["visibilityTimeout"] >= "00:00:30"
    assert queues["newBatchThreshold"] < queues["batchSize"] <= 32


async def test_the_queues_and_containers_are_those_that_the_gateway_uses() -> None:
    environ = app_settings() | {"LOGGING_CLIENT_MONGODB_URI": "mongodb://localhost"}
    transport = httpx.MockTransport(lambda _: httpx.Response(500))
    found = Build(environ).recording(transport)
    outbox = found.outboxes[0]

    assert isinstance(outbox, AzureQueueOutbox)
    names = [trigger.queue for trigger in outbox.triggers.values()]
    made = resource("storage", "waiting")["name"].replace("${sink}", "{}")
    assert names == [made.format(sink) for sink in found.deliveries]
    assert (
        resource("storage", "poison")["name"] == f"{resource('storage', 'waiting')['name']}-poison"
    )
    containers = re.findall(r"^  '([\w-]+)'$", text("storage.bicep"), re.M)
    assert containers == ["deployment", "configuration", "llamaxing-outbox"]
    assert outbox._blobs._url.endswith("/llamaxing-outbox")
    for source in ("MODELS_SOURCE", "IDENTITIES_SOURCE"):
        assert environ[source].startswith("blob:configuration/")


# Alerts


class One:
    """An outbox with one sink."""

    async def status(self) -> Mapping[str, Waiting]:
        return {"mongodb": Waiting(12, 3, 734.6)}


async def test_the_alerts_read_what_the_gateway_writes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    query = bicep.parsed("monitoring")["variables"]["lines"]["value"]

    await Recorder([One()], copy_up_to=0).watch()  # type: ignore[list-item]

    [line] = caplog.messages
    [wanted] = re.findall(r'message contains "(.*)"', query)
    assert wanted in line
    patterns = re.findall(r'extend (\w+) = .*?extract\("(.*?)", 1', query)
    found = {name: re.search(pattern, line)[1] for name, pattern in patterns}  # type: ignore[index]
    assert found == {"sink": "mongodb", "poison": "3", "oldest": "734"}


def test_what_the_alerts_read_is_not_sampled() -> None:
    sampling = HOST["logging"]["applicationInsights"]["samplingSettings"]

    # The line of a call is a trace as well.
    assert {"Request", "Trace"} <= set(sampling["excludedTypes"].split(";"))


def test_a_late_record_is_told_of_before_that_is_an_alert() -> None:
    from llamaxing.outbox import azure_queue

    oldest = bicep.parsed("main")["parameters"]["oldestRecord"]
    least = next(it["argument"] for it in oldest["decorators"] if it["type"] == "min_value")

    assert azure_queue._LATE <= least <= oldest["default"]


if __name__ == "__main__":
    (bicep.INFRA / "README.md").write_text(readme())

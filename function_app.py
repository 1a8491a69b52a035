"""The Azure Functions app: a function a route, each of them the gateway, and one a queue."""

import os

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from llamaxing import functions
from llamaxing.build import application

functions.require_init_indexing(os.environ)
functions.silence_access_log()
app = func.FunctionApp(http_auth_level=functions.auth_level(os.environ))
gateway = application()


async def call(req: Request, context: func.Context) -> Response:
    return functions.Passthrough(gateway, context.invocation_id)


def serve(name: str, route: str, level: func.AuthLevel | None = None) -> None:
    """One function: the platform shows its name, and routes to it."""
    function = app.function_name(name)
    function(app.route(route, methods=functions.METHODS, auth_level=level)(call))


def deliver(name: str, trigger: functions.Trigger) -> None:
    """One function a queue, where records wait in queues."""

    async def run(message: func.QueueMessage) -> None:
        await functions.deliver(gateway, trigger, message)

    app.function_name(name)(app.queue_trigger("message", trigger.queue, trigger.connection)(run))


async def watch(timer: func.TimerRequest) -> None:
    await functions.watch(gateway)


for name, route in functions.ROUTES.items():
    serve(name, route)
for name, route in functions.HEALTH.items():
    # Probes have no key.
    serve(name, route, func.AuthLevel.ANONYMOUS)
triggers = functions.triggers(os.environ)
for name, trigger in triggers.items():
    deliver(name, trigger)
if triggers:
    app.function_name("watch_outbox")(app.timer_trigger("timer", functions.WATCH)(watch))

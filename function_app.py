"""The Azure Functions app: a function a route, and every one of them is the gateway."""

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


for name, route in functions.ROUTES.items():
    serve(name, route)
for name, route in functions.HEALTH.items():
    # Probes have no key.
    serve(name, route, func.AuthLevel.ANONYMOUS)

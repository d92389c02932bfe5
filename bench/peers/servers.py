"""The servers that are compared, each a process or two of its own on the server's core.

A peer that is not installed raises Missing; the run then goes on without it and says so.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..processes import ROOT, Process, family, free_port, wait_until
from ..programs import PIPELINED, Asked, compiler, drive, program, write_messages
from .work import body_of, dns_text_octets, dns_zone, plain_name, redis_set

START_S: Final = 60.0
PACKAGES: Final = {"nginx": "nginx-light", "redis-server": "redis-server", "nsd": "nsd"}
"""The Debian package of each program."""
_INSTALL_S: Final = 300


class Missing(Exception):
    """A peer that is not here, and why."""


@dataclass
class Server:
    process: Process
    port: int

    def pids(self) -> list[int]:
        return family(self.process.pid)

    def close(self) -> None:
        self.process.close()


def install(programs: Sequence[str]) -> None:
    """What Debian provides, if we may; whatever fails here is reported as missing later."""
    wanted = [PACKAGES[name] for name in programs if found(name) is None]
    if not wanted or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    # Not started as services: policy-rc.d is how Debian says so.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for command in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", *wanted],
        ):
            with suppress(subprocess.SubprocessError):
                subprocess.run(
                    ["apt-get", *command],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    timeout=_INSTALL_S,
                    check=True,
                )
    finally:
        if ours:
            policy.unlink()


def found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _path(name: str) -> str:
    path = found(name)
    if path is None:
        raise Missing(f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})")
    return path


def _listening(port: int) -> Callable[[], bool]:
    def listening() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return listening


def _started(process: Process, ready: Callable[[], bool], port: int) -> Server:
    try:
        wait_until(ready, START_S, process)
    except BaseException:
        process.close()
        raise
    return Server(process, port)


def responder(name: str, frame: str, octets: int, cores: frozenset[int]) -> Server:
    """respond_tcp or respond_udp of bench/c."""
    if compiler() is None:
        raise Missing("there is no C compiler (Debian: apt-get install gcc libc6-dev)")
    command: list[str | Path] = [program(name), "--frame", frame, "--reply-octets", str(octets)]
    process = Process(command, cores=cores, reads=True)
    try:
        return Server(process, process.first_line()["port"])
    except BaseException:
        process.close()
        raise


_NGINX = """
{user}daemon off; master_process on; worker_processes 1; pid {folder}/nginx.pid;
worker_rlimit_nofile {descriptors};
error_log {folder}/error.log error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
  default_type application/json; sendfile on;
  open_file_cache max={files} inactive=1h; open_file_cache_valid 1h;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location /fixed {{ return 200 "{body}"; }}
    location /files/ {{ alias {folder}/files/; }}
  }}
}}
"""


def static_files(names: int) -> int:
    """How many of them nginx serves as files, each of which stays open."""
    return min(names, 10_000)


def static_path(number: int) -> str:
    """Files lie in folders of a thousand."""
    return f"{number // 1000}/{plain_name(number)}"


def nginx(folder: Path, names: int, octets: int, cores: frozenset[int]) -> Server:
    """`/fixed` answers always the same; `/files/…` one file for each name
    up to `static_files`."""
    path = _path("nginx")
    files = static_files(names)
    for first in range(0, files, 1000):
        (folder / "files" / str(first // 1000)).mkdir(parents=True)
    for number in range(files):
        (folder / "files" / static_path(number)).write_bytes(body_of(number, octets))
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            user="user root; " if os.geteuid() == 0 else "",
            folder=folder,
            files=files + 1000,
            descriptors=files + 6000,
            port=port,
            body=body_of(0, octets).decode(),
        )
    )
    process = Process(
        [path, "-c", configuration, "-e", folder / "error.log"],
        cores=cores,
        log=folder / "nginx.log",
    )
    return _started(process, _listening(port), port)


def aiohttp_minimal(folder: Path, names: int, octets: int, cores: frozenset[int]) -> Server:
    process = Process(
        [sys.executable, "-m", "bench.peers.minimal_aiohttp", str(names), str(octets)],
        cores=cores,
        reads=True,
        log=folder / "aiohttp.log",
        directory=ROOT,
    )
    try:
        return Server(process, process.first_line()["port"])
    except BaseException:
        process.close()
        raise


def redis(folder: Path, names: int, octets: int, cores: frozenset[int]) -> Server:
    path = _path("redis-server")
    port = free_port()
    options = f"--port {port} --bind 127.0.0.1 --appendonly no --daemonize no --dir {folder}"
    process = Process([path, *options.split(), "--save", ""], cores=cores, log=folder / "redis.log")
    server = _started(process, _listening(port), port)
    try:
        sets = folder / "sets"
        write_messages(sets, (redis_set(number, octets) for number in range(names)))
        asked = Asked("redis", port, sets, shape=PIPELINED)
        drive(asked, seconds=START_S, once=True, cores=frozenset(os.sched_getaffinity(0)))
    except BaseException:
        server.close()
        raise
    return server


_NSD = """
server:
  ip-address: 127.0.0.1@{port}
  server-count: 1
  username: ""
  chroot: ""
  zonesdir: "{folder}"
  database: ""
  pidfile: "{folder}/nsd.pid"
  xfrdfile: "{folder}/xfrd.state"
  zonelistfile: "{folder}/zone.list"
  xfrdir: "{folder}"
  minimal-responses: yes
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: "bench.example"
  zonefile: "zone"
"""


def nsd(folder: Path, names: int, octets: int, cores: frozenset[int]) -> Server:
    """Its response rate limit is off: all questions come from one address."""
    path = _path("nsd")
    (folder / "zone").write_text(dns_zone(names, dns_text_octets(octets)))
    port = free_port()
    configuration = folder / "nsd.conf"
    configuration.write_text(_NSD.format(folder=folder, port=port))
    process = Process([path, "-d", "-c", configuration], cores=cores, log=folder / "nsd.log")
    # It serves over TCP too, from when it serves at all.
    return _started(process, _listening(port), port)

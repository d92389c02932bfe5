"""The files in deploy/ are well-formed, agree with the program and with each other. Where a tool
that knows a format is on the PATH it judges too; else the test says so and is skipped."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from resolver.__main__ import STOP_SPARE_S
from resolver.settings import Settings
from resolver.supervisor import START_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
HAPROXY = DEPLOY / "haproxy"
PORTS = {"http": 8080, "native": 2650, "handle-tcp": 2641, "handle-udp": 2641}
WORKER_BYTES = 160 * 2**20
"""A worker besides its cache and lane; measured about 105 MiB with nothing in it."""
STOP_S = Settings().drain_s + Settings().commit_timeout_s + STOP_SPARE_S
"""How long a node may take to stop."""


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}")
    if found is None:
        pytest.skip(f"{name} is not on the PATH")
    return found


def judged(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def known_settings(names: set[str]) -> None:
    wrong = {name for name in names if name.removeprefix("BIAOJIE_").lower() not in known()}
    assert not wrong


def known() -> set[str]:
    return {*Settings.model_fields, "config"}


# The image ----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(word.upper(), rest) for word, rest in lines]


def test_the_image_has_all_that_the_package_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"]}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert needed | {"pyproject.toml"} <= copied
    assert all((ROOT / source).exists() for source in copied)
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in copied} <= set(sent)


def test_the_image_runs_as_nobody_in_particular() -> None:
    words = instructions()
    last = max(at for at, (word, _) in enumerate(words) if word == "FROM")
    final = words[last:]
    assert sum(word == "FROM" for word, _ in words) == 2
    assert [rest for word, rest in final if word == "USER"] == ["10001:10001"]
    assert {rest.split()[0] for word, rest in final if word == "HEALTHCHECK"}
    (exposed,) = (rest for word, rest in final if word == "EXPOSE")
    assert exposed.split() == ["8080/tcp", "2650/tcp", "2641/tcp", "2641/udp"]
    set_ = {name for word, rest in final if word == "ENV" for name in re.findall(r"\w+(?==)", rest)}
    known_settings({name for name in set_ if name.startswith("BIAOJIE_")})
    assert not [rest for _, rest in words if re.search(r"(?i)password|secret|token", rest)]


def test_the_health_check_is_a_program() -> None:
    (check,) = (rest for word, rest in instructions() if word == "HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    ast.parse(command[2])
    done = subprocess.run(  # nobody listens there
        [sys.executable, *command[1:]],
        env=os.environ | {"BIAOJIE_PORT": "1"},
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 1
    assert b"Connection refused" in done.stderr


def test_hadolint() -> None:
    judged(tool("hadolint"), DEPLOY / "Dockerfile")


# Compose ------------------------------------------------------------------------------------


@pytest.fixture
def compose() -> dict[str, Any]:
    (found,) = documents(DEPLOY / "compose.yaml")
    return found


def test_compose_sets_what_exists(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "migrate", "node-a", "node-b", "haproxy"}
    assert services["postgres"]["image"] == "postgres:18"
    for name in ("migrate", "node-a", "node-b"):
        known_settings(set(services[name]["environment"]))
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), mount


def test_compose_nodes_have_workers_memory_and_time_to_stop(compose: dict[str, Any]) -> None:
    for name in ("node-a", "node-b"):
        node = compose["services"][name]
        workers = int(node["command"][node["command"].index("--workers") + 1])
        assert workers >= 2
        # One more while they are replaced, by SIGHUP.
        assert room(node["environment"], workers + 1) <= octets(node["mem_limit"])
        assert float(node["stop_grace_period"].removesuffix("s")) > STOP_S


def test_compose_has_no_secret_and_names_those_it_needs(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    named = set(re.findall(r"\$\{(\w+):\?", text))
    assert named == {"BIAOJIE_DATABASE_PASSWORD"}
    lines = (DEPLOY / "compose.env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert set(example) <= set(re.findall(r"\$\{(\w+)", text))
    assert example["BIAOJIE_DATABASE_PASSWORD"] == ""


def test_compose_tells_haproxy_where_all_is(compose: dict[str, Any]) -> None:
    service = compose["services"]["haproxy"]
    given = service["environment"]
    preset = presets(HAPROXY / "haproxy.cfg")
    assert set(given) <= set(preset)
    assert {given["NODE_A"], given["NODE_B"]} == {"node-a", "node-b"}
    inside = {
        (preset | given)[name] for name in ("HTTP_PORT", "NATIVE_PORT", "HANDLE_PORT", "STATS_PORT")
    }
    published = {each.removesuffix("/tcp").rsplit(":", 1)[1] for each in service["ports"]}
    assert published == inside


def test_citus_takes_the_place_of_the_one_postgresql(compose: dict[str, Any]) -> None:
    (citus,) = documents(DEPLOY / "citus/compose.yaml")
    services = citus["services"]
    assert {"postgres", "migrate", "node-a", "node-b"} <= services.keys() & compose[
        "services"
    ].keys()
    assert services["migrate"]["command"] == ["migrate", "--citus"]
    for name in ("postgres", "worker-1", "worker-2"):
        assert "max_prepared_transactions=200" in services[name]["command"]
        assert services[name]["networks"] == ["registry"]
        assert "ports" not in services[name]
    assert citus["networks"]["registry"]["internal"] is True
    for name in ("worker-1", "worker-2"):
        (mount,) = services[name]["volumes"]
        assert mount.partition(":")[0] in citus["volumes"]
        assert any(f"'{name}'" in part for part in services["join"]["command"])


def test_docker_compose() -> None:
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, timeout=30).returncode:
        pytest.skip("docker has no compose plug-in")
    file = DEPLOY / "compose.yaml"
    judged(docker, "compose", "-f", file, "config", "-q", BIAOJIE_DATABASE_PASSWORD="x")


def octets(text: str) -> int:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 2**10, "m": 2**20, "g": 2**30}
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()  # type: ignore[union-attr]
    return int(number) * units[unit]


def room(settings: dict[str, str], workers: int) -> int:
    """Memory that so many workers may take."""
    kept = (
        int(settings.get(f"BIAOJIE_{name.upper()}", getattr(Settings(), name)))
        for name in ("cache_bytes_max", "lane_bytes_max")
    )
    return workers * (sum(kept) + WORKER_BYTES)


# HAProxy ------------------------------------------------------------------------------------


def presets(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^ +presetenv (\w+) (\S+)$", path.read_text(), flags=re.MULTILINE))


def test_haproxy_names_are_set_and_timeouts_fit() -> None:
    text = (HAPROXY / "haproxy.cfg").read_text()
    both = text + (HAPROXY / "tls.cfg").read_text()
    preset = presets(HAPROXY / "haproxy.cfg") | presets(HAPROXY / "tls.cfg")
    assert set(re.findall(r"\$\{(\w+)\}", both)) == set(preset)
    settings = Settings()

    def seconds(name: str) -> list[float]:
        found = re.findall(rf"timeout {name} (\d+)s", text)
        return [float(each) for each in found]

    assert seconds("http-keep-alive")[0] < settings.keepalive_timeout_s
    assert seconds("http-request")[0] < settings.header_timeout_s
    assert seconds("server")[0] > max(settings.batch_deadline_s, 30)
    for each in (*seconds("client")[1:], *seconds("server")[1:]):
        assert each < settings.native_idle_timeout_s
        assert each < settings.handle_idle_timeout_s
    # Taken for gone only when what ran there is done.
    inter, fall = re.findall(r"inter (\d+)s fastinter \d+s fall (\d+)", text)[-1]
    assert int(inter) * int(fall) > settings.drain_s


def test_haproxy() -> None:
    haproxy = tool("haproxy")
    judged(haproxy, "-c", "-f", HAPROXY / "haproxy.cfg")


def test_haproxy_with_tls(tmp_path: Path) -> None:
    from resolver.front.http.tls import self_signed

    haproxy = tool("haproxy")
    certificate, key = self_signed(tmp_path, "node", ("localhost",))
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "node.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
    files = [HAPROXY / "haproxy.cfg", "-f", HAPROXY / "tls.cfg"]
    judged(haproxy, "-c", "-f", *files, CERTIFICATES=str(folder))


def test_what_comes_over_tls_is_treated_alike() -> None:
    def rules(name: str, frontend: str) -> list[str]:
        text = (HAPROXY / name).read_text().split(f"frontend {frontend}\n")[1].split("\n\n")[0]
        words = ("http-request", "use_backend", "default_backend", "http-response sc-")
        return [line for line in text.splitlines() if line.strip().startswith(words)]

    assert rules("haproxy.cfg", "http") == rules("tls.cfg", "https")
    assert len(rules("haproxy.cfg", "http")) > 5


# Kubernetes ---------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> dict[tuple[str, str], dict[str, Any]]:
    """What is applied, by kind and name."""
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    listed = kustomization["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(
        path.name for path in KUBERNETES.glob("*.yaml")
    )
    found = [each for name in listed for each in documents(KUBERNETES / name)]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def pods(cluster: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        each["spec"]["template"]["spec"]
        for (kind, _), each in cluster.items()
        if kind in _WITH_PODS
    ]


_WITH_PODS = {"Deployment", "Job"}


def test_pods_are_confined(cluster: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert len(pods(cluster)) == 2
    for pod in pods(cluster):
        # Else the Service of that name sets BIAOJIE_PORT, and the node refuses to start.
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["readOnlyRootFilesystem"] is True
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            (secret,) = container["env"]
            assert secret["name"] == "BIAOJIE_DATABASE_URL"
            assert secret["valueFrom"]["secretKeyRef"]["name"] == "biaojie-database"
    assert not [kind for kind, _ in cluster if kind == "Secret"]


def test_a_service_of_that_name_would_stop_the_node() -> None:
    """What `enableServiceLinks: false` is for."""
    done = subprocess.run(
        [sys.executable, "-m", "resolver", "serve", "--check-config"],
        env=os.environ | {"BIAOJIE_PORT": "tcp://10.0.0.1:8080"},
        cwd=ROOT,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 2


def test_a_pod_has_time_memory_and_ports(cluster: dict[tuple[str, str], dict[str, Any]]) -> None:
    pod = cluster["Deployment", "biaojie"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = cluster["ConfigMap", "biaojie"]["data"]
    known_settings(set(settings))
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    ready, live, start = (
        container[f"{name}Probe"] for name in ("readiness", "liveness", "startup")
    )
    assert ready["httpGet"]["path"] == "/readyz"
    assert {each["httpGet"]["path"] for each in (live, start)} == {"/healthz"}
    assert pause > ready["periodSeconds"] * ready["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] > pause + STOP_S
    assert start["periodSeconds"] * start["failureThreshold"] > START_S
    workers = int(settings["BIAOJIE_WORKERS"])
    assert room(settings, workers) <= octets(container["resources"]["limits"]["memory"])
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == PORTS
    udp = [port["name"] for port in container["ports"] if port.get("protocol") == "UDP"]
    assert udp == ["handle-udp"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_services_and_budgets_mean_the_nodes(
    cluster: dict[tuple[str, str], dict[str, Any]],
) -> None:
    deployment = cluster["Deployment", "biaojie"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    job = cluster["Job", "biaojie-migrate"]["spec"]["template"]["metadata"]["labels"]
    budget = cluster["PodDisruptionBudget", "biaojie"]["spec"]
    services = [each["spec"] for (kind, _), each in cluster.items() if kind == "Service"]
    for selector in (
        deployment["selector"]["matchLabels"],
        budget["selector"]["matchLabels"],
        *(service["selector"] for service in services),
    ):
        assert selector.items() <= labels.items()
        assert not selector.items() <= job.items()
    reached = [port for service in services for port in service["ports"]]
    assert {port["targetPort"] for port in reached} == set(PORTS)
    assert {port["protocol"] for port in reached if port["targetPort"] == "handle-udp"} == {"UDP"}
    # A Handle login goes on at the node where it began.
    assert {service["sessionAffinity"] for service in services} == {"ClientIP"}


def test_as_many_nodes_as_the_database_can_bear(
    cluster: dict[tuple[str, str], dict[str, Any]],
) -> None:
    scaler = cluster["HorizontalPodAutoscaler", "biaojie"]["spec"]
    deployment = cluster["Deployment", "biaojie"]["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) in cluster
    assert "replicas" not in deployment  # or each apply would undo the scaler's work
    assert scaler["minReplicas"] >= 2
    settings = cluster["ConfigMap", "biaojie"]["data"]
    pods_most = scaler["maxReplicas"] + deployment["strategy"]["rollingUpdate"]["maxSurge"]
    workers = int(settings["BIAOJIE_WORKERS"])
    assert pods_most * workers * int(settings["BIAOJIE_DATABASE_CONNECTIONS"]) <= 97


def test_kubeconform() -> None:
    files = [path for path in KUBERNETES.glob("*.yaml") if path.name != "kustomization.yaml"]
    judged(tool("kubeconform"), "-strict", *files)


def test_kubernetes_validate() -> None:
    files = [path for path in KUBERNETES.glob("*.yaml") if path.name != "kustomization.yaml"]
    judged(tool("kubernetes-validate"), "--strict", *files)


# systemd ------------------------------------------------------------------------------------


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / name)
    return parser


def test_the_unit_stops_in_time_and_can_be_reloaded() -> None:
    service = unit("biaojie.service")["Service"]
    command = shlex.split(service["ExecStart"])
    assert command[:2] == ["/opt/biaojie/bin/biaojie", "serve"]
    assert int(command[command.index("--workers") + 1]) >= 2  # a single process ends at SIGHUP
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) > STOP_S
    assert float(service["TimeoutStartSec"]) > START_S
    settings = Settings()
    connections = (
        settings.connections_max + settings.native_connections_max + settings.handle_connections_max
    )
    assert int(service["LimitNOFILE"]) > 2 * connections
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    # Unless the node's own certificates with callbacks made at run time are given up.
    assert "MemoryDenyWriteExecute" not in service
    lines = (DEPLOY / "systemd" / "biaojie.env").read_text().splitlines()
    named = {line[1:].split("=")[0] for line in lines if re.match(r"#BIAOJIE_\w+=", line)}
    assert named
    known_settings(named)


@pytest.mark.parametrize(
    "name", ["biaojie.service", "biaojie-verify.service", "biaojie-verify.timer"]
)
def test_systemd_analyze(name: str, tmp_path: Path) -> None:
    for path in (DEPLOY / "systemd").iterdir():
        text = path.read_text().replace("/opt/biaojie/bin/biaojie", sys.executable)
        (tmp_path / path.name).write_text(text)
    said = judged(tool("systemd-analyze"), "verify", "--man=no", tmp_path / name)
    assert str(tmp_path) not in said, said


# Prometheus ---------------------------------------------------------------------------------


def test_promtool() -> None:
    promtool = tool("promtool")
    judged(promtool, "check", "rules", DEPLOY / "prometheus" / "biaojie.rules.yml")
    judged(promtool, "test", "rules", DEPLOY / "prometheus" / "biaojie.rules.test.yml")


def test_alerts_say_what_and_how_bad() -> None:
    (rules,) = documents(DEPLOY / "prometheus" / "biaojie.rules.yml")
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    names = [rule["alert"] for rule in alerts]
    assert len(set(names)) == len(names)
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert re.search(r"[\u4e00-\u9fff]", rule["annotations"]["summary"]), rule["alert"]
        assert rule["annotations"]["description"]

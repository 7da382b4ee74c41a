"""The chart renders cleanly, equals the plain manifests, refuses unknown values, and grants only what is needed."""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

import click
import helm_python
import pytest
import yaml

from cli.main import main
from server.store.engine import Store
from tests.chart import CHART, NAMESPACE, ROOT, SETS, Object, is_hook, loaded, pods, rendered, values
from tests.exported import metric_names
from wire.version import __version__

ALL = ["default", *SETS]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def identity(found: Object) -> tuple[str, str, str, str]:
    return found["apiVersion"], found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]


def by_identity(objects: Iterable[Object]) -> dict[tuple[str, str, str, str], Object]:
    return {identity(found): found for found in objects}


def named(objects: list[Object], kind: str, name: str) -> dict[str, Any]:
    (found,) = [it for it in objects if (it["kind"], it["metadata"]["name"]) == (kind, name)]
    return found


def kustomized(folder: Path, *components: str) -> list[Object]:
    """What `kubectl kustomize` makes of manifests/ with these components, by a kustomization in a folder."""
    wanted = {"resources": ["manifests"], "components": components}
    own = {key: [os.path.relpath(ROOT / it, folder.resolve()) for it in paths] for key, paths in wanted.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    kubectl = Path(sys.executable).with_name("kubectl")
    built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True)
    return loaded(built.stdout)


# Helm takes it.


@pytest.mark.parametrize("name", ALL)
def test_lint_is_clean(name: str) -> None:
    report = helm_python.lint(CHART, values(name), strict=True, namespace=NAMESPACE)
    assert [it for it in report["messages"] if it["severity"] > 1 or it["path"] != "Chart.yaml"] == []


@pytest.mark.parametrize("name", ALL)
def test_every_documented_set_of_values_renders_the_same_each_time(name: str) -> None:
    objects = rendered(values(name))
    assert objects == rendered(values(name))
    assert len(by_identity(objects)) == len(objects)


def test_each_documented_set_changes_something() -> None:
    default = rendered({})
    assert [name for name in SETS if rendered(values(name)) == default] == []


def test_its_definitions_are_those_at_the_root_and_no_copy() -> None:
    with helm_python.Chart.load(CHART) as chart:
        assert sorted(it["name"] for it in chart.crds) == sorted(
            f"crds/{path.name}" for path in (ROOT / "crds").glob("*.yaml")
        )
    assert (CHART / "crds").readlink() == Path("../../crds")


def test_a_package_carries_the_definitions_and_no_link(tmp_path: Path) -> None:
    archive = helm_python.package(CHART, destination=tmp_path)
    with tarfile.open(archive) as packed:
        files = {it.name for it in packed.getmembers() if it.isfile()}
    assert {f"lamplighter/crds/{path.name}" for path in (ROOT / "crds").glob("*.yaml")} <= files
    assert not any("Kustomization" in name or "/ci/" in name for name in files)


def test_two_releases_share_no_name() -> None:
    first, second = rendered({}, name="a", namespace="one"), rendered({}, name="b", namespace="two")
    assert by_identity(first).keys().isdisjoint(by_identity(second))


# Equal to the plain manifests.


@pytest.mark.parametrize(
    ("components", "given"),
    [
        ([], {}),
        (["manifests/several-servers"], {"replicas": 3, "database": {"existingSecret": "lamplighter-database"}}),
    ],
)
def test_the_plain_manifests_are_what_the_chart_makes(components: list[str], given: Object, tmp_path: Path) -> None:
    definitions = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")]
    charted = by_identity(definitions) | by_identity(it for it in rendered({"server": given}) if not is_hook(it))
    plain = by_identity(it for it in kustomized(tmp_path, *components) if it["kind"] != "Namespace")
    assert plain.keys() == charted.keys()
    assert [key for key in plain if plain[key] != charted[key]] == []


# Strict about its values.


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"agnet": {}}, "additional properties 'agnet' not allowed"),
        ({"tls": {"mode": "none"}}, "/tls/mode"),
        ({"tls": {"mode": "secret"}}, "/tls/existingSecret"),
        ({"tls": {"mode": "certManager"}}, "/tls/issuerRef/name"),
        ({"server": {"url": "http://plain.example.org"}}, "/server/url"),
        ({"server": {"replicas": 2}}, "value must be 'the name of a Secret with a PostgreSQL URL, because several"),
        ({"server": {"replicas": 2, "database": {"existingSecret": None}}}, "missing property 'existingSecret'"),
        ({"server": {"replicas": 2, "database": None}}, "missing property 'database'"),
        ({"server": {"replicas": 0}}, "/server/replicas': minimum"),
        ({"server": {"drainSeconds": -1}}, "/server/drainSeconds': minimum"),
        ({"server": {"topologySpreadConstraints": [{"maxSkew": 1}]}}, "/topologySpreadConstraints/0': missing prop"),
        ({"agent": {"dataPath": "var/lib"}}, "/agent/dataPath"),
        ({"agent": {"writablePaths": ["/srv/../etc"]}}, "/agent/writablePaths/0"),
        ({"agent": {"writablePaths": ["/"]}}, "/agent/writablePaths/0"),
        ({"agent": {"restorePaths": ["/"]}}, "/agent/restorePaths/0"),
        ({"agent": {"allowedHooks": ["freeze"]}}, "/agent/allowedHooks/0"),
        ({"server": {"allowedSchemes": ["http"]}}, "/server/allowedSchemes/0"),
        ({"agent": {"mountPropagation": "Bidirectional"}}, "/agent/mountPropagation"),
        ({"tenancy": {"namespaces": "team-a"}}, "/tenancy/namespaces"),
        ({"rbac": {"watchSecrets": [""]}}, "/rbac/watchSecrets/0"),
        ({"rbac": {"watchSecrets": ["*"]}}, "/rbac/watchSecrets/0"),
        ({"tenancy": {"grants": {"namespaces": {"team-a": {"pathPrefixes": ["srv"]}}}}}, "/pathPrefixes/0"),
        ({"tenancy": {"grants": {"defualt": {}}}}, "additional properties 'defualt' not allowed"),
    ],
)
def test_values_that_are_wrong_are_refused_and_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=told):
        rendered(given)


@pytest.mark.parametrize("name", ALL)
def test_what_containers_are_told_is_what_the_commands_take(name: str) -> None:
    for _, spec in pods(rendered(values(name))):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            if "command" not in container:
                command, *arguments = container["args"]
                main.commands[command].make_parser(click.Context(main)).parse_args(arguments)
                taken = {it.envvar for it in main.commands[command].params}
                given = {it["name"] for it in container.get("env", []) if it["name"].startswith("LAMPLIGHTER_")}
                assert given <= taken


# One server, or several.

POSTGRESQL = {"existingSecret": "lamplighter-database"}


def server(given: Object) -> Object:
    """What makes the servers' pods."""
    (found,) = (it for it, _ in pods(rendered({"server": given})) if it["metadata"]["name"] == "lamplighter-server")
    return found


def budget(given: Object) -> Object | None:
    """The spec of the servers' PodDisruptionBudget; None when there is none."""
    objects = by_identity(rendered({"server": given}))
    found = objects.get(("policy/v1", "PodDisruptionBudget", NAMESPACE, "lamplighter-server"))
    return found and found["spec"]


@pytest.mark.parametrize("given", [{}, {"drainSeconds": 60}, {"topologySpreadConstraints": []}])
def test_with_sqlite_there_is_one_server_on_its_volume(given: Object) -> None:
    found = server(given)
    assert (found["kind"], found["spec"]["replicas"]) == ("StatefulSet", 1)
    assert found["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    assert found == server({})


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_with_postgresql_a_new_server_is_ready_before_an_old_one_ends(replicas: int) -> None:
    found = server({"replicas": replicas, "database": POSTGRESQL})
    assert (found["kind"], found["spec"]["replicas"]) == ("Deployment", replicas)
    assert found["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    assert not any("persistentVolumeClaim" in it for it in found["spec"]["template"]["spec"]["volumes"])


@pytest.mark.parametrize("drain", [0, 30, 3600])
def test_a_server_has_the_time_to_send_its_agents_off_before_it_is_killed(drain: int) -> None:
    deployment = server({"drainSeconds": drain, "database": POSTGRESQL})["spec"]
    assert deployment["progressDeadlineSeconds"] > deployment["minReadySeconds"] == drain
    spec = deployment["template"]["spec"]
    (container,) = spec["containers"]
    assert f"--drain-seconds={drain}" in container["args"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    closing = signature(Store.close).parameters["timeout_s"].default
    assert spec["terminationGracePeriodSeconds"] > before + drain + closing


def test_servers_are_named_after_their_pods_and_reach_the_database_past_a_pooler_by_value() -> None:
    def environment(database: Object) -> Object:
        (container,) = server({"database": database})["spec"]["template"]["spec"]["containers"]
        return {it["name"]: it["valueFrom"] for it in container["env"]}

    url = {"LAMPLIGHTER_DATABASE": {"secretKeyRef": {"name": "lamplighter-database", "key": "url"}}}
    name = {"LAMPLIGHTER_REPLICA_NAME": {"fieldRef": {"fieldPath": "metadata.name"}}}
    direct = {"LAMPLIGHTER_DATABASE_DIRECT": {"secretKeyRef": {"name": "lamplighter-database", "key": "direct"}}}
    assert environment(POSTGRESQL) == url | name
    assert environment({**POSTGRESQL, "directKey": "direct"}) == url | name | direct


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"podDisruptionBudget": True}, 0),
        ({"database": POSTGRESQL}, None),
        ({"database": POSTGRESQL, "podDisruptionBudget": True}, 0),
        ({"database": POSTGRESQL, "replicas": 2}, 1),
        ({"database": POSTGRESQL, "replicas": 2, "podDisruptionBudget": True}, 1),
        ({"database": POSTGRESQL, "replicas": 5}, 1),
    ],
)
def test_of_several_servers_one_at_a_time_may_be_evicted(given: Object, wanted: int | None) -> None:
    found = budget(given)
    assert (found and found["maxUnavailable"]) == wanted
    assert found is None or found["selector"] == server(given)["spec"]["selector"]


def test_servers_are_spread_over_nodes_and_pods_of_an_earlier_rollout_do_not_count() -> None:
    def constraints(**given: Any) -> Any:
        return server({"database": POSTGRESQL, **given})["spec"]["template"]["spec"].get("topologySpreadConstraints")

    (default,) = constraints()
    assert (default["topologyKey"], default["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert default["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"
    assert default["matchLabelKeys"] == ["pod-template-hash"]
    zones = {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    own = {**zones, "labelSelector": {"matchLabels": {"a": "b"}}}
    assert constraints(topologySpreadConstraints=[zones, own]) == [{**default, **zones}, own]
    assert constraints(topologySpreadConstraints=[]) is None


def test_no_service_binds_a_client_to_one_server() -> None:
    services = [it for it in rendered(values("several-servers")) if it["kind"] == "Service"]
    assert not any("sessionAffinity" in it["spec"] for it in services)


# No more powerful than it must be.

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def against_restricted(spec: Object) -> list[str]:
    """What in a pod's spec breaks the Pod Security Standard "restricted", of what the chart can set."""
    pod = spec.get("securityContext", {})
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += [f"volume {it['name']}" for it in spec.get("volumes", []) if not VOLUMES & it.keys()]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = {**pod, **container.get("securityContext", {})}
        found += [f"hostPort {it['hostPort']}" for it in container.get("ports", []) if "hostPort" in it]
        found += ["allowPrivilegeEscalation"] if own.get("allowPrivilegeEscalation") is not False else []
        found += ["privileged"] if own.get("privileged") else []
        found += ["root"] if own.get("runAsNonRoot") is not True or own.get("runAsUser") == 0 else []
        found += ["seccomp"] if own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost") else []
        found += ["procMount"] if "procMount" in own else []
        capabilities = own.get("capabilities", {})
        found += ["capabilities"] if capabilities.get("drop") != ["ALL"] or capabilities.get("add") else []
    return found


@pytest.mark.parametrize("name", ALL)
def test_all_but_the_agent_keeps_to_pod_security_restricted(name: str) -> None:
    broken = {it["metadata"]["name"]: against_restricted(spec) for it, spec in pods(rendered(values(name)))}
    assert {key for key, found in broken.items() if found} == {"lamplighter-agent"}
    assert "root" in broken["lamplighter-agent"]


@pytest.mark.parametrize("name", ALL)
def test_no_root_file_system_can_be_written_and_no_limit_is_missing(name: str) -> None:
    for _, spec in pods(rendered(values(name))):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", ALL)
def test_the_agent_writes_to_its_own_folder_and_those_that_are_named(name: str) -> None:
    agent = named(rendered(values(name)), "DaemonSet", "lamplighter-agent")["spec"]["template"]["spec"]
    (container,) = agent["containers"]
    mounts = {it["mountPath"] for it in container["volumeMounts"] if not it.get("readOnly")}
    named_paths = {f"/host{path}" for path in values(name).get("agent", {}).get("writablePaths", [])}
    assert mounts == {"/var/lib/lamplighter", "/host/var/lib/lamplighter"} | named_paths
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["DAC_READ_SEARCH", "SYS_CHROOT"]}
    assert container["securityContext"]["privileged"] is False
    assert agent["automountServiceAccountToken"] is False


def test_an_agent_that_may_restore_can_give_files_their_owners_back_and_writes_there_alone() -> None:
    given = {"agent": {"writablePaths": ["/srv/backups", "/srv/both"], "restorePaths": ["/srv/both", "/srv/restored"]}}
    agent = named(rendered(given), "DaemonSet", "lamplighter-agent")["spec"]["template"]["spec"]
    (container,) = agent["containers"]
    mounts = [it["mountPath"] for it in container["volumeMounts"] if not it.get("readOnly")]
    assert mounts[2:] == ["/host/srv/backups", "/host/srv/both", "/host/srv/restored"]
    powers = {"DAC_READ_SEARCH", "SYS_CHROOT", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"}
    assert set(container["securityContext"]["capabilities"]["add"]) == powers
    asked = {"agent": {"restorePaths": ["/srv/restored"], "restoreDevices": True}}
    agent = named(rendered(asked), "DaemonSet", "lamplighter-agent")["spec"]["template"]["spec"]
    assert set(agent["containers"][0]["securityContext"]["capabilities"]["add"]) == powers | {"MKNOD", "SETFCAP"}


def test_jobs_run_unconfined_and_restic_speaks_as_the_node_only_by_value() -> None:
    grants = {"namespaces": {"team-a": {"pathPrefixes": ["/srv/a"], "hostIdentity": True}}}
    objects = rendered({"agent": {"allowUnconfined": True}, "tenancy": {"grants": grants}})
    agent = named(objects, "DaemonSet", "lamplighter-agent")["spec"]["template"]["spec"]
    assert "--allow-unconfined" in agent["containers"][0]["args"]
    agent = named(rendered({}), "DaemonSet", "lamplighter-agent")["spec"]["template"]["spec"]
    assert "--allow-unconfined" not in agent["containers"][0]["args"]
    config = named(objects, "ConfigMap", "lamplighter-grants")
    assert "hostIdentity: true" in config["data"]["grants.yaml"]


def test_hooks_and_kinds_of_urls_are_allowed_by_value() -> None:
    objects = rendered({"agent": {"allowedHooks": ["/usr/bin/true"]}, "server": {"allowedSchemes": ["s3", "rclone"]}})
    agent, server = (
        named(objects, "DaemonSet", "lamplighter-agent"),
        named(objects, "StatefulSet", "lamplighter-server"),
    )
    assert "--allow-hook=/usr/bin/true" in agent["spec"]["template"]["spec"]["containers"][0]["args"]
    args = server["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [it for it in args if "scheme" in it] == ["--allow-scheme=s3", "--allow-scheme=rclone"]


@pytest.mark.parametrize("name", ALL)
def test_agents_have_no_right_and_no_rule_has_a_wildcard(name: str) -> None:
    objects = rendered(values(name))
    subjects = [subject["name"] for it in objects for subject in it.get("subjects", [])]
    rules = [rule for it in objects for rule in it.get("rules", [])]
    assert set(subjects) == {"lamplighter-server", "lamplighter-controller"}
    assert not any("*" in value for rule in rules for value in rule.values())


def secret_rights(objects: list[Object]) -> set[Any]:
    """Where Secrets can be read, and by which names: namespace ("" for all), and names or None for all."""
    return {
        (it["metadata"].get("namespace", ""), *rule.get("resourceNames", [None]))
        for it in objects
        for rule in it.get("rules", [])
        if "secrets" in rule["resources"]
    }


def test_with_namespaces_named_secrets_are_read_there_alone() -> None:
    own = (NAMESPACE, "lamplighter-keys")
    assert secret_rights(rendered({})) == {own, ("", None)}
    assert secret_rights(rendered(values("tenancy"))) == {own, ("team-a", None), ("team-b", None)}


@pytest.mark.parametrize("set_of_values", ["", "tenancy"])
def test_secrets_are_watched_by_name_alone_where_they_are_read(set_of_values: str) -> None:
    given = values(set_of_values) if set_of_values else {}
    watched = [
        (it["metadata"].get("namespace", ""), rule["resourceNames"], rule["verbs"])
        for it in rendered({**given, "rbac": {"watchSecrets": ["restic", "on-call"]}})
        for rule in it.get("rules", [])
        if "secrets" in rule["resources"] and "watch" in rule["verbs"]
    ]
    where = ["team-a", "team-b"] if set_of_values else [""]
    assert watched == [(it, ["restic", "on-call"], ["watch"]) for it in where]


def test_with_all_secrets_given_the_server_reads_none_through_the_api() -> None:
    objects = rendered(values("given-secrets"))
    assert [it for it in objects if it["kind"] == "Secret"] == []
    assert secret_rights(objects) == {("", None)}


# What is told.


@pytest.mark.anyio
async def test_alerts_speak_of_metrics_that_there_are(tmp_path: Path) -> None:
    rules = named(rendered(values("monitoring")), "PrometheusRule", "lamplighter")["spec"]["groups"][0]["rules"]
    spoken_of = {name for rule in rules for name in re.findall(r"lamplighter_\w+", rule["expr"])}
    assert len(rules) >= 6
    assert spoken_of <= await metric_names(tmp_path)


OF_EACH_SERVER = {"lamplighter_store_failing", "lamplighter_store_commit_running_seconds", "lamplighter_build_info"}
ABOUT_THE_FLEET = r"max without \(instance, pod\) \(lamplighter_\w+\{|sum\(|absent\("


def test_an_alert_on_the_fleet_does_not_change_with_the_server_that_tells_about_it() -> None:
    given = {**values("monitoring"), "server": {"replicas": 3, "database": POSTGRESQL}}
    rules = named(rendered(given), "PrometheusRule", "lamplighter")["spec"]["groups"][0]["rules"]
    for rule in rules:
        others = set(re.findall(r"lamplighter_\w+", rule["expr"])) - OF_EACH_SERVER
        assert len(re.findall(ABOUT_THE_FLEET, rule["expr"])) >= len(others), rule
    assert [it["expr"] for it in rules if it["alert"] == "LamplighterServersMissing"] == [
        'count(lamplighter_build_info{job="lamplighter-metrics"}) < 3'
    ]


@pytest.mark.anyio
async def test_the_dashboard_speaks_of_metrics_that_there_are_and_fits_its_screen(tmp_path: Path) -> None:
    config = named(rendered(values("monitoring")), "ConfigMap", "lamplighter-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    board = json.loads(config["data"]["lamplighter.json"])
    assert set(re.findall(r"lamplighter_\w+", json.dumps(board))) <= await metric_names(tmp_path)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in board["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))
    assert [panel["title"] for panel in board["panels"] if panel["type"] != "row" and not panel["targets"]] == []


# What upgrades rely on.


def test_what_cannot_be_changed_later_carries_no_version() -> None:
    objects = rendered({})
    for it in objects:
        if it["kind"] in ("StatefulSet", "Deployment", "DaemonSet"):
            fixed = {"selector": it["spec"]["selector"], "claims": it["spec"].get("volumeClaimTemplates")}
            assert __version__ not in yaml.safe_dump(fixed)


def test_a_changed_grant_starts_the_server_anew() -> None:
    def pod(prefix: str) -> Any:
        given = {"tenancy": {"grants": {"default": {"pathPrefixes": [prefix]}}}}
        return named(rendered(given), "StatefulSet", "lamplighter-server")["spec"]["template"]

    assert pod("/srv/a") != pod("/srv/b")


def test_the_keys_outlive_the_release() -> None:
    keys = named(rendered({}), "Secret", "lamplighter-keys")
    assert keys["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "data" not in keys


def test_the_certificate_carries_every_name_by_which_the_server_is_reached() -> None:
    (keys,) = named(rendered(values("outside")), "StatefulSet", "lamplighter-server")["spec"]["template"]["spec"][
        "initContainers"
    ]
    names = {it.removeprefix("--tls-name=") for it in keys["args"] if it.startswith("--tls-name=")}
    assert {f"lamplighter.{NAMESPACE}.svc", "backup.example.org", "192.0.2.7"} <= names

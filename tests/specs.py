"""Good and bad specs of what is declared: the server itself and the API server must agree on them."""

from typing import Any, NamedTuple

Spec = dict[str, Any]

BACKUP: Spec = {
    "kind": "backup",
    "cron": "0 2 * * *",
    "repositoryRef": {"name": "main"},
    "backup": {"paths": ["/etc"]},
}
FORGET: Spec = {"kind": "forget", "cron": "@daily", "repositoryRef": {"name": "main"}, "retention": {"keepDaily": 7}}
REPOSITORY: Spec = {"url": "/backup/{host}"}
COPY: Spec = {
    "kind": "copy",
    "cron": "@daily",
    "repositoryRef": {"name": "main"},
    "copy": {"fromRepositoryRef": {"name": "far"}},
}
RESTORE: Spec = {"repositoryRef": {"name": "main"}, "sourceHost": "web-1", "target": "/restored"}


class Bad(NamedTuple):
    """A spec that is wrong in one field. `detail`: of what the server says of it.

    `by`: who tells beside the server: the API server by a "rule" of ours, in the same words; by the "schema", in words
    of its own; or none but the "server", which is then told by a condition.
    """

    spec: Spec
    field: str
    detail: str
    by: str

    def __str__(self) -> str:
        return f"{self.field} {self.detail}"[:60]


def changed(spec: Spec, **changes: Any) -> Spec:
    """A spec with other fields; without those that become an ellipsis."""
    return {key: value for key, value in {**spec, **changes}.items() if value is not ...}


def _backup(field: str, detail: str, by: str, **changes: Any) -> Bad:
    return Bad(changed(BACKUP, **changes), field, detail, by)


def _requirement(field: str, detail: str, by: str, **requirement: Any) -> Bad:
    where = "spec.hostSelector.matchExpressions[0]"
    return _backup(f"{where}.{field}", detail, by, hostSelector={"matchExpressions": [requirement]})


def _retention(field: str, detail: str, by: str, **retention: Any) -> Bad:
    return Bad(changed(FORGET, retention=retention), f"spec.retention{field}", detail, by)


def _more(field: str, detail: str, by: str, **more: Any) -> Bad:
    return _backup(f"spec.backup{field}", detail, by, backup=changed({"paths": ["/etc"]}, **more))


def _verify(field: str, detail: str, by: str, **verify: Any) -> Bad:
    return Bad(changed(BACKUP, kind="verify", backup=..., verify=verify), f"spec.verify{field}", detail, by)


def _prune(field: str, detail: str, by: str, **options: Any) -> Bad:
    spec = changed(BACKUP, kind="prune", backup=..., pruneOptions=options)
    return Bad(spec, f"spec.pruneOptions.{field}", detail, by)


def _url(detail: str, by: str, url: str) -> Bad:
    return Bad({"url": url}, "spec.url", detail, by)


def _restore(field: str, detail: str, by: str, **changes: Any) -> Bad:
    return Bad(changed(RESTORE, **changes), f"spec.{field}", detail, by)


BAD_SCHEDULES = [
    _backup("spec.kind", "'bakcup' is not known: did you mean backup?", "schema", kind="bakcup"),
    _backup("spec.cron", "missing. Give it: when it is due: five fields", "rule", cron=...),
    _backup("spec.crons", "cron is given, too: move its expression into crons", "rule", crons=["@daily"]),
    _backup("spec.crons", "must not be empty", "schema", cron=..., crons=[]),
    _backup("spec.crons", "must hold at most 8, not 9", "schema", cron=..., crons=["@daily"] * 9),
    _backup("spec.crons[1]", "give 0 to 23, *, a range such as 1-5", "rule", cron=..., crons=["@daily", "0 24 * * *"]),
    _backup("spec.crons[0]", "use one of @hourly, @daily", "rule", cron=..., crons=["@every 15m"]),
    _backup("spec.crons[0]", "replace tabs, line breaks and the like", "rule", cron=..., crons=["0\t2 * * *"]),
    _backup("spec.crons[1]", "ends before it begins", "server", cron=..., crons=["@daily", "0 22-2 * * *"]),
    _backup("spec.cron", "must be a string, not a number (5): put it in quotes", "schema", cron=5),
    _backup("spec.cron", "must not be empty", "schema", cron=""),
    _backup("spec.cron", "must be at most 256 characters long, not 400", "schema", cron="* " * 200),
    *(
        _backup("spec.cron", f"give {wanted}, *, a range such as 1-5", "rule", cron=cron)
        for wanted, crons in (
            (
                "0 to 59",
                ["61 * * * *", "H * * * *", "5- * * * *", "*-5 * * * *", "-1 * * * *"],
            ),
            ("0 to 23", ["0 24 * * *", "0 2h * * *", "0 1-25 * * *", "0 */5/5 * * *"]),
            ("1 to 31", ["0 0 0 * *", "0 0 32 * *", "0 0 L * *", "0 0 15W * *", "0 0 ? * *", "0 0 1,x * *"]),
            ("1 to 12 (or jan to dec)", ["0 0 * 13 *", "0 0 * mon *", "0 0 * march *", "0 0 * 1,, *"]),
            ("0 to 7 (or sun to sat)", ["0 0 * * 8", "0 0 * * jan", "0 0 * * 5#2", "0 0 * * 5L"]),
        )
        for cron in crons
    ),
    *(
        _backup("spec.cron", "is not understood", "rule", cron=it)
        for it in ("1, * * * *", "0 0 1, * *", "0 0 * * mon,")
    ),
    *(
        _backup("spec.cron", "month and day of week, for example 0 2 * * *", "rule", cron=cron)
        for cron in ("* * * *", "0 0 * * * *", "hourly", " ")
    ),
    *(
        _backup("spec.cron", "use one of @hourly, @daily, @weekly, @monthly, @yearly, or five", "rule", cron=cron)
        for cron in ("@every 15m", "@reboot", "@Daily", "@midnight 5")
    ),
    *(
        _backup("spec.cron", "leave TZ= and CRON_TZ= out, and set timeZone", "rule", cron=cron)
        for cron in ("TZ=UTC 0 2 * * *", "CRON_TZ=UTC 0 2 * * *", "TZ=UTC @daily")
    ),
    *(
        _backup("spec.cron", "replace tabs, line breaks and the like", "rule", cron=cron)
        for cron in ("0\t2 * * *", "0 2 * * *\t")
    ),
    *(
        _backup("spec.cron", "ends before it begins", "server", cron=cron)
        for cron in ("0 22-2 * * *", "0 0 * * fri-mon")
    ),
    *(_backup("spec.cron", "never comes", "server", cron=cron) for cron in ("0 0 30 2 *", "0 0 31 4,6 */2")),
    *(
        _backup("spec.timeZone", "is not a time zone but an offset", "rule", timeZone=zone)
        for zone in ("+02:00", "UTC+2", "GMT-3", "-5", "Z0")
    ),
    *(
        _backup("spec.timeZone", "give an IANA name, for example Europe/Berlin", "rule", timeZone=zone)
        for zone in ("Local", "localtime", "europe/berlin", "posix/Europe/Berlin", "right/UTC", "posixrules", "Factory")
    ),
    *(
        _backup("spec.timeZone", "give an IANA name, for example Europe/Berlin", "server", timeZone=zone)
        for zone in ("Mars/Olympus", "Europe", "PST", "America/San_Francisco")
    ),
    _backup("spec.suspend", "must be true or false, not a string", "schema", suspend="yes"),
    _backup("spec.stopAtEnd", "needs windows, at whose end a run stops", "rule", stopAtEnd=True),
    _backup("spec.runOnJoin", "must be true or false, not a string", "schema", runOnJoin="yes"),
    _backup("spec.windows", "must not be empty", "schema", windows=[]),
    *(
        _backup(f"spec.windows[0].{field}", says, by, windows=[{"from": "22:00", "to": "06:00", **window}])
        for field, says, by, window in (
            ("from", "must be a time of day from 00:00 to 23:59", "rule", {"from": "24:00"}),
            ("from", "must be a time of day from 00:00 to 23:59", "rule", {"from": "9:00"}),
            ("to", "must be a time of day from 00:00 to 24:00", "rule", {"to": "24:01"}),
            ("to", "for a whole day, give from 00:00 to 24:00", "rule", {"to": "22:00"}),
            ("days[0]", "'Monday' is not known", "schema", {"days": ["Monday"]}),
            ("days", "must not be empty", "schema", {"days": []}),
        )
    ),
    _backup("spec.windows[0].to", "missing. Give it: when it closes", "schema", windows=[{"from": "22:00"}]),
    _backup("spec.enabled", "must be true or false, not a string", "schema", enabled="yes"),
    _backup("spec.paths", "unknown field", "schema", paths=["/etc"]),
    _backup("spec.hostSlector", "unknown field: did you mean hostSelector?", "schema", hostSlector={}),
    _backup("spec.backup", "add backup.paths", "rule", backup=...),
    _backup("spec.backup.paths", "missing. Give it: files and folders to back up", "rule", backup={}),
    _backup("spec.backup.command", "without paths", "rule", backup={"paths": ["/a"], "command": ["/bin/dump"]}),
    _backup("spec.backup.command", "begin with the program's absolute path", "rule", backup={"command": ["dump"]}),
    _backup("spec.backup.command", "must not be empty: give at least one", "schema", backup={"command": []}),
    _backup("spec.backup.stdinFilename", "give command", "rule", backup={"paths": ["/a"], "stdinFilename": "a"}),
    *(
        _backup("spec.backup.stdinFilename", "without folders", "rule", backup={"command": ["/d"], "stdinFilename": it})
        for it in ("a/b", "/a", "..")
    ),
    _backup("spec.backup.excludes", "is about paths", "rule", backup={"command": ["/d"], "excludes": ["*.tmp"]}),
    _backup("spec.backup.paths", "must not be empty: give at least one", "schema", backup={"paths": []}),
    _backup("spec.backup.paths[0]", "must be absolute: begin it with /", "rule", backup={"paths": ["etc"]}),
    _backup("spec.backup.paths[1]", "must not hold '..'", "rule", backup={"paths": ["/a", "/a/../b"]}),
    _backup("spec.backup.paths[0]", "contains a NUL", "server", backup={"paths": ["/a\0b"]}),
    _backup("spec.backup.paths", "must hold at most 256, not 257", "schema", backup={"paths": ["/a"] * 257}),
    _backup("spec.backup.tags[0]", "must not hold a comma", "rule", backup={"paths": ["/a"], "tags": ["a,b"]}),
    _more(".iexcludes", "must hold at most 256", "schema", iexcludes=["a"] * 257),
    _more(".iexcludes[0]", "is not a valid pattern", "server", iexcludes=["[a"]),
    *(
        _more(".excludeLargerThan", "for example 500Mi", "rule", excludeLargerThan=size)
        for size in ("0", "5MB", "1.5Gi", "1234567Ti", "-1")
    ),
    *(
        _more(".excludeIfPresent[0]", "must be the name of a file, without a folder", "rule", excludeIfPresent=[name])
        for name in ("../../etc/shadow:root", "a/b", "/etc/shadow", ".", "..:x", ":x")
    ),
    _more(".readConcurrency", "must be at most 64", "schema", readConcurrency=65),
    _more(".readConcurrency", "must be at least 1", "schema", readConcurrency=0),
    _more(".compression", "'best' is not known", "schema", compression="best"),
    *(
        _more(".packSize", "must be from 4Mi to 128Mi", "rule", packSize=size)
        for size in ("3Mi", "129Mi", "16", "1Gi", "016Mi")
    ),
    *(
        _more(".command", "which are about paths: remove them", "rule", **{"paths": ..., "command": ["/bin/dump"]} | it)
        for it in ({"iexcludes": ["a"]}, {"noScan": True}, {"readConcurrency": 2}, {"skipIfUnchanged": True})
    ),
    _more(".noScan", "must be true or false", "schema", noScan="yes"),
    _more(".tags[0]", "a tag that every snapshot gets", "rule", tags=["lamplighter=ns/other"]),
    _backup("spec.nice", "must be at least 0, not -1", "schema", nice=-1),
    _backup("spec.nice", "must be at most 19", "schema", nice=20),
    _backup("spec.ioClass", "'RealTime' is not known", "schema", ioClass="RealTime"),
    _backup("spec.retention", "only kind forget takes it", "rule", retention={"keepLast": 1}),
    _backup("spec.check", "only kind check takes it", "rule", check={}),
    _backup("spec.retention", "say what to keep", "rule", kind="forget", backup=...),
    _backup("spec.verify", "only kind verify takes it", "rule", verify={}),
    _backup("spec.copy", "only kind copy takes it", "rule", copy={"fromRepositoryRef": {"name": "far"}}),
    _backup("spec.copy", "add copy.fromRepositoryRef.name", "rule", kind="copy", backup=...),
    Bad(changed(COPY, repositoryRef={"name": "far"}), "spec.copy", "copies a Repository into itself", "rule"),
    Bad(changed(COPY, copy={}), "spec.copy.fromRepositoryRef", "missing", "schema"),
    _verify(".files", "must be at most 500", "schema", files=501),
    _verify(".maxBytes", "for example 100Mi", "rule", maxBytes="0"),
    _verify(".maxBytes", "for example 100Mi", "rule", maxBytes="5MB"),
    _backup("spec.hooks.before", "begin with the program's absolute path", "rule", hooks={"before": ["freeze"]}),
    _backup("spec.hooks.after", "begin with the program's absolute path", "rule", hooks={"after": ["./thaw"]}),
    _backup(
        "spec.rollout.maxFailures",
        "must be at least 0",
        "schema",
        rollout={"maxFailures": -1, "failurePolicy": "Pause"},
    ),
    _backup("spec.rollout.failurePolicy", "use Continue, Pause", "schema", rollout={"failurePolicy": "Stop"}),
    _backup("spec.rollout.maxFailures", "say which policy it is", "rule", rollout={"maxFailures": 1}),
    _backup("spec.rollout.maxConcurrentHosts", "must be at least 1", "schema", rollout={"maxConcurrentHosts": 0}),
    _backup("spec.spreadSeconds", "must be at least 0, not -1", "schema", spreadSeconds=-1),
    _backup("spec.spreadSeconds", "must be at most 86400", "schema", spreadSeconds=2**40),
    *(
        _backup("spec.successWithin", "must be a duration", "rule", successWithin=it)
        for it in ("36", "1h1d", "-1h", "1.5h", "PT1H", "2 d", "1H", "5h\n")
    ),
    _backup("spec.successWithin", "must be longer than nothing", "rule", successWithin="0h"),
    _backup("spec.successWithin", "must be a string, not a number (36): put it in quotes", "schema", successWithin=36),
    _backup("spec.retry.limit", "must be a whole number, not a boolean (True)", "schema", retry={"limit": True}),
    *(
        _backup(
            f"spec.hostSelector.matchLabels[{key}]",
            "a label's key is",
            "rule",
            hostSelector={"matchLabels": {key: "c"}},
        )
        for key in ("a b", "-a", "a/b/c", "/a", "Example.org/a", "a." * 127 + "a/b")
    ),
    *(
        _backup(
            "spec.hostSelector.matchLabels.a", "a label's value is", "rule", hostSelector={"matchLabels": {"a": value}}
        )
        for value in ("-", "b c", "b/c", "ü")
    ),
    _backup("spec.hostSelector.matchLabels.a", "must be a string", "schema", hostSelector={"matchLabels": {"a": True}}),
    _requirement("values", "In and NotIn need at least one value", "rule", key="a", operator="In"),
    _requirement("values", "In and NotIn need at least one value", "rule", key="a", operator="NotIn", values=[]),
    _requirement("values", "take no values", "rule", key="a", operator="Exists", values=["b"]),
    _requirement("values", "take no values", "rule", key="a", operator="DoesNotExist", values=["b"]),
    _requirement("operator", "'Like' is not known", "schema", key="a", operator="Like"),
    _requirement("key", "a label's key is", "rule", key="a/b/c", operator="Exists"),
    _requirement("key", "a label's key is", "rule", key="a" * 64, operator="Exists"),
    _requirement("values[1]", "a label's value is", "rule", key="a", operator="In", values=["ok", "b c"]),
    _requirement("key", "missing", "schema", operator="Exists"),
    _retention("", "would keep nothing", "rule"),
    _retention(".keepLast", "must be at least 1", "schema", keepLast=0),
    _retention(".keepWithin", "must be a duration", "rule", keepWithin="7 days"),
    _retention(".groupBy[1]", "'path' is not known", "schema", keepLast=1, groupBy=["host", "path"]),
    _retention(".tags", "must not be empty", "schema", keepLast=1, tags=[]),
    _retention(".tags[0]", "must not hold a comma", "rule", keepLast=1, tags=["a,b"]),
    _retention(".allTags", "remove it, or tags", "rule", keepLast=1, tags=["a"], allTags=True),
    *(
        Bad(changed(FORGET, pruneOptions={}, **more), "spec.pruneOptions", "only kind prune takes it", "rule")
        for more in ({}, {"kind": "check", "retention": ...})
    ),
    *(
        _prune("maxUnused", "must be a share below 100%", "rule", maxUnused=it)
        for it in ("100%", "-1", "5GB", "all", "1.2345%", "%")
    ),
    *(_prune("maxRepackSize", "for example 500Mi", "rule", maxRepackSize=it) for it in ("0", "5%", "1G")),
    _retention(".keepTags", "must not be empty", "schema", keepLast=1, keepTags=[]),
    _retention(".keepTags", "the last one too: add keepLast: 1", "rule", keepTags=["a"]),
    Bad(
        changed(BACKUP, kind="check", backup=..., check={"readDataSubset": "half"}),
        "spec.check.readDataSubset",
        "must be a part (1/7)",
        "rule",
    ),
]

GOOD_SCHEDULES = [
    BACKUP,
    FORGET,
    *(
        changed(BACKUP, cron=cron)
        for cron in (
            "@midnight",
            "@annually",
            " 0  2 * * * ",
            "5-5,7/9,*/90 0-23/2,007 31,*/2 JAN,mar-3/9,nov-12 mon-FRI,7,0/2",
        )
    ),
    changed(BACKUP, cron=..., crons=["0 2 * * 1-5", "30 4 * * 0,6", "@monthly"]),
    *(changed(BACKUP, timeZone=zone) for zone in ("Etc/GMT+5", "GMT-0", "America/Argentina/Buenos_Aires", "EST5EDT")),
    changed(BACKUP, hostSelector={"matchLabels": {"a." * 126 + "a/" + "b" * 63: "c" * 63}}),
    *(changed(BACKUP, kind=kind, backup=...) for kind in ("prune", "unlock", "check", "verify")),
    changed(BACKUP, backup={"command": ["/bin/dump", "--all", ""], "stdinFilename": "all.sql", "tags": ["x"]}),
    changed(BACKUP, backup={"command": ["/bin/dump"]}),
    COPY,
    *(changed(FORGET, retention=it) for it in ({"keepLast": 1}, {"keepWithin": "1y6m14d12h"})),
    changed(FORGET, retention={"keepLast": 1, "keepTags": ["a"], "prune": True, "allHosts": True}),
    changed(BACKUP, kind="verify", backup=..., verify={"files": 5, "maxBytes": "2Gi"}),
    changed(BACKUP, nice=19, ioClass="Idle"),
    changed(FORGET, retention={"keepLast": 1, "tags": ["lamplighter=ns/old", "x"], "groupBy": ["host", "tags"]}),
    changed(FORGET, retention={"keepLast": 1, "allTags": True, "groupBy": [], "prune": True}, pruneOptions={}),
    *(
        changed(BACKUP, kind="prune", backup=..., pruneOptions=it)
        for it in ({"maxUnused": "0"}, {"maxUnused": "99.9%", "maxRepackSize": "999999Ti"}, {"maxUnused": "10Gi"})
    ),
    changed(
        BACKUP,
        backup={
            "paths": ["/etc"],
            "iexcludes": ["*.TMP", "x y"],
            "excludeLargerThan": "999999Ti",
            "excludeIfPresent": [".nobackup", "CACHEDIR.TAG:Signature: 8a/4"],
            "readConcurrency": 64,
            "withAtime": True,
            "noScan": True,
            "skipIfUnchanged": True,
            "compression": "max",
            "packSize": "64Mi",
        },
    ),
    *(
        changed(BACKUP, kind="check", backup=..., check={"readDataSubset": subset})
        for subset in ("1/7", "2.5%", "500M", "100")
    ),
    changed(
        BACKUP,
        cron="@hourly",
        timeZone="Europe/Berlin",
        enabled=False,
        suspend=True,
        hostSelector={
            "matchLabels": {"example.org/pool": "", "a": "b"},
            "matchExpressions": [
                {"key": "a", "operator": "In", "values": ["b", "c"]},
                {"key": "c", "operator": "DoesNotExist"},
            ],
        },
        backup={"paths": ["/", "/srv/a..b"], "excludes": ["*.tmp"], "tags": ["x"], "oneFileSystem": True},
        concurrencyPolicy="Replace",
        windows=[{"from": "22:00", "to": "06:00"}, {"from": "00:00", "to": "24:00", "days": ["Sat", "Sun"]}],
        stopAtEnd=True,
        runOnJoin=True,
        startingDeadlineSeconds=60,
        missedRunPolicy="Skip",
        spreadSeconds=600,
        rollout={"maxConcurrentHosts": 2, "maxFailures": 0, "failurePolicy": "Pause"},
        timeoutSeconds=3600,
        successWithin="1w2d12h30m5s",
        retry={"limit": 3},
        hooks={"before": ["/bin/true"], "after": ["/bin/echo", "done"]},
    ),
]

BAD_REPOSITORIES = [
    _url("must not be empty", "schema", ""),
    _url("only {host} and {namespace} are filled in", "rule", "/b/{hots}"),
    _url("at most 8 of them", "rule", "/b" + "/{host}" * 9),
    _url("only {host} and {namespace} are filled in", "rule", "/b/{host"),
    _url("must not hold a password", "rule", "rest:https://me:hush@example.org/"),
    _url("must not hold a password", "rule", "rest:https://me:hu/sh@example.org/"),
    *(
        _url("must not begin with '-', nor hold line breaks", "rule", it)
        for it in ("-o", "/b\n", "/b\x1b[2J", "/b\u2028")
    ),
    *(
        _url("must name a host that does not begin with '-'", "rule", url)
        for url in ("sftp:-oProxyCommand=id:/b", "sftp://-oProxyCommand=id/b", "sftp:a/b@-oProxyCommand=id:/b")
    ),
    _url("must not be a socket of the host", "rule", "rest:http+unix:///var/run/docker.sock:/"),
    Bad({}, "spec.url", "missing", "schema"),
    Bad({**REPOSITORY, "init": "yes"}, "spec.init", "must be true or false", "schema"),
    Bad({**REPOSITORY, "maxConcurrentJobs": 0}, "spec.maxConcurrentJobs", "must be at least 1", "schema"),
    Bad({**REPOSITORY, "compression": "best"}, "spec.compression", "is not known", "schema"),
    Bad({**REPOSITORY, "packSize": "256Mi"}, "spec.packSize", "must be from 4Mi to 128Mi", "rule"),
    Bad({**REPOSITORY, "limitUploadKiB": 0}, "spec.limitUploadKiB", "must be at least 1", "schema"),
    Bad({**REPOSITORY, "limitDownloadKiB": 10**10}, "spec.limitDownloadKiB", "must be at most", "schema"),
    Bad({**REPOSITORY, "limitUploadKib": 1}, "spec.limitUploadKib", "did you mean limitUploadKiB?", "schema"),
    Bad({**REPOSITORY, "cleanupCache": 1}, "spec.cleanupCache", "must be true or false", "schema"),
    Bad({**REPOSITORY, "passwordSecretRef": {}}, "spec.passwordSecretRef.name", "missing", "schema"),
]

GOOD_REPOSITORIES = [
    REPOSITORY,
    {**REPOSITORY, "compression": "off", "packSize": "128Mi", "limitUploadKiB": 1, "limitDownloadKiB": 10**9},
    {**REPOSITORY, "compression": "better", "packSize": "4Mi", "cleanupCache": True},
    *({"url": url} for url in ("s3:https://h:9000/b@c/{namespace}/{host}", "rest:https://me@h/", "sftp:u@h:/b")),
    {**REPOSITORY, "passwordSecretRef": {"name": "s"}, "envSecretRef": {"name": "s"}, "init": True},
]

ALERT = {"secretRef": {"name": "on-call"}}
BAD_ALERTS = [
    Bad({}, "spec.secretRef", "missing", "schema"),
    Bad({"secretRef": {}}, "spec.secretRef.name", "missing", "schema"),
    Bad({**ALERT, "scope": "Cluster"}, "spec.scope", "is not known", "schema"),
    Bad({**ALERT, "severity": "urgent"}, "spec.severity", "is not known", "schema"),
    Bad({**ALERT, "events": []}, "spec.events", "must not be empty", "schema"),
    Bad({**ALERT, "events": ["Fire"]}, "spec.events[0]", "is not known", "schema"),
    Bad({**ALERT, "repeatInterval": "soon1"}, "spec.repeatInterval", "must be a duration", "rule"),
    Bad({**ALERT, "after": "0m"}, "spec.after", "must be longer than nothing", "rule"),
    Bad({**ALERT, "url": "https://example.org"}, "spec.url", "unknown field", "schema"),
]

GOOD_ALERTS = [
    ALERT,
    {**ALERT, "scope": "Fleet", "events": ["Failure", "Overdue"], "severity": "critical", "sendResolved": False},
    {**ALERT, "selector": {"matchLabels": {"tier": "db"}}, "hostSelector": {}, "repeatInterval": "1d12h"},
]

BAD_RESTORES = [
    _restore("repositoryRef", "missing. Give it: the Repository that holds the snapshot", "schema", repositoryRef=...),
    _restore("sourceHost", "missing. Give it: the host that was backed up", "schema", sourceHost=...),
    _restore("sourceHost", "must be the name of a host", "rule", sourceHost="../web-1"),
    _restore("host", "must be the name of a host", "rule", host="Web"),
    _restore("target", "missing. Give it: the folder on the host", "schema", target=...),
    _restore("target", "must be absolute", "rule", target="restored"),
    _restore("target", "must not hold '..'", "rule", target="/srv/../etc"),
    _restore("target", "/ is never empty", "rule", target="/"),
    _restore("target", "/ is never empty", "rule", target="/./"),
    _restore("snapshot", "must be latest, or 4 to 64 of the digits", "rule", snapshot="--help"),
    _restore("before", "only snapshot latest takes it", "rule", snapshot="abcd", before="2026-03-29T02:00:00Z"),
    _restore("before", "must be a time with its zone", "rule", before="2026-03-29"),
    _restore("before", "is not a time that exists", "server", before="2026-02-30T02:00:00Z"),
    _restore("paths[0]", "must be absolute", "rule", paths=["etc"]),
    _restore("paths[1]", "must not hold '..'", "rule", paths=["/a", "/a/.."]),
    _restore("overwrite", "must be true or false", "schema", overwrite="yes"),
    _restore("path", "unknown field: did you mean paths?", "schema", path="/etc"),
]

GOOD_RESTORES = [
    RESTORE,
    changed(RESTORE, target="/", overwrite=True),
    changed(
        RESTORE, target="/..data/.x", host="web-2.example.org", snapshot="latest", before="2026-03-29T02:00:00+02:00"
    ),
    changed(RESTORE, snapshot="5eed5eed", paths=["/etc/hosts", "/srv/a..b"]),
]

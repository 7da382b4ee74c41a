"""A folder's files become resources; a wrong file says where it is wrong, and what it declared before stays."""

import base64
from pathlib import Path

import pytest

from controller.folder.declarations import Reading, read
from controller.folder.documents import MAX_DEPTH, Mistake, field_line
from controller.folder.files import FolderError, Unreadable, read_texts
from controller.resources import Key

HEAD = "apiVersion: lamplighter.dev/v1alpha1\n"
ETC = Key("Schedule", "default", "etc")
MAIN = Key("Repository", "default", "main")


def schedule(name: str = "etc", cron: str = "0 2 * * *") -> str:
    return f'{HEAD}kind: Schedule\nmetadata: {{name: {name}}}\nspec: {{cron: "{cron}"}}\n'


def repository(spec: str = "{url: /b}") -> str:
    return f"{HEAD}kind: Repository\nmetadata: {{name: main}}\nspec: {spec}\n"


def secret(values: str = "stringData: {password: hush}", name: str = "main") -> str:
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\n{values}\n"


def reading(last: Reading | None = None, /, **texts: str) -> Reading:
    files = {Path(f"{name}.yaml"): text for name, text in texts.items()}
    return read(files, last.files if last else {})


def only_error(**texts: str) -> Mistake:
    (error,) = reading(**texts).errors
    return error


def test_resources_are_read_from_any_file_and_document() -> None:
    found = reading(a=f"---\n{schedule()}---\n---\n{repository()}---\n", b=schedule("other"))
    assert found.declared.resources.keys() == {ETC, MAIN, Key("Schedule", "default", "other")}
    assert found.declared.resources[ETC].spec == {"cron": "0 2 * * *"}
    assert found.declared.complete
    assert (found.errors, found.warnings) == ([], [])


def test_namespaces_keep_names_apart() -> None:
    other = schedule().replace("{name: etc}", "{name: etc, namespace: other}")
    assert reading(a=schedule(), b=other).declared.resources.keys() == {ETC, Key("Schedule", "other", "etc")}


def test_an_empty_folder_and_empty_files_declare_nothing() -> None:
    for texts in ({}, {"a": ""}, {"a": "# nothing\n---\n"}):
        declared = reading(**texts).declared
        assert (declared.resources, declared.complete) == ({}, True)


def test_other_kinds_are_left_unread_with_a_warning() -> None:
    found = reading(a="apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n" + schedule())
    assert found.declared.resources.keys() == {ETC}
    (warning,) = found.warnings
    assert (warning.place, warning.detail) == (
        "a.yaml:1",
        "Deployment is not read: Schedule, Repository, Alert, Host and Secret are",
    )


def test_a_run_in_a_folder_is_left_unread_and_the_command_is_named() -> None:
    (warning,) = reading(a="kind: Run\nmetadata: {name: x}").warnings
    assert warning.detail.endswith("Host and Secret are; use `lamplighter run` instead")


def test_what_looks_like_a_date_stays_text_as_it_does_for_kubectl() -> None:
    found = reading(a=repository("{url: /b, since: 2026-01-01}"))
    assert found.declared.resources[MAIN].spec["since"] == "2026-01-01"


# Secrets.


def alert(name: str = "main") -> str:
    return f"{HEAD}kind: Alert\nmetadata: {{name: on-call}}\nspec: {{secretRef: {{name: {name}}}}}\n"


PINGED = f"{HEAD}kind: Schedule\nmetadata: {{name: etc}}\nspec: {{ping: {{urlSecretRef: {{name: main}}}}}}\n"


def test_a_schedule_pings_the_url_of_its_secret() -> None:
    found = reading(a=PINGED, b=secret('stringData: {url: "https://hc/1\\n"}'))
    assert found.errors == []
    assert found.declared.resources[ETC].credentials == {"pingUrl": "https://hc/1"}
    missing = reading(a=PINGED, b=secret("stringData: {ping: hush}"))
    assert [(it.field, it.detail) for it in missing.errors] == [
        ("spec.ping.urlSecretRef.key", "Secret default/main has no key url: it has ping")
    ]


def test_an_alert_notifies_the_urls_of_its_secret() -> None:
    urls = 'stringData: {urls: "https://a/1\\n\\n# was https://b\\n mailto://c \\n", signing-key: " whsec_x\\n"}'
    found = reading(a=alert(), b=secret(urls))
    assert found.errors == []
    credentials = found.declared.resources[Key("Alert", "default", "on-call")].credentials
    assert credentials == {"urls": ["https://a/1", "mailto://c"], "signingKey": "whsec_x"}


@pytest.mark.parametrize(
    ("secrets", "detail"),
    [
        ({}, "there is no Secret default/main in the folder: declare it"),
        ({"b": secret("stringData: {url: hush}")}, "Secret default/main has no key urls, which holds URLs: it has url"),
    ],
)
def test_an_alert_without_urls_is_held_and_the_secret_is_not_repeated(secrets: dict[str, str], detail: str) -> None:
    found = reading(a=alert(), **secrets)
    assert [(it.field, it.detail) for it in found.errors] == [("spec.secretRef.name", detail)]
    assert found.declared.held == {Key("Alert", "default", "on-call")}


@pytest.mark.parametrize(
    "values",
    [
        "stringData: {password: hush}",
        f"data: {{password: {base64.b64encode(b'hush').decode()}}}",
        "data: {password: aHVz\n  aA==}",
        "data: {password: eA==}\nstringData: {password: hush}",
    ],
)
def test_a_password_comes_from_the_secret_that_is_referred_to(values: str) -> None:
    found = reading(a=repository("{url: /b, passwordSecretRef: {name: main}}"), b=secret(values))
    assert found.declared.resources[MAIN].credentials == {"password": "hush"}
    assert "hush" not in repr(found)


def test_another_key_and_an_environment_can_be_referred_to() -> None:
    spec = "{url: /b, passwordSecretRef: {name: main, key: pw}, envSecretRef: {name: aws}}"
    found = reading(a=repository(spec), b=secret("stringData: {pw: hush}"), c=secret("stringData: {A: x, B: y}", "aws"))
    assert found.declared.resources[MAIN].credentials == {"password": "hush", "env": {"A": "x", "B": "y"}}


def test_one_secret_may_hold_both() -> None:
    spec = "{url: /b, passwordSecretRef: {name: s, key: pw}, envSecretRef: {name: s}}"
    found = reading(a=repository(spec), b=secret("stringData: {pw: hush, A: x}", "s"))
    assert found.declared.resources[MAIN].credentials == {"password": "hush", "env": {"A": "x"}}


@pytest.mark.parametrize(
    ("values", "field", "detail"),
    [
        (None, "spec.passwordSecretRef.name", "there is no Secret default/main in the folder: declare it"),
        ("stringData: {pw: hush}", "spec.passwordSecretRef.key", "Secret default/main has no key password: it has pw"),
    ],
)
def test_a_repository_whose_secret_is_missing_stays_as_it_is(values: str | None, field: str, detail: str) -> None:
    texts = {} if values is None else {"b": secret(values)}
    found = reading(a=repository("{url: /b, passwordSecretRef: {name: main}}"), **texts)
    (error,) = found.errors
    assert (error.place, error.field, error.detail) == ("a.yaml:1", field, detail)
    assert found.declared.resources == {}
    assert MAIN in found.declared.held


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ("data: {password: hush}", "data.password"),
        ("data: {password: /w==}", "data.password"),
        ("stringData: {password: 123456}", "stringData.password"),
        ("stringData: [hush]", "stringData"),
    ],
)
def test_a_wrong_secret_is_refused_without_being_repeated(values: str, field: str) -> None:
    error = only_error(a=secret(values))
    assert error.field == field
    assert "hush" not in error.detail
    assert "123456" not in error.detail


# Files that are wrong.


@pytest.mark.parametrize(
    ("text", "place", "document", "detail"),
    [
        ("cron: * * * * *", "a.yaml:1:8", 1, 'needs quotes, for example cron: "0 2 * * *"'),
        (schedule() + "---\na: b: c", "a.yaml:6:5", 2, "mapping values are not allowed"),
        ("{a: b\n", "a.yaml:2:1", 1, "did not find expected ',' or '}'"),
        ("a: \x01", "a.yaml", 1, "characters that YAML does not allow"),
        ("a: 1\na: 2", "a.yaml:2:1", 1, "a is given twice: keep one"),
        ("1: 2", "a.yaml:1:1", 1, "a key must be a string: put 1 in quotes"),
        ("a: &a [*a]", "a.yaml:1:4", 1, "an alias is inside of what it repeats"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"a.yaml:1:{MAX_DEPTH + 1}", 1, "nested more than"),
        ("[" * 100_000, "a.yaml:1:1001", 1, "nesting depth"),
        ("a: !!python/name:os.system x", "a.yaml:1:4", 1, "could not determine a constructor"),
        ("a: !!int x", "a.yaml:1:1", 1, "put it in quotes"),
        ("a: .nan", "a.yaml:1:1", 1, "put it in quotes"),
        ("a: !!binary aHVzaA==", "a.yaml:1:1", 1, "put it in quotes"),
        ('a: "\\ud800"', "a.yaml:1:7", 1, "invalid Unicode character escape"),
        ("a: 1" + "0" * 5000, "a.yaml:1:1", 1, "put it in quotes"),
        ("- a", "a.yaml:1", 1, "must be an object with apiVersion, kind, metadata and spec"),
    ],
)
def test_yaml_that_cannot_be_read_is_told_with_its_place(text: str, place: str, document: int, detail: str) -> None:
    error = only_error(a=text)
    assert (error.place, error.document) == (place, document)
    assert detail in error.detail


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("spec", 8),
        ("spec.cron", 10),
        ("spec.backup.paths[1]", 14),
        ("spec.backup.paths.1", 14),
        ("spec.backup.paths[7]", 12),
        ("spec.backup.tags", 11),
        ("spec.timeZone", 8),
        ("metadata.labels.a.b/c", 6),
        ("nothing", 4),
    ],
)
def test_a_field_is_told_with_its_own_line_or_that_around_it(field: str, line: int) -> None:
    text = """# first
a: 1
---
kind: Schedule
metadata:
  labels:
    a.b/c: d
spec:
  kind: backup
  cron: "* * * * *"
  backup:
    paths:
    - /etc
    - srv
"""
    assert field_line(text, 2, field) == line
    assert field_line(text, 3, field) is None
    assert field_line(text + "---\na: b: c", 2, field) == line
    assert field_line("a: b: c", 1, field) is None


def test_aliases_may_repeat_but_not_explode() -> None:
    assert reading(a=schedule() + "x: &x [1, 2]\ny: *x\n").errors == []
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    assert "aliases included" in only_error(a="\n".join(["a0: &a0 [x]", *levels])).detail


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("kind: Schedule\n", ""), "kind"),
        (("v1alpha1", "v1"), "apiVersion"),
        (("{name: etc}", "{}"), "metadata.name"),
        (("{name: etc}", "{name: 5}"), "metadata.name"),
        (("{name: etc}", "{name: ../etc}"), "metadata.name"),
        (("{name: etc}", "{name: etc, namespace: A}"), "metadata.namespace"),
        (("{name: etc}", "etc"), "metadata"),
    ],
)
def test_what_names_a_resource_must_be_right(change: tuple[str, str], field: str) -> None:
    error = only_error(a=f"# first\n{schedule().replace(*change)}")
    assert (error.place, error.field) == ("a.yaml:2", field)


def test_the_same_name_in_two_files_is_told_with_both_and_neither_counts() -> None:
    found = reading(a=schedule(cron="1 * * * *"), b=schedule(cron="2 * * * *"))
    (error,) = found.errors
    assert (error.place, error.field) == ("b.yaml:1", "metadata.name")
    assert "Schedule default/etc is also declared in a.yaml:1" in error.detail
    assert found.declared.resources == {}
    assert ETC in found.declared.held


def test_a_file_that_becomes_wrong_keeps_saying_what_it_said() -> None:
    first = reading(a=schedule(), b=repository())
    wrong = reading(first, a="{", b=repository())
    still = reading(wrong, a="[", b=repository())
    assert first.declared == wrong.declared == still.declared
    assert len(still.errors) == 1
    assert reading(still, b=repository()).declared.resources.keys() == {MAIN}


def test_a_file_that_cannot_be_read_keeps_saying_what_it_said() -> None:
    first = reading(a=schedule())
    later = read({Path("a.yaml"): Unreadable("cannot be read: Permission denied")}, first.files)
    assert later.declared == first.declared
    assert [error.detail for error in later.errors] == ["cannot be read: Permission denied"]


def test_one_wrong_document_keeps_its_whole_file_as_it_was() -> None:
    first = reading(a=schedule())
    later = reading(first, a=schedule(cron="5 * * * *") + "---\nkind: Schedule\n")
    assert later.declared == first.declared


def test_while_a_file_was_never_right_nothing_is_known_to_be_gone() -> None:
    assert not reading(a="{", b=schedule()).declared.complete
    assert reading(reading(a="{"), a=schedule()).declared.complete


def test_a_file_that_has_not_changed_is_not_parsed_again() -> None:
    first = reading(a=schedule())
    assert reading(first, a=schedule()).files[Path("a.yaml")] is first.files[Path("a.yaml")]


# The folder.


def test_yaml_files_are_read_at_any_depth_and_hidden_ones_are_not(tmp_path: Path) -> None:
    names = ["a.yaml", "deep/er/b.yml", "c.json", ".hidden.yaml", ".git/d.yaml", "not-a-file.yaml/e.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "linked.yaml").symlink_to(tmp_path / "c.json")
    (tmp_path / "broken.yaml").symlink_to(tmp_path / "nowhere")
    assert read_texts(tmp_path) == {
        Path("a.yaml"): "a.yaml",
        Path("deep/er/b.yml"): "deep/er/b.yml",
        Path("linked.yaml"): "c.json",
    }


def test_a_folder_that_is_gone_is_an_error_and_not_empty(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="until then nothing is changed"):
        read_texts(tmp_path / "gone")


def test_text_that_is_not_utf_8_or_too_long_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    (tmp_path / "b.yaml").write_bytes(b"#" * (5 << 20))
    texts = read_texts(tmp_path)
    reasons = {path.name: it.reason for path, it in texts.items() if isinstance(it, Unreadable)}
    assert "UTF-8" in reasons["a.yaml"]
    assert "split it" in reasons["b.yaml"]


def host(labels: str = "{role: db}", more: str = "") -> str:
    return f"{HEAD}kind: Host\nmetadata: {{name: db-1, labels: {labels}}}\n{more}"


def test_a_host_is_of_all_namespaces() -> None:
    elsewhere = host().replace("{name: db-1,", "{name: db-1, namespace: other,")
    key = Key("Host", "", "db-1")
    assert reading(a=host()).declared.resources.keys() == reading(a=elsewhere).declared.resources.keys() == {key}
    assert "also declared in a.yaml:1" in only_error(a=host(), b=elsewhere).detail
    assert str(key) == "db-1"


def test_a_host_in_a_folder_may_have_a_spec_which_the_server_checks() -> None:
    read = reading(a=host(more="spec: {maxConcurrentJobs: 2}\n"))
    assert read.errors == []
    assert [it.spec for it in read.declared.resources.values()] == [{"maxConcurrentJobs": 2}]
    assert reading(a=host(more="spec: {}\n")).errors == []

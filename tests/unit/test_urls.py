"""A repository's URL is read as restic reads it, and refused where the operator does not allow its scheme."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.resources.urls import SCHEMES, UrlError, folder_of, parse, scheme_errors

UNDERSTOOD = {
    "/backup": ("local", (), ("backup",)),
    "/backup:old/": ("local", (), ("backup:old",)),
    "local:/srv//a": ("local", (), ("srv", "a")),
    ".lamplighter/{host}": ("local", ("relative",), (".lamplighter", "{host}")),
    "local:./b": ("local", ("relative",), ("b",)),
    "/srv/{namespace}/{host}": ("local", (), ("srv", "{namespace}", "{host}")),
    "rest:https://h.example/": ("rest", ("https", "", "h.example", "443"), ()),
    "rest:HTTPS://H.Example:8000/a/": ("rest", ("https", "", "h.example", "8000"), ("a",)),
    "rest:http://{host}@h/{host}/": ("rest", ("http", "{host}", "h", "80"), ("{host}",)),
    "rest:http://[::0:1]:8000/a": ("rest", ("http", "", "::1", "8000"), ("a",)),
    "rest:https://h/%61%20b": ("rest", ("https", "", "h", "443"), ("a b",)),
    "s3:https://s3.example.org/b": ("s3", ("https", "", "s3.example.org", "443"), ("b",)),
    "s3:s3.example.org/b/c": ("s3", ("https", "", "s3.example.org", "443"), ("b", "c")),
    "s3://s3.example.org/b": ("s3", ("https", "", "s3.example.org", "443"), ("b",)),
    "s3:http://minio:9000/b": ("s3", ("http", "", "minio", "9000"), ("b",)),
    "sftp:user@host:/srv/a b": ("sftp", ("ssh", "user", "host", "22"), ("", "srv", "a b")),
    "sftp:host:srv": ("sftp", ("ssh", "", "host", "22"), ("srv",)),
    "sftp:u@domain@host:/srv": ("sftp", ("ssh", "u@domain", "host", "22"), ("", "srv")),
    "sftp://user@host:2222//srv": ("sftp", ("ssh", "user", "host", "2222"), ("", "srv")),
    "sftp://[fe80::1]/srv": ("sftp", ("ssh", "", "fe80::1", "22"), ("srv",)),
    "b2:bucket:path": ("b2", (), ("bucket", "path")),
    "b2:bucket": ("b2", (), ("bucket",)),
    "azure:box:/": ("azure", (), ("box",)),
    "gs:{namespace}-b:/p": ("gs", (), ("{namespace}-b", "p")),
    "swift:box:/p": ("swift", (), ("box", "p")),
    "rclone:remote:/b": ("rclone", ("remote",), ("", "b")),
}


@pytest.mark.parametrize("url", UNDERSTOOD)
def test_a_url_leads_where_restic_takes_it_to(url: str) -> None:
    assert parse(url) == UNDERSTOOD[url]
    assert not list(scheme_errors(url, (*SCHEMES, "rclone")))


REFUSED = [
    *("", "../backup", "./a:b", "../a:b", "local:../b", "local:", "a:b", ":b", "C:/b", "\\b", "ftp://h/b", "file:///b"),
    *("LOCAL:/b", "Rest:https://h/", "S3:h/b", "Sftp:host:/b", " /b", "/b ", "/a/../b", "/srv\\b", "/a\nb"),
    *("rest:HTTP+UNIX:///run/s:/b", "rest:http+unix:///run/s:/b", "rest:https+unix:///run/s:/b", "rest:unix:/run/s"),
    *(
        "rest://h/",
        "rest:h",
        "rest:file:///b",
        "rest:https:/h/",
        "rest:https:///b",
        "rest:https://",
        "rest: https://h/",
    ),
    *(
        "rest:https://u:pw@h/",
        "rest:https://h@/",
        "rest:https://good@evil@h/",
        "rest:https://h:port/",
        "rest:https://h:0/",
    ),
    *("rest:https://h:70000/", "rest:https://h/?a", "rest:https://h/#a", "rest:https://h?/a", "rest:https://h\\@e/"),
    *(
        "rest:https://h/%2e%2e/b",
        "rest:https://h/a%2fb",
        "rest:https://h/%252e",
        "rest:https://h/%zz",
        "rest:https://h/%ff",
    ),
    *(
        "rest:https://{host}/",
        "rest:https://h./",
        "rest:https://[h]/",
        "rest:https://[fe80::1%25eth0]/b",
        "rest:https://-h/",
    ),
    *(
        "s3:x",
        "s3:",
        "s3:///b",
        "s3:HTTP://h/b",
        "s3:https+unix://h/b",
        "s3:httpd/b",
        "s3:https://h",
        "s3:https://u@h/b",
    ),
    *("s3:h/b/../../c", "s3:https://h/b?x", "s3:-h/b", "s3:h/b/a%2db", "s3://h/%62"),
    *("sftp:", "sftp:host", "sftp:-oProxyCommand=id:/b", "sftp://-oProxyCommand=id/b", "sftp://[-oProxyCommand=id]/b"),
    *("sftp://u@[-oX]:22/b", "sftp:u@-oX:/b", "sftp:a/b@-oX:/b", "sftp:-lX@h:/b", "sftp://-lX@h/b", "sftp://%2doX/b"),
    *("sftp:a@b@c@h:/b", "sftp:[::1]:/b", "sftp:h o:/b", "sftp:h:~/b", "sftp://h/~b", "sftp:h:/a/../b"),
    *("b2:", "b2:bu/cket", "azure:box", "gs:box", "swift:box", "swift:box:p", "azure::/p", "gs:../b:/p"),
    *("rclone:", "rclone:remote", "rclone::sftp,ssh=id:/b", "rclone:remote,ssh=id:b", "rclone:-x:b"),
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_not_understood_is_refused(url: str) -> None:
    assert [error["field"] for error in scheme_errors(url, (*SCHEMES, "rclone"))] == ["spec.url"]
    assert folder_of(url) is None


@given(
    st.sampled_from(sorted(UNDERSTOOD)),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from("/:@-[].%?#\\ \nX{}")), min_size=1, max_size=3),
)
def test_a_url_that_was_tampered_with_is_refused_or_names_a_harmless_server(url: Any, inserted: list[Any]) -> None:
    for at, character in inserted:
        url = url[:at] + character + url[at:]
    try:
        location = parse(url)
    except UrlError:
        return
    if location.scheme in ("rest", "s3", "sftp"):
        protocol, user, host, port = location.server
        assert protocol in ("http", "https", "ssh")
        assert not user.startswith("-")
        assert host[0].isalnum() or host[0] == ":"
        assert port.isdecimal()
    assert not {".", ".."} & set(location.path)


def test_a_folder_is_a_path_with_or_without_its_scheme() -> None:
    assert [folder_of(url) for url in ("/b", "local:b/", "b2:bucket:b")] == ["/b", "b", None]


@pytest.mark.parametrize("url", ["rclone:remote:b", "Sftp:host:/b", "ftp://host/b", "a:b", ":b"])
def test_a_kind_that_is_not_allowed_is_refused_with_those_that_are(url: str) -> None:
    [error] = scheme_errors(url, SCHEMES)
    assert error["field"] == "spec.url"
    assert "use one of local:, rest:, s3:" in error["detail"]


def test_the_operator_allows_a_kind_and_no_other() -> None:
    assert not list(scheme_errors("rclone:remote:b", ("rclone",)))
    assert list(scheme_errors("/b", ("rclone",)))


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        (
            "rest:https://good.example",
            ["rest:https://good.example/", "rest:https://GOOD.example:443/a"],
            [
                *("rest:https://good.example.evil/", "rest:https://good.example@evil/", "rest:http://good.example/"),
                *("rest:https://good.example:444/", "rest:https://me@good.example/", "s3:https://good.example/b"),
            ],
        ),
        ("s3:h/b", ["s3:h/b", "s3:https://h/b/c", "s3://h/b/{host}"], ["s3:h/bb", "s3:h/a", "s3:http://h/b", "s3:h/B"]),
        ("rest:https://h/a/{host}", ["rest:https://h/a/{host}/b"], ["rest:https://h/a/b", "rest:https://h/a"]),
        ("sftp:u@h:/srv", ["sftp:u@h:/srv/a", "sftp://u@h//srv"], ["sftp:u@h:srv", "sftp:v@h:/srv", "sftp:u@h:/srvx"]),
        ("b2:bucket", ["b2:bucket:a"], ["b2:bucket2:a"]),
        ("/srv", ["/srv/a", "local:/srv"], ["/srvx", "/", "srv/a"]),
    ],
)
def test_a_prefix_covers_what_is_below_it_on_the_same_server_and_nothing_else(
    prefix: str, inside: list[str], outside: list[str]
) -> None:
    covers = parse(prefix, prefix=True).covers
    assert [url for url in inside if not covers(parse(url))] == []
    assert [url for url in outside if covers(parse(url))] == []

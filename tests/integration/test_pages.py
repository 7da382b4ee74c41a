"""Pages: who may see and change them, and what other sites, thieves of cookies and proxies cannot do."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import kmock
import pytest
from hypothesis import given as hypothetical
from hypothesis import settings
from hypothesis import strategies as st

from server.access.kubernetes import Config as Api
from server.access.vault import Vault
from server.app import Config, Running, ServerError, serving
from server.web import guard
from tests.integration.clock import Clock
from tests.integration.conftest import PATIENCE_S
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

PROXY_SECRET = "0123456789abcdef-of-the-proxy"


def browser(server: Running, host: str = "") -> httpx.AsyncClient:
    """A browser on a page of this server, as far as headers go. `host`: the name by which it knows the server."""
    url = f"http://127.0.0.1:{server.port}"
    headers = {"host": host or f"127.0.0.1:{server.port}", "sec-fetch-site": "same-origin"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S, verify=NO_TLS)


@pytest.fixture
async def visitor(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with browser(server) as client:
        yield client


async def signed_in(client: httpx.AsyncClient, server: Running) -> httpx.Response:
    answer = await client.post("/sign-in", data={"token": server.admin_token})
    assert answer.status_code == 303
    return answer


def form_token(page: httpx.Response) -> str:
    found = re.search(r'name="form_token" value="([^"]+)"', page.text)
    assert found
    return found[1]


async def link_of(server: Running) -> str:
    code, _ = await server.offer_link()
    return code


async def test_nobody_sees_a_page_without_signing_in(visitor: httpx.AsyncClient) -> None:
    for path in ("/", "/?namespace=x"):
        answer = await visitor.get(path)
        assert (answer.status_code, answer.text) == (303, "")
        assert answer.headers["location"].startswith("/sign-in")
    assert (await visitor.get("/live")).status_code == 401


async def test_every_answer_has_the_headers_that_protect_it(visitor: httpx.AsyncClient, server: Running) -> None:
    answers = [
        await visitor.get("/"),
        await visitor.get("/sign-in"),
        await visitor.get("/live"),
        await visitor.put("/"),
    ]
    answers += [await signed_in(visitor, server), await visitor.get("/"), await visitor.post("/sign-out")]
    for answer in answers:
        if answer.status_code != 405:
            assert (
                guard.HEADERS.items() <= dict(answer.headers.items()).items()
                or {name.lower(): value for name, value in guard.HEADERS.items()}.items()
                <= dict(answer.headers).items()
            )


async def test_the_page_has_neither_style_nor_script_of_its_own(visitor: httpx.AsyncClient, server: Running) -> None:
    await signed_in(visitor, server)
    for path in ("/", "/sign-in"):
        text = (await visitor.get(path)).text
        assert not re.search(r"<style|style=|<script(?![^>]* src=)|\son\w+=|javascript:", text)


@pytest.mark.parametrize(
    ("host", "flags"),
    [
        ("127.0.0.1:8700", "lamplighter=; HttpOnly; Max-Age=28800; Path=/; SameSite=strict"),
        ("[::1]:8700", "lamplighter=; HttpOnly; Max-Age=28800; Path=/; SameSite=strict"),
        ("localhost", "lamplighter=; HttpOnly; Max-Age=28800; Path=/; SameSite=strict"),
        ("backup.example.org", "__Host-lamplighter=; HttpOnly; Max-Age=28800; Path=/; SameSite=strict; Secure"),
        ("127.0.0.1.example.org", "__Host-lamplighter=; HttpOnly; Max-Age=28800; Path=/; SameSite=strict; Secure"),
    ],
)
async def test_the_cookie_is_for_this_host_alone_and_no_script_reads_it(server: Running, host: str, flags: str) -> None:
    async with browser(server, host) as visitor:
        cookie = (await signed_in(visitor, server)).headers["set-cookie"]
        assert re.sub(r"=[\w-]+=*;", "=;", cookie, count=1) == flags


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "origin": "ITSELF"},
        {"sec-fetch-site": "", "origin": "http://evil.example.org"},
        {"sec-fetch-site": "", "origin": "null"},
        {"origin": "null", "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
async def test_no_other_site_signs_in_or_out(
    visitor: httpx.AsyncClient, server: Running, headers: dict[str, str]
) -> None:
    own = str(visitor.base_url)
    given = {name: value.replace("ITSELF", own) for name, value in headers.items()}
    answer = await visitor.post("/sign-in", data={"token": server.admin_token}, headers=given)
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    await signed_in(visitor, server)
    token = form_token(await visitor.get("/"))
    assert (await visitor.post("/sign-out", data={"form_token": token}, headers=given)).status_code == 403
    assert (await visitor.get("/")).status_code == 200


async def test_a_browser_without_fetch_metadata_says_its_origin(visitor: httpx.AsyncClient, server: Running) -> None:
    del visitor.headers["sec-fetch-site"]
    data = {"token": server.admin_token}
    assert (await visitor.post("/sign-in", data=data)).status_code == 403
    own = str(visitor.base_url)
    assert (await visitor.post("/sign-in", data=data, headers={"origin": own})).status_code == 303


async def test_a_form_of_another_session_changes_nothing(visitor: httpx.AsyncClient, server: Running) -> None:
    await signed_in(visitor, server)
    own, sealed = form_token(await visitor.get("/")), visitor.cookies["lamplighter"]
    async with browser(server) as other:
        await signed_in(other, server)
        foreign = form_token(await other.get("/"))
    for given in ("", "x", "é", foreign, sealed, own[:-1]):
        answer = await visitor.post("/sign-out", data={"form_token": given})
        assert answer.status_code == 403, given
    assert (await visitor.get("/")).status_code == 200
    assert (await visitor.post("/sign-out", data={"form_token": own})).status_code == 303
    assert (await visitor.get("/")).status_code == 303


@pytest.mark.parametrize(
    "given",
    [
        "//evil.example.org",
        "/\\evil.example.org",
        "https://evil.example.org",
        "\\\\evil",
        "/a\r\nSet-Cookie: x=y",
        "",
        "x",
        "/" + "a" * 3000,
        "/é",
        "/\t/evil.example.org",
        "/a\\b",
    ],
)
async def test_signing_in_never_leads_to_another_site(visitor: httpx.AsyncClient, server: Running, given: str) -> None:
    answer = await visitor.post("/sign-in", data={"token": server.admin_token, "next": given})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    page = await visitor.get("/sign-in", params={"next": given})
    assert 'value="/"' in page.text or "evil" not in page.text


async def test_signing_in_leads_back(visitor: httpx.AsyncClient, server: Running) -> None:
    answer = await visitor.post("/sign-in", data={"token": server.admin_token, "next": "/fleet?days=7"})
    assert answer.headers["location"] == "/fleet?days=7"


async def test_a_link_of_another_site_finds_the_session_again(visitor: httpx.AsyncClient) -> None:
    """The browser sends no SameSite=Strict cookie then, and does when this site loads the page once more."""
    answer = await visitor.get("/?a=%22%3E&b", headers={"sec-fetch-site": "cross-site"})
    assert (answer.status_code, 'content="0; url=/?a=%22%3E&amp;b"' in answer.text) == (200, True)


@pytest.mark.parametrize("token", ["", " ", "wrong", "é", "a\0b", "x" * 20_000])
async def test_a_wrong_token_begins_no_session(visitor: httpx.AsyncClient, token: str) -> None:
    answer = await visitor.post("/sign-in", data={"token": token})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)


async def test_a_session_ends_after_eight_hours(visitor: httpx.AsyncClient, server: Running, clock: Clock) -> None:
    await signed_in(visitor, server)
    clock.ahead += timedelta(hours=7, minutes=59)
    assert (await visitor.get("/")).status_code == 200
    clock.ahead += timedelta(minutes=2)
    assert (await visitor.get("/")).status_code == 303


async def test_a_session_ends_with_its_token(tmp_path: Path) -> None:
    async with serving(Config(tmp_path, port=0)) as server, browser(server) as visitor:
        await signed_in(visitor, server)
        cookie = visitor.cookies["lamplighter"]
    (tmp_path / "admin-token").unlink()
    async with serving(Config(tmp_path, port=0)) as server, browser(server) as visitor:
        visitor.cookies.set("lamplighter", cookie)
        assert (await visitor.get("/")).status_code == 303


async def test_a_cookie_that_was_altered_or_sealed_for_something_else_opens_nothing(
    visitor: httpx.AsyncClient, server: Running, tmp_path: Path
) -> None:
    await signed_in(visitor, server)
    cookie = visitor.cookies["lamplighter"]
    vault = Vault.open(tmp_path / "vault-key")
    content = vault.sealer("session").unseal(cookie)
    assert content is not None
    wrong = [cookie[:-8] + "AAAAAAA=", vault.sealer("form").seal(content), vault.sealer("sign-in link").seal(content)]
    wrong += [Vault([Vault.new_key()]).sealer("session").seal(content), vault.sealer("session").seal(b"{}"), "x" * 9000]
    for given in wrong:
        visitor.cookies.clear()
        visitor.cookies.set("lamplighter", given)
        assert (await visitor.get("/")).status_code == 303


async def test_a_link_signs_in_once(server: Running, clock: Clock) -> None:
    code = await link_of(server)
    async with browser(server) as first, browser(server) as second:
        assert code in (await first.get("/sign-in", params={"code": code})).text  # which uses nothing up
        assert (await first.post("/sign-in", data={"code": code})).status_code == 303
        assert (await first.get("/")).status_code == 200
        assert (await second.post("/sign-in", data={"code": code})).status_code == 401
        late = await link_of(server)
        clock.ahead += timedelta(minutes=11)
        assert (await second.post("/sign-in", data={"code": late})).status_code == 401


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_link_works_once_on_all_servers_and_a_session_ends_on_all(
    server: Running, database: str, clock: Clock, tmp_path: Path
) -> None:
    config = Config(tmp_path, port=0, database=database)
    async with serving(config, clock) as other, browser(server) as here, browser(other) as there:
        code = await link_of(server)
        assert (await there.post("/sign-in", data={"code": code})).status_code == 303
        assert (await here.post("/sign-in", data={"code": code})).status_code == 401
        here.cookies.set("lamplighter", there.cookies["lamplighter"])
        page = await here.get("/")
        assert page.status_code == 200
        assert (await here.post("/sign-out", data={"form_token": form_token(page)})).status_code == 303
        assert (await there.get("/")).status_code == 303


async def test_forms_are_bounded(visitor: httpx.AsyncClient) -> None:
    assert (await visitor.post("/sign-in", data={"token": "x" * 70_000})).status_code == 413
    many = "&".join(f"a{number}=" for number in range(300)).encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert (await visitor.post("/sign-in", content=many, headers=headers)).status_code == 422
    assert (await visitor.post("/sign-in", content="é".encode(), headers=headers)).status_code == 422
    assert (await visitor.post("/sign-in", json={"token": "x"})).status_code == 415


async def test_an_api_token_makes_a_link(api: httpx.AsyncClient, visitor: httpx.AsyncClient) -> None:
    made = (await api.post("/sign-in-links")).json()
    code = made["path"].partition("code=")[2]
    assert (await visitor.post("/sign-in", data={"code": code})).status_code == 303
    del api.headers["authorization"]
    assert (await api.post("/sign-in-links")).status_code == 401


async def test_pages_have_a_session_and_the_api_has_not(visitor: httpx.AsyncClient, server: Running) -> None:
    """A cookie opens no operation of REST, so no other site can call one with it."""
    await signed_in(visitor, server)
    assert (await visitor.get("/api/v1/jobs")).status_code == 401


async def test_static_files_are_kept_by_their_content(visitor: httpx.AsyncClient) -> None:
    page = (await visitor.get("/sign-in")).text
    urls = set(re.findall(r'"(/static/[^"]+)"', page))
    assert len(urls) >= 3
    for url in urls:
        answer = await visitor.get(url)
        assert (answer.status_code, "immutable" in answer.headers["cache-control"]) == (200, True)
        again = await visitor.get(url, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        name = url.rpartition("/")[2]
        for wrong in (f"/static/0/{name}", "/static/0/../templates/layout.html", "/static/0/%2e%2e%2fsite.py"):
            assert (await visitor.get(wrong)).status_code == 404


@asynccontextmanager
async def behind_a_proxy(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "secret").write_text(PROXY_SECRET + "\n")
    config = Config(tmp_path, port=0, proxy_auth_secret=tmp_path / "secret")
    async with serving(config) as server, browser(server, "backup.example.org") as visitor:
        yield visitor


async def test_a_proxy_with_the_secret_signs_in(tmp_path: Path) -> None:
    named = {"x-lamplighter-proxy-secret": PROXY_SECRET, "x-forwarded-user": "ann@example.org"}
    async with behind_a_proxy(tmp_path) as visitor:
        page = await visitor.get("/", headers=named)
        assert (page.status_code, "ann@example.org" in page.text) == (200, True)
        assert "Sign out" not in page.text
        visitor.cookies.set("__Host-lamplighter", page.headers["set-cookie"].partition("=")[2].partition(";")[0])
        assert "set-cookie" not in (await visitor.get("/", headers=named)).headers
        assert (await visitor.get("/")).status_code == 303  # the cookie alone opens nothing
        other = await visitor.get("/", headers={**named, "x-forwarded-user": "bob@example.org"})
        assert "set-cookie" in other.headers


async def test_headers_of_a_proxy_are_refused(tmp_path: Path) -> None:
    def named(user: str, groups: str = "", secret: str = PROXY_SECRET) -> dict[str, str]:
        return {"x-lamplighter-proxy-secret": secret, "x-forwarded-user": user, "x-forwarded-groups": groups}

    wrong = [named("ann", secret="wrong"), named("ann", secret=""), named(""), named("a" * 300)]
    wrong += [named("system:admin"), named("ann", "staff, system:masters"), named("ann", ",".join("g" * 201))]
    async with behind_a_proxy(tmp_path) as visitor:
        for headers in wrong:
            answer = await visitor.get("/", headers=headers)
            assert (answer.status_code, "set-cookie" in answer.headers) == (401, False), headers


async def test_headers_of_a_proxy_count_for_nothing_without_its_secret(
    visitor: httpx.AsyncClient, tmp_path: Path
) -> None:
    named = {"x-forwarded-user": "ann", "x-lamplighter-proxy-secret": PROXY_SECRET}
    assert (await visitor.get("/", headers=named)).status_code == 303  # none is configured
    async with behind_a_proxy(tmp_path / "other") as behind:
        assert (await behind.get("/", headers={"x-forwarded-user": "ann"})).status_code == 303


async def test_a_short_secret_of_a_proxy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("short\n")
    with pytest.raises(ServerError, match="at least 16 characters"):
        async with serving(Config(tmp_path, port=0, proxy_auth_secret=tmp_path / "secret")):
            pass


async def test_a_browser_gets_a_page_where_nothing_is_and_a_program_does_not(visitor: httpx.AsyncClient) -> None:
    shown = await visitor.get("/nowhere/<b>", headers={"accept": "text/html,*/*;q=0.8"})
    assert (shown.status_code, "nothing is at this path" in shown.text) == (404, True)
    assert shown.headers["content-security-policy"]
    told = await visitor.get("/nowhere")
    assert (told.status_code, told.json()["detail"]) == (404, "nothing is at this path")


ELSEWHERE = st.text(st.sampled_from("/\\:@.?#%&=;\t\r\n ahttps") | st.characters(), max_size=20)


@hypothetical(given=ELSEWHERE)
@settings(max_examples=500, deadline=None)
def test_a_path_to_return_to_is_of_this_site(given: str) -> None:
    """By the URL Standard, browsers read a backslash as a slash, and leave out tabs and line ends."""
    path = guard.path_here(given)
    as_browsers_do = re.sub(r"[\t\r\n]", "", path).replace("\\", "/")
    assert urljoin("https://here.example.org/sign-in", as_browsers_do).startswith("https://here.example.org/")
    assert path in (given, "/")


async def test_what_one_sees_and_may_do_is_what_rest_answers(tmp_path: Path) -> None:
    """A user who may list what is in namespace a alone, by a cluster's RBAC."""
    asked: list[dict[str, Any]] = []

    def review(request: kmock.Request) -> dict[str, Any]:
        attributes = request.data["spec"]["resourceAttributes"]
        asked.append(attributes)
        return {"status": {"allowed": attributes["namespace"] == "a" and attributes["verb"] in {"get", "list"}}}

    async with kmock.RawHandler() as kube, kmock.Server(kube):
        user = {"username": "ann", "uid": "1", "groups": ["staff"]}
        kube["post /apis/authentication.k8s.io/v1/tokenreviews"] << {
            "status": {"authenticated": True, "audiences": ["lamplighter"], "user": user}
        }
        kube["post /apis/authorization.k8s.io/v1/subjectaccessreviews"] << review
        (tmp_path / "token").write_text("ours\n")
        cluster = Api(str(kube.url), tmp_path / "token")
        config = Config(tmp_path, port=0, auth="kubernetes", agent_service_account="ns/agent", cluster=cluster)
        async with serving(config) as server, browser(server) as visitor:
            assert (await visitor.post("/sign-in", data={"token": "of ann"})).status_code == 303
            for path in ("/", "/fleet", "/jobs", "/problems"):
                refused = await visitor.get(path)
                assert (refused.status_code, "lacks the permission" in refused.text) == (403, True)
                assert 'name="namespace"' in refused.text
                assert (await visitor.get(f"{path}?namespace=a")).status_code == 200
                assert (await visitor.get(f"{path}?namespace=b")).status_code == 403
            for path, status in (("/live", 403), ("/live?namespace=b", 403), ("/live?namespace=a", 200)):
                async with visitor.stream("GET", path) as live:
                    assert live.status_code == status
            assert 'data-namespace="a"' in (await visitor.get("/?namespace=a")).text
            assert {it["namespace"] for it in asked} == {"", "a", "b"}

"""TLS trusts only who it should, and renewed certificates are used while connections are open."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from agent.link import Dialler, Link
from cli.agent import enrol
from cli.client import Client as CliClient
from cli.options import Access
from cli.reach import reason
from controller.client import Client, Unreachable
from server.app import Config, Running, ServerError, serving
from tests.certificates import Authority

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Files:
    """The server's certificate and key, and the authority's certificate, as files."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.cert, self.key, self.ca = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))
        self.ca.write_bytes(authority.pem)
        self.renew(authority)

    def renew(self, authority: Authority) -> bytes:
        """Replace both files, as a Secret's volume does, and return the certificate as DER."""
        pair = authority.issue("server", "127.0.0.1")
        for path, content in zip((self.cert, self.key), pair, strict=True):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.replace(path)
        return ssl.PEM_cert_to_DER_cert(pair[0].decode())


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture
async def server(files: Files, tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(Config(tmp_path / "data", port=0, tls_cert=files.cert, tls_key=files.key)) as running:
        yield running


async def shown(server: Running, files: Files) -> Any:
    """The certificate that a new connection is shown, as DER."""
    trusted = ssl.create_default_context(cafile=files.ca)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusted)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return found


async def test_a_renewed_certificate_is_shown_to_whoever_comes_next(
    server: Running, files: Files, authority: Authority
) -> None:
    trusted = ssl.create_default_context(cafile=files.ca)
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{server.port}", verify=trusted) as client:
        stream = (await client.get("/healthz")).extensions["network_stream"]
        renewed = files.renew(authority)
        assert await shown(server, files) == renewed
        again = (await client.get("/healthz")).extensions["network_stream"]
        assert again.get_extra_info("client_addr") == stream.get_extra_info("client_addr")  # not dropped meanwhile


async def test_a_pair_that_cannot_be_used_leaves_the_last_one_in_force(
    server: Running, files: Files, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    before = await shown(server, files)
    files.cert.write_text("half a certif")
    assert await shown(server, files) == before
    assert await shown(server, files) == before
    assert [record.getMessage() for record in caplog.records].count("the renewed certificate cannot be used") == 1
    renewed = files.renew(authority)
    assert await shown(server, files) == renewed


async def test_a_first_pair_that_cannot_be_used_is_named(files: Files, tmp_path: Path) -> None:
    files.cert.write_text("half a certif")
    with pytest.raises(ServerError, match=r"tls\.crt"):
        async with serving(Config(tmp_path / "data", port=0, tls_cert=files.cert, tls_key=files.key)):
            pass


async def test_the_controller_trusts_the_authority_that_it_is_told_of_and_no_other(
    server: Running, files: Files, tmp_path: Path
) -> None:
    async with Client(f"https://127.0.0.1:{server.port}", server.admin_token, files.ca) as client:
        assert (await client.put_host("web-1", {}))["name"] == "web-1"
    (tmp_path / "other.crt").write_bytes(Authority().pem)
    async with Client(f"https://127.0.0.1:{server.port}", server.admin_token, tmp_path / "other.crt") as client:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await client.put_host("web-1", {})


class Waiting:
    """Hears of a link being connected."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    def connected(self) -> None:
        self.open.set()

    def received(self, message: object) -> None:
        pass

    def disconnected(self) -> None:
        pass


async def test_an_agent_reads_its_token_and_authorities_for_every_connection(
    server: Running, files: Files, tmp_path: Path, authority: Authority
) -> None:
    token, ca = tmp_path / "token", tmp_path / "agents-ca.crt"
    token.write_text("an old one")
    ca.write_bytes(Authority().pem)
    waiting, asked = Waiting(), asyncio.Event()

    def read() -> str:
        asked.set()
        return token.read_text()

    link = Link(Dialler(f"wss://127.0.0.1:{server.port}/agent", read, ca_file=ca), waiting, random.Random(1))
    running = asyncio.ensure_future(link.run())
    async with asyncio.timeout(30):
        await asked.wait()
        token.write_text(server.agent_token)
        ca.write_bytes(authority.pem)
        await waiting.open.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


WRONG_TLS = pytest.mark.parametrize(
    ("url", "ca", "said"),
    [
        ("https://127.0.0.1:{tls}", None, ["--ca-file", "certificate of the authority"]),
        ("https://127.0.0.1:{tls}", "other.crt", ["--ca-file", "other.crt", "is not the authority that issued"]),
        ("https://localhost:{tls}", "ca.crt", ["not for localhost", "--server"]),
        ("http://127.0.0.1:{tls}", None, ["--server https://127.0.0.1:{tls}"]),
        ("https://127.0.0.1:{plain}", "ca.crt", ["--server http://127.0.0.1:{plain}"]),
    ],
)


@WRONG_TLS
async def test_an_enrolment_says_what_is_wrong_with_tls_with_the_remedy(
    server: Running, files: Files, tmp_path: Path, url: str, ca: str | None, said: list[str]
) -> None:
    (tmp_path / "other.crt").write_bytes(Authority().pem)
    async with serving(Config(tmp_path / "plain", port=0)) as plain:
        ports = {"tls": server.port, "plain": plain.port}
        data, trusted = tmp_path / "agent", tmp_path / ca if ca else None
        with pytest.raises(click.ClickException) as raised:
            await asyncio.to_thread(enrol, url.format(**ports), "enrol_secret", "web-1", data, trusted)
    assert [it for it in said if it.format(**ports) not in raised.value.message] == []
    assert "_ssl.c" not in raised.value.message
    assert "enrol_secret" not in raised.value.message
    assert not (data / "host-key").exists()


async def test_a_host_is_enrolled_over_tls_by_its_authority(server: Running, files: Files, tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{server.port}"
    async with Client(url, server.admin_token, files.ca) as client:
        await client.put_host("web-1", {})
    access = Access(url, tmp_path / "data", None, files.ca)
    with closing(CliClient(access)) as person:
        offer = await asyncio.to_thread(person.request, "POST", "/hosts/web-1/enrolments", body={})
    await asyncio.to_thread(enrol, url, offer["token"], "web-1", tmp_path / "agent", files.ca)
    assert (tmp_path / "agent" / "host-key").read_text().startswith("hostkey_")


@WRONG_TLS
async def test_what_is_wrong_with_tls_is_said_with_the_remedy(
    server: Running, files: Files, tmp_path: Path, url: str, ca: str | None, said: list[str]
) -> None:
    (tmp_path / "other.crt").write_bytes(Authority().pem)
    async with serving(Config(tmp_path / "plain", port=0)) as plain:
        ports = {"tls": server.port, "plain": plain.port}
        access = Access(url.format(**ports), tmp_path / "data", None, tmp_path / ca if ca else None)
        with closing(CliClient(access)) as person, pytest.raises(click.ClickException) as raised:
            await asyncio.to_thread(person.request, "GET", "/hosts")
    assert [it for it in said if it.format(**ports) not in raised.value.message] == []
    assert "_ssl.c" not in raised.value.message


@pytest.mark.parametrize("content", ["junk", "", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"])
async def test_authorities_that_are_none_are_told_by_every_part(
    server: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    url, ca = f"https://127.0.0.1:{server.port}", tmp_path / "junk.crt"
    ca.write_text(content)
    said = f"--ca-file {ca} holds no certificate in PEM"
    with pytest.raises(click.ClickException, match=said):
        await asyncio.to_thread(enrol, url, "enrol_secret", "web-1", tmp_path / "agent", ca)
    with pytest.raises(click.ClickException, match=said):
        CliClient(Access(url, tmp_path / "data", None, ca))
    gateway, explain = f"wss://127.0.0.1:{server.port}/agent", reason(url, ca)
    link = Link(Dialler(gateway, "token", ca_file=ca, explain=explain), Waiting(), random.Random(1))
    async with asyncio.timeout(60):
        task = asyncio.create_task(link.run())
        while not (told := [it for it in caplog.records if it.getMessage() == "not connected"]):
            await asyncio.sleep(0.01)
        task.cancel()
    assert said in vars(told[0])["reason"]


@pytest.mark.parametrize(
    ("scheme", "said"), [("http", "if it serves TLS, give --server https://"), ("https", "give --ca-file")]
)
async def test_agent_and_controller_say_what_is_wrong_with_tls_too(
    server: Running, caplog: pytest.LogCaptureFixture, scheme: str, said: str
) -> None:
    url = f"{scheme}://127.0.0.1:{server.port}"
    async with Client(url, "token", explain=reason(url, None)) as client:
        with pytest.raises(Unreachable, match=said):
            await client.put_host("node-1", {})
    gateway = f"{url.replace('http', 'ws', 1)}/agent"
    link = Link(Dialler(gateway, "token", explain=reason(url, None)), Waiting(), random.Random(1))
    async with asyncio.timeout(60):
        task = asyncio.create_task(link.run())
        while not (told := [it for it in caplog.records if it.getMessage() == "not connected"]):
            await asyncio.sleep(0.01)
        task.cancel()
    assert said in vars(told[0])["reason"]

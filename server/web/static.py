"""Styles and scripts of the pages. Their URLs hold a digest of the content, so browsers may keep them for ever."""

import hashlib
import mimetypes
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from server.errors import NotFound

FOLDER = Path(__file__).parent / "static"
KEEP = "public, max-age=31536000, immutable"


class _File(NamedTuple):
    digest: str
    content: bytes
    media_type: str


class Static:
    """The files, which are read once."""

    def __init__(self) -> None:
        self._files = {
            path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in {".css", ".js", ".svg"}
        }

    def url(self, name: str) -> str:
        """The URL of a file."""
        return f"/static/{self._files[name].digest}/{name}"

    async def answer(self, request: Request) -> Response:
        """A file, or 304 for a browser that has it. Raises NotFound, also for the digest of another version."""
        file = self._files.get(request.path_params["name"])
        if file is None or file.digest != request.path_params["digest"]:
            raise NotFound("there is no such file: load the page again")
        headers = {"ETag": f'"{file.digest}"', "Cache-Control": KEEP}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def _read(path: Path) -> _File:
    content = path.read_bytes()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return _File(digest, content, mimetypes.guess_type(path.name)[0] or "text/plain")

"""What alembic runs for every command: the migrations, on the connection that it was handed."""

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext

from server.store.tables import Base, UtcDateTime


def render_item(kind: str, item: Any, autogen: AutogenContext) -> str | Literal[False]:
    """How a new revision writes our types: plain strings, and times with their import."""
    if kind == "type" and isinstance(item, UtcDateTime):
        autogen.imports.add("from server.store.tables import UtcDateTime")
        return "UtcDateTime()"
    if kind == "type" and isinstance(getattr(item, "impl", item), sa.String) and not isinstance(item, sa.Text):
        return f"sa.String({item.length})"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_item=render_item,
    render_as_batch=True,  # SQLite alters little in place: tables are copied
    transactional_ddl=True,  # the caller's transaction: all revisions or none
)
with context.begin_transaction():
    context.run_migrations()

"""Ranges: runs of identifiers registered by one rule, each in one row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "ranges",
        sa.Column("prefix_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("shape", sa.LargeBinary, nullable=False),
        sa.Column("first", sa.LargeBinary, nullable=False),
        sa.Column("last", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", big, nullable=False),
        sa.Column("written", big, nullable=False),
        sa.Column("template", sa.Text),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("prefix_id", "shape", "first", name="ranges_pkey"),
        sqlite_with_rowid=False,
    )

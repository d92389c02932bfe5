"""Reverse lookup: what a prefix declares searchable, and the index of those values."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("prefixes", sa.Column("searchable", sa.Text))
    op.add_column("prefixes", sa.Column("indexed_to", sa.LargeBinary))
    unfinished = sa.text("indexed_to IS NOT NULL")
    op.create_index(
        "prefixes_indexing_idx",
        "prefixes",
        ["name"],
        postgresql_where=unfinished,
        sqlite_where=unfinished,
    )
    exact = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "value_index",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("public", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("prefix", exact, nullable=False),
        sa.Column("suffix", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", "public", "prefix", "suffix", name="value_index_pkey"),
        sqlite_with_rowid=False,
    )

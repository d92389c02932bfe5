"""Statistics: what the change log says by day, prefix and action, and how far it was counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    exact = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "statistics",
        sa.Column("day", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("prefix", exact, nullable=False),
        sa.Column("action", exact, nullable=False),
        sa.Column("count", big, nullable=False),
        sa.PrimaryKeyConstraint("day", "prefix", "action", name="statistics_pkey"),
        sqlite_with_rowid=False,
    )
    head = op.create_table(
        "statistics_head",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("sequence", big, nullable=False),
        sa.PrimaryKeyConstraint("id", name="statistics_head_pkey"),
    )
    op.bulk_insert(head, [{"id": 1, "sequence": 0}])

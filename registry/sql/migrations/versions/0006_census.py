"""The census: identifiers by prefix, template, layer and state, and what each commit changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    exact = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "census",
        sa.Column("prefix", exact, nullable=False),
        sa.Column("template", exact, nullable=False),
        sa.Column("layer", exact, nullable=False),
        sa.Column("state", exact, nullable=False),
        sa.Column("count", big, nullable=False),
        sa.PrimaryKeyConstraint("prefix", "template", "layer", "state", name="census_pkey"),
        sqlite_with_rowid=False,
    )
    op.add_column("changelog", sa.Column("shift", sa.LargeBinary))
    op.add_column("statistics_head", sa.Column("census", big))
    # What was written before says nothing of it: only an empty registry is counted already.
    op.execute("UPDATE statistics_head SET census = 0 WHERE NOT EXISTS (SELECT 1 FROM changelog)")

"""Blocks: runs of records that were registered together, each run in one row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "blocks",
        sa.Column("prefix_id", sa.Integer, nullable=False),
        sa.Column("first_suffix", sa.LargeBinary, nullable=False),
        sa.Column("last_suffix", sa.LargeBinary, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("prefix_id", "first_suffix", name="blocks_pkey"),
    )
    op.create_index("blocks_sequence_idx", "blocks", ["sequence"])
    if op.get_context().dialect.name == "postgresql":
        # It is compressed already, and is to stay in its row while that fits into a page.
        op.execute("ALTER TABLE blocks ALTER COLUMN blob SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE blocks SET (toast_tuple_target = 8160)")

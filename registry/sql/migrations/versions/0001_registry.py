"""The first tables: prefixes, records, keys, receipts, the change log and its head."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _exact() -> sa.Text:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _big() -> sa.BigInteger:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "prefixes",
        sa.Column("id", sa.Integer, autoincrement=True, nullable=False),
        sa.Column("name", _exact(), nullable=False),
        sa.Column("spelling", sa.Text, nullable=False),
        sa.Column("tenant", _exact(), nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("created", _big(), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", _big(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="prefixes_pkey"),
    )
    op.create_index("prefixes_name_key", "prefixes", ["name"], unique=True)
    op.create_table(
        "records",
        sa.Column("prefix_id", sa.Integer, nullable=False),
        sa.Column("suffix", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", _big(), nullable=False),
        sa.Column("template", sa.Text),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("prefix_id", "suffix", name="records_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_keys",
        sa.Column("id", _exact(), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("created", _big(), nullable=False),
        sa.Column("revoked", _big(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="api_keys_pkey"),
        sa.UniqueConstraint("digest", name="api_keys_digest_key"),
    )
    op.create_table(
        "receipts",
        sa.Column("key", _exact(), nullable=False),
        sa.Column("actor", _exact(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("expires", _big(), nullable=False),
        sa.PrimaryKeyConstraint("key", "actor", name="receipts_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_index("receipts_expires_idx", "receipts", ["expires"])
    op.create_table(
        "changelog",
        sa.Column("sequence", _big(), autoincrement=False, nullable=False),
        sa.Column("time_ms", _big(), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("previous", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("changes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="changelog_pkey"),
    )
    head = op.create_table(
        "chain_head",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("sequence", _big(), nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="chain_head_pkey"),
    )
    op.create_table(
        "rules",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="rules_pkey"),
    )
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": bytes(32)}])

"""Limits that belong to the protocol: the same in every node and client.

What an operator may choose (body size, concurrency, deadlines) is a setting instead.
"""

IDENTIFIER_CHARS_MAX = 255
"""Whole identifier, in Unicode characters (SNMS guide)."""
PREFIX_CHARS_MAX = 64
"""Whole prefix (SNMS guide)."""
VALUES_MAX = 512
"""Values in one record."""
TYPE_CHARS_MAX = 128
VALUE_BYTES_MAX = 65_536
"""Data octets of one value."""
RECORD_BYTES_MAX = 262_144
"""Data octets of all values of one record."""
REFERENCES_MAX = 64
INDEX_MAX = 2**31 - 1
"""Handle value index: a positive int4 (RFC 3651 §3.1)."""
TTL_MAX_S = 2**31 - 1
TTL_DEFAULT_S = 86_400
TTL_CACHE_MAX_S = 172_800
"""Clients cap a relative TTL at two days; so do we when caching."""
BATCH_ROWS_MAX = 2_000
PAGE_ROWS_MAX = 1_000
RESOLVE_MANY_MAX = 1_000
IDEMPOTENCY_KEY_CHARS_MAX = 255
TENANT_CHARS_MAX = 64
LABEL_CHARS_MAX = 128
SEARCHABLE_TYPES_MAX = 16
"""Value types that one prefix may declare searchable."""
SEARCH_VALUES_MAX = 8
"""Values that one search may ask for."""
FRAME_OCTETS_MAX = 8 * 2**20
"""Octets of one frame of the native protocol after its length field."""

"""Bodies as msgpack packs them, and what is said of those that have the wrong shape. Sans I/O.

Whatever the octets, `unpack` gives plain values or raises InvalidRequest: no maps, no extension
types and no array longer than ARRAY_MAX are read from callers. Reading functions take a path
for the error, such as `operation.values[3].type`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import msgpack

from ...errors import BiaojieError, InvalidRecord, InvalidRequest, MalformedAnswer, Text
from ...limits import BATCH_ROWS_MAX

Row = tuple[Any, ...]
ARRAY_MAX: Final = BATCH_ROWS_MAX
"""The longest array in a request is that of a batch's rows."""
WHOLE_MAX: Final = 2**63 - 1
EPOCH_MAX: Final = 253_402_300_799
"""9999-12-31T23:59:59Z"""
_TEXT_DEPTH: Final = 8


def pack(body: object) -> bytes:
    """Raises TypeError, ValueError or OverflowError for what msgpack cannot say."""
    packed: bytes = msgpack.packb(body)
    return packed


def unpack(body: bytes) -> Any:
    """The value of a request's body; raises InvalidRequest. Arrays come as tuples."""
    try:
        return msgpack.unpackb(
            body,
            use_list=False,
            object_pairs_hook=_refuse_map,
            ext_hook=_refuse_extension,
            max_array_len=ARRAY_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    # RecursionError and MemoryError are how deep nesting may end.
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise InvalidRequest(
            f"The body is not one msgpack value of this protocol: {_why(error).en}.",
            f"帧体不是本协议的单个 msgpack 值：{_why(error).zh}。",
        ) from None


def unpack_answer(body: bytes) -> Any:
    """The value of an answer's body; raises MalformedAnswer. Arrays come as tuples."""
    try:
        return msgpack.unpackb(body, use_list=False, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise MalformedAnswer(
            f"The body is not one msgpack value: {_why(error).en}.",
            f"帧体不是单个 msgpack 值：{_why(error).zh}。",
        ) from None


def _why(error: BaseException) -> Text:
    """What msgpack found, in our words: what it says itself names its parts, not the caller's."""
    match error:
        case msgpack.ExtraData():
            return Text("more octets follow the value", "值之后还有多余的字节")
        case msgpack.StackError() | RecursionError() | MemoryError():
            return Text("it is nested too deeply", "嵌套过深")
        case UnicodeDecodeError():
            return Text("a text in it is not UTF-8", "其中的文本不是 UTF-8")
        case msgpack.FormatError():
            return Text("an octet in it begins no value", "其中有不能作为值开头的字节")
        case ValueError() if "incomplete" in str(error):
            return Text("it ends within the value", "值尚未结束帧体已结束")
    return Text(
        "it has what is not allowed there: a map, an extension type, too long an array",
        "其中有不允许的内容：映射、扩展类型或过长的数组",
    )


def _refuse_map(pairs: object) -> NoReturn:
    raise ValueError("a map")


def _refuse_extension(code: int, data: object) -> NoReturn:
    raise ValueError("an extension type")


# Reading --------------------------------------------------------------------------------


def bad(path: str, en: str, zh: str) -> InvalidRequest:
    """A fault of the request's own shape."""
    return InvalidRequest(f"{path}: {en}", f"{path}：{zh}", errors=[{"path": path, "message": en}])


def bad_record(path: str, en: str, zh: str) -> InvalidRecord:
    """A fault of the values that are to be written."""
    return InvalidRecord(f"{path}: {en}", f"{path}：{zh}", path=path)


def row(got: object, least: int, path: str) -> Row:
    """An array with at least so many elements; more are from a later version."""
    if not isinstance(got, tuple) or len(got) < least:
        raise bad(path, f"must be an array of {least}.", f"应为 {least} 个元素的数组。")
    return got


def many(got: object, most: int, path: str) -> Row:
    if not isinstance(got, tuple):
        raise bad(path, "must be an array.", "应为数组。")
    if len(got) > most:
        raise bad(path, f"over {most} elements.", f"超过 {most} 个元素。")
    return got


def text(got: object, most: int, path: str, *, least: int = 0) -> str:
    """A text of `least` to `most` characters."""
    if not isinstance(got, str):
        raise bad(path, "must be text.", "应为文本。")
    if not least <= len(got) <= most:
        raise bad(
            path, f"must have {least} to {most} characters.", f"应为 {least} 至 {most} 个字符。"
        )
    return got


def octets(got: object, most: int, path: str) -> bytes:
    if not isinstance(got, bytes):
        raise bad(path, "must be octets.", "应为字节串。")
    if len(got) > most:
        raise bad(path, f"over {most} octets.", f"超过 {most} 字节。")
    return got


def whole(got: object, path: str, *, least: int = 0, most: int = WHOLE_MAX) -> int:
    if not isinstance(got, int) or isinstance(got, bool):
        raise bad(path, "must be a whole number.", "应为整数。")
    if not least <= got <= most:
        raise bad(path, f"must be {least} to {most}.", f"应为 {least} 至 {most}。")
    return got


def number(got: object, path: str, *, most: float) -> float:
    """0 to `most`; not a number is none."""
    if not isinstance(got, int | float) or isinstance(got, bool) or not 0 <= got <= most:
        raise bad(path, f"must be 0 to {most:g}.", f"应为 0 至 {most:g}。")
    return float(got)


def flag(got: object, path: str) -> bool:
    if not isinstance(got, bool):
        raise bad(path, "must be true or false.", "应为 true 或 false。")
    return got


@contextmanager
def answering(en: str, zh: str) -> Iterator[None]:
    """Whatever is wrong with an answer is MalformedAnswer."""
    try:
        yield
    except (BiaojieError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        why = error.detail if isinstance(error, BiaojieError) else (f"{error}", f"{error}")
        raise MalformedAnswer(f"Not a {en}: {why[0][:200]}", f"不是{zh}：{why[1][:200]}") from error


# Writing what may be anything -----------------------------------------------------------


def plain(anything: object, depth: int = _TEXT_DEPTH) -> Any:
    """What msgpack can say of it, for the fields of errors: total, whatever it is."""
    if anything is None or isinstance(anything, bool | float | bytes):
        return anything
    if isinstance(anything, int):
        return anything if -(2**63) <= anything < 2**64 else str(anything)[:80]
    if isinstance(anything, str):
        return anything.encode(errors="replace").decode()
    if depth and isinstance(anything, dict):
        return {str(plain(str(k))): plain(v, depth - 1) for k, v in anything.items()}
    if depth and isinstance(anything, list | tuple):
        return [plain(item, depth - 1) for item in anything]
    return plain(str(anything)[:1_000])

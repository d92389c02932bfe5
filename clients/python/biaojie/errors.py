"""One error tree, shared by server and client.

A code is permanent once released. Every error carries the code, what happened in English
and Chinese, what to do about it, and (once it has crossed the wire) the request id.
Which protocol number a code becomes is written beside that protocol's codec, never here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self


class Text(NamedTuple):
    """The same sentence in English and Chinese."""

    en: str
    zh: str


class BiaojieError(Exception):
    """Base of everything this project raises on purpose.

    `en`/`zh` say what happened this time; `title` and `advice` belong to the class.
    `fields` are machine-readable extras (JSON scalars or lists), e.g. `position=3`.
    """

    code: ClassVar[str] = "internal"
    title: ClassVar[Text] = Text("Internal error", "内部错误")
    advice: ClassVar[Text] = Text(
        "Try again; if it stays, tell the operator the request id.",
        "请重试；若仍出现，请把请求编号告诉运营方。",
    )
    retryable: ClassVar[bool] = False

    def __init__(self, en: str = "", zh: str = "", /, request_id: str = "", **fields: Any) -> None:
        self.detail = Text(en or f"{self.title.en}.", zh or en or f"{self.title.zh}。")
        self.request_id = request_id
        self.fields: Mapping[str, Any] = fields
        super().__init__(self.detail.en)

    def again(self) -> Self:
        """The same for somebody else: tracebacks and request ids are not shared."""
        return type(self)(*self.detail, **self.fields)

    def __str__(self) -> str:
        tail = f" [request {self.request_id}]" if self.request_id else ""
        return f"{self.code}: {self.detail.en} {self.advice.en}{tail}"


# What the caller wrote ------------------------------------------------------------------


class InvalidIdentifier(BiaojieError):
    code = "invalid-identifier"
    title = Text("The identifier is not well-formed", "标识格式不正确")
    advice = Text(
        "Correct it at the position given; the form is prefix/suffix, e.g. 88.118.8/SN0001.",
        "请按所给位置改正；格式为 前缀/后缀，例如 88.118.8/SN0001。",
    )


class InvalidRecord(BiaojieError):
    code = "invalid-record"
    title = Text("The record is not well-formed", "记录内容不正确")
    advice = Text("Correct the field named in `path`.", "请改正 `path` 指出的字段。")


class InvalidRequest(BiaojieError):
    code = "invalid-request"
    title = Text("The request is not well-formed", "请求格式不正确")
    advice = Text(
        "Compare it with the API page at /api; `errors` lists each fault.",
        "请对照 /api 接口页；`errors` 列出每处错误。",
    )


class TooLarge(BiaojieError):
    code = "too-large"
    title = Text("The request is too large", "请求过大")
    advice = Text("Send less at a time; the limit is named.", "请减少单次发送量；上限已注明。")


class UnsupportedMediaType(BiaojieError):
    code = "unsupported-media-type"
    title = Text("The content type is not supported", "不支持的内容类型")
    advice = Text("Send Content-Type: application/json.", "请使用 Content-Type: application/json。")


class MethodNotAllowed(BiaojieError):
    code = "method-not-allowed"
    title = Text("This address does not take that method", "该地址不支持此方法")
    advice = Text("Use one of the methods in the Allow header.", "请使用 Allow 头列出的方法。")


class RequestTimeout(BiaojieError):
    code = "request-timeout"
    title = Text("The request did not arrive in time", "请求未在限时内到达")
    advice = Text("Send it again, whole and without pauses.", "请完整、连续地重新发送。")


# Who the caller is ----------------------------------------------------------------------


class Unauthenticated(BiaojieError):
    code = "unauthenticated"
    title = Text("A valid key is needed", "需要有效密钥")
    advice = Text(
        "Send Authorization: Bearer <key>; the operator issues keys.",
        "请发送 Authorization: Bearer <密钥>；密钥由运营方签发。",
    )


class Forbidden(BiaojieError):
    code = "forbidden"
    title = Text("This key may not do that", "该密钥无此权限")
    advice = Text(
        "Use a key of the tenant that owns the prefix, or ask the operator for the right.",
        "请使用该前缀所属租户的密钥，或向运营方申请权限。",
    )


class TooManyRequests(BiaojieError):
    code = "too-many-requests"
    title = Text("Too many requests", "请求过于频繁")
    advice = Text("Wait as long as Retry-After says.", "请按 Retry-After 等待后再试。")
    retryable = True


# What is or is not there ----------------------------------------------------------------


class NotFound(BiaojieError):
    code = "not-found"
    title = Text("There is nothing at this address", "该地址不存在")
    advice = Text("Check the address; the API page is at /api.", "请检查地址；接口页在 /api。")


class IdentifierNotFound(BiaojieError):
    code = "identifier-not-found"
    title = Text("The identifier is not registered", "标识未注册")
    advice = Text(
        "Check the spelling; the owner of the prefix can register it.",
        "请检查拼写；前缀所有者可以注册该标识。",
    )


class IdentifierRetired(BiaojieError):
    code = "identifier-retired"
    title = Text("The identifier has been retired", "标识已注销")
    advice = Text(
        "It stays reserved and is never given out again; ask its owner for a successor.",
        "该标识永久保留、不再分配；如需替代标识请询问其所有者。",
    )


class PrefixNotHere(BiaojieError):
    code = "prefix-not-here"
    title = Text("The prefix is not homed at this node", "本节点不托管该前缀")
    advice = Text("Ask the node responsible for the prefix.", "请向负责该前缀的节点查询。")


class Elsewhere(BiaojieError):
    code = "elsewhere"
    title = Text("Another node is responsible for this prefix", "该前缀由其他节点负责")
    advice = Text(
        "Ask the node that the HS_SITE values of the identifier in `referral` describe.",
        "请向 `referral` 所指标识的 HS_SITE 值描述的节点查询。",
    )


class PrefixSuspended(BiaojieError):
    code = "prefix-suspended"
    title = Text("The prefix is suspended", "前缀已暂停")
    advice = Text("Ask the operator of this node.", "请联系本节点运营方。")


class ValueNotFound(BiaojieError):
    code = "value-not-found"
    title = Text("The record has no such value", "记录中没有该值")
    advice = Text("Read the record and use an index it has.", "请先读取记录，再使用其中的索引。")


# What is in the way ---------------------------------------------------------------------


class IdentifierTaken(BiaojieError):
    code = "identifier-taken"
    title = Text("The identifier is already registered", "标识已被注册")
    advice = Text(
        "Choose another suffix, or put a new version with If-Match.",
        "请更换后缀，或使用 If-Match 写入新版本。",
    )


class ValueTaken(BiaojieError):
    code = "value-taken"
    title = Text("The record already has a value with this index", "记录中已有该索引的值")
    advice = Text("Use another index, or modify the value.", "请使用其他索引，或修改该值。")


class RangeTaken(BiaojieError):
    """`place` is the first identifier in the way, `range` the pattern it belongs to, if any."""

    code = "range-taken"
    title = Text("Part of the range is registered already", "号段中已有标识被注册")
    advice = Text(
        "Register the parts before and after `place`, or take that out first.",
        "请分别注册 `place` 前后的部分，或先将其移除。",
    )


class PrefixTaken(BiaojieError):
    code = "prefix-taken"
    title = Text("The prefix is already homed", "前缀已托管")
    advice = Text("Change the existing prefix instead.", "请修改已有前缀。")


class RecordFrozen(BiaojieError):
    code = "record-frozen"
    title = Text("The record is frozen", "记录已冻结")
    advice = Text("Set its status to active first.", "请先将其状态改为 active。")


class ValueReadOnly(BiaojieError):
    code = "value-read-only"
    title = Text("The value may not be changed", "该值不可修改")
    advice = Text(
        "Its admin-write permission bit is clear; only retiring the identifier is possible.",
        "该值未设置管理员写权限位；只能注销整个标识。",
    )


class VersionMismatch(BiaojieError):
    code = "version-mismatch"
    title = Text("The record has changed meanwhile", "记录已被他人修改")
    advice = Text(
        "Read it again and repeat the change with the new version.",
        "请重新读取，并以新版本重做修改。",
    )


class IdempotencyMismatch(BiaojieError):
    code = "idempotency-mismatch"
    title = Text("This Idempotency-Key was used for another request", "该幂等键已用于其他请求")
    advice = Text("Use a new key for a new request.", "新的请求请使用新的幂等键。")


class IdempotencyRunning(BiaojieError):
    code = "idempotency-running"
    title = Text("The first request with this key is still running", "使用该幂等键的请求仍在处理")
    advice = Text("Ask again after a moment with the same key.", "请稍后使用同一幂等键重试。")
    retryable = True


class BatchRejected(BiaojieError):
    code = "batch-rejected"
    title = Text("No row was written, because some are bad", "存在错误行，整批未写入")
    advice = Text(
        "Correct the rows in `rows`, or use mode valid-rows.",
        "请改正 `rows` 中的各行，或使用 valid-rows 模式。",
    )


# What the node cannot do just now -------------------------------------------------------


class OverCapacity(BiaojieError):
    code = "over-capacity"
    title = Text("The node is at capacity", "节点已达容量上限")
    advice = Text("Wait as long as Retry-After says.", "请按 Retry-After 等待后再试。")
    retryable = True


class TemporarilyUnavailable(BiaojieError):
    code = "temporarily-unavailable"
    title = Text("The registry cannot be reached just now", "注册库暂时不可用")
    advice = Text(
        "This says nothing about the identifier. Wait as long as Retry-After says.",
        "这不代表标识不存在。请按 Retry-After 等待后再试。",
    )
    retryable = True


class DeadlineExceeded(BiaojieError):
    code = "deadline-exceeded"
    title = Text("The deadline passed before an answer", "在限时内未得到结果")
    advice = Text(
        "A write may or may not have happened: repeat it with the same Idempotency-Key.",
        "写入可能已生效也可能未生效：请用同一幂等键重试。",
    )
    retryable = True


class StorageFull(BiaojieError):
    code = "storage-full"
    title = Text("The registry cannot write", "注册库无法写入")
    advice = Text("The operator must free disk space.", "需要运营方释放磁盘空间。")


class Internal(BiaojieError):
    pass


# What only a client or a tool meets -----------------------------------------------------


class Unreachable(BiaojieError):
    code = "unreachable"
    title = Text("The node cannot be reached", "无法连接节点")
    advice = Text("Check the address and the network.", "请检查地址与网络。")
    retryable = True


class MalformedAnswer(BiaojieError):
    code = "malformed-answer"
    title = Text("The answer cannot be understood", "无法理解返回内容")
    advice = Text(
        "Check that the address is a biaojie node and its version.",
        "请确认该地址是 biaojie 节点并检查其版本。",
    )


class InvalidFile(BiaojieError):
    code = "invalid-file"
    title = Text("The file cannot be imported", "文件无法导入")
    advice = Text(
        "Nothing more was written; correct the file as said and run the command again.",
        "未再写入任何内容；请按提示改正文件后重新运行。",
    )


class TamperedLog(BiaojieError):
    code = "tampered-log"
    title = Text("The change log does not verify", "变更日志校验失败")
    advice = Text(
        "Stop writing, keep the files, compare with a backup.",
        "请停止写入、保留现场，并与备份比对。",
    )


def _tree(cls: type[BiaojieError]) -> Iterator[type[BiaojieError]]:
    for child in cls.__subclasses__():
        yield child
        yield from _tree(child)


ERRORS: dict[str, type[BiaojieError]] = {cls.code: cls for cls in _tree(BiaojieError)}
"""Every error class by its permanent code."""
assert ERRORS["internal"] is Internal

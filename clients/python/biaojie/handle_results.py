"""What comes back over the Handle protocol, as the client's own results. Pure."""

from __future__ import annotations

from .change import Action, Receipt
from .errors import MalformedAnswer, MethodNotAllowed
from .identifier import Identifier
from .limits import INDEX_MAX
from .record import Record, Status, Value
from .wire.handle import Message, ResolveResponse


def lacking(en: str, zh: str) -> MethodNotAllowed:
    return MethodNotAllowed(
        f"The Handle protocol does not have {en}. Use the node's http:// address.",
        f"Handle 协议没有{zh}。请使用节点的 http:// 地址。",
    )


def check_state(status: Status | None, template: str | None, if_version: int | None) -> None:
    if status not in (None, Status.ACTIVE):
        raise lacking("statuses", "记录状态")
    if template is not None:
        raise lacking("data templates", "数据模板")
    if if_version is not None:
        raise lacking("versions", "版本号")


def folded(handle: str) -> bytes:
    """Only ASCII letters fold."""
    return handle.encode().upper()


def receipt(name: str, action: Action) -> Receipt:
    gone = action in (Action.RETIRE, Action.PURGE)
    status = Status.RETIRED if gone else Status.ACTIVE
    return Receipt(name, action, status.value, version=0, sequence=0)


def unfit(en: str, zh: str) -> MalformedAnswer:
    return MalformedAnswer(f"The answer does not fit: {en}.", f"返回内容不符：{zh}。")


def record(identifier: Identifier, message: Message) -> Record:
    """The values as the server has them: not every server keeps this library's rules."""
    body = message.body
    if not isinstance(body, ResolveResponse):
        raise unfit("it is not a record", "不是记录")
    name = str(identifier)
    if body.handle != name and folded(body.handle) != folded(name):
        raise unfit("it is another identifier's", "属于其他标识")
    values: dict[int, Value] = {}
    for value in body.values:
        if not 1 <= value.index <= INDEX_MAX or value.index in values:
            raise unfit(f"index {value.index} is not possible", f"索引 {value.index} 不合法")
        values[value.index] = value
    modified = max((value.timestamp for value in body.values), default=0)
    ordered = tuple(values[index] for index in sorted(values))
    return Record(identifier, ordered, version=0, modified=modified)

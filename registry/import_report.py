"""What is said of a bad row: line, column, code, the reason, and what to do about it. Pure."""

from __future__ import annotations

from biaojie.errors import (
    ERRORS,
    Elsewhere,
    Forbidden,
    IdentifierRetired,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRecord,
    PrefixNotHere,
    PrefixSuspended,
    Text,
    TooLarge,
)

from .import_rows import Fault

_FIXES = {
    InvalidIdentifier.code: Text(
        "Write it as prefix/suffix, such as 88.118.8/SN0001.",
        "请写为“前缀/后缀”，例如 88.118.8/SN0001。",
    ),
    InvalidRecord.code: Text("Correct the cell that is named.", "请改正所指出的单元格。"),
    IdentifierTaken.code: Text(
        "Take the row out if it is the same thing, else give it another identifier.",
        "若为同一对象请删除该行，否则请更换标识。",
    ),
    IdentifierRetired.code: Text(
        "Give it another identifier: a retired one is never given out again.",
        "请更换标识：已注销的标识不再分配。",
    ),
    Forbidden.code: Text(
        "Use a prefix of your own, or import with a key of the tenant that owns this one.",
        "请使用本租户的前缀，或用该前缀所属租户的密钥导入。",
    ),
    PrefixNotHere.code: Text(
        "Correct the prefix, or ask the operator to home it here.",
        "请改正前缀，或请运营方在本节点托管该前缀。",
    ),
    PrefixSuspended.code: Text(
        "Ask the operator why the prefix is suspended; import the row again afterwards.",
        "请向运营方了解前缀暂停原因，恢复后重新导入该行。",
    ),
    Elsewhere.code: Text("Import the row at that node.", "请在该节点导入此行。"),
    TooLarge.code: Text("Make the row smaller.", "请缩短该行内容。"),
}


def fix_of(fault: Fault) -> Text:
    if fault.fix is not None:
        return fault.fix
    known = ERRORS.get(fault.code)
    return _FIXES.get(fault.code) or (known.advice if known is not None else Text("", ""))


def fault_document(fault: Fault) -> dict[str, object]:
    """For the report, as JSON."""
    fix = fix_of(fault)
    return {
        "line": fault.line,
        "column": fault.column,
        "code": fault.code,
        "reason": fault.en,
        "reason_zh": fault.zh,
        "fix": fix.en,
        "fix_zh": fix.zh,
    }

"""What is wrong with a request, field by field, in English and Chinese. Pure.

Pydantic finds the faults and words them in English; here is the Chinese for each kind that our
models can have. Costs are bounded: a stranger's body may hold a million faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from biaojie.errors import InvalidRequest

FAULTS_LISTED_MAX = 50
PATH_CHARS_MAX = 300
M = TypeVar("M", bound=BaseModel)

CHINESE: Mapping[str, str] = {
    "missing": "缺少该字段",
    "extra_forbidden": "没有这个字段",
    "too_many_fields": "字段过多",
    "model_type": "应为对象",
    "dict_type": "应为对象",
    "model_attributes_type": "应为对象",
    "list_type": "应为列表",
    "too_long": "最多 {max_length} 项",
    "too_short": "至少 {min_length} 项",
    "string_type": "应为文本",
    "string_unicode": "不是合法的 Unicode 文本",
    "string_too_long": "最多 {max_length} 个字符",
    "string_too_short": "至少 {min_length} 个字符",
    "string_pattern_mismatch": "应符合 {pattern}",
    "int_type": "应为整数",
    "int_parsing": "应为整数",
    "int_parsing_size": "整数过大",
    "int_from_float": "应为整数",
    "float_type": "应为数字",
    "float_parsing": "应为数字",
    "finite_number": "应为有限数",
    "bool_type": "应为 true 或 false",
    "bool_parsing": "应为 true 或 false",
    "greater_than_equal": "不得小于 {ge}",
    "less_than_equal": "不得大于 {le}",
    "literal_error": "应为 {expected}",
}


def validated(model: type[M], given: Any, where: str) -> M:
    """`given` as a `model`, or InvalidRequest listing each fault (50 at most)."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        faults = [
            _worded(where, fault)
            for fault in error.errors(include_url=False, include_input=False)[:FAULTS_LISTED_MAX]
        ]
        first = faults[0]
        raise InvalidRequest(
            f"{first['path']}: {first['message']}.",
            f"{first['path']}：{first['message_zh']}。",
            errors=faults,
        ) from None


def _worded(where: str, fault: ErrorDetails) -> dict[str, str]:
    path = ".".join([where, *(str(step)[:PATH_CHARS_MAX] for step in fault["loc"])])
    chinese = CHINESE.get(fault["type"])
    if chinese is not None:
        bounds = {name: str(bound) for name, bound in fault.get("ctx", {}).items()}
        chinese = chinese.format_map(bounds).replace(" or ", " 或 ")
    return {
        "path": path[:PATH_CHARS_MAX],
        "message": fault["msg"],
        "message_zh": chinese or fault["msg"],
    }

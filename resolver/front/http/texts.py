"""Everything the public pages say, in English and Chinese side by side.

Templates hold no words of their own. A text with `{names}` is filled by `str.format`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from biaojie.errors import Text

from .negotiation import Language

Translator = Callable[..., str]

TEXTS: dict[str, Text] = {
    # Every page
    "html_lang": Text("en", "zh-CN"),
    "separator": Text(": ", "："),
    "brand": Text("Identifier resolution", "标识解析"),
    "home": Text("Start page", "首页"),
    "skip": Text("Skip to content", "跳到正文"),
    "search_label": Text("Identifier", "标识"),
    "search_button": Text("Look up", "查询"),
    "search_hint": Text("e.g. 88.118.8/SN0001", "例如 88.118.8/SN0001"),
    "footer_api": Text("API reference", "接口文档"),
    "footer_openapi": Text("OpenAPI document", "OpenAPI 文档"),
    # Search page
    "search_title": Text("Look up an identifier", "标识查询"),
    "search_lead": Text(
        "Enter the code on a product, part or document to see what its owner says about it.",
        "输入产品、零部件或单据上的标识编码，查看其所有者登记的信息。",
    ),
    "search_forms": Text(
        "Links and codes beginning with hdl: work too.",
        "也可以直接粘贴网址，或以 hdl: 开头的编码。",
    ),
    "examples": Text("Try one of these", "试试这些标识"),
    "anatomy_title": Text("How to read an identifier", "如何读懂一个标识"),
    "anatomy_prefix": Text("Prefix", "前缀"),
    "anatomy_prefix_note": Text(
        "Who registered it: country code, industry, company.",
        "由谁注册：国家代码、行业、企业。",
    ),
    "anatomy_suffix": Text("Suffix", "后缀"),
    "anatomy_suffix_note": Text(
        "Which thing it is: chosen by the company itself.",
        "是哪件物品：由企业自行编码。",
    ),
    "for_programs": Text("For programs", "供程序调用"),
    "for_programs_note": Text(
        "The same address answers in JSON, and everything can be registered and changed over HTTP.",
        "同一地址也可返回 JSON，标识的注册与变更均可通过 HTTP 接口完成。",
    ),
    # Resolve page
    "status_draft": Text("Draft", "草稿"),
    "status_active": Text("Active", "有效"),
    "status_frozen": Text("Frozen", "已冻结"),
    "status_retired": Text("Retired", "已注销"),
    "values_title": Text("Registered information", "登记信息"),
    "no_values": Text(
        "The identifier is registered, but nothing about it is public.",
        "该标识已注册，但没有公开信息。",
    ),
    "no_data": Text("(empty)", "（空）"),
    "binary": Text("Binary data, {size}", "二进制数据，{size}"),
    "cut": Text(
        "Only the beginning is shown, of {size} in all. The JSON has the whole value.",
        "内容共 {size}，此处仅显示开头；完整内容见 JSON。",
    ),
    "stale_title": Text("Saved copy", "缓存副本"),
    "stale_note": Text(
        "The registry cannot be reached just now. This is the last known answer; "
        "it may have changed since.",
        "注册库暂时无法连接。以下是最近一次的解析结果，可能已有变化。",
    ),
    "facts_title": Text("About this record", "标识记录"),
    "fact_status": Text("Status", "状态"),
    "fact_validity": Text("Validity", "有效期"),
    "fact_registered": Text("Registered", "注册时间"),
    "fact_modified": Text("Changed", "更新时间"),
    "fact_version": Text("Version", "版本"),
    "fact_template": Text("Template", "数据模板"),
    "valid_for": Text("{duration} from retrieval", "自获取起 {duration}"),
    "valid_no_store": Text("Ask anew each time", "每次重新查询"),
    "valid_until": Text("Until {time}", "至 {time}"),
    "expired": Text("Expired on {time}", "已于 {time} 过期"),
    "unknown": Text("Not stated", "未说明"),
    "qr_title": Text("Permanent link", "永久链接"),
    "qr_label": Text("QR code of the permanent link", "永久链接的二维码"),
    "qr_note": Text("Scan to open this page.", "扫码打开本页。"),
    "qr_too_long": Text("The link is too long for a QR code.", "链接过长，无法生成二维码。"),
    "json_link": Text("View as JSON", "查看 JSON"),
    "technical": Text("Technical details", "技术信息"),
    "col_index": Text("Index", "索引"),
    "col_type": Text("Type", "类型"),
    "col_size": Text("Size", "大小"),
    "col_ttl": Text("Time to live", "生存时间"),
    "col_permissions": Text("Permissions", "权限"),
    "col_timestamp": Text("Set at", "写入时间"),
    "col_references": Text("References", "引用"),
    "permissions_note": Text(
        "Permissions, digit by digit: administrator may read, administrator may write, "
        "everyone may read, everyone may write.",
        "权限四位依次为：管理员可读、管理员可写、公众可读、公众可写。",
    ),
    "answer_from": Text("Answer from", "结果来源"),
    "source_cache": Text("cache", "缓存"),
    "source_store": Text("registry", "注册库"),
    "source_stale": Text("saved copy", "缓存副本"),
    "log_sequence": Text("Change log entry", "变更日志序号"),
    # Units
    "bytes_one": Text("{count} byte", "{count} 字节"),
    "bytes": Text("{count} bytes", "{count} 字节"),
    "day_one": Text("{count} day", "{count} 天"),
    "day": Text("{count} days", "{count} 天"),
    "hour_one": Text("{count} hour", "{count} 小时"),
    "hour": Text("{count} hours", "{count} 小时"),
    "minute_one": Text("{count} minute", "{count} 分钟"),
    "minute": Text("{count} minutes", "{count} 分钟"),
    "second_one": Text("{count} second", "{count} 秒"),
    "second": Text("{count} seconds", "{count} 秒"),
    "duration_join": Text(" ", " "),
    "time_zone": Text("UTC", "北京时间"),
    # Error pages
    "what_to_do": Text("What you can do", "您可以"),
    "marked_here": Text("the fault is here", "错误位置"),
    "asked_for": Text("You asked for", "查询内容"),
    "try_again": Text("Try again", "重试"),
    "retry_soon": Text("Try again in a moment.", "稍后重试。"),
    "retry_after": Text("Try again in about {duration}.", "约 {duration}后重试。"),
    "request_id": Text("Request id", "请求编号"),
    "error_code": Text("Error code", "错误代码"),
    # API page
    "api_title": Text("API reference", "接口文档"),
    "api_version": Text("Version {version}", "版本 {version}"),
    "api_contents": Text("Contents", "目录"),
    "api_base": Text("Base address", "服务地址"),
    "api_start_note": Text(
        "Reading public records needs no key:",
        "读取公开记录无需密钥：",
    ),
    "api_auth": Text("Authentication", "身份验证"),
    "api_auth_note": Text(
        "Everything else needs an API key, which the operator of this node issues. "
        "Send it with every request:",
        "其他操作需要 API 密钥，由本节点运营方签发。请在每个请求中携带：",
    ),
    "api_auth_shell": Text(
        "The examples below take the key from the environment variable BIAOJIE_KEY.",
        "下文示例从环境变量 BIAOJIE_KEY 读取密钥。",
    ),
    "api_key_needed": Text("Key needed", "需要密钥"),
    "api_key_optional": Text("Key optional", "密钥可选"),
    "api_parameters": Text("Parameters", "参数"),
    "api_body": Text("Request body", "请求体"),
    "api_example": Text("Example", "示例"),
    "api_responses": Text("Responses", "响应"),
    "api_other_failures": Text("As everywhere", "通用错误"),
    "api_fields": Text("Fields", "字段"),
    "api_name": Text("Name", "名称"),
    "api_in": Text("In", "位置"),
    "api_in_path": Text("path", "路径"),
    "api_in_query": Text("query", "查询参数"),
    "api_in_header": Text("header", "请求头"),
    "api_in_cookie": Text("cookie", "Cookie"),
    "api_type": Text("Type", "类型"),
    "api_about": Text("Description", "说明"),
    "api_required": Text("required", "必填"),
    "api_schemas": Text("Data types", "数据类型"),
    "api_other": Text("Other", "其他"),
    "api_errors": Text("Error codes", "错误代码"),
    "api_errors_note": Text(
        "Errors arrive as application/problem+json (RFC 9457) with these members: "
        "code, title, detail, advice, request_id. A code never changes its meaning.",
        "错误以 application/problem+json（RFC 9457）返回，包含 "
        "code、title、detail、advice、request_id。错误代码的含义永不改变。",
    ),
    "api_code": Text("Code", "代码"),
    "api_meaning": Text("Meaning", "含义"),
    "api_advice": Text("What to do", "处理办法"),
    "api_retry": Text("may be retried", "可重试"),
    "api_deprecated": Text("deprecated", "已弃用"),
    "limit_chars": Text("length: {range}", "长度：{range}"),
    "limit_items": Text("items: {range}", "项数：{range}"),
    "limit_value": Text("{range}", "{range}"),
    "limit_between": Text("{low} to {high}", "{low} 至 {high}"),
    "limit_at_least": Text("at least {low}", "至少 {low}"),
    "limit_at_most": Text("at most {high}", "至多 {high}"),
    "limit_exactly": Text("exactly {low}", "恰好 {low}"),
    "limit_above": Text("more than {low}", "大于 {low}"),
    "limit_below": Text("less than {high}", "小于 {high}"),
    "limit_pattern": Text("pattern", "格式"),
    "limit_default": Text("default", "默认"),
}


class ErrorHelp(NamedTuple):
    """What a visitor with a browser should know and can do about an error."""

    about: tuple[Text, ...]
    steps: tuple[Text, ...]


ERROR_HELP: dict[str, ErrorHelp] = {
    "invalid-identifier": ErrorHelp(
        (),
        (
            Text("Correct the marked place and look it up again.", "改正标出的位置后重新查询。"),
            Text(
                "An identifier is a prefix, a slash and a suffix, e.g. 88.118.8/SN0001.",
                "标识由前缀、斜杠和后缀组成，例如 88.118.8/SN0001。",
            ),
        ),
    ),
    "identifier-not-found": ErrorHelp(
        (),
        (
            Text(
                "Check the spelling: 0 and O, 1 and l are easily mixed up.",
                "核对拼写：0 与 O、1 与 l 容易混淆。",
            ),
            Text(
                "If the code is printed on a product, ask its maker: it may not be registered yet.",
                "若编码印在产品上，请联系生产企业：它可能尚未注册。",
            ),
        ),
    ),
    "identifier-retired": ErrorHelp(
        (
            Text(
                "Its owner has withdrawn it. It stays reserved and will never name anything else.",
                "其所有者已将其注销。该标识永久保留，不会再分配给其他物品。",
            ),
        ),
        (Text("Ask the owner whether there is a successor.", "向其所有者询问是否有替代标识。"),),
    ),
    "prefix-not-here": ErrorHelp(
        (
            Text(
                "Another node is responsible for it, and the identifier may well exist there.",
                "该前缀由其他节点负责，标识可能已在那里注册。",
            ),
        ),
        (
            Text("Check the part before the slash.", "核对斜杠前的前缀是否正确。"),
            Text(
                "If it is right, ask the node that is responsible for the prefix.",
                "若前缀无误，向负责该前缀的节点查询。",
            ),
        ),
    ),
    "prefix-suspended": ErrorHelp(
        (
            Text(
                "Nothing under this prefix can be looked up for the time being. "
                "The records are kept.",
                "该前缀下的标识目前均无法查询，原有记录仍然保留。",
            ),
        ),
        (
            Text(
                "Ask the operator of this node or the owner of the prefix.",
                "联系本节点运营方或前缀所有者。",
            ),
        ),
    ),
    "temporarily-unavailable": ErrorHelp(
        (
            Text(
                "This does not mean that the identifier does not exist.",
                "这并不表示该标识不存在。",
            ),
        ),
        (),
    ),
    "not-found": ErrorHelp(
        (),
        (
            Text(
                "Check the address, or look an identifier up above.",
                "检查网址，或在上方查询标识。",
            ),
        ),
    ),
    "too-many-requests": ErrorHelp((), ()),
    "over-capacity": ErrorHelp((), ()),
    "deadline-exceeded": ErrorHelp((), ()),
}
"""By error code; the others show the error's own advice. Errors that may be retried also get
when to try again."""


def _say(pick: int, name: str, /, **fields: object) -> str:
    text = TEXTS[name][pick]
    return text.format(**fields) if fields else text


def translator(language: Language) -> Translator:
    """`t(name, **fields)`: the text of that name in one language; KeyError if there is none."""
    return partial(_say, 1 if language == "zh" else 0)


def pick(text: Text, language: Language) -> str:
    return text.zh if language == "zh" else text.en

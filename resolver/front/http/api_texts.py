"""Chinese for the words of the API description, beside the English ones. Pure data.

The description is made of English texts beside the routes and models they speak of. What is
not listed here appears in English; a unit test keeps the list complete.
"""

from __future__ import annotations

from biaojie.errors import Text

_TEXTS = (
    # The whole and its parts
    Text("biaojie identifier node", "biaojie 标识节点接口"),
    Text(
        "Registers and resolves industrial-internet identifiers such as `88.118.8/SN0001`. Errors "
        "are RFC 9457 problem documents with permanent codes.",
        "注册与解析工业互联网标识，例如 `88.118.8/SN0001`。"
        "错误以 RFC 9457 格式返回，错误代码永不改变。",
    ),
    Text("identifiers", "标识"),
    Text("ranges", "号段"),
    Text("prefixes", "前缀"),
    Text("keys", "密钥"),
    Text("changes", "变更日志"),
    Text("node", "节点"),
    Text("Resolve, register, change and retire identifiers.", "标识的解析、注册、变更与注销。"),
    Text(
        "Identifiers registered by rule, any number in one call.",
        "按规则注册的标识，一次调用可注册任意数量。",
    ),
    Text("Prefixes homed at this node.", "本节点托管的前缀。"),
    Text("API keys: who may do what.", "API 密钥与权限。"),
    Text("The hash-chained change log.", "哈希链式变更日志。"),
    Text("Health, metrics and this description.", "健康检查、监控指标与接口描述。"),
    # Operations
    Text("Resolve an identifier", "解析标识"),
    Text("Register an identifier or replace its values", "注册标识，或整体替换其值"),
    Text("Change some values, the status or the template", "修改部分值、状态或数据模板"),
    Text(
        "Retire an identifier for ever, or purge it (admin)", "永久注销标识，或彻底删除（管理员）"
    ),
    Text("Register a new identifier, or have one minted", "注册新标识，或由节点生成后缀"),
    Text("List the identifiers under a prefix", "列出前缀下的标识"),
    Text(
        "Register a range: any number of identifiers by one rule",
        "注册号段：按一条规则注册任意数量的标识",
    ),
    Text("List the ranges under a prefix", "列出前缀下的号段"),
    Text("Look at a range", "查看号段"),
    Text(
        "Retire a range or a part of it for ever, or purge it (admin)",
        "永久注销号段或其一部分，或彻底删除（管理员）",
    ),
    Text("Find identifiers by their values", "按值检索标识"),
    Text("Resolve up to 1,000 identifiers at once", "批量解析，一次至多 1,000 个"),
    Text(
        "Register, replace or retire up to 2,000 identifiers at once",
        "批量注册、替换或注销，一次至多 2,000 个",
    ),
    Text(
        "List prefixes (all for an admin, its tenant's for others)",
        "列出前缀（管理员可见全部，其他角色仅见所属租户）",
    ),
    Text(
        "Count identifiers by prefix, template, layer and status, and changes by day (all for an"
        " admin, its tenant's for others)",
        "按前缀、数据模板、存储层与状态统计标识，按日统计变更（管理员可见全部，其他角色仅见所属租户）",
    ),
    Text("Only of this prefix.", "仅统计该前缀。"),
    Text("How many days, today included.", "天数，含当日。"),
    Text("Changes, not identifiers.", "变更次数，而非标识数。"),
    Text("Those there are, retired ones included.", "现有标识数，含已注销。"),
    Text(
        "Answered requests to resolve; only for an admin, of all prefixes together.",
        "已应答的解析请求数；仅管理员可见，为全部前缀之和。",
    ),
    Text("How many templates, at most.", "最多列出多少个数据模板。"),
    Text(
        "By where they are kept: each in a row of its own, in a block with others, as members of a"
        " range.",
        "按存储方式：单独一行、与其他标识同在一个数据块、号段成员。",
    ),
    Text("By status.", "按状态。"),
    Text(
        "Those that most identifiers have; null for those without one.",
        "标识数最多的数据模板；null 表示未指定模板。",
    ),
    Text("Identifiers of all other templates together.", "其余数据模板的标识数之和。"),
    Text("In UTC.", "UTC 日期。"),
    Text(
        "What the change log says up to entry `sequence`, and what nodes have added. `layers`,"
        " `states` and `templates` are null where the log began before it told of them, until"
        " `biaojie stats --recount` has counted what there was.",
        "截至变更日志第 `sequence` 条的统计，以及各节点累计的解析数。"
        "若变更日志始于记录此类信息之前，则在运行 `biaojie stats --recount` 清点存量之前，"
        "`layers`、`states` 与 `templates` 为 null。",
    ),
    Text("The newest entry of the change log that is counted.", "已计入的最新变更序号。"),
    Text("Each of the days, the oldest first.", "逐日列出，最早的在前。"),
    Text(
        "By table, where the database knows it without reading them.",
        "按表统计（数据库无需读表即可得知时）。",
    ),
    Text(
        "On the database's disks, indexes included; only for an admin, of all prefixes together.",
        "数据库占用的磁盘字节数，含索引；仅管理员可见，为全部前缀之和。",
    ),
    Text("Cursor for more of `prefixes`.", "`prefixes` 后续页的游标。"),
    Text("Home a prefix at this node (admin)", "在本节点托管前缀（管理员）"),
    Text("Look at a prefix", "查看前缀"),
    Text(
        "Change a prefix's status, its tenant, or what is searchable (admin)",
        "修改前缀的状态、所属租户或可检索类型（管理员）",
    ),
    Text("List keys (admin)", "列出密钥（管理员）"),
    Text("Issue a key; its secret is shown once (admin)", "签发密钥，全文仅显示一次（管理员）"),
    Text("Revoke a key (admin)", "吊销密钥（管理员）"),
    Text("Read the change log, waiting for news if asked to", "读取变更日志，可等待新条目"),
    Text("This description", "接口描述（OpenAPI）"),
    Text("Is the process alive?", "进程是否存活"),
    Text("Should it get traffic?", "是否可以接收流量"),
    Text("Metrics in Prometheus text format", "Prometheus 文本格式的监控指标"),
    Text("imports", "批量导入"),
    Text("Files that are registered as a job.", "以任务方式登记的文件。"),
    Text("Upload a file of identifiers, to be registered as a job", "上传标识文件，作为任务登记"),
    Text("List imports, the latest first", "列出导入任务，最新的在前"),
    Text("How an import stands", "查看导入任务的进度"),
    Text(
        "Stop an import (what is registered stays), or remove one that has ended",
        "停止导入任务（已登记的保留），或删除已结束的任务",
    ),
    Text(
        "Every fault of every bad row: line, column, reason, and what to do",
        "每个错误行的每处错误：行、列、原因与处理办法",
    ),
    Text(
        "The bad rows as a file, to be corrected and uploaded again",
        "错误行文件，改正后可重新上传",
    ),
    Text("An empty file to fill in", "供填写的空白文件"),
    # Parameters
    Text(
        "Percent-encoded; the slash after the prefix may stay literal.",
        "百分号编码；前缀后的斜杠可以不编码。",
    ),
    Text("Percent-encoded.", "百分号编码。"),
    Text("Only values with these indexes, or …", "只返回这些索引的值，或 ……"),
    Text(
        '… of these types; "URL." means URL and all its subtypes.',
        "…… 这些类型的值；“URL.” 表示 URL 及其所有子类型。",
    ),
    Text("Authoritative: bypass every cache.", "权威查询：绕过所有缓存。"),
    Text(
        "For reads: ETags you hold. For writes: * to fail if it exists.",
        "读取时：已持有的 ETag。写入时：填 *，若标识已存在则失败。",
    ),
    Text("ETag the record must have, or * for any.", "记录当前必须具有的 ETag；* 表示任意版本。"),
    Text(
        "1 to 255 characters of your choice; the same key gets the same reply.",
        "自定的 1 至 255 个字符；同一幂等键得到同一回复。",
    ),
    Text("Remove for good instead of retiring (admin).", "彻底删除而非注销（管理员）。"),
    Text("`next` of the page before.", "上一页返回的 `next`。"),
    Text(
        "TYPE=DATA: the whole value, not a part of it. Given more than once, all must be values"
        " of the record.",
        "TYPE=DATA：完整的值，而非其一部分。给出多个时，记录须同时具有这些值。",
    ),
    Text("Sequence of the last entry you have.", "已有的最后一条日志的序号。"),
    Text("Seconds to wait for news (long poll).", "等待新条目的秒数（长轮询）。"),
    Text("Name of the file, for people.", "文件名，仅供人阅读。"),
    Text(
        "Left out, it is found by content type, name and content.",
        "省略时按内容类型、文件名与内容判断。",
    ),
    Text(
        "Of CSV and NDJSON, e.g. gb18030; UTF-8 if left out.",
        "CSV 与 NDJSON 的编码，例如 gb18030；省略时为 UTF-8。",
    ),
    Text(
        "`valid-rows` registers every good row; `all` nothing while any is bad.",
        "`valid-rows` 登记所有正确的行；`all` 在有任何错误行时不登记任何内容。",
    ),
    Text("Only find out what would happen.", "只检查，不写入。"),
    Text("Prefix of the new identifiers.", "新标识的前缀。"),
    Text(
        "Their suffix, a pattern of columns such as `SN-{serial}`. Left out, a column"
        " `identifier` holds whole identifiers.",
        "后缀，由列名组成的模式，例如 `SN-{serial}`。省略时由 `identifier` 列给出完整标识。",
    ),
    Text(
        "TITLE=TARGET, where the target is `identifier`, `status`, `template`, a"
        " value as `TYPE` or `TYPE[index]`, or `-` for nothing. Other columns hold a value of the"
        " type that is their title.",
        "列名=目标；目标为 `identifier`、`status`、`template`、值（`类型` 或 `类型[索引]`），"
        "或 `-` 表示忽略。其他列的列名即为值的类型。",
    ),
    Text(
        "Whether cells that begin with `=` are bad, or text.",
        "以 `=` 开头的单元格视为错误还是文本。",
    ),
    Text(
        "Types of the values, commas between, in the order of their columns.",
        "各值的类型，以逗号分隔，按列的顺序。",
    ),
    # Replies
    Text("Done.", "成功。"),
    Text("Created.", "已创建。"),
    Text("Not modified.", "未变化。"),
    Text(
        "`rows` = `good` + `failed`, as far as it has come; `written` is what is in the registry.",
        "`rows` = `good` + `failed`，为目前进度；`written` 为已写入注册库的行数。",
    ),
    Text("`bytes_done` of `bytes_total` belong to it.", "`bytes_done` 与 `bytes_total` 指该阶段。"),
    Text("How many faults have which code.", "各错误代码的错误数。"),
    Text(
        "Why a job failed. `fields` may name an `encoding` that fits, with a `sample` of the text.",
        "任务失败的原因。`fields` 可能给出合适的 `encoding` 以及文字 `sample`。",
    ),
    Text("Code of what it waits for to pass, or empty.", "正在等待其消除的错误代码，或为空。"),
    Text("Format of the error file; empty where there is none.", "错误文件的格式；没有时为空。"),
    Text("One fault of one row, with what to do about it.", "一行中的一处错误及处理办法。"),
    # Data types
    Text(
        "Mode `all` writes every row or none; `valid-rows` writes the good ones.",
        "`all` 模式要么全部写入、要么全不写入；`valid-rows` 模式写入正确的行。",
    ),
    Text("Identifier of the data template it follows.", "所遵循的数据模板的标识。"),
    Text(
        "Give `identifier`, or give `prefix` to have a suffix minted.",
        "给出 `identifier`；或只给出 `prefix`，由节点生成后缀。",
    ),
    Text(
        "Every identifier that `pattern` names is registered. In the data of values `{suffix}`,"
        " `{number}`, `{identifier}` and `{prefix}` stand for those of each one.",
        "注册 `pattern` 所指的全部标识。值的数据中，`{suffix}`、`{number}`、`{identifier}` 与 "
        "`{prefix}` 分别代表各标识自己的后缀、编号、完整标识与前缀。",
    ),
    Text(
        "One number between braces: FIRST..LAST, with a step as FIRST..LAST..STEP, with a check"
        " digit right after it as FIRST..LAST+luhn (or +mod11-10, +gs1).",
        "花括号内为一段编号：起..止；带步长为 起..止..步长；"
        "编号后紧跟校验位为 起..止+luhn（或 +mod11-10、+gs1）。",
    ),
    Text(
        "`pattern` is in its normal form; `count` includes members that were changed one by one.",
        "`pattern` 为规范形式；`count` 包括已单独变更的成员。",
    ),
    Text("What a minted suffix begins with.", "所生成后缀的开头。"),
    Text(
        "Value types by which identifiers can be found, in upper case.",
        "可用于检索标识的值类型，以大写表示。",
    ),
    Text(
        "`searchable` replaces the declared types as a whole; `[]` takes all of them back.",
        "`searchable` 整体替换已声明的类型；`[]` 表示全部取消。",
    ),
    Text("Not to be searched before this is false again.", "为 false 之前不可检索。"),
    Text(
        "`tenant` may be empty only for the role admin, which acts for every tenant.",
        "仅管理员角色的 `tenant` 可以为空，它可代表所有租户。",
    ),
    Text(
        "Of a run: the folded suffix of its last identifier.",
        "连续段：最后一个标识的后缀（大写归一形式）。",
    ),
    Text(
        "Of a run: how many identifiers it has. Of `fold`: the version of what lay beneath in a"
        " block.",
        "连续段：所含标识数量。`fold`：数据块中被覆盖成员的版本。",
    ),
    Text("The secret. It is shown this once and not kept.", "密钥全文。仅显示这一次，节点不保存。"),
    Text("Data that is not plain text.", "非纯文本的数据。"),
    Text(
        "Add or replace values by index, remove values by index, change status or template.",
        "按索引添加、替换或删除值，或修改状态、数据模板。",
    ),
    Text(
        "RFC 9457 problem details. `code` is permanent; see /api for all of them.",
        "RFC 9457 错误说明。`code` 永不改变，全部代码见本页末尾。",
    ),
    Text(
        "`sequence` is the change-log entry that wrote the state.",
        "`sequence` 是写入该状态的变更日志序号。",
    ),
    Text("`record`, or the error that stands in its place.", "`record`，或代替它的错误。"),
    Text(
        "A Handle value. UTF-8 data is plain text; other octets are base64 (or hex on input).",
        "Handle 值。UTF-8 数据为纯文本，其他字节为 base64（输入时也可用 hex）。",
    ),
    Text("Seconds, or the time at which the value expires.", "秒数，或该值的到期时间。"),
    Text(
        "Four digits: admin-read, admin-write, public-read, public-write."
        " Left out, secret types get 1100.",
        "四位数字，依次为：管理员可读、管理员可写、公众可读、公众可写。省略时，密钥类型为 1100。",
    ),
    Text("Set by the node; ignored on input.", "由节点设置，输入时忽略。"),
    Text(
        "`delegated` and `referred` prefixes live at another node: register its HS_SITE values"
        " under `0.NA/<prefix>`, and whoever asks here is sent there.",
        "`delegated` 与 `referred` 前缀由其他节点负责：请在 `0.NA/<前缀>` 下登记其 HS_SITE 值，"
        "查询者将被引导至该节点。",
    ),
    Text(
        "Handle identity that gets every right under the prefix, as HS_ADMIN of `0.NA/<prefix>`"
        " unless that exists.",
        "对该前缀拥有全部权限的 Handle 身份，写入 `0.NA/<前缀>` 的 HS_ADMIN（若该记录尚不存在）。",
    ),
)

CHINESE: dict[str, str] = {text.en: text.zh for text in _TEXTS}

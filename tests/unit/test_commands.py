"""Commands without a node: how arguments are read, what is printed, which exit code follows."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from biaojie.errors import ERRORS, BatchRejected, InvalidRecord, InvalidRequest, Unreachable
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Value
from registry.import_rows import Fault
from registry.imports import ImportProgress, ImportReport
from resolver.commands import client_commands, progress
from resolver.commands.options import KEY_FILE_DEFAULT
from resolver.commands.session import connect, exit_code, run
from resolver.commands.values import number, parse_value, read_record
from resolver.commands.wording import answer, chinese, error_text, safe

app = typer.Typer()
client_commands(app)
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No node, no key and no language but those that a test gives."""
    monkeypatch.chdir(tmp_path)
    for name in ("BIAOJIE_URL", "BIAOJIE_KEY", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


def call(*words: str, **environment: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words), env=environment)
    return done.exit_code, done.stdout, done.stderr


# Values and records ---------------------------------------------------------------------


def test_values_are_written_as_type_and_data_or_as_json() -> None:
    assert parse_value("URL=https://a.example/?b=c") == Value(0, "URL", b"https://a.example/?b=c")
    assert parse_value("7:名称=泵 A").text == "泵 A"
    assert (parse_value("7:a:b=").index, parse_value("7:a:b=").type) == (7, "a:b")
    assert parse_value("HS_SECKEY=s").permissions == Permissions(0x0C)
    assert parse_value('{"type": "x", "data": "y", "ttl": 5}') == Value(0, "x", b"y", ttl=5)
    assert parse_value("raw=\udcff").data == b"\xff", "octets come through as the shell gave them"


@pytest.mark.parametrize(
    "text", ["URL", "=x", "{", '{"data": 1, "type": "x"}', '{"permisions": 1}']
)
def test_a_word_that_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidRecord):
        parse_value(text)


def test_values_without_an_index_get_one() -> None:
    values = [parse_value(text) for text in ("2:a=1", "b=2", "c=3", "b=4")]
    assert [value.index for value in number(values)] == [2, 1, 3, 4]
    now = Record(
        Identifier("99.1", "x"),
        (Value(5, "b", b"old"), Value(1, "c", b"old"), Value(2, "c", b"old")),
    )
    # b is there once and is replaced; c is there twice, so a new one is added
    assert [value.index for value in number(values, now)] == [2, 5, 3, 4]


def test_what_resolve_prints_can_be_registered_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(
        '{"identifier": "99.1/x", "status": "draft", "template": null, "version": 3, "sequence": 9,'
        ' "created": "2026-01-01T00:00:00Z", "modified": "2026-01-01T00:00:00Z",'
        ' "values": [{"index": 4, "type": "URL", "data": "u"}]}'
    )
    given = read_record(file)
    assert (given.identifier, given.status, given.template) == ("99.1/x", "draft", None)
    assert [(value.index, value.text) for value in given.values] == [(4, "u")]
    file.write_text('[{"index": 1, "type": "URL", "data": "u"}]')
    assert read_record(file).identifier is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "\x00",
        '{"vaules": []}',
        '{"values": {}}',
        '{"status": 7}',
        '[{"index": 1, "type": "x", "data": "y", "permisions": "1100"}]',
        '"\xff',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRecord):
        read_record(file)


# Texts ----------------------------------------------------------------------------------


def test_an_answer_reads_like_digs() -> None:
    record = Record(
        Identifier("88.118.8", "泵/1"),
        (
            Value(1, "URL", b"https://a.example"),
            Value(300, "名称", "泵\x1b[31m\n".encode(), ttl=5),
            Value(301, "raw", b"\xff", ttl=0, ttl_absolute=True),
        ),
        version=3,
    )
    assert answer(record, "stale", ["stale", "age=4s"], 0.0123, "http://n").splitlines() == [
        "; 88.118.8/泵/1",
        ";; status: active, version: 3, source: stale, flags: stale age=4s",
        "",
        ";; ANSWER: 3",
        ";identifier    ttl                   index  type  perm  data",
        "88.118.8/泵/1  86400                 1      URL   1110  https://a.example",
        "88.118.8/泵/1  5                     300    名称  1110  泵\\x1b[31m\\n",
        "88.118.8/泵/1  1970-01-01T00:00:00Z  301    raw   1110  base64:/w==",
        "",
        ";; Query time: 12 ms",
        ";; Server: http://n",
    ]


def test_nothing_from_outside_can_steer_the_terminal() -> None:
    assert safe("\x1b]0;x\x07\u202e\ud800é泵") == "\\x1b]0;x\\x07\\u202e\\ud800é泵"


def test_errors_are_one_block_in_the_language_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = BatchRejected("Two rows.", "两行。", request_id="r1", rows=["a\x1b", {"row": 2}])
    assert error_text(error).splitlines() == [
        "biaojie: No row was written, because some are bad [batch-rejected]",
        "  Two rows.",
        "  - a\\x1b",
        '  - {"row": 2}',
        "  Correct the rows in `rows`, or use mode valid-rows.",
        "  request r1",
    ]
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert error_text(error).startswith(
        "biaojie: 存在错误行，整批未写入 [batch-rejected]\n  两行。"
    )
    assert json.loads(error_text(error, as_json=True))["code"] == "batch-rejected"


def test_the_language_is_that_of_the_locale() -> None:
    assert chinese({"LANG": "zh_CN.UTF-8"})
    assert not chinese({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"})
    assert not chinese({})


def test_every_error_has_an_exit_code() -> None:
    codes = {code: exit_code(kind()) for code, kind in ERRORS.items()}
    assert set(codes.values()) == {1, 2, 3}
    assert [codes[c] for c in ("identifier-not-found", "identifier-retired")] == [1, 1]
    assert [codes[c] for c in ("invalid-identifier", "invalid-file", "invalid-request")] == [2] * 3
    assert [codes[c] for c in ("temporarily-unavailable", "unreachable", "over-capacity")] == [
        3
    ] * 3


# Commands -------------------------------------------------------------------------------


def test_wrong_usage_and_unreachable_nodes_have_their_exit_codes(tmp_path: Path) -> None:
    for words in (
        ["resolve"],
        ["resolve", "x/y", "--index", "one"],
        ["resolve", "no slash", "--url", NOWHERE],
        ["resolve", "99.1/x", "--url", "ftp://x"],
        ["register", "--url", NOWHERE],
        ["register", "99.1/x", "no-equals-sign", "--url", NOWHERE],
        ["key", "issue", "--role", "boss", "--url", NOWHERE],
        ["import", "none.csv", "--prefix", "99.1", "--suffix", "{a}"],
        ["import", "none.csv", "--mode", "some"],
        ["import", "none.csv", "--status", "old"],
        ["export", "99.1", "--format", "xml"],
        ["resolve", "99.1/x", "--key-file", "none", "--url", NOWHERE],
    ):
        code, out, err = call(*words)
        assert (code, out) == (2, ""), words
        assert err.strip(), words
        assert "Traceback" not in err
    for words in (
        ["resolve", "99.1/x"],
        ["register", "99.1/x", "a=b"],
        ["modify", "99.1/x", "1:a=b"],
        ["retire", "99.1/x"],
        ["list", "99.1"],
        ["export", "99.1", "-o", "out.ndjson"],
        ["prefix", "list"],
        ["key", "list"],
        ["changes"],
    ):
        code, out, err = call(*words, "--url", NOWHERE, "--timeout", "0.2")
        assert (code, out) == (3, ""), (words, err)
        assert "127.0.0.1:1" in err
    assert list(tmp_path.iterdir()) == [], "an export that failed leaves no file"


def test_an_import_that_cannot_reach_its_node_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("identifier,a\n99.1/x,1\n")
    code, out, err = call("import", "p.csv", "--url", NOWHERE, LANG="zh_CN.UTF-8")
    assert (code, out) == (3, "")
    assert "无法连接节点" in err
    assert "重新运行同一命令即可继续" in err


def test_the_key_is_the_one_given_else_the_one_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(
        "biaojie.client.Client", lambda url, key, timeout_s, retries: used.append(key)
    )
    connect("http://n", None, None, 1)
    KEY_FILE_DEFAULT.parent.mkdir()
    KEY_FILE_DEFAULT.write_text("admin\n")
    mine = tmp_path / "mine"
    mine.write_text("file\n")
    connect("http://n", None, None, 1)
    connect("http://n", None, mine, 1)
    connect("http://n", "given", mine, 1)
    connect("http://n", None, None, 1, public=True)
    connect("http://n", None, mine, 1, public=True)
    assert used == [None, "admin", "file", "given", None, "file"]
    with pytest.raises(InvalidRequest, match="none"):
        connect("http://n", None, tmp_path / "none", 1)


def test_whatever_ends_a_command_it_ends_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ends(error: BaseException) -> int:
        async def work() -> None:
            raise error

        with pytest.raises(typer.Exit) as left:
            run(work)
        return int(left.value.exit_code)

    assert ends(KeyboardInterrupt()) == 130
    assert "Stopped." in capsys.readouterr().err
    assert ends(OSError(28, "No space left on device", "out.csv")) == 1
    assert capsys.readouterr().err == "biaojie: out.csv: No space left on device\n"
    assert ends(Unreachable("x")) == 3


def test_the_small_commands_are_quick() -> None:
    program = (
        "import typer, sys; from resolver.commands import client_commands;"
        "app = typer.Typer(); client_commands(app); sys.argv[1:] = ['version'];"
        "app(standalone_mode=False);"
        "print(sorted({'aiohttp', 'asyncio', 'rich', 'orjson'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
            timeout=30,
        )
        took.append(time.perf_counter() - begun)
    first, loaded = done.stdout.splitlines()
    assert first.startswith("biaojie 0.")
    assert loaded == "[]", "what is slow to import is imported when needed"
    assert min(took) < 2.0


# Progress -------------------------------------------------------------------------------


def report(**fields: object) -> ImportReport:
    usual = {
        "rows": 3,
        "good": 2,
        "failed": 1,
        "written": 2,
        "codes": {"identifier-taken": 1},
        "faults": (Fault(4, "na\x1bme", "identifier-taken", "Taken.", "已被注册。"),),
        "error_file": Path("p.errors.csv"),
        "dry_run": False,
        "resumed": False,
    }
    return ImportReport(**{**usual, **fields})  # type: ignore[arg-type]


def test_a_summary_says_what_was_done_and_where_the_bad_rows_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert progress.summary("p.csv", report()).splitlines() == [
        "p.csv: 3 rows, 2 registered, 1 bad",
        "  1 × identifier-taken",
        "  line 4, na\\x1bme: Taken.",
        "  All bad rows are in p.errors.csv: mend them there and import that file.",
    ]
    assert "2 would be registered" in progress.summary("p.csv", report(dry_run=True, written=0))
    assert "nothing was written" in progress.summary("p.csv", report(written=0))
    clean = report(failed=0, codes={}, faults=(), error_file=None)
    assert progress.summary("p.csv", clean) == "p.csv: 3 rows, 2 registered, 0 bad"
    monkeypatch.setenv("LC_ALL", "zh_CN")
    assert "第 4 行, na\\x1bme: 已被注册。" in progress.summary("p.csv", report())


def test_progress_is_a_bar_on_a_terminal_and_plain_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    half = ImportProgress(True, 50, 100, 1_500, 1_400, 100)
    monkeypatch.setenv("TERM", "xterm")
    for stream, shown in (
        (Terminal(), "50 %"),
        (io.StringIO(), "p.csv: 50 %, checking: 1,500 rows"),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
        with progress.Bar("p.csv") as bar:
            bar.show(half)
        assert shown in stream.getvalue()
        assert "checking: 1,500 rows, 100 bad" in stream.getvalue()

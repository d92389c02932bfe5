"""One exchange of the native protocol: deadline, safe retries, and what a reply amounts to.

Safe to repeat are look-ups, and writes because they carry an idempotency key; only those are
retried, and never past the deadline of the call. A connection that had been good and breaks
under a call says little about the node: such a call is tried once more at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Final, cast

from . import __version__
from .accept import api_key_of
from .errors import (
    BiaojieError,
    DeadlineExceeded,
    InvalidRequest,
    MalformedAnswer,
    TooLarge,
    Unreachable,
)
from .limits import FRAME_OCTETS_MAX
from .native_address import address_of
from .native_connection import (
    EXPIRED,
    Connection,
    Expired,
    Lost,
    Overflow,
    Parted,
    Refused,
    Reply,
)
from .native_connections import Connections
from .transport import Options
from .wire.native import (
    CONNECTION,
    VERSION,
    Hello,
    Kind,
    decode_error,
    encode_frame,
    encode_request,
)
from .wire.native.answers import NOTHING
from .wire.native.frames import REQUEST_OCTETS_MAX

log = logging.getLogger("biaojie.client")
AGENT: Final = f"biaojie-client/{__version__}"
_HEAD_OCTETS: Final = 5
_SURE_OCTETS: Final = 4_096
"""A body of so many octets is not too long for any node."""
_WAIT_MAX_S: Final = 1e9


class NativeExchange:
    """Calls to one address, `biaojie://…` or `biaojie+unix://…`."""

    def __init__(self, url: str, options: Options) -> None:
        self._address = address_of(url)
        self._options = options
        if options.tls is not None:
            raise InvalidRequest(
                "tls is for https://; the native protocol has no TLS of its own.",
                "tls 仅用于 https://；原生协议本身不含 TLS。",
            )
        if options.key is not None:
            api_key_of(options.key)
        self._pool: Connections | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def address(self) -> str:
        return str(self._address)

    async def close(self) -> None:
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def _begin(self) -> Connections:
        if self._pool is None:
            if self._closed:
                raise RuntimeError("The client is closed. 客户端已关闭。")
            options = self._options
            self._loop = asyncio.get_running_loop()
            kind, hello = encode_request(Hello(VERSION, VERSION, options.key, AGENT))
            self._pool = Connections(
                self._address,
                encode_frame(CONNECTION, kind, hello),
                most=options.connections_max,
                connect_timeout_s=options.connect_timeout_s,
                idle_s=options.idle_s,
                octets_max=min(options.reply_octets_max, FRAME_OCTETS_MAX),
            )
        elif self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "A Client belongs to the event loop that first used it. "
                "Client 只能在首次使用它的事件循环中使用。"
            )
        return self._pool

    # Calls ------------------------------------------------------------------------------

    def call(
        self, kind: Kind, body: bytes, timeout_s: float, *, again: bool = True
    ) -> Coroutine[Any, Any, bytes]:
        """The body of the answer. Raises what the node answered, Unreachable, DeadlineExceeded,
        MalformedAnswer, and TooLarge before anything is sent."""
        got = self._send(kind, body, timeout_s, again=again, parted=False)
        return cast(Coroutine[Any, Any, bytes], got)

    def gather(self, kind: Kind, body: bytes, timeout_s: float) -> Coroutine[Any, Any, Parted]:
        """As `call`, where the answer comes in parts."""
        got = self._send(kind, body, timeout_s, again=True, parted=True)
        return cast(Coroutine[Any, Any, Parted], got)

    async def _send(
        self, kind: Kind, body: bytes, timeout_s: float, *, again: bool, parted: bool
    ) -> bytes | Parted:
        pool = self._begin()
        now = pool.loop.time()
        deadline = now + timeout_s
        failures = 0
        spare = again
        while True:
            got: Connection | Reply | None = pool.take()
            if got is None:
                got = await pool.wait(deadline)
                now = pool.loop.time()
            if isinstance(got, Connection):
                if len(body) > _SURE_OCTETS:
                    try:
                        _check_size(kind, body, pool.limits or {})
                    except TooLarge:
                        pool.pass_on()
                        raise
                pool.due(deadline)
                if parted:
                    most = self._options.reply_octets_max
                    got = await got.gather(kind, body, deadline, now, most)
                else:
                    got = await got.ask(kind, body, deadline, now)
                if isinstance(got, bytes | Parted):
                    return got
            self._begin()  # raises where the client was closed meanwhile
            if spare and isinstance(got, Lost) and got.reused:
                spare = False
            else:
                failures += 1
                await self.pause(got, failures, timeout_s, deadline if again else now)
            now = pool.loop.time()

    async def pause(self, reply: Reply, failures: int, timeout_s: float, deadline: float) -> None:
        """Wait before the next attempt; raises what the reply amounts to if there is none."""
        error = self.error_of(reply, timeout_s)
        backoff = self._options.backoff
        delay_s = backoff.delay_s(failures, _retry_after_s(error))
        late = asyncio.get_running_loop().time() + delay_s >= deadline
        if reply is EXPIRED or not error.retryable or failures > backoff.retries or late:
            raise error
        log.debug("%s, attempt %d follows in %.2f s", error.code, failures + 1, delay_s)
        await asyncio.sleep(delay_s)

    def error_of(self, reply: Reply, timeout_s: float) -> BiaojieError:
        """What a reply amounts to that is no answer."""
        match reply:
            case Expired():
                return DeadlineExceeded(
                    f"{self.address} did not answer within {timeout_s:.3g} s.",
                    f"{self.address} 未在 {timeout_s:.3g} 秒内答复。",
                )
            case Lost(error=BiaojieError() as said):
                # What one caller's copy is told later is no other caller's affair.
                fields = dict(said.fields)
                return type(said)(*said.detail, request_id=said.request_id, **fields)
            case Lost(en, zh):
                return Unreachable(f"{self.address}: {en}.", f"{self.address}：{zh}。")
            case Refused(body):
                return decode_error(body)
            case Overflow():
                most = self._options.reply_octets_max
                return MalformedAnswer(
                    f"The answer has over {most} octets.", f"返回内容超过 {most} 字节。"
                )
            case _:
                return MalformedAnswer(
                    "The answer is of a kind that does not belong to the request.",
                    "返回的帧类型与请求不符。",
                )

    # Connections ------------------------------------------------------------------------

    async def limits(self, timeout_s: float) -> Mapping[str, int]:
        """What the node said of itself; asks it where nothing was said yet."""
        pool = self._begin()
        if pool.limits is None:
            await self.call(Kind.PING, NOTHING, timeout_s)
        return pool.limits or {}

    async def lease(self) -> Connection | Lost | None:
        """A connection for one caller alone, who closes it; None: none is to be had."""
        return await self._begin().lease()


def _check_size(kind: Kind, body: bytes, limits: Mapping[str, int]) -> None:
    most = min(REQUEST_OCTETS_MAX[kind], limits.get("frame_octets_max", FRAME_OCTETS_MAX))
    if len(body) + _HEAD_OCTETS > most:
        raise TooLarge(
            f"The request has {len(body) + _HEAD_OCTETS} octets; the node takes {most}.",
            f"请求长 {len(body) + _HEAD_OCTETS} 字节；节点上限为 {most}。",
            octets_max=most,
        )


def _retry_after_s(error: BiaojieError) -> float | None:
    """Seconds; also put right in the error, since callers read it there."""
    wait = error.fields.get("retry_after_s")
    if wait is None:
        return None
    fields = {name: given for name, given in error.fields.items() if name != "retry_after_s"}
    if isinstance(wait, int | float) and not isinstance(wait, bool) and 0 <= wait < _WAIT_MAX_S:
        error.fields = {**fields, "retry_after_s": float(wait)}
        return float(wait)
    error.fields = fields
    return None

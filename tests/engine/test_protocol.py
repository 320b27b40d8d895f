"""Framing, limits and shapes of messages."""

import asyncio
import struct
from dataclasses import asdict

import msgpack
import pytest

from keyturn.engine.wire import protocol
from keyturn.engine.wire.config import Completion, CompletionParams, EngineConfig
from keyturn.engine.wire.errors import BadRequest, HostUnavailable, ModelNotFound
from keyturn.server.settings import Settings


def read(data: bytes, max_bytes=protocol.MAX_MESSAGE_BYTES):
    async def run():
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await protocol.read_message(reader, max_bytes)

    return asyncio.run(run())


@pytest.mark.parametrize("text", ["", "a", "é\u2028\f\r\n", "\U0001f600", "\ud800", "\udc00\ud800"])
def test_text_survives_the_wire(text):
    message = protocol.request(3, "replace", {"doc": text, "version": 2**40, "text": text})
    data = protocol.pack(message)
    assert read(data) == (message, len(data) - 4)


@pytest.mark.parametrize(
    "body", [b"\xc1", b"\xa5ab", b"\x81\xa1a", b"\x93\x01\x02\x03", b"\5", b""]
)
def test_message_is_refused_when_it_is_no_map(body):
    with pytest.raises(BadRequest):
        read(struct.pack(">I", len(body)) + body)


def test_message_is_refused_when_nested_too_deep():
    body = b"\x91" * 100_000 + b"\x01"
    with pytest.raises(BadRequest):
        read(struct.pack(">I", len(body)) + body)


def test_message_is_refused_before_it_is_read_when_too_long():
    with pytest.raises(BadRequest, match="exceeds"):
        read(struct.pack(">I", 101) + b"x", max_bytes=100)
    with pytest.raises(BadRequest, match="too large"):
        protocol.pack({"text": "x" * protocol.MAX_MESSAGE_BYTES})


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\x09", b"\0\0\0\x09abc"])
def test_half_a_message_is_the_end_of_the_stream(data):
    assert read(data) is None


@pytest.mark.parametrize(
    "message, what",
    [
        ({}, "id"),
        ({"id": "1", "method": "status", "params": {}}, "id"),
        ({"id": True, "method": "status", "params": {}}, "id"),
        ({"id": 1, "method": "fly", "params": {}}, "fly"),
        ({"id": 1, "method": ["x"], "params": {}}, "unknown method"),
        ({"id": 1, "method": "status"}, "params"),
        ({"id": 1, "method": "load", "params": {}}, "load.model"),
        ({"id": 1, "method": "focus", "params": {"doc": "a", "visible": 1}}, "focus.visible"),
        (
            {
                "id": 1,
                "method": "edit",
                "params": {"doc": "a", "base": 1, "version": 2, "edits": [[0, 1.5, ""]]},
            },
            "1.5",
        ),
        (
            {"id": 1, "method": "others", "params": {"doc": "a", "others": [["b.py"]]}},
            "b.py",
        ),
    ],
)
def test_request_is_refused_with_the_bad_value(message, what):
    with pytest.raises(BadRequest, match=what):
        protocol.parse_request(message)


def test_errors_keep_their_kind_over_the_wire():
    message = protocol.reply(1, ModelNotFound("no such model"))
    error = protocol.error_of(msgpack.unpackb(msgpack.packb(message)))
    assert type(error) is ModelNotFound and str(error) == "no such model"
    assert protocol.error_of(protocol.reply(1, {"a": 1})) is None


def test_dataclasses_survive_the_wire_and_are_checked():
    params = CompletionParams(8, 0.5, 1.0, 0, ("\n",), 100.0)
    plain = msgpack.unpackb(msgpack.packb(asdict(params)))
    assert protocol.from_plain(CompletionParams, plain) == params
    assert protocol.from_plain(CompletionParams, {**plain, "temperature": 1}).temperature == 1.0
    completion = Completion("x", (1, 2), 3, 4, 5.0, 6.0, 7, "end", (0.5, 1.0))
    assert protocol.from_plain(Completion, asdict(completion)) == completion
    for bad in (
        {**plain, "max_tokens": "8"},
        {**plain, "max_tokens": True},
        {**plain, "stop": [1]},
        {**plain, "extra": 1},
        {"max_tokens": 8},
    ):
        with pytest.raises(BadRequest, match="CompletionParams"):
            protocol.from_plain(CompletionParams, bad)


def test_code_of_an_unknown_error_is_still_an_error():
    error = protocol.error_of({"id": 1, "error": {"code": "from-the-future", "message": "m"}})
    assert str(error) == "m" and not isinstance(error, HostUnavailable)


@pytest.mark.parametrize("quant", [None, "b4"])
def test_engine_config_survives_the_way_to_the_host(quant):
    config = Settings(quant=quant).engine_config()
    assert protocol.from_plain(EngineConfig, asdict(config)) == config

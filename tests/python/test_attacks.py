"""Attacks a running daemon and holds it to its promises: whoever floods loses the connection,
nobody else notices, and nothing is left behind.

HEARTH_SOCKET names the socket of a daemon with the tests' tiny model (run.sh starts one).
With --measure each attack takes turns with quiet, so that the neighbour's times in the one and in
the other can be compared on a machine that has other work too; no test depends on time.
"""

import multiprocessing
import os
import sys
import time
import unittest
from pathlib import Path

import attacks

FRAMES = 20_000
# Turns of quiet and attack, and how long each is: the attack goes on, a connection after the other.
TURNS, TURN_S = 6, 0.5
MEASURE = "--measure" in sys.argv
# What the allocator may keep of memory that was used once.
RSS_SLACK_BYTES = 24 << 20
SETTLE_S = 120.0


def neighbour(path, stop, pipe):
    """Calls the daemon every few milliseconds until told to stop; sends (start, seconds, error)."""
    import grpc
    from hearth.v1 import inference_pb2, inference_pb2_grpc

    options = [("grpc.default_authority", "localhost")]
    calls = []
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = inference_pb2.TokenizeRequest(text="hello world, hello neighbours")
        while not stop.is_set():
            start, error = time.monotonic(), None
            try:
                stub.Tokenize(request, timeout=SETTLE_S)
            except grpc.RpcError as failure:
                error = f"{failure.code()}: {failure.details()}"
            calls.append((start, time.monotonic() - start, error))
            time.sleep(0.002)
    pipe.send(calls)


def p99(times):
    """Returns the 99th percentile, in milliseconds."""
    return sorted(times)[int(len(times) * 0.99)] * 1000


class Daemon:
    """The daemon, seen from outside."""

    def __init__(self, path):
        import grpc
        from hearth.v1 import daemon_pb2, daemon_pb2_grpc

        options = [("grpc.default_authority", "localhost")]
        self.channel = grpc.insecure_channel(f"unix:{path}", options=options)
        self.stub = daemon_pb2_grpc.DaemonStub(self.channel)
        self.ask = daemon_pb2.GetStatusRequest()

    def status(self):
        return self.stub.GetStatus(self.ask, timeout=SETTLE_S, wait_for_ready=True).status

    def descriptors(self):
        """Returns how many files it has open, where the system tells."""
        folder = Path(f"/proc/{self.status().pid}/fd")
        return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0

    def wait(self, what, found, wanted):
        """Waits until `found()` is `wanted`; AssertionError if it does not become so."""
        end = time.monotonic() + SETTLE_S
        while (now := found()) != wanted:
            if time.monotonic() > end:
                raise AssertionError(f"{what}: {now}, and not {wanted}")
            time.sleep(0.05)


class Attacks(unittest.TestCase):
    """All attacks one after the other, beside one neighbour."""

    @classmethod
    def setUpClass(cls):
        cls.path = os.environ.get("HEARTH_SOCKET") or sys.exit("HEARTH_SOCKET is not set")
        cls.daemon = Daemon(cls.path)
        cls.addClassCleanup(cls.daemon.channel.close)
        cls.daemon.wait("a warm model", lambda: cls.daemon.status().HasField("model"), True)
        # The neighbour is a process of its own: threads of one would wait for each other.
        context = multiprocessing.get_context("spawn")
        cls.stop = context.Event()
        receiver, sender = context.Pipe(duplex=False)
        args = (cls.path, cls.stop, sender)
        cls.process = context.Process(target=neighbour, args=args, daemon=True)
        cls.process.start()
        sender.close()
        cls.receiver = receiver

    def test_attacks(self):
        daemon = self.daemon
        # This connection and the neighbour's.
        daemon.wait("connections before", lambda: daemon.status().connections, 2)
        daemon.wait("a warm model", lambda: daemon.status().HasField("model"), True)
        before, descriptors = daemon.status(), daemon.descriptors()
        windows = {}
        for name, variants in attacks.ATTACKS.items():
            quiet, attacked = windows.setdefault(name, ([], []))
            for turn in range(TURNS if MEASURE else 1):
                begun = time.monotonic()
                time.sleep(TURN_S if MEASURE else 0.1)
                quiet.append((begun, time.monotonic()))
                for variant in variants:
                    with self.subTest(attack=name, variant=label(variant)):
                        self.attack(name, variant, turn, TURN_S / len(variants) if MEASURE else 0)
                attacked.append((quiet[-1][1], time.monotonic()))
        daemon.wait("connections after", lambda: daemon.status().connections, before.connections)
        daemon.wait("descriptors after", daemon.descriptors, descriptors)
        daemon.wait("sequences after", lambda: daemon.status().queue.active, 0)
        daemon.wait("requests after", lambda: daemon.status().queue.waiting, 0)
        self.assertEqual(daemon.status().state, before.state)
        grown = daemon.status().rss_bytes - before.rss_bytes
        print(f"memory before {before.rss_bytes >> 20} MiB, after {grown / 2**20:+.1f} MiB")
        self.assertLess(grown, RSS_SLACK_BYTES)
        self.check_neighbour(windows)

    def attack(self, name, variant, turn, seconds):
        """Attacks for so long, and once at least."""
        begun, attacked = time.monotonic(), False
        while not attacked or time.monotonic() - begun < seconds:
            outcome = variant(self.path, FRAMES)
            self.assertTrue(outcome.closed, outcome)
            self.assertNotEqual(outcome.reason, "", "it was closed without a word")
            self.assertLess(outcome.sent, FRAMES, outcome)
            if not attacked and turn == 0:
                print(f"{name} ({label(variant)}): closed after {outcome.sent} frames, {outcome.reason}")
            attacked = True

    def check_neighbour(self, windows):
        """Stops the neighbour and looks at what it saw."""
        self.stop.set()
        self.assertTrue(self.receiver.poll(SETTLE_S), "the neighbour hangs")
        calls = self.receiver.recv()
        self.process.join(SETTLE_S)
        self.assertEqual([error for _, _, error in calls if error], [])
        self.assertGreater(len(calls), 100)
        if not MEASURE:
            return
        print(f"{'neighbour':20}{'calls':>6}{'p50 ms':>8}{'p99 ms':>8}  in quiet{'calls':>6}{'p99 ms':>8}{'ratio':>7}")
        for name, turns in windows.items():
            quiet, attacked = (times_within(calls, turn) for turn in turns)
            half = sorted(attacked)[len(attacked) // 2] * 1000
            print(
                f"{name:20}{len(attacked):6}{half:8.2f}{p99(attacked):8.2f}  "
                f"in quiet{len(quiet):6}{p99(quiet):8.2f}{p99(attacked) / p99(quiet):7.2f}"
            )


def times_within(calls, windows):
    """Returns how long those calls took that overlap one of the windows."""
    return [
        took
        for start, took, _ in calls
        if any(start < end and start + took > begin for begin, end in windows)
    ]


def label(variant):
    """Returns a variant's name."""
    keywords = getattr(variant, "keywords", None)
    return keywords["fault"] if keywords else variant.__name__.replace("_", " ")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    unittest.main(argv=[argument for argument in sys.argv if argument != "--measure"])

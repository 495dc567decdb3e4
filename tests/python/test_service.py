"""Talks to a running daemon as any Python program would: grpcio over the Unix socket.

One job: the contract seen from another language. The stubs come from proto/ (run.sh
makes them); HEARTH_SOCKET names the socket. It knows nothing of the daemon's inside,
and of right answers only what tests/oracle holds.
"""

import json
import os
import sys
import threading
import time
import unittest
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

try:
    from hearth.v1 import daemon_pb2, daemon_pb2_grpc, inference_pb2, inference_pb2_grpc
    from hearth.v1 import models_pb2, models_pb2_grpc, types_pb2
except ModuleNotFoundError as error:
    sys.exit(f"{error}: make the stubs from proto/ first (tests/python/run.sh does)")

ORACLE = Path(__file__).resolve().parents[1] / "oracle"
WARM_TIMEOUT_S = float(os.environ.get("HEARTH_WARM_TIMEOUT_S", "180"))
CALL_TIMEOUT_S = 120.0
# Generous bounds: a software adapter that shares two cores takes a second for a slow step.
STOP_TIMEOUT_S = 15.0
INFERENCE = "hearth.v1.Inference"
SERVICES = {INFERENCE, "hearth.v1.Models", "hearth.v1.Daemon", "grpc.health.v1.Health"}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def oracle(name):
    """Returns a fixture of tests/oracle."""
    return json.loads((ORACLE / name).read_text(encoding="utf-8"))


def socket_address():
    """Returns the target for grpcio, or ends with what is wrong."""
    path = os.environ.get("HEARTH_SOCKET")
    if not path:
        sys.exit("HEARTH_SOCKET is not set: it names the daemon's socket")
    if not Path(path).is_socket():
        sys.exit(f"HEARTH_SOCKET={path}: there is no socket")
    return f"unix:{path}"


def wait_until(condition, timeout_s, what):
    """Waits for the condition to hold; AssertionError with `what` if it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"after {timeout_s} s: {what}")
        time.sleep(0.05)


def details_of(error):
    """Returns the google.rpc details of a failed call, by type name; the last one of each."""
    status = rpc_status.from_call(error)
    if status is None:
        raise AssertionError(f"{error.code()} carries no google.rpc.Status: {error.details()}")
    found = {}
    for detail in status.details:
        for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
            message = getattr(error_details_pb2, kind)()
            if detail.Unpack(message):
                found[kind] = message
    return found


def greedy(**fields):
    """Returns options for the most likely token each time."""
    return types_pb2.GenerationOptions(sampling=types_pb2.SamplingParams(temperature=0), **fields)


class ServiceTest(unittest.TestCase):
    """One channel to the daemon, with a warm model before each test."""

    @classmethod
    def setUpClass(cls):
        cls.channel = grpc.insecure_channel(
            socket_address(),
            options=[
                ("grpc.max_receive_message_length", 16 << 20),
                # Otherwise grpcio sends the socket's path as the authority, which is no valid one.
                ("grpc.default_authority", "localhost"),
            ],
        )
        cls.addClassCleanup(cls.channel.close)
        cls.health = health_pb2_grpc.HealthStub(cls.channel)
        cls.inference = inference_pb2_grpc.InferenceStub(cls.channel)
        cls.models = models_pb2_grpc.ModelsStub(cls.channel)
        cls.daemon = daemon_pb2_grpc.DaemonStub(cls.channel)

    def setUp(self):
        self.wait_for_health(SERVING, WARM_TIMEOUT_S)

    def wait_for_health(self, wanted, timeout_s):
        """Waits with Watch until the inference service is as wanted."""
        request = health_pb2.HealthCheckRequest(service=INFERENCE)
        call = self.health.Watch(request, timeout=timeout_s, wait_for_ready=True)
        try:
            for answer in call:
                if answer.status == wanted:
                    return
        except grpc.RpcError as error:
            self.fail(f"health did not become {wanted} ({error.code()}); {self.status_line()}")
        finally:
            call.cancel()
        self.fail(f"the health watch ended before it said {wanted}")

    def status(self):
        """Returns the daemon's status."""
        return self.daemon.GetStatus(daemon_pb2.GetStatusRequest(), timeout=10).status

    def status_line(self):
        """Returns why the daemon is where it is, for a message."""
        status = self.status()
        state = daemon_pb2.LifecycleState.Name(status.state)
        return f"the daemon is {state}: {status.reason or 'no reason given'}"

    def events(self, call):
        """Returns a whole stream's events; fails unless `end` comes last and once."""
        events = [answer.event for answer in call]
        kinds = [event.WhichOneof("event") for event in events]
        self.assertEqual(kinds.count("end"), 1, kinds)
        self.assertEqual(kinds[-1], "end", kinds)
        order = {"queued": 0, "loading": 0, "prefill": 1, "echo": 1, "delta": 2, "end": 3}
        places = [order[kind] for kind in kinds if kind in order]
        self.assertEqual(places, sorted(places), kinds)
        return events

    def refused(self, code, call):
        """Runs a call that must fail with `code`; returns the error's details."""
        with self.assertRaises(grpc.RpcError) as caught:
            result = call()
            if isinstance(result, grpc.Call) and hasattr(result, "__iter__"):
                list(result)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        details = details_of(caught.exception)
        self.assertEqual(details["ErrorInfo"].domain, "hearth.v1")
        return details

    def long_generation(self, **fields):
        """Starts a generation that runs until something stops it."""
        options = greedy(max_tokens=4000, ignore_eos=True, **fields)
        request = inference_pb2.GenerateRequest(prompt="Once upon a time", options=options)
        return request

    def assert_idle_soon(self):
        """Fails unless the engine is idle soon and generates nothing from then on."""
        wait_until(lambda: self.status().queue.active == 0, STOP_TIMEOUT_S, "the engine still runs")
        before = self.status().counters
        time.sleep(1.0)
        after = self.status().counters
        self.assertEqual((after.generated_tokens, after.steps), (before.generated_tokens, before.steps))


class Health(ServiceTest):
    def test_check(self):
        for service in ("", INFERENCE):
            answer = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            self.assertEqual(answer.status, SERVING, service)
        with self.assertRaises(grpc.RpcError) as caught:
            self.health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_watch_follows_unload_and_load(self):
        seen = []
        request = health_pb2.HealthCheckRequest(service=INFERENCE)
        watch = self.health.Watch(request, timeout=2 * WARM_TIMEOUT_S)

        def follow():
            try:
                for answer in watch:
                    seen.append(answer.status)
            except grpc.RpcError:
                pass  # cancelled below

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        wait_until(lambda: seen == [SERVING], 10, f"watch said {seen}")
        self.models.Unload(models_pb2.UnloadRequest(), timeout=30)
        wait_until(lambda: seen == [SERVING, NOT_SERVING], 10, f"watch said {seen}")
        details = self.refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            lambda: self.inference.Generate(
                inference_pb2.GenerateRequest(prompt="Hi", options=greedy(max_tokens=1)), timeout=30
            ),
        )
        self.assertEqual(details["ErrorInfo"].reason, "NO_MODEL")
        events = list(self.models.Load(models_pb2.LoadRequest(), timeout=WARM_TIMEOUT_S))
        self.assertEqual(events[-1].WhichOneof("event"), "model")
        wait_until(lambda: seen and seen[-1] == SERVING, 10, f"watch said {seen}")
        watch.cancel()
        follower.join(timeout=10)
        self.assertFalse(follower.is_alive())


class Reflection(ServiceTest):
    def ask(self, **fields):
        """Returns the one answer to one question. grpcio ships stubs of v1alpha; v1's messages
        are the same on the wire, so only the method's name is given here."""
        call = self.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers = list(call(iter([reflection_pb2.ServerReflectionRequest(**fields)]), timeout=10))
        self.assertEqual(len(answers), 1)
        return answers[0]

    def test_lists_the_services(self):
        answer = self.ask(list_services="")
        names = {service.name for service in answer.list_services_response.service}
        self.assertLessEqual(SERVICES, names)

    def test_describes_them_as_the_contract_does(self):
        from google.protobuf import descriptor_pb2

        answer = self.ask(file_containing_symbol=INFERENCE)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in answer.file_descriptor_response.file_descriptor_proto
        ]
        theirs = {
            method.name: (method.input_type, method.output_type, method.server_streaming)
            for file in files
            for service in file.service
            if service.name == "Inference"
            for method in service.method
        }
        ours = {
            method.name: (f".{method.input_type.full_name}", f".{method.output_type.full_name}", method.server_streaming)
            for method in inference_pb2.DESCRIPTOR.services_by_name["Inference"].methods
        }
        self.assertEqual(theirs, ours)
        with self.assertRaises(grpc.RpcError) as refused:
            self.ask(file_containing_symbol="no.such.Symbol")
        self.assertEqual(refused.exception.code(), grpc.StatusCode.NOT_FOUND)


class Streams(ServiceTest):
    def test_chat_answers_a_question_of_fact(self):
        question = types_pb2.ChatMessage(role=types_pb2.ROLE_USER, content="What is the capital of France?")
        request = inference_pb2.ChatRequest(messages=[question], options=greedy(max_tokens=24))
        events = self.events(self.inference.Chat(request, timeout=CALL_TIMEOUT_S))
        text = "".join(event.delta.text for event in events if event.WhichOneof("event") == "delta")
        end = events[-1].end
        self.assertIn("Paris", text)
        self.assertNotIn("<|im_end|>", text)
        self.assertEqual(end.finish_reason, types_pb2.FINISH_REASON_EOS)
        self.assertEqual(end.prompt_tokens, len(oracle("logprobs.json")["greedy"][0]["prompt_ids"]))
        self.assertGreater(end.generated_tokens, 0)
        self.assertTrue(end.model)
        self.assertGreater(sum(1 for event in events if event.WhichOneof("event") == "delta"), 1)

    def test_generate_from_tokens(self):
        expected = oracle("logprobs.json")["greedy"][0]
        request = inference_pb2.GenerateRequest(
            tokens=inference_pb2.TokenIds(ids=expected["prompt_ids"]), options=greedy(max_tokens=5)
        )
        events = self.events(self.inference.Generate(request, timeout=CALL_TIMEOUT_S))
        tokens = [token.id for event in events for token in event.delta.tokens]
        self.assertEqual(tokens, expected["ids"][:5])
        self.assertEqual(events[-1].end.finish_reason, types_pb2.FINISH_REASON_LENGTH)
        self.assertEqual(events[-1].end.generated_tokens, 5)

    def test_echo_scores_a_text(self):
        expected = next(text for text in oracle("logprobs.json")["texts"] if text["name"] == "chat_fact")
        request = inference_pb2.GenerateRequest(
            tokens=inference_pb2.TokenIds(ids=expected["ids"]),
            options=types_pb2.GenerationOptions(max_tokens=0, echo=True, logprobs=0),
        )
        events = self.events(self.inference.Generate(request, timeout=CALL_TIMEOUT_S))
        tokens = [token for event in events for token in event.echo.tokens]
        self.assertEqual([token.id for token in tokens], expected["ids"])
        self.assertFalse(tokens[0].HasField("logprob"))
        deltas = [abs(t.logprob - e) for t, e in zip(tokens[1:], expected["logprobs"], strict=True)]
        # Twice what int8 activations do to this text (tests/oracle/README.md).
        self.assertLess(sum(deltas) / len(deltas), 0.14)

    def test_two_streams_at_once(self):
        request = inference_pb2.GenerateRequest(prompt="One, two,", options=greedy(max_tokens=8, ignore_eos=True))
        calls = [self.inference.Generate(request, timeout=CALL_TIMEOUT_S) for _ in range(2)]
        texts = []
        for call in calls:
            events = self.events(call)
            self.assertEqual(events[-1].end.generated_tokens, 8)
            texts.append("".join(event.delta.text for event in events))
        self.assertEqual(texts[0], texts[1])

    def test_watch_status(self):
        call = self.daemon.WatchStatus(daemon_pb2.WatchStatusRequest(), timeout=30)
        first = next(iter(call)).status
        call.cancel()
        self.assertEqual(first.state, daemon_pb2.LIFECYCLE_STATE_READY)
        self.assertTrue(first.adapter.name)
        self.assertIn(first.activations, (daemon_pb2.ACTIVATIONS_FLOAT, daemon_pb2.ACTIVATIONS_INT8))
        if first.adapter.software:
            self.assertTrue(first.warnings)


class Tokens(ServiceTest):
    def test_tokenize_as_the_reference_does(self):
        entries = [e for e in oracle("tokens.json")["encode"] if 0 < len(e["ids"])][::9]
        self.assertGreater(len(entries), 40)
        for entry in entries:
            request = inference_pb2.TokenizeRequest(
                text=entry["text"],
                special_tokens=inference_pb2.SpecialTokens(add=False, parse=entry["parse_special"]),
            )
            answer = self.inference.Tokenize(request, timeout=10)
            self.assertEqual(list(answer.ids), entry["ids"], repr(entry["text"]))

    def test_detokenize_and_count(self):
        ids = oracle("logprobs.json")["texts"][0]["ids"]
        text = oracle("logprobs.json")["texts"][0]["text"]
        answer = self.inference.Detokenize(inference_pb2.DetokenizeRequest(ids=ids), timeout=10)
        self.assertEqual(answer.text, text)
        count = self.inference.CountTokens(inference_pb2.CountTokensRequest(text=text), timeout=10)
        self.assertEqual(count.tokens, len(ids))
        self.assertGreater(count.context_len, 0)


class Cancelling(ServiceTest):
    def test_cancel_stops_the_engine(self):
        before = self.status().counters
        call = self.inference.Generate(self.long_generation(), timeout=CALL_TIMEOUT_S)
        deltas = 0
        for answer in call:
            deltas += answer.event.WhichOneof("event") == "delta"
            if deltas == 3:
                break
        self.assertEqual(deltas, 3)
        self.assertGreater(self.status().queue.active, 0)
        self.assertTrue(call.cancel())
        self.assert_idle_soon()
        after = self.status().counters
        self.assertEqual(after.cancelled, before.cancelled + 1)
        self.assertLess(after.generated_tokens - before.generated_tokens, 4000)

    def test_deadline_of_the_request(self):
        request = self.long_generation()
        request.options.deadline.FromMilliseconds(1500)
        events = self.events(self.inference.Generate(request, timeout=CALL_TIMEOUT_S))
        self.assertEqual(events[-1].end.finish_reason, types_pb2.FINISH_REASON_DEADLINE)
        self.assert_idle_soon()

    def test_deadline_of_grpc(self):
        started = time.monotonic()
        with self.assertRaises(grpc.RpcError) as caught:
            for answer in self.inference.Generate(self.long_generation(), timeout=1.5):
                if answer.event.WhichOneof("event") == "end":
                    # The daemon may speak first, within the same moment.
                    self.assertEqual(answer.event.end.finish_reason, types_pb2.FINISH_REASON_DEADLINE)
                    raise grpc.RpcError
        self.assertLess(time.monotonic() - started, 10)
        if isinstance(caught.exception, grpc.Call):
            self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assert_idle_soon()


class Errors(ServiceTest):
    def generate(self, options=None, **fields):
        """Starts a small generation with the given fields."""
        fields.setdefault("prompt", "Hi")
        request = inference_pb2.GenerateRequest(options=options or greedy(max_tokens=1), **fields)
        return lambda: self.inference.Generate(request, timeout=CALL_TIMEOUT_S)

    def test_bad_parameters_name_their_field(self):
        sampling = lambda **f: types_pb2.GenerationOptions(sampling=types_pb2.SamplingParams(**f), max_tokens=1)
        cases = {
            "temperature": sampling(temperature=float("nan")),
            "top_p": sampling(top_p=-0.5),
            "min_p": sampling(min_p=2),
            "repeat_penalty": sampling(repeat_penalty=0),
            "stop": types_pb2.GenerationOptions(stop=[""], max_tokens=1),
            "logprobs": types_pb2.GenerationOptions(logprobs=21, max_tokens=1),
        }
        for field, options in cases.items():
            with self.subTest(field=field):
                details = self.refused(grpc.StatusCode.INVALID_ARGUMENT, self.generate(options))
                named = [violation.field for violation in details["BadRequest"].field_violations]
                self.assertTrue(any(field in name for name in named), named)

    def test_prompt_longer_than_the_context(self):
        context_len = self.status().model.context_len
        self.assertGreater(context_len, 0)
        ids = inference_pb2.TokenIds(ids=[100] * (context_len + 1))
        request = inference_pb2.GenerateRequest(tokens=ids, options=greedy(max_tokens=1))
        details = self.refused(
            grpc.StatusCode.INVALID_ARGUMENT, lambda: self.inference.Generate(request, timeout=CALL_TIMEOUT_S)
        )
        info = details["ErrorInfo"]
        self.assertEqual(info.reason, "CONTEXT_OVERFLOW")
        self.assertEqual(int(info.metadata["prompt_tokens"]), context_len + 1)
        self.assertEqual(int(info.metadata["context_len"]), context_len)

    def test_unknown_model(self):
        self.refused(grpc.StatusCode.NOT_FOUND, self.generate(model="no-such-model"))
        details = self.refused(
            grpc.StatusCode.NOT_FOUND,
            lambda: self.models.Show(models_pb2.ShowRequest(model="no-such-model"), timeout=10),
        )
        self.assertEqual(details["ErrorInfo"].reason, "MODEL_NOT_FOUND")

    def test_no_input_and_bad_tokens(self):
        request = inference_pb2.GenerateRequest(options=greedy(max_tokens=1))
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.inference.Generate(request, timeout=30))
        vocab = self.status().model.info.vocab_size
        bad = inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[vocab]), options=greedy(max_tokens=1))
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.inference.Generate(bad, timeout=30))
        role = inference_pb2.ChatRequest(messages=[types_pb2.ChatMessage(content="who speaks?")])
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.inference.Chat(role, timeout=30))

    def test_parts_of_later_versions(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.inference.Embed(inference_pb2.EmbedRequest(texts=["a"]), timeout=10)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_the_daemon_lives_on(self):
        for _ in range(20):
            self.refused(grpc.StatusCode.INVALID_ARGUMENT, self.generate(types_pb2.GenerationOptions(logprobs=99)))
        self.assertEqual(self.status().state, daemon_pb2.LIFECYCLE_STATE_READY)


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""One reply out of a stream's events. Where openai-python puts them together, it is the witness."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from llamaxing.merging import merged
from llamaxing.sse import decoded
from tests.fakes import DONE, chunk

TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "text": [
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {"content": "Hel"}},
        {"delta": {"content": "lo"}, "finish_reason": "stop"},
    ],
    "tool calls": [
        {"delta": {"role": "assistant", "content": None, "tool_calls": [CALL]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}},
        {"delta": {"tool_calls": [CALL | {"index": 1, "id": "call_2"}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}},
        {"delta": {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}},
        {"delta": {}, "finish_reason": "tool_calls"},
    ],
    "two choices": [
        {"delta": {"role": "assistant", "content": "a"}},
        {"index": 1, "delta": {"role": "assistant", "content": "b"}},
        {"delta": {"content": "A"}, "finish_reason": "stop"},
        {"index": 1, "delta": {"content": "B"}, "finish_reason": "length"},
    ],
    "a refusal": [
        {"delta": {"role": "assistant", "refusal": "I "}},
        {"delta": {"refusal": "won't"}, "finish_reason": "stop"},
    ],
    "logprobs": [
        {"delta": {"role": "assistant", "content": "a"}, "logprobs": {"content": [TOKEN]}},
        {"delta": {"content": "b"}, "logprobs": {"content": [TOKEN | {"token": "b"}]}},
        {"delta": {}, "finish_reason": "stop", "logprobs": None},
    ],
}


def chat(choice: dict[str, Any]) -> bytes:
    return chunk("", choices=[{"index": 0, "finish_reason": None, **choice}])


@pytest.mark.parametrize("choices", CHATS.values(), ids=CHATS)
def test_a_chat_is_what_openai_python_makes_of_it(choices: list[dict[str, Any]]) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    stream = b"".join(map(chat, choices)) + chunk("", choices=[], usage=usage) + DONE
    state = ChatCompletionStreamState()
    for event in decoded(stream):
        state.handle_chunk(ChatCompletionChunk.model_validate(event))

    reply = merged(decoded(stream))

    theirs = state.current_completion_snapshot.to_dict()
    assert without_nothing(reply["choices"]) == without_nothing(theirs["choices"])
    assert reply["usage"] == usage
    assert reply["object"] == "chat.completion"
    assert reply["id"] == "chatcmpl-1"


def without_nothing(value: Any) -> Any:
    """Members that are null or were added by the SDK's parsing are no difference."""
    if isinstance(value, dict):
        kept = {k: without_nothing(v) for k, v in value.items() if k != "parsed_arguments"}
        return {k: v for k, v in kept.items() if v not in (None, {}, "")}
    return [without_nothing(it) for it in value] if isinstance(value, list) else value


def test_what_azure_says_of_its_filters_is_not_strung_together() -> None:
    verdict = {"hate": {"filtered": False, "severity": "safe"}}
    parts = [{"delta": {"content": text}, "content_filter_results": verdict} for text in "ab"]

    reply = merged(decoded(b"".join(map(chat, parts))))

    assert reply["choices"][0]["content_filter_results"] == verdict
    assert reply["choices"][0]["message"]["content"] == "ab"


def test_audio_is_joined_with_its_transcript() -> None:
    parts = [
        {"delta": {"role": "assistant", "audio": {"id": "audio_1", "transcript": "Hel"}}},
        {"delta": {"audio": {"data": "AAA="}}},
        {"delta": {"audio": {"data": "BBB=", "transcript": "lo"}}},
        {"delta": {"audio": {"expires_at": 7}}, "finish_reason": "stop"},
    ]

    reply = merged(decoded(b"".join(map(chat, parts))))

    expected = {"id": "audio_1", "transcript": "Hello", "data": "AAA=BBB=", "expires_at": 7}
    assert reply["choices"][0]["message"]["audio"] == expected


def test_a_completion_stream_joins_its_text_and_logprobs() -> None:
    def part(text: str) -> bytes:
        logprobs = {"tokens": [text]}
        return chunk("", choices=[{"index": 0, "text": text, "logprobs": logprobs}])

    reply = merged(decoded(part("Hel") + part("lo")))

    assert reply["choices"][0]["text"] == "Hello"
    assert reply["choices"][0]["logprobs"] == {"tokens": ["Hel", "lo"]}


RESPONSE = {"id": "resp_1", "object": "response", "model": "m", "output": []}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
FUNCTION = {"id": "fc_1", "type": "function_call", "name": "f", "arguments": "", "call_id": "c"}
REASONING = {"id": "rs_1", "type": "reasoning", "summary": []}


def response(*events: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    started = ("created", {"response": RESPONSE | {"status": "in_progress"}})
    return [{"type": f"response.{name}", **more} for name, more in (started, *events)]


PIECES = response(
    ("output_item.added", {"output_index": 0, "item": dict(REASONING)}),
    (
        "reasoning_summary_part.added",
        {"output_index": 0, "summary_index": 0, "part": {"type": "summary_text", "text": ""}},
    ),
    ("reasoning_summary_text.delta", {"output_index": 0, "summary_index": 0, "delta": "I th"}),
    ("reasoning_summary_text.delta", {"output_index": 0, "summary_index": 0, "delta": "ink"}),
    ("output_item.added", {"output_index": 1, "item": MESSAGE | {"content": []}}),
    ("content_part.added", {"output_index": 1, "content_index": 0, "part": dict(PART)}),
    ("output_text.delta", {"output_index": 1, "content_index": 0, "delta": "Hel"}),
    ("output_item.added", {"output_index": 2, "item": dict(FUNCTION)}),
    ("function_call_arguments.delta", {"output_index": 2, "delta": '{"a"'}),
    ("output_text.delta", {"output_index": 1, "content_index": 0, "delta": "lo"}),
    ("function_call_arguments.delta", {"output_index": 2, "delta": ": 1}"}),
    (
        "content_part.added",
        {"output_index": 1, "content_index": 1, "part": {"type": "refusal", "refusal": ""}},
    ),
    ("refusal.delta", {"output_index": 1, "content_index": 1, "delta": "no"}),
)


def test_the_pieces_of_a_response_that_broke_off_are_put_together() -> None:
    reply = merged(PIECES)

    reasoning, message, function = reply["output"]
    assert reply["id"] == "resp_1"
    assert reply["status"] == "in_progress"
    assert reasoning["summary"] == [{"type": "summary_text", "text": "I think"}]
    assert [part.get("text", part.get("refusal")) for part in message["content"]] == ["Hello", "no"]
    assert function["arguments"] == '{"a": 1}'


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_what_the_last_event_of_a_response_says_is_the_reply(end: str) -> None:
    last = RESPONSE | {"status": end, "output": [{"type": "message"}], "usage": {"input_tokens": 1}}

    reply = merged([*PIECES, {"type": f"response.{end}", "response": last}])

    assert reply == last


def test_items_are_kept_where_the_last_event_leaves_them_out() -> None:
    done = ("output_item.done", {"output_index": 0, "item": MESSAGE | {"status": "completed"}})

    reply = merged(response(done, ("completed", {"response": RESPONSE | {"output": None}})))

    assert reply["output"] == [MESSAGE | {"status": "completed"}]


def test_an_error_in_a_stream_is_in_the_reply() -> None:
    error = {"type": "error", "code": "server_error", "message": "m"}

    assert merged([*PIECES, error])["error"] == error
    assert merged([{"error": {"message": "m"}}]) == {"error": {"message": "m"}}


TYPED: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a transcription": (
        [
            {"type": "transcript.text.delta", "delta": "Hel"},
            {"type": "transcript.text.delta", "delta": "lo"},
            {"type": "transcript.text.done", "text": "Hello.", "usage": {"input_tokens": 1}},
        ],
        {"text": "Hello.", "usage": {"input_tokens": 1}},
    ),
    "a transcription that broke off": (
        [{"type": "transcript.text.delta", "delta": "Hel"}],
        {"text": "Hel"},
    ),
    "speech": (
        [
            {"type": "speech.audio.delta", "audio": "AAAA"},
            {"type": "speech.audio.delta", "audio": "BBBB"},
            {"type": "speech.audio.done", "usage": {"input_tokens": 1}},
        ],
        {"audio": "AAAABBBB", "usage": {"input_tokens": 1}},
    ),
    "an image": (
        [
            {"type": "image_generation.partial_image", "b64_json": "AA"},
            {"type": "image_generation.completed", "b64_json": "BB", "usage": {"input_tokens": 1}},
        ],
        {"b64_json": "BB", "usage": {"input_tokens": 1}},
    ),
    "an image that broke off": (
        [{"type": "image_generation.partial_image", "b64_json": "AA"}],
        {"type": "image_generation.partial_image", "b64_json": "AA"},
    ),
}


@pytest.mark.parametrize(("events", "reply"), TYPED.values(), ids=TYPED)
def test_other_streams_are_their_last_event_or_what_came_before(
    events: list[dict[str, Any]], reply: dict[str, Any]
) -> None:
    assert merged(events) == reply


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*"ab", "index", "choices", "delta", "item", "part"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "type",
        "choices",
        "response",
        "output_index",
        "content_index",
        "summary_index",
        "item",
        "part",
        "delta",
        "error",
        "audio",
        "usage",
        "output",
        "object",
    ]
)
TYPES = st.sampled_from([str(event["type"]) for event in PIECES] + ["error", "x.done"]) | JSON


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(NAMES, JSON, max_size=5), min_size=1, max_size=6), st.lists(TYPES))
def test_no_stream_is_so_strange_that_there_is_no_record(
    events: list[dict[str, Any]], types: list[Any]
) -> None:
    for event, kind in zip(events, types, strict=False):
        event["type"] = kind

    json.dumps(merged(events))

"""Two calls that are one trace in Langfuse, in a session, by `observation_metadata`.

The gateway takes it out of the request, so no model gets to see it. Where there is no Langfuse,
it is in the records alone.
"""

import os
import uuid

from openai import OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
trace = {
    "trace_id": f"order-{uuid.uuid4().hex[:8]}",  # any text: the same text is the same trace
    "trace_name": "orders",
    "trace_tags": ["demo"],
    "session_id": "customer-4711",
}


def ask(name: str, question: str) -> str:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        max_completion_tokens=50,
        extra_body={"observation_metadata": {**trace, "name": name, "step": name}},
    )
    return completion.choices[0].message.content


summary = ask("summary", "Summarise: three llamas were ordered, and one has arrived.")
print(summary)
print(ask("reply", f"Write to the customer, in one sentence: {summary}"))
print(f"(trace {trace['trace_id']}, session {trace['session_id']})")

"""The Responses API, streamed, and a second turn that refers to the first where that is kept."""

import os

from openai import BadRequestError, OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
with client.responses.stream(
    model=MODEL, input="What is a gateway? One sentence.", max_output_tokens=60
) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    first = stream.get_final_response()
print(f"\n({first.id})")
try:
    second = client.responses.create(
        model=MODEL,
        input="And a llama?",
        previous_response_id=first.id,
        max_output_tokens=50,
    )
    print(second.output_text)
except BadRequestError as error:
    print(f"(this upstream keeps no responses: {error.message})")

"""The Responses API, streamed, and a second turn that refers to the first where that is kept."""

import os

from openai import BadRequestError, OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
made = ""
for event in client.responses.create(
    model=MODEL, input="What is a gateway? One sentence.", max_output_tokens=60, stream=True
):
    if event.type == "response.output_text.delta":
        print(event.delta, end="", flush=True)
    if event.type == "response.completed":
        made = event.response.id
print(f"\n({made})")
try:
    second = client.responses.create(
        model=MODEL, input="And a llama?", previous_response_id=made, max_output_tokens=60
    )
    print(second.output_text)
except BadRequestError as error:
    print(f"(nothing is kept there: {error.message})")

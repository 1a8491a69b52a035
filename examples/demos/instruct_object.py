"""An object of a class instead of a text, by instructor: what a customer's message is about."""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")


class Message(BaseModel):
    kind: Literal["order", "question", "complaint"]
    urgent: bool


client = instructor.from_openai(
    OpenAI(base_url=BASE_URL, api_key=API_KEY), mode=instructor.Mode.JSON_SCHEMA
)
message = client.create(
    model=MODEL,
    response_model=Message,
    messages=[{"role": "user", "content": "Where are my llamas? They were due last week!"}],
    max_completion_tokens=100,
)
print(f"{message.kind}, {'urgent' if message.urgent else 'not urgent'}")

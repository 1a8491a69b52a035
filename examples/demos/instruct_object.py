"""An object of a class instead of a text, by instructor."""

import os

import instructor
from openai import OpenAI
from pydantic import BaseModel

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")


class Person(BaseModel):
    name: str
    age: int


client = instructor.from_openai(
    OpenAI(base_url=BASE_URL, api_key=API_KEY), mode=instructor.Mode.JSON_SCHEMA
)
person = client.create(
    model=MODEL,
    response_model=Person,
    messages=[{"role": "user", "content": "Ada is 36 years old. Who is it, and how old?"}],
    max_completion_tokens=60,
)
print(f"{person.name!r} is {person.age}")

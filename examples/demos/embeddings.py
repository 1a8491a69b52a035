"""Which of two texts is nearer to a third, by their embeddings."""

import math
import os

from openai import OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "text-embedding-3-small")
TEXTS = ["A llama crosses the road.", "An alpaca walks over a street.", "Taxes are due in May."]


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.hypot(*one) / math.hypot(*other)


client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
reply = client.embeddings.create(model=MODEL, input=TEXTS)
first, *others = (it.embedding for it in reply.data)
print(f"{len(first)} dimensions")
for text, vector in zip(TEXTS[1:], others, strict=True):
    print(f"{cosine(first, vector):+.3f}  {text}")

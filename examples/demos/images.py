"""An image, which is written to image.png."""

import base64
import os
from pathlib import Path

from openai import OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-image-2")

client = OpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=220)
reply = client.images.generate(model=MODEL, prompt="A llama that crosses a road", size="1024x1024")
file = Path("image.png")
file.write_bytes(base64.b64decode(reply.data[0].b64_json))
print(f"{file}: {file.stat().st_size} bytes")

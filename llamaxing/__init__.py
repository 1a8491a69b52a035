"""llamaxing: an OpenAI-compatible gateway for Azure Functions, and for wherever uvicorn runs."""

__version__ = "0.1.0"

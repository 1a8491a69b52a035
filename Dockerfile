# The gateway under uvicorn:
#   docker build -t llamaxing .
#   docker run -p 8000:8000 -v "$PWD/config:/data" --stop-timeout 40 llamaxing
# /data is where it runs: models.json, identities.json and .env are read there, and records wait there.
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /venv
COPY requirements.txt requirements-shim.txt /build/
RUN /venv/bin/pip install -r /build/requirements.txt -r /build/requirements-shim.txt
COPY llamaxing /app/llamaxing
RUN /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app

FROM python:3.13-slim
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH="/venv/bin:$PATH" PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN install -d -o 10001 -g 10001 /data
WORKDIR /data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["python", "-m", "llamaxing"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

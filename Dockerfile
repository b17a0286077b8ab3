# The service, for the docker engine: it talks to the engine whose socket is mounted.
ARG PYTHON=python:3.13-slim
FROM ${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY cmdsvc cmdsvc
COPY builtins builtins
RUN python3 -m venv /opt/cmdsvc && /opt/cmdsvc/bin/pip install --no-cache-dir .

FROM ${PYTHON}
COPY --from=build /opt/cmdsvc /opt/cmdsvc
RUN useradd --uid 10001 --no-create-home --home-dir /data cmdsvc \
 && install -d -o cmdsvc -g cmdsvc -m 0700 /data /keys
ENV PATH=/opt/cmdsvc/bin:$PATH \
    CMDSVC_DATA_DIR=/data CMDSVC_KEYS_DIR=/keys CMDSVC_SSH_LISTEN=0.0.0.0:2222 \
    CMDSVC_HTTP_LISTEN=0.0.0.0:8022 CMDSVC_ENGINE=docker
USER cmdsvc
WORKDIR /data
VOLUME ["/data", "/keys"]
EXPOSE 2222 8022
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD \
  ["python3", "-c", "import socket; s = socket.create_connection(('127.0.0.1', 2222), 3); assert s.recv(4) == b'SSH-'"]
ENTRYPOINT ["cmdsvc"]
CMD ["serve"]

# docker build -t darkroom . && docker run -p 8000:8000 -v darkroom:/data darkroom
#
# TORCH_INDEX gives pip another wheel index for torch, since PyPI's Linux wheels bring CUDA; see README.md.

FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY alembic alembic
COPY static static
COPY templates templates
COPY app app
RUN python -m venv /opt/darkroom \
    && /opt/darkroom/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --create-home darkroom && install -d -o darkroom -g darkroom /data
COPY --from=build /opt/darkroom /opt/darkroom
ENV PATH=/opt/darkroom/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DARKROOM_HOST=0.0.0.0 \
    DARKROOM_PORT=8000 \
    DARKROOM_DATA_DIR=/data \
    HF_HOME=/data/huggingface
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['DARKROOM_PORT'] + '/livez', timeout=4)"]
CMD ["darkroom", "serve"]

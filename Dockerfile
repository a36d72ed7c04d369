# One image for the API, the workers and the trainer; the command decides.

# The dependencies as pip reads them, in a stage of their own: only a change of theirs installs them again.
FROM python:3.11-slim AS requirements
COPY pyproject.toml /
RUN python -c "import tomllib; print(*tomllib.load(open('/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /requirements.txt


FROM python:3.11-slim

# Empty: torch from the default index, which on Linux is the CUDA build, several GB. PyTorch's index of CPU builds makes a
# far smaller image for machines without a GPU.
ARG TORCH_INDEX_URL=""

RUN useradd --uid 1000 --create-home ebm && install -d -o ebm -g ebm /models /data

COPY --from=requirements /requirements.txt /tmp/build/
COPY constraints.txt /tmp/build/
RUN --mount=type=cache,target=/root/.cache/pip \
    export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/tmp/build/constraints.txt \
    && if [ -n "$TORCH_INDEX_URL" ]; then pip install --no-deps --index-url "$TORCH_INDEX_URL" torch; fi \
    && pip install -r /tmp/build/requirements.txt "setuptools>=77"

# The sources are mounted, not copied: the image has them once, as the installed package.
RUN --mount=type=bind,target=/src,rw \
    pip install --no-deps --no-build-isolation --no-cache-dir --root-user-action=ignore --disable-pip-version-check /src \
    && install -m 644 /src/deploy/healthcheck.py /usr/local/lib/ebm-healthcheck.py

# PYTHONSAFEPATH: the working directory is a volume, and nothing is ever imported from there.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    XDG_CACHE_HOME=/data/.cache \
    MPLCONFIGDIR=/data/.cache/matplotlib \
    EBM_HOST=0.0.0.0 \
    EBM_PORT=8000 \
    EBM_MODELS_DIR=/models \
    EBM_DATA_DIR=/data

USER ebm
WORKDIR /data
VOLUME ["/models", "/data"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "/usr/local/lib/ebm-healthcheck.py", "api"]
CMD ["ebm", "serve"]

# docker build -t mgd_ssl .
# docker run --gpus all --shm-size 8g -v "$PWD:/work" -u "$(id -u):$(id -g)" mgd_ssl pretrain --data.train images --out runs/r18
#
# torch's wheels bring CUDA along, so the host needs a driver and the image no CUDA base. For CPUs alone:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t mgd_ssl:cpu .
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# torch.compile, which long runs on a GPU use, calls a compiler
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mgd_ssl
# the slow layer: torch and all else change less often than the sources
COPY requirements.txt ./
RUN pip install --index-url "$TORCH_INDEX" "torch>=2.6" "torchvision>=0.21" \
    && pip install -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY moco moco
COPY mgd_ssl mgd_ssl
COPY linear_eval linear_eval
COPY launchers launchers
RUN pip install --no-deps . && mgd-ssl --version

# any user may run it: what libraries keep for themselves goes to /tmp
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --uid 1000 mgd && mkdir /work && chown mgd /work
USER 1000
WORKDIR /work
ENTRYPOINT ["mgd-ssl"]
CMD ["--help"]

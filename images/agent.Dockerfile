# The image of the agent, from the repository's root:
#
#   docker build -f images/agent.Dockerfile -t lamplighter-agent:0.1.0 .         (or: buildah build …)
#
# BASE: an image with Python and venv. For a release, name it with its digest, and RESTIC too.
# RESTIC: an image with /usr/bin/restic. It runs in the host's root folder, so it is to be linked statically; Debian's is
# not, and runs on hosts with glibc alone.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG RESTIC=docker.io/restic/restic:0.18.0

FROM ${RESTIC} AS restic

FROM ${BASE} AS build
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/lamplighter \
 && /opt/lamplighter/bin/pip install --no-cache-dir -c constraints.txt '.[agent]' \
 && /opt/lamplighter/bin/pip uninstall -y pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="lamplighter-agent" \
      org.opencontainers.image.description="Lamplighter's agent, with restic" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=restic /usr/bin/restic /usr/local/bin/restic
COPY --from=build /opt/lamplighter /opt/lamplighter
ENV PATH=/opt/lamplighter/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
# root, for it reads the files of every user; the chart takes away all of root's powers that it does not need.
USER 0:0
ENTRYPOINT ["lamplighter"]
CMD ["agent"]

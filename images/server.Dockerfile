# The image of the server and of the controller, from the repository's root:
#
#   docker build -f images/server.Dockerfile -t lamplighter-server:0.1.0 .       (or: buildah build …)
#
# BASE: an image with Python and venv. For a release, name it with its digest.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/lamplighter \
 && /opt/lamplighter/bin/pip install --no-cache-dir -c constraints.txt '.[server,postgresql,otel,controller,cli]' \
 && /opt/lamplighter/bin/pip uninstall -y pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="lamplighter-server" \
      org.opencontainers.image.description="Lamplighter's server, controller and command line" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/lamplighter /opt/lamplighter
# LOGNAME: kopf asks for the user's name, and the user below has none in /etc/passwd.
ENV LOGNAME=lamplighter PATH=/opt/lamplighter/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["lamplighter"]
CMD ["--help"]

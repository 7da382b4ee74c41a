"""Whether a server makes traces, by the standard variables of OpenTelemetry. It imports nothing of OpenTelemetry.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from collections.abc import Mapping

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def makes_traces(environ: Mapping[str, str]) -> bool:
    """Whether these variables ask for traces: they name an endpoint, or the exporter "otlp".

    Raises ValueError with the remedy, for what a server cannot do.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER={exporter}: a server only has the exporter otlp; use that, or none")
    if not exporter and not any(environ.get(name) for name in ENDPOINTS):
        return False
    for name in PROTOCOLS:
        if environ.get(name, "") not in ("", "http/protobuf"):
            remedy = "use that, and an endpoint that takes it, which usually has port 4318"
            raise ValueError(f"{name}={environ[name]}: a server only speaks http/protobuf; {remedy}")
    return True

"""The metrics that the parts export, by the names that Prometheus stores them under."""

from pathlib import Path

from prometheus_client.registry import CollectorRegistry

from agent.core.machine import Core
from agent.core.state import AgentState
from agent.metrics import Metrics as AgentMetrics
from controller.cluster.metrics import Metrics as ControllerMetrics
from controller.folder.metrics import FolderMetrics
from server.app import Config, serving

SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}


def names(registry: CollectorRegistry) -> set[str]:
    return {f"{it.name}{suffix}" for it in registry.collect() for suffix in SUFFIXES[it.type]}


async def metric_names(folder: Path) -> set[str]:
    """Those of a server in a folder, of an agent and of both controllers."""
    agent = AgentMetrics(Core("node-1", AgentState()))
    found = [it.registry for it in (agent, ControllerMetrics(), FolderMetrics())]
    async with serving(Config(folder, port=0)) as server:
        return set[str]().union(*map(names, [*found, server.parts.registry]))

"""Hardware with figures that can be reckoned with by hand."""

from __future__ import annotations

from typing import Any

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.planning.hardware import Curve, Hardware, Links, Rates
from and_dist.planning.workload import Job, Size


def line(each: float) -> Curve:
    """Seconds in proportion."""
    return Curve(points=((1, each),))


def device(**changes: Any) -> Hardware:
    """With figures that can be reckoned with by hand."""
    rates = Rates(
        encoders={"tiny": line(1.0)},
        operations_per_s={"float32": 1e9},
        partition={"float32": line(10.0), "bfloat16": line(4.0)},
        overhead=line(0.5),
        optimiser=line(1e-5),
        scan_operations_per_s=1e6,
        search_operations_per_s=2e6,
    )
    links = Links(gather=line(1e-3), exchange=line(2e-3), reduce=line(1e-6))
    given: dict[str, Any] = {
        "name": "slide rule",
        "source": "by hand",
        "kind": "cpu",
        "memory_gb": 1.0,
        "cores": 4,
        "framework_mb": 100.0,
        "rates": {1: rates},
        "links": {2: links, 4: links},
        "loader": {"pixels": line(1e-6), "encoded": line(1e-4)},
    }
    return Hardware(**(given | changes))


def config(*overrides: str) -> Config:
    return load_config(["configs/debug.yaml"], overrides)


def job(rows: int, ranks: int, *overrides: str, hardware: Hardware | None = None) -> Job:
    return Job(config(*overrides), rows, Size(1, ranks), hardware or device())

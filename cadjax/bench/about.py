"""Where, when and with what a benchmark ran."""

import datetime
import importlib.metadata
import pathlib
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from cadjax import __version__
from cadjax.bench.measure import Result
from data_prep.workers import available_cores

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "SimpleITK", "torch", "monai")


def about(results: Sequence[Result]) -> dict[str, Any]:
  """Returns versions, machine, device, date and command, JSON-able.

  Args:
    results: whose workers reported what they ran on.

  Returns:
    the facts, and "footer": the most important of them in one line.
  """
  versions = _versions()
  date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  devices = sorted({r.info["device"] for r in results if "device" in r.info})
  cpu = f"{cpu_name()}, {available_cores()} cores"
  shown = [
    f"{name} {versions[name]}"
    for name in ("cadjax", "jax", "torch", "monai")
    if name in versions
  ]
  parts = [
    date[:10],
    cpu,
    *(one for one in devices if "cpu" not in one),
    *shown,
    f"Python {platform.python_version()}",
  ]
  return {
    "date": date,
    "command": shlex.join(
      ["python", "-m", "cadjax.bench", *sys.argv[1:]],
    ),
    "cpu": cpu,
    "system": platform.platform(),
    "devices": devices,
    "versions": versions | {"python": platform.python_version()},
    "footer": ", ".join(parts),
  }


def _versions() -> dict[str, str]:
  found = {"cadjax": __version__}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def cpu_name() -> str:
  """Returns the processor's name as the system tells it."""
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()

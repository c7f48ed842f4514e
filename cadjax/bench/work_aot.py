"""The train step, compiled ahead of time for a TPU that is not there.

Needs libtpu (`pip install -e '.[tpu-aot]'`), the compiler, and no device.
Memory is what the compiler will reserve; cycles are its own estimates, no
measurement, and leave out waiting and collectives.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import topologies

from cadjax.bench import work_jax
from cadjax.bench.work import Work, timed
from cadjax.core import parallel
from cadjax.models import flops
from cadjax.training import steps, task
from data_prep.errors import UserError

# Of one chip, from its maker: bfloat16 FLOP/s, bytes/s and bytes of memory;
# cycles/s follow from 4 units of 128 x 128 multipliers.
CHIPS = {
  "v5e": {
    "flops": 197e12,
    "bandwidth": 819e9,
    "memory": 16e9,
    "clock": 1.5e9,
  }
}
STAGE = re.compile(r"stem|stage\d|enc\d|bottleneck|dec\d|head")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')
COLLECTIVE = re.compile(
  r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute"
  r"|reduce-scatter)(?:-start)?\("
)
ARRAY = re.compile(r"\b(pred|[sufb]+\d+)\[([\d,]*)\]")


def train(spec: Mapping[str, Any]) -> Work:
  """Compiles; all that there is to know is in `info`."""
  config = ml_collections.ConfigDict(spec["config"])
  devices = _devices(spec, config)
  step, start = work_jax.train_step(spec, config, devices, real=False)
  state = jax.eval_shape(steps.make_init(**start), jax.random.key(0))
  batch = {
    key: jax.ShapeDtypeStruct(value.shape, value.dtype)
    for key, value in work_jax.fake_batch(spec, config).items()
  }
  lowered = step.lower(
    devices.abstract_replicated(state), devices.abstract_batch(batch)
  )
  seconds, compiled = timed(lowered.compile)
  model = task.make_model(config)
  counted = flops.count(model, work_jax.image_shape(spec, config))
  info = {
    "compile_seconds": seconds,
    "flops": flops.step_flops(counted, train=True),
    "aot": describe(compiled) | {"chip": CHIPS[_chip(spec["aot"])]},
  }
  return Work(lambda: None, volumes=spec["batch"], info=info)


def describe(compiled: jax.stages.Compiled) -> dict[str, Any]:
  """Returns memory, bytes, estimated cycles and collectives of one chip."""
  memory, text = compiled.memory_analysis(), compiled.as_text()
  arguments = memory.argument_size_in_bytes
  return {
    # Donated arguments are outputs, too.
    "memory_bytes": memory.temp_size_in_bytes
    + arguments
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    "hlo_flops": compiled.cost_analysis()["flops"],
    "bytes_accessed": compiled.cost_analysis()["bytes accessed"],
    "cycles": cycles_by_stage(text),
    "collectives": collectives(text),
  }


def cycles_by_stage(text: str) -> dict[str, int]:
  """Sums the estimated cycles in a compiled program's entry, by stage.

  What belongs to no stage, such as the optimizer, is "other".
  """
  total: dict[str, int] = {}
  for line in text[text.index("ENTRY ") :].splitlines():
    cycles = CYCLES.search(line)
    if cycles is None:
      continue
    name = OP_NAME.search(line)
    found = STAGE.search(name[1]) if name else None
    stage = found[0] if found else "other"
    total[stage] = total.get(stage, 0) + int(cycles[1])
  return dict(sorted(total.items()))


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Counts the collectives of a compiled program, and their bytes."""
  found: dict[str, dict[str, int]] = {}
  for line in text.splitlines():
    match = COLLECTIVE.search(line)
    if match is None:
      continue
    one = found.setdefault(match[2], {"count": 0, "bytes": 0})
    one["count"] += 1
    one["bytes"] += sum(
      int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
      * _itemsize(kind)
      for kind, dims in ARRAY.findall(match[1])
    )
  return found


def _itemsize(kind: str) -> int:
  return 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8


def _chip(topology: str) -> str:
  """The chip of "tpu:v5e:2x2"."""
  platform, chip, *_ = [*topology.split(":"), "", ""]
  if platform != "tpu" or chip not in CHIPS:
    raise UserError(
      f"--aot={topology}: must be tpu:CHIP:TOPOLOGY, such as tpu:v5e:2x2; known"
      f" chips are {', '.join(CHIPS)}"
    )
  return chip


def _devices(spec, config) -> parallel.Parallel:
  _chip(spec["aot"])
  try:
    topology = topologies.get_topology_desc(
      topology_name=spec["aot"].partition(":")[2], platform="tpu"
    )
  except Exception as error:  # jax and libtpu raise many kinds.
    raise UserError(
      f"--aot={spec['aot']}: {error}; libtpu comes with pip install"
      " -e '.[tpu-aot]'"
    ) from error
  found, wanted = topology.devices, spec["devices"]
  if wanted > len(found):
    raise UserError(f"--devices={wanted}: {spec['aot']} has {len(found)}")
  devices = parallel.make_parallel(
    config.parallel, **config.mesh, devices=found[:wanted]
  )
  devices.check_batch(spec["batch"], spec["shape"][0])
  return devices


MAKERS = {"aot": train}

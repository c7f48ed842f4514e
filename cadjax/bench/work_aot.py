"""The train step, compiled ahead of time for a TPU that is not there.

Needs libtpu (`pip install -e '.[tpu-aot]'`), the compiler, and no device.
Memory is what the compiler will reserve; cycles are its own estimates, where it
has one (see `hlo`), no measurement, and leave out waiting and collectives.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies

from cadjax.bench import hlo, work_jax
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
COSTLIEST = 40  # Operations that are kept.


def train(spec: Mapping[str, Any]) -> Work:
  """Compiles; all that there is to know is in `info`."""
  config = ml_collections.ConfigDict(spec["config"])
  devices = _devices(spec, config)
  seconds, compiled = timed(_lowered(spec, config, devices).compile)
  if spec.get("dump_hlo"):
    path = pathlib.Path(spec["dump_hlo"], "train_step.hlo.txt")
    path.write_text(compiled.as_text())
  model = task.make_model(config)
  counted = flops.count(model, work_jax.image_shape(spec, config))
  info = {
    "compile_seconds": seconds,
    "flops": flops.step_flops(counted, train=True),
    "aot": describe(compiled, CHIPS[_chip(spec["aot"])]),
  }
  return Work(lambda: None, volumes=spec["batch"], info=info)


def memory(spec: Mapping[str, Any]) -> Work:
  """Compiles for the devices here, or those of `aot`, and tells the memory."""
  config = ml_collections.ConfigDict(spec["config"])
  devices = _devices(spec, config)
  compiled = _lowered(spec, config, devices).compile()
  info = {"memory_bytes": _reserved(compiled), "platform": devices.platform}
  return Work(lambda: None, volumes=spec["batch"], info=info)


def _lowered(spec, config, devices: parallel.Parallel) -> jax.stages.Lowered:
  step, start = work_jax.train_step(spec, config, devices, real=False)
  state = jax.eval_shape(steps.make_init(**start), jax.random.key(0))
  batch = {
    key: jax.ShapeDtypeStruct(value.shape, value.dtype)
    for key, value in work_jax.fake_batch(spec, config, devices).items()
  }
  return step.lower(
    devices.abstract_replicated(state), devices.abstract_batch(batch)
  )


def _reserved(compiled: jax.stages.Compiled) -> int:
  """Bytes of one device that a program holds while it runs."""
  memory = compiled.memory_analysis()
  # Donated arguments are outputs, too.
  return (
    memory.temp_size_in_bytes
    + memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def describe(
  compiled: jax.stages.Compiled, chip: Mapping[str, float]
) -> dict[str, Any]:
  """Returns memory, bytes, cycles and collectives of one chip, JSON-able.

  Args:
    compiled: the program.
    chip: of `CHIPS`.
  """
  text = compiled.as_text()
  found = hlo.operations(text, chip["bandwidth"] / chip["clock"])
  ranked = sorted(found, key=lambda one: -one.cycles)
  bounded = [one for one in found if not one.estimated]
  return {
    "memory_bytes": _reserved(compiled),
    "hlo_flops": compiled.cost_analysis()["flops"],
    "bytes_accessed": compiled.cost_analysis()["bytes accessed"],
    "cycles": hlo.cycles_by_stage(found),
    "bounded_cycles": sum(one.cycles for one in bounded),
    "operations": [dataclasses.asdict(one) for one in ranked[:COSTLIEST]],
    "collectives": hlo.collectives(text),
    "chip": dict(chip),
  }


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
  if spec["aot"] is None:
    return work_jax.here(spec, config)
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


MAKERS = {"aot": train, "memory": memory}

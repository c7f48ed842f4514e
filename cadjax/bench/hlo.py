"""The operations of a program compiled for a TPU, read from its text.

The compiler writes an estimate of cycles beside most operations, and none
beside a few, the gradient of a max-pool (select-and-scatter) above all. Those
get the cycles that their bytes take at the memory's full bandwidth, which they
cannot go below.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

# What belongs to no stage, such as the optimizer, is OTHER.
STAGE = re.compile(r"stem|stage\d|enc\d|bottleneck|dec\d|head")
OTHER = "other"
LINE = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z\d-]*)\((.*?)\)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')
OPERAND = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b(pred|[sufb]+\d+)\[([\d,]*)\]")
LAYOUT = re.compile(r"\{[^}]*\}")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
COLLECTIVES += ("reduce-scatter",)
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
# Without an estimate these cost nothing: names of values, calls that only name
# several buffers as one, and what goes on beside the work; collectives are
# counted apart.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
FREE += ("custom-call", *COLLECTIVES)
ASYNCHRONOUS = ("-start", "-done")


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation of the program.

  Attributes:
    name: in the program.
    kind: such as "fusion".
    shape: of what it gives.
    stage: of the network, or `OTHER`.
    source: the path of the JAX operation that it comes from.
    bytes: of operands and result.
    cycles: by the compiler's estimate, or by the bytes.
    estimated: whether the compiler has an estimate.
  """

  name: str
  kind: str
  shape: str
  stage: str
  source: str
  bytes: int
  cycles: int
  estimated: bool


def operations(text: str, bytes_per_cycle: float) -> list[Operation]:
  """Returns the operations of a program's entry that cost cycles.

  Args:
    text: of a compiled program.
    bytes_per_cycle: of the chip's memory.
  """
  found, sizes = [], {}
  for line in text[text.index("ENTRY ") :].splitlines():
    match = LINE.match(line)
    if match is None:
      continue
    name, shape, kind, operands = match.groups()
    sizes[name] = nbytes(shape)
    moved = sizes[name] + sum(
      sizes.get(operand, 0) for operand in OPERAND.findall(operands)
    )
    cycles = CYCLES.search(line)
    if cycles is None and (kind in FREE or kind.endswith(ASYNCHRONOUS)):
      continue
    source = OP_NAME.search(line)
    source = source[1] if source else ""
    stage = STAGE.search(source)
    found.append(
      Operation(
        name,
        kind,
        LAYOUT.sub("", shape),
        stage[0] if stage else OTHER,
        source,
        moved,
        int(cycles[1]) if cycles else round(moved / bytes_per_cycle),
        cycles is not None,
      )
    )
  return found


def cycles_by_stage(found: Sequence[Operation]) -> dict[str, int]:
  """Sums the cycles of operations by stage."""
  total: dict[str, int] = {}
  for one in found:
    total[one.stage] = total.get(one.stage, 0) + one.cycles
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
    one["bytes"] += nbytes(match[1])
  return found


def nbytes(shape: str) -> int:
  """Returns the bytes of the arrays in a shape, "bf16[8,64]{1,0}"."""
  return sum(
    int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
    * (1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8)
    for kind, dims in ARRAY.findall(shape)
  )

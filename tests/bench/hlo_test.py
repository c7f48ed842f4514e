"""What is read from the text of a program compiled for a TPU."""

from cadjax.bench import hlo

COMPILED = """
HloModule jit_step
%fused (p: f32[2]) -> f32[2] {
  %x = f32[2] add(%p, %p), backend_config={"estimated_cycles":"999"}
}
ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %a = f32[8,4]{1,0:T(8,128)} fusion(%p),\
 metadata={op_name="jit(f)/ResNet/conv_stem/conv"},\
 backend_config={"estimated_cycles":"70"}
  %b = bf16[2,3] fusion(%a), metadata={op_name="f/ResNet/stage1_block2/x"},\
 backend_config={"estimated_cycles":"5"}
  %c = bf16[2,3] fusion(%b), metadata={op_name="f/ResNet/stage1_block1/y"},\
 backend_config={"estimated_cycles":"6"}
  %d = f32[4] fusion(%c), metadata={op_name="jit(f)/adam/add"},\
 backend_config={"estimated_cycles":"2"}
  %h = f32[4] fusion(%d), metadata={op_name="jit(f)/UNet/dec1_block/conv1"},\
 backend_config={"estimated_cycles":"3"}
  %s = bf16[100,8] select-and-scatter(%a, %b, %h),\
 metadata={op_name="jit(f)/transpose(jvp(ResNet))/norm_stem/pool"}
  %u = bf16[100,8] custom-call(%s), custom_call_target="ConcatBitcast"
  %v = (bf16[100,8], u32[]) copy-start(%u)
  %e = (f32[4,2]{1,0}, bf16[3]) all-reduce(%d, %d), replica_groups={}
  %f = f32[4] all-reduce(%e), replica_groups={}
  ROOT %g = pred[5] collective-permute(%f)
}
"""


def test_operations_have_the_compilers_cycles_or_those_of_their_bytes():
  """By hand: the entry alone counts."""
  found = {one.name: one for one in hlo.operations(COMPILED, 8.0)}
  assert list(found) == ["a", "b", "c", "d", "h", "s"]
  assert found["a"] == hlo.Operation(
    name="a",
    kind="fusion",
    shape="f32[8,4]",
    stage="stem",
    source="jit(f)/ResNet/conv_stem/conv",
    bytes=8 * 4 * 4 + 2 * 4,
    cycles=70,
    estimated=True,
  )
  scatter = found["s"]
  assert not scatter.estimated
  assert scatter.bytes == 1600 + 8 * 4 * 4 + 2 * 3 * 2 + 4 * 4
  assert scatter.cycles == round(scatter.bytes / 8)
  assert hlo.cycles_by_stage(found.values()) == {
    "dec1": 3,
    "other": 2,
    "stage1": 11,
    "stem": 70 + scatter.cycles,
  }


def test_collectives_are_counted_with_the_bytes_of_their_parts():
  assert hlo.collectives(COMPILED) == {
    "all-reduce": {"count": 2, "bytes": 8 * 4 + 3 * 2 + 4 * 4},
    "collective-permute": {"count": 1, "bytes": 5},
  }

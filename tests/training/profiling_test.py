"""profiling: a trace of the steps that were asked for."""

import jax
import jax.numpy as jnp
import pytest

from cadjax.training import profiling
from data_prep.errors import UserError


@pytest.mark.parametrize("text", ["3:5", "1:2"])
def test_steps_are_read(text):
  assert profiling.parse(text) == tuple(map(int, text.split(":")))


@pytest.mark.parametrize("text", ["3", "5:3", "4:4", "0:2", "a:b", "-1:2", ""])
def test_what_names_no_steps_is_one_line(text):
  with pytest.raises(UserError, match="--profile=.*START:STOP"):
    profiling.parse(text)


def test_a_run_without_the_steps_is_told(tmp_path):
  tracer = profiling.Tracer(tmp_path, (3, 5))
  tracer.check(1, 4)
  for first, last in ((4, 9), (1, 3)):
    with pytest.raises(UserError, match=f"from step {first} to {last}"):
      tracer.check(first, last)
  profiling.Tracer(tmp_path, None).check(7, 8)


def test_the_steps_asked_for_are_traced(tmp_path):
  tracer = profiling.Tracer(tmp_path, (2, 4))
  step = jax.jit(lambda x: jnp.sin(x) @ x)
  x = jnp.ones((8, 8))
  for number in range(1, 6):
    with tracer.step(number):
      x = step(x)
    tracer.done(number, x)
    assert tracer._running == (number == 2)
  tracer.close()
  names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
  assert any(name.endswith(".xplane.pb") for name in names)
  assert any(name.endswith("perfetto_trace.json.gz") for name in names)


def test_a_run_that_ends_early_ends_its_trace(tmp_path):
  tracer = profiling.Tracer(tmp_path, (1, 9))
  with tracer.step(1):
    jnp.ones(3).block_until_ready()
  tracer.close()
  assert any(tmp_path.rglob("*.xplane.pb"))

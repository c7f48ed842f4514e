"""timing: where the time goes, by a clock that the test moves."""

import pytest

from cadjax.training import timing


class Time:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def pass_by(self, seconds):
    self.now += seconds


def make(peak=None):
  now = Time()
  clock = timing.Clock(volumes=8, flops=2e12, peak=peak, now=now)
  return clock, now


def test_the_parts_add_up_to_the_whole():
  clock, now = make()
  with clock.part(timing.COMPILATION):
    now.pass_by(10)
  now.pass_by(60)
  with clock.part(timing.EVALUATION):
    now.pass_by(20)

  def fail():
    with clock.part(timing.CHECKPOINTS):
      now.pass_by(5)
      raise KeyError

  with pytest.raises(KeyError):  # What fails has taken its time, too.
    fail()
  now.pass_by(5)
  assert clock.shares() == pytest.approx(
    {
      "steps": 0.65,
      "compilation": 0.1,
      "input": 0,
      "evaluation": 0.2,
      "checkpoints": 0.05,
    }
  )


def test_waiting_for_a_batch_is_input():
  clock, now = make()

  def batches():
    for item in "ab":
      now.pass_by(3)
      yield item
    now.pass_by(1)

  seen = []
  for item in clock.waiting(batches()):
    seen.append(item)
    now.pass_by(1.5)
  assert seen == ["a", "b"]
  assert clock.shares()["input"] == pytest.approx(0.7)


def test_the_speed_is_that_of_steps_and_their_input():
  clock, now = make(peak=40e12)
  with clock.part(timing.COMPILATION):
    now.pass_by(50)
  for _ in clock.waiting([None] * 10):
    now.pass_by(0.5)
  with clock.part(timing.EVALUATION):
    now.pass_by(50)
  found = clock.speed(10)
  assert found["volumes_per_s"] == pytest.approx(10 * 8 / 5)
  assert found["flops_share"] == pytest.approx(2 * 2e12 / 40e12)
  assert clock.speed(10) == {}
  now.pass_by(2)
  assert clock.speed(12)["volumes_per_s"] == pytest.approx(8)


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("NVIDIA H200", 989e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("Tesla T4", 65e12),
    ("cpu", None),
  ],
)
def test_peaks_are_known_by_name(kind, peak):
  assert timing.peak_flops(kind, 1) == peak
  assert timing.peak_flops(kind, 4) == (peak and 4 * peak)
  clock, now = make(peak and 4 * peak)
  now.pass_by(1)
  assert ("flops_share" in clock.speed(1)) == (peak is not None)


def test_the_end_of_a_training_takes_as_long_as_before():
  clock, now = make()
  assert clock.ending() == 0
  for seconds in (10, 30):
    with clock.part(timing.EVALUATION):
      now.pass_by(seconds)
  with clock.part(timing.CHECKPOINTS):
    now.pass_by(3)
  assert clock.ending() == 20 + 2 * 3


def test_a_limit_leaves_time_to_end():
  _, now = make()
  limit = timing.Limit(2, now=now)
  now.pass_by(60)
  assert not limit.reached(59)
  assert limit.reached(60)
  assert not timing.Limit(None, now=now).reached(1e9)

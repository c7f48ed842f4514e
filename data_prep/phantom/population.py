"""Who is scanned, and how: everything about a case that is not its disease."""

from typing import Any

import numpy as np

from data_prep.errors import UserError

# Which coronary artery reaches the back of the heart.
DOMINANCES = ("right", "left", "co")
# Lowest and highest value that a data set may fix: wider than what is drawn,
# and at both ends a phantom that can be made.
LIMITS = {
  "scanner": {
    "contrast_hu": (0, 1500),
    "right_heart": (0, 3),
    "cava": (0, 10),
    "mixing": (0, 1),
    "fov_mm": (80, 500),
    "length_mm": (40, 400),
    "blur_mm": (0.05, 5),
    "noise_hu": (0, 500),
    "grain_mm": (0.05, 5),
    "motion_mm": (0, 20),
    "left_arm": (0, 1),
    "streaks": (0, 3),
    "hardening": (0, 3),
    "shading_hu": (0, 60),
    "step_mm": (0, 10),
    "slab_mm": (8, 400),
    "table_mm": (0, 100),
    "hidden_mm": (0, 30),
    "ramp": (0, 1),
  },
  "population": {
    "female": (0, 1),
    "body_scale": (0.7, 1.4),
    "fat_mm": (0, 100),
    "breast_mm": (0, 100),
    "heart_scale": (0.7, 1.5),
    "lv_scale": (0.6, 1.6),
    "wall_mm": (3, 25),
    "rv_scale": (0.6, 1.6),
    "la_scale": (0.6, 1.6),
    "ra_scale": (0.6, 1.6),
    "aorta_radius_mm": (8, 35),
    "epicardial_fat_mm": (0, 30),
    "coronary_scale": (0.4, 2),
    "diaphragm_mm": (-40, 40),
    "myocardium_hu": (0, 300),
    "fat_hu": (-200, 0),
    "lung_hu": (-1024, -300),
    "liver_hu": (0, 300),
    "bone_hu": (100, 3000),
    "aortic_calcium_mm3": (0, 20000),
    "valve_calcium_mm3": (0, 20000),
    "annulus_calcium_mm3": (0, 20000),
    "cartilage_calcium_mm3": (0, 20000),
    "node_calcium_mm3": (0, 20000),
    "calcium_hu": (130, 3000),
    "descending_radius_mm": (6, 30),
    "mediastinal_soft": (0, 1),
    "fat_pad_mm": (0.5, 60),
    "kyphosis_mm": (0, 30),
    "scoliosis_mm": (-15, 15),
    "stomach_scale": (0.5, 1.4),
    "stomach_gas": (0, 1),
    "wires": (0, 8),
    "clips": (0, 12),
    "leads": (0, 2),
    "valve_ring": (0, 2),
  },
}
# Factor of the calcium outside the coronaries, healthy or not: the plaques of
# `overt` would show in the histogram of an average patient.
_CALCIUM = {"clinical": 1.0, "overt": 3.0}


def draw_patient(
  rng: np.random.Generator,
  overrides: dict[str, Any] | None = None,
  severity: str = "clinical",
) -> dict[str, Any]:
  """Draws a patient's anatomy, without a look at the label.

  Lengths are in mm, angles in degrees, scales relative to an average adult.

  Args:
    rng: source of randomness.
    overrides: values that replace drawn ones, by name.
    severity: of the data set; "overt" has more calcium everywhere.

  Returns:
    The parameters by name.

  Raises:
    UserError: an override has an unknown name.
  """
  female = bool(rng.random() < 0.45)
  body = float(np.clip(rng.normal(0.95 if female else 1.02, 0.05), 0.84, 1.16))
  fat = float(np.clip(rng.lognormal(np.log(20), 0.4), 7, 48))
  drawn = {
    "female": female,
    "body_scale": body,
    "fat_mm": fat,
    "breast_mm": float(rng.uniform(8, 45)) if female else 0.0,
    "heart_scale": float(
      np.clip(1.04 * body**0.7 * rng.normal(1, 0.045), 0.93, 1.2)
    ),
    # About the foot-head, front-back and right-left axes.
    "heart_turn_deg": [float(v) for v in rng.normal(0, [5, 5, 4])],
    "heart_center_mm": [
      float(v) for v in rng.normal([24, -18, -140], [8, 10, 25])
    ],
    "lv_scale": float(np.clip(rng.normal(1, 0.06), 0.86, 1.16)),
    "wall_mm": float(np.clip(rng.normal(9.3, 1.3), 7, 13.5)),
    "rv_scale": float(np.clip(rng.normal(1, 0.06), 0.86, 1.15)),
    "la_scale": float(np.clip(rng.normal(1, 0.07), 0.85, 1.2)),
    "ra_scale": float(np.clip(rng.normal(1, 0.07), 0.85, 1.18)),
    "aorta_radius_mm": float(np.clip(rng.normal(15.6, 1.7), 13, 20)),
    # Log-normal: few have much of it.
    "epicardial_fat_mm": float(
      np.clip(4.3 * np.exp(rng.normal(0, 0.42)), 1.5, 11)
    ),
    "coronary_scale": float(np.clip(rng.normal(1, 0.06), 0.84, 1.16)),
    "diaphragm_mm": float(np.clip(rng.normal(0, 5), -10, 8)),
    "myocardium_hu": float(rng.uniform(88, 122)),
    "fat_hu": float(rng.uniform(-118, -85)),
    "lung_hu": float(rng.uniform(-865, -750)),
    "liver_hu": float(rng.uniform(55, 110)),
    "bone_hu": float(rng.uniform(680, 1200)),
    # Calcium outside the coronaries, mm3; so wide that the coronaries' own
    # calcium disappears in it.
    "aortic_calcium_mm3": _calcium(rng, 900, 0.85),
    "valve_calcium_mm3": _calcium(rng, 250, 0.6),
    "annulus_calcium_mm3": _calcium(rng, 700, 0.5),
    "cartilage_calcium_mm3": _calcium(rng, 1200, 0.8),
    "node_calcium_mm3": _calcium(rng, 700, 0.5),
    "calcium_hu": float(rng.uniform(600, 1350)),
  }
  drawn |= _draw_chest(rng)
  for name in (key for key in drawn if key.endswith("_calcium_mm3")):
    drawn[name] *= _CALCIUM[severity]
  drawn.update(_draw_aorta(rng))
  return _with(drawn, overrides, "population")


def _draw_chest(rng: np.random.Generator) -> dict[str, Any]:
  """Draws what `thorax`, `bones` and `abdomen` need."""
  return {
    # Share of soft tissue in the fat between the lungs.
    "mediastinal_soft": float(rng.uniform(0.25, 0.85)),
    "fat_pad_mm": float(np.clip(rng.lognormal(np.log(13), 0.5), 4, 40)),
    "kyphosis_mm": float(rng.uniform(3, 15)),
    "scoliosis_mm": float(np.clip(rng.normal(0, 2.5), -7, 7)),
    "stomach_scale": float(rng.uniform(0.85, 1.2)),
    "stomach_gas": float(rng.beta(1.2, 1.6)),
    # Metal, whether or not the coronaries are diseased.
    "wires": int(rng.integers(4, 8)) * int(rng.random() < 0.08),
    "clips": int(rng.integers(2, 9)) * int(rng.random() < 0.05),
    "leads": int(rng.integers(1, 3)) * int(rng.random() < 0.05),
    # 1 an aortic prosthesis, 2 a mitral one.
    "valve_ring": int(rng.integers(1, 3)) * int(rng.random() < 0.04),
  }


def draw_scanner(
  rng: np.random.Generator, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
  """Draws a scan protocol, without a look at the label.

  Args:
    rng: source of randomness.
    overrides: values that replace drawn ones, by name.

  Returns:
    The parameters by name: mm for lengths, HU for contrasts and noise.

  Raises:
    UserError: an override has an unknown name.
  """
  contrast = float(np.clip(rng.normal(400, 65), 270, 580))
  drawn = {
    "contrast_hu": contrast,
    "right_heart": _right_heart(rng.random()),
    "cava": float(rng.uniform(0.6, 3.4)),
    "mixing": float(rng.uniform(0.05, 0.45)),
    "fov_mm": float(rng.uniform(170, 225)),
    "length_mm": float(rng.uniform(122, 158)),
    "shape": [275, 512, 512],
    "center_offset_mm": [float(v) for v in rng.normal(0, [7, 7, 6])],
    "blur_mm": float(rng.uniform(0.24, 0.47)),
    "noise_hu": float(rng.uniform(18, 50)),
    "grain_mm": float(rng.uniform(0.35, 0.75)),
    "motion_mm": float(min(rng.gamma(1.2, 0.35), 2.2)),
    # How far geometry.find_heart is off: mean and spread were measured on
    # phantoms, where it settles a little above the middle.
    "detector_offset_mm": [
      float(v) for v in rng.normal([-3.5, 4, 12], [2.5, 5, 4.5])
    ],
    # 1 where the contrast was injected there.
    "left_arm": float(rng.random() < 0.3),
  }
  drawn |= {
    "streaks": float(rng.beta(1.5, 2.0)),
    "hardening": float(rng.beta(2.0, 2.0)),
    "shading_hu": float(rng.gamma(1.5, 1.5)),
    # A scan of several beats has steps where two of them meet.
    "step_mm": float(rng.uniform(0.3, 1.6)) * int(rng.random() < 0.25),
    "slab_mm": float(rng.uniform(18, 42)),
    "table_mm": float(rng.uniform(4, 30)),
    # Radius of a tube of fat painted over every coronary artery; shows whether
    # anything else gives the label away.
    "hidden_mm": 0.0,
    "ramp": float(rng.uniform(0.2, 0.8)),
  }
  return _with(drawn, overrides, "scanner")


def _right_heart(share: float) -> float:
  """Returns the contrast of the right heart relative to the left one's.

  Saline after the contrast leaves it pale in most; without, it is the
  brighter side.
  """
  return float(0.35 + 0.9 * share + 1.7 * max(share - 0.72, 0.0))


def _draw_aorta(rng: np.random.Generator) -> dict[str, Any]:
  """Draws the descending aorta, its bends, and diseases of the aorta.

  Rates are of patients sent to CT for chest pain, rounded: aneurysm 6 %,
  thrombus 3 %, dissection 3 %, stent graft 3 %. What a patient does not have
  is drawn as well, so that the number of draws is the same in all.
  """
  radius = float(np.clip(rng.normal(12.2, 1.7), 9, 20))
  # Old aortas wind: few of them by much.
  winding = float(rng.gamma(1.5, 0.45))
  bends = [float(v) for v in winding * rng.normal(0, 1, 12)]
  chance, where = rng.random(4), rng.random(6)
  aneurysm, thrombus, dissection, graft = chance < [0.06, 0.03, 0.03, 0.03]
  ascending = bool(where[0] < 0.5)
  return {
    "descending_radius_mm": radius,
    "aorta_bends": bends,
    "aorta_disease": {
      # Shares of the way from the sinuses to the abdomen.
      "aneurysm_mm": float(aneurysm * (4 + where[1] * (3 if ascending else 8))),
      "aneurysm_at": float(0.1 if ascending else 0.55 + 0.25 * where[2]),
      "aneurysm_length": 0.12,
      "thrombus": bool(thrombus),
      "dissection": bool(dissection),
      "graft": bool(graft),
      "from": float(0.42 + 0.2 * where[3]),
      "angle": float(2 * np.pi * where[4]),
      # HU of the false lumen relative to the true one.
      "false_lumen": float(0.25 + 0.65 * where[5]),
    },
  }


def _calcium(rng, median_mm3: float, share: float) -> float:
  """Draws a log-normal amount that a share of people have."""
  has, amount = rng.random() < share, rng.lognormal(np.log(median_mm3), 1.0)
  return float(min(amount, 8 * median_mm3)) if has else 0.0


def _with(drawn: dict, overrides: dict | None, what: str) -> dict:
  unknown = sorted(set(overrides or {}) - set(drawn))
  if unknown:
    raise UserError(
      f"{what} has no {', '.join(unknown)}; known are {', '.join(drawn)}"
    )
  return {**drawn, **(overrides or {})}

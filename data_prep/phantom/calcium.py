"""Calcium outside the coronary arteries: no sign of coronary disease."""

import numpy as np

from data_prep.phantom import bones, shapes, vessels
from data_prep.phantom import heart as heart_lib
from data_prep.phantom.heart import Heart
from data_prep.phantom.thorax import Thorax
from data_prep.tissues import Tissue


def draw_calcium(
  canvas: shapes.Canvas,
  heart: Heart,
  chest: Thorax,
  rng: np.random.Generator,
) -> None:
  """Paints calcium on aorta, valves, cartilages and in lymph nodes.

  Args:
    canvas: changed in place.
    heart: the heart; its `size` says how much of each, in mm3.
    chest: the thorax.
    rng: source of randomness.
  """
  amount = heart.size
  aorta = vessels.aorta_line(heart)
  cartilages = bones.rib_tubes(chest)[1]
  for name, place in (
    ("aortic_calcium_mm3", lambda: _on_aorta(aorta, rng)),
    ("valve_calcium_mm3", lambda: _on_valve(heart, rng)),
    ("annulus_calcium_mm3", lambda: _on_annulus(heart, rng)),
    ("cartilage_calcium_mm3", lambda: _in_cartilage(cartilages, rng)),
    ("node_calcium_mm3", lambda: _in_node(chest, rng)),
  ):
    left = amount[name]
    while left > 2:
      point, radii = place()
      # A lump of more than what is left shrinks to it.
      volume = 4.19 * float(np.prod(radii))
      radii = radii * min(1.0, left / volume) ** (1 / 3)
      left -= min(volume, left)
      shapes.blob(
        canvas,
        point,
        radii,
        amount["calcium_hu"] * rng.uniform(0.8, 1.2),
        Tissue.CALCIUM,
      )


def _on_aorta(aorta, rng) -> tuple[np.ndarray, np.ndarray]:
  points, radii = aorta
  k = int(rng.integers(1, len(points) - 1))
  way = points[k + 1] - points[k - 1]
  across = np.cross(way, rng.normal(size=3))
  across /= np.linalg.norm(across)
  return points[k] + across * (radii[k] + 0.5), rng.uniform(1.2, 4.5, 3)


def _on_valve(heart: Heart, rng) -> tuple[np.ndarray, np.ndarray]:
  centers, radius = vessels.sinuses(heart)
  middle = heart_lib.AORTIC_VALVE + 6 * heart_lib.ROOT_WAY
  leaflet = centers[rng.integers(3)] - 4 * heart_lib.ROOT_WAY
  point = middle + (leaflet - middle) * rng.uniform(0.2, 1.0)
  point = point + rng.normal(0, 1.5, 3)
  return heart.to_patient(point[None])[0], rng.uniform(1.0, 2.8, 3)


def _on_annulus(heart: Heart, rng) -> tuple[np.ndarray, np.ndarray]:
  angle = rng.normal(-160, 45)
  radius = heart_lib.lv_radius(heart.size)[0]
  point = heart_lib.lv_point(rng.uniform(-3, 1), angle, radius * 0.95)
  return heart.to_patient(point[None])[0], rng.uniform(1.5, 4.5, 3)


def _in_cartilage(cartilages, rng) -> tuple[np.ndarray, np.ndarray]:
  points, radii = cartilages[rng.integers(len(cartilages))]
  k = int(rng.integers(len(points) - 1))
  point = points[k] + rng.random() * (points[k + 1] - points[k])
  way = rng.normal(size=3)
  way *= 0.75 * radii[k] / np.linalg.norm(way)
  return point + way, rng.uniform(1.4, 4.0, 3)


def _in_node(chest: Thorax, rng) -> tuple[np.ndarray, np.ndarray]:
  hila = np.array([[-55.0, 40, 45], [30, 52, 45], [-22, 50, 66], [-15, 58, 40]])
  point = hila[rng.integers(4)] + rng.normal(0, 5, 3)
  return chest.to_patient(point), rng.uniform(2.0, 5.5, 3)

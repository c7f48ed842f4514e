"""What a voxel of a mask can be: vessels, plaque, organs, bone.

The first five are the classes that coronary data sets annotate. The others
are drawn by the phantoms, whose masks name the tissue of every voxel, and are
used where a source annotates them, too.
"""

import enum


class Tissue(enum.IntEnum):
  """Values of a mask; `code` is SNOMED CT's, "" where there is none.

  Blood of a chamber is that chamber; muscle around the chambers is myocardium.
  """

  code: str

  def __new__(cls, value: int, code: str = "") -> "Tissue":
    """Returns a member of that value."""
    member = int.__new__(cls, value)
    member._value_ = value
    member.code = code
    return member

  BACKGROUND = 0, ""
  AORTA = 1, "15825003"
  LUMEN = 2, "41801008"  # Of the coronary arteries.
  STABLE_PLAQUE = 3, ""
  UNSTABLE_PLAQUE = 4, ""
  LEFT_VENTRICLE = 5, "87878005"
  RIGHT_VENTRICLE = 6, "53085002"
  LEFT_ATRIUM = 7, "82471001"
  RIGHT_ATRIUM = 8, "73829009"
  MYOCARDIUM = 9, "74281007"
  PULMONARY_ARTERY = 10, "81040000"
  PULMONARY_VEINS = 11, "122972007"
  SUPERIOR_VENA_CAVA = 12, "48345005"
  INFERIOR_VENA_CAVA = 13, "64131007"
  CORONARY_SINUS = 14, "90219004"
  AORTIC_WALL = 15, ""  # Also thrombus in the aorta.
  ARCH_BRANCHES = 16, ""
  OTHER_VESSELS = 17, ""  # Azygos, mammary, intercostal.
  LUNG = 18, "39607008"
  LUNG_VESSELS = 19, ""
  AIRWAYS = 20, "44567001"
  ESOPHAGUS = 21, "32849002"
  BONE = 22, "272673000"  # Its cortex.
  MARROW = 23, "14016003"
  CARTILAGE = 24, ""
  SPINAL_CANAL = 25, ""
  FAT = 26, "55603005"
  EPICARDIAL_FAT = 27, ""
  PERICARDIUM = 28, "76848001"
  MUSCLE = 29, "91727004"
  SKIN = 30, "39937001"
  LIVER = 31, "10200004"
  LIVER_VESSELS = 32, ""
  SPLEEN = 33, "78961009"
  STOMACH = 34, "69695003"
  GAS = 35, ""  # In stomach and bowel.
  CALCIUM = 36, ""  # Outside the coronary arteries.
  METAL = 37, ""
  SOFT_TISSUE = 38, ""  # Whatever else is in the body.


CLASS_NAMES = tuple(tissue.name.lower() for tissue in Tissue)
# What masks of coronary data sets annotate, unless they say otherwise.
VESSEL_CLASSES = CLASS_NAMES[:5]
# What masks of the heart have: blood and muscle, not the fat around them.
HEART = (
  Tissue.LEFT_VENTRICLE,
  Tissue.RIGHT_VENTRICLE,
  Tissue.LEFT_ATRIUM,
  Tissue.RIGHT_ATRIUM,
  Tissue.MYOCARDIUM,
)

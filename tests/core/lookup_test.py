"""Names in configs, and what a typo is answered."""

import pytest

from cadjax.core import lookup

TABLE = {"focal": 1, "cross_entropy": 2}


def test_a_name_stands_for_its_object():
  assert lookup.look_up(TABLE, "focal", "loss") == 1


@pytest.mark.parametrize("name", ["focall", "Focal", "focl"])
def test_a_typo_gets_the_nearest_name_and_all_of_them(name):
  message = f"unknown loss {name!r}; did you mean 'focal'\\? known:"
  with pytest.raises(lookup.UnknownName, match=message) as error:
    lookup.look_up(TABLE, name, "loss")
  assert str(error.value).endswith("known: cross_entropy, focal")
  assert isinstance(error.value, lookup.ConfigError)


def test_nothing_is_proposed_where_nothing_is_near():
  with pytest.raises(lookup.UnknownName) as error:
    lookup.look_up(TABLE, "xyz", "loss")
  assert "did you mean" not in str(error.value)


def test_every_name_is_checked():
  lookup.check_known([], TABLE, "loss")
  lookup.check_known(["cross_entropy", "focal"], TABLE, "loss")
  with pytest.raises(lookup.UnknownName, match="unknown loss 'dice'"):
    lookup.check_known(["focal", "dice"], TABLE, "loss")
  with pytest.raises(lookup.UnknownName, match="unknown loss None"):
    lookup.check_known([None], TABLE, "loss")

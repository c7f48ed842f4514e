"""What an experiment answers beside its comparisons, in sentences.

A plan names one of `VERDICTS`. Each reads results.json, so that a page is
written again without the cells.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cadjax.metrics import intervals

RANK, LIFT = "rank_correlation", "coronaries_lift"
# Where a map and the network look, see `evaluation.counterfactuals`.
_ON, _MAP, _NETWORK = "on_used", "map_elsewhere", "network_elsewhere"
_UNUSED = "on_unused"
_WHO = (_ON, _MAP, _NETWORK, _UNUSED)
# Maps that a sentence names.
_NAMED = 3

Result = Mapping[str, Any]
Maps = dict[tuple[str, str], Mapping[str, Any]]  # Layer and method to metrics.


def sentences(result: Result) -> list[str]:
  """Returns the sentences of a result; none if its plan names no verdict."""
  name = result.get("verdict", "")
  return VERDICTS[name](result) if name else []


def maps_of(result: Result) -> Maps:
  """Returns the metrics of lines ARM/LAYER.METHOD, in their order."""
  found: Maps = {}
  for row in result["lines"]:
    layer, dot, method = row["line"].partition("/")[2].partition(".")
    if dot:
      found[layer, method] = row["metrics"]
  return found


def explanations(result: Result) -> list[str]:
  """Ranks maps by the counterfactuals; tells where Grad-CAM looks, and why."""
  maps = maps_of(result)
  ranked = sorted(
    (key for key, row in maps.items() if _value(row, RANK) is not None),
    key=lambda key: -_value(maps[key], RANK),
  )
  found = []
  if ranked:
    best = "; ".join(_said(maps, key, RANK) for key in ranked[:_NAMED])
    found.append(
      "The map agrees best with what each lesion does to the log odds (rank"
      f" correlation, over patients and trainings) by: {best}. Last:"
      f" {_said(maps, ranked[-1], RANK)}"
    )
  else:
    found.append(
      "No map can be ranked: no scan has three lesions and uses one of them"
    )
  found.append(_localised(maps))
  found += [_who(maps, layer) for layer in _layers(maps)]
  return [one for one in found if one]


def _localised(maps: Maps) -> str:
  """At which layers Grad-CAM is localised to the coronaries."""
  known = [
    x for x in _layers(maps) if _value(maps[x, "gradcam"], LIFT) is not None
  ]
  if not known:
    return ""
  sides: dict[str, list[str]] = {"is": [], "is not shown to be": []}
  for layer in known:
    low = maps[layer, "gradcam"][LIFT]["low"]
    word = "is" if low is not None and low > 1 else "is not shown to be"
    text = _interval(maps[layer, "gradcam"][LIFT])
    sides[word].append(f"{layer} (lift {text})")
  said = "; ".join(
    f"{word} localised to the coronaries at {', '.join(some)}"
    for word, some in sides.items()
    if some
  )
  every = [key for key in maps if _value(maps[key], LIFT) is not None]
  best = max(every, key=lambda key: _value(maps[key], LIFT))
  return f"Grad-CAM {said}. The largest lift: {_said(maps, best, LIFT)}"


def _layers(maps: Maps) -> list[str]:
  """Returns the layers of Grad-CAM, from the input up: lines are ranked."""
  layers = [layer for layer, method in maps if method == "gradcam"]
  return sorted(layers, key=lambda layer: (layer != "stem", layer))


def _who(maps: Maps, layer: str) -> str:
  """Whether the network or the map looks elsewhere, of Grad-CAM at a layer."""
  row = maps[layer, "gradcam"]
  if any(_value(row, name) is None for name in _WHO):
    return ""
  on, elsewhere, network, unused = (_interval(row[name]) for name in _WHO)
  return (
    f"Grad-CAM at {layer}, of the scans with CAD: it hits a lesion that the"
    f" network uses in {on}; the network uses one and the map looks elsewhere"
    f" in {elsewhere}; the network uses none, and looks elsewhere itself, in"
    f" {network}; the network uses none and the map hits one, in {unused}"
  )


def _said(maps: Maps, key: tuple[str, str], metric: str) -> str:
  layer, method = key
  return f"{method} at {layer} ({_interval(maps[key][metric])})"


def _interval(entry: Mapping[str, Any]) -> str:
  return intervals.interval_text(
    entry["value"], entry["low"], entry["high"], digits=2
  )


def _value(row: Mapping[str, Any], metric: str) -> float | None:
  return row[metric]["value"] if metric in row else None


VERDICTS: Mapping[str, Callable[[Result], list[str]]] = {
  "explanations": explanations,
}

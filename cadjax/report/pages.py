"""What all pages share: the notice, templates, pictures inside a page."""

import base64

import jinja2

from cadjax.report import planes

# The short form, in the files and tables of evaluations and experiments.
DISCLAIMER = "Research software, not a medical device."
NOTICE = (
  "Research software. Not a medical device: not for diagnosis, triage or any"
  " decision about a patient."
)
UNDEFINED = "–"


def disclaimer(*, phantom: bool) -> str:
  """Returns the disclaimer of a result, which names phantoms where it has any.

  Args:
    phantom: whether the result is of phantoms.
  """
  return ("Phantom results. " if phantom else "") + DISCLAIMER


def templates() -> jinja2.Environment:
  """Returns the templates of all pages; what they are given is escaped."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader("cadjax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def picture(panel: planes.Panel) -> dict[str, str]:
  """Returns "src" and "caption" of a panel for a template."""
  number, count = panel.slice
  return {
    "src": data_url(planes.panel_png(panel)),
    "caption": f"{panel.name.capitalize()}, slice {number} of {count}",
  }


def data_url(png: bytes) -> str:
  """Returns a picture as an address that holds it."""
  return "data:image/png;base64," + base64.b64encode(png).decode()

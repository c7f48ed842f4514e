"""cadjax: coronary artery disease from CT coronary angiography, in JAX."""

__version__ = "0.2.0"

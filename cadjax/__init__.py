"""cadjax: coronary artery disease from CT coronary angiography, in JAX."""

__version__ = "0.1.0"

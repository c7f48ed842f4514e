"""The models that come with cadjax: files of weights, their cards, packing."""

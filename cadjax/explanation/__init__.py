"""Where a model looked: the CAM family and references."""

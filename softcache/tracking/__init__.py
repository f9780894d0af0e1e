"""Where a training's numbers go beside its own files: one file a tracker."""

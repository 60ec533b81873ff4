"""Components: each a class in one file, named by the `_target_` of its yaml file."""

"""The config of a run: schema, ranges, composition, checks and the run id."""

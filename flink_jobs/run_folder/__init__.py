"""The output folder of a run on files: what is in it, the plan of the inputs, its locks."""

"""From a config to functions: the keys, their checks, and the recipe that they make."""

"""From settings to parts: the environment's options, the rules, the targets, what is refused."""

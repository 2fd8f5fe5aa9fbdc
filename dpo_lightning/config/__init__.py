"""Between the command line and the classes: config files, what they may name, overrides, and parser errors."""

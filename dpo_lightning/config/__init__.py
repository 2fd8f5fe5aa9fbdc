"""Config files and command lines: what they may name, which options win, and errors of the parser."""

"""The commands of `python -m dpo_lightning`: one file each, with `main(argv) -> exit status`."""
